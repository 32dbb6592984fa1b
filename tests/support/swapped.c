/* Holds memory of which a part is swapped out.
 *
 *     swapped GROUP MEGABYTES HOW [FILE]
 *
 * It enters the cgroup GROUP, or stays where it is if that is "-", and fills private memory, of FILE if one is
 * named: page N begins with N, and is made of bytes that do not compress. HOW is what it has swapped out itself:
 * "all", "odd" (every other page), "none". It prints {"start": …, "length": …}, and with each line that it reads
 * it looks whether every page is right, and prints {"wrong": COUNT}.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

enum { PAGE = 4096, WORDS = PAGE / 8 };

static void fill(uint64_t *page, uint64_t number)
{
    uint64_t state = number * 0x9e3779b97f4a7c15 + 1;
    page[0] = number;
    for (int i = 1; i < WORDS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page[i] = state;
    }
}

static void enter(const char *group)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/cgroup.procs", group);
    FILE *file = fopen(path, "w");
    if (!file || fprintf(file, "%d\n", getpid()) < 0 || fclose(file))
        err(1, "%s", path);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        errx(1, "usage");
    if (strcmp(argv[1], "-"))
        enter(argv[1]);
    size_t length = strtoul(argv[2], NULL, 10) << 20;
    int fd = -1;
    if (argc > 4) {
        fd = open(argv[4], O_RDWR | O_CREAT, 0600);
        if (fd < 0 || ftruncate(fd, length))
            err(1, "%s", argv[4]);
    }
    int flags = MAP_PRIVATE | (fd < 0 ? MAP_ANONYMOUS : 0);
    uint64_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (memory == MAP_FAILED)
        err(1, "mmap");
    madvise(memory, length, MADV_NOHUGEPAGE);
    size_t pages = length / PAGE;
    for (size_t i = 0; i < pages; i++)
        fill(memory + i * WORDS, i);
    if (!strcmp(argv[3], "all") && madvise(memory, length, MADV_PAGEOUT))
        err(1, "madvise");
    for (size_t i = 1; !strcmp(argv[3], "odd") && i < pages; i += 2)
        if (madvise(memory + i * WORDS, PAGE, MADV_PAGEOUT))
            err(1, "madvise");
    printf("{\"start\": %lu, \"length\": %lu}\n", (unsigned long)memory, (unsigned long)length);
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        uint64_t right[WORDS];
        size_t wrong = 0;
        for (size_t i = 0; i < pages; i++) {
            fill(right, i);
            wrong += memcmp(right, memory + i * WORDS, PAGE) != 0;
        }
        printf("{\"wrong\": %lu}\n", (unsigned long)wrong);
        fflush(stdout);
    }
    return 0;
}
