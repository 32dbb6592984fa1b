/* How long a fork takes in a process of that size: what a snapshot's pause is compared with.

   forkprobe SMALL HUGE

   It holds SMALL bytes in pages of 4 KiB and HUGE bytes in huge pages, forks a few times, and prints the median of
   what fork(2) took, in microseconds. */

#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TIMES = 11 };

static void hold(size_t size, int advice) {
    size_t huge = 2 << 20;
    char *at = size ? mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;
    if (at == MAP_FAILED)
        err(1, "mmap");
    if (at) {
        madvise(at, size + huge, advice);
        memset((char *)(((size_t)at + huge - 1) / huge * huge), 1, size);
    }
}

static int compare(const void *one, const void *other) {
    long a = *(const long *)one, b = *(const long *)other;
    return (a > b) - (a < b);
}

int main(int argc, char **argv) {
    long took[TIMES];
    if (argc != 3)
        errx(1, "forkprobe SMALL HUGE");
    hold(strtoul(argv[1], NULL, 10), MADV_NOHUGEPAGE);
    hold(strtoul(argv[2], NULL, 10), MADV_HUGEPAGE);
    for (int i = 0; i < TIMES; i++) {
        struct timespec begun, done;
        clock_gettime(CLOCK_MONOTONIC, &begun);
        pid_t child = fork();
        clock_gettime(CLOCK_MONOTONIC, &done);
        if (child < 0)
            err(1, "fork");
        if (!child)
            _exit(0);
        waitpid(child, NULL, 0);
        took[i] = (done.tv_sec - begun.tv_sec) * 1000000 + (done.tv_nsec - begun.tv_nsec) / 1000;
    }
    qsort(took, TIMES, sizeof *took, compare);
    printf("%ld\n", took[TIMES / 2]);
    return 0;
}
