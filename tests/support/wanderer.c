/* A process that maps COUNT pages, each a VMA of its own, and for each line of stdin all of them elsewhere.

   wanderer COUNT

   Each move is answered by "moved". */

#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>

enum { PAGE = 4096 };

int main(int count, char **words) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 1);
    long pages = count == 2 ? atol(words[1]) : 0;
    if (pages <= 0)
        errx(2, "usage: wanderer COUNT");
    char *at = (char *)0x100000000000, line[8];
    while (fgets(line, sizeof line, stdin)) {
        munmap(at, pages * PAGE);
        at += 2 * pages * PAGE;
        if (mmap(at, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
            err(1, "mmap");
        for (long page = 0; page < pages; page += 2)
            if (mprotect(at + page * PAGE, PAGE, PROT_READ))
                err(1, "mprotect");
        puts("moved");
        fflush(stdout);
    }
    return 0;
}
