/*
 * A program without a vDSO, as one is under valgrind. It writes "ready"; then, as it is told, it answers each
 * line with "here", or runs on and on in its own code.
 *
 * Usage: novdso waits|spins
 */

#define _GNU_SOURCE

#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    unsigned long start, end;
    char line[512], answer;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (count == 2 && maps && fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2 &&
            munmap((void *)start, end - start) != 0)
            return 1;
    if (write(1, "ready\n", 6) != 6)
        return 1;
    while (strcmp(arguments[1], "spins") == 0)
        ;
    while (read(0, &answer, 1) == 1)
        if (answer == '\n' && write(1, "here\n", 5) != 5)
            return 1;
    return 0;
}
