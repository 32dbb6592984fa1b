/* Mappings that reach behind the end of their file, and guard regions: pages that no one has.

   behind FILE

   FILE has 10,000 bytes. Six mappings of 1 MiB are made, and their addresses printed in one line, in hex:

       hidden   FILE from its start, private, PROT_NONE: so loaders leave the gaps between the parts of a library
       beyond   FILE from 1 MiB on, private: nothing of it is there
       shared   FILE from its start, shared
       written  FILE from its start, private, the second page full of 'w'
       guarded  FILE from its start, private, a guard region on the second page (Linux 6.15)
       memory   anonymous, full of 'm', a guard region on the second half (Linux 6.13)

   Then it waits for the end of stdin. */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { PAGE = 4096, LENGTH = 1 << 20 };

static char *map(int prot, int flags, int fd, off_t offset) {
    char *at = mmap(NULL, LENGTH, prot, flags, fd, offset);
    if (at == MAP_FAILED)
        err(1, "mmap");
    printf("%lx ", (unsigned long)at);
    return at;
}

static void guard(char *at, size_t length) {
    if (madvise(at, length, MADV_GUARD_INSTALL))
        err(77, "madvise(MADV_GUARD_INSTALL)");
}

int main(int argc, char **argv) {
    char byte;
    int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
    if (fd < 0)
        err(1, "behind FILE");
    map(PROT_NONE, MAP_PRIVATE, fd, 0);
    map(PROT_READ, MAP_PRIVATE, fd, LENGTH);
    map(PROT_READ, MAP_SHARED, fd, 0);
    memset(map(PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0) + PAGE, 'w', PAGE);
    guard(map(PROT_READ, MAP_PRIVATE, fd, 0) + PAGE, PAGE);
    char *memory = map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 'm', LENGTH);
    guard(memory + LENGTH / 2, LENGTH / 2);
    puts("");
    fflush(stdout);
    return read(0, &byte, 1) != 0;
}
