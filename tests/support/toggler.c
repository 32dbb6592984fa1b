/*
 * A program that attacks whoever makes it run system calls: its vDSO, where such calls are made, is a page of
 * its own, and a process that shares its memory, but is not one of its threads, changes that page all the time.
 *
 * Usage: toggler HOW WHAT
 *
 * HOW the page is changed, between being what it was and
 *   bytes       a jump to a system call of its own choice
 *   compat      the same call by the 32-bit entry, int 0x80
 *   removed     no page at all
 *   replaced    another page, with that jump
 *   breakpoint  int3
 *   illegal     ud2
 *   loop        a jump to itself
 *
 * WHAT the call of its own choice is: `NUMBER`, one that returns that number; or `/PATH`, mkdir of that path,
 * which the program itself may not call: a seccomp filter answers it with EPERM.
 *
 * Its one thread waits in pause(2), called from that page. It writes the line "ready", and ends with its stdin.
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, SIZE = 2 * PAGE, LOOP_AT = 0x40, CALL_AT = LOOP_AT + 5, STACK = 1 << 16 };

static unsigned char *page;
static unsigned char *other_page;
static const char *how;
static unsigned char changed[2];

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        exit(1);
    }
}

static unsigned char *put(unsigned char *at, const void *bytes, size_t size)
{
    memcpy(at, bytes, size);
    return at + size;
}

static void write_code(unsigned char *to, long number, uint64_t first, uint64_t second)
{
    static const unsigned char pause[] = {0xb8, SYS_pause, 0, 0, 0};
    static const unsigned char call_and_loop[] = {0x0f, 0x05, 0xeb, 0xf7};
    uint32_t short_number = number;
    memset(to, 0xcc, SIZE);
    memcpy(to, "\177ELF", 4);
    unsigned char *at = put(to + LOOP_AT, pause, sizeof pause);
    at = put(at, call_and_loop, sizeof call_and_loop);
    at = put(at, "\xb8", 1); /* mov eax */
    at = put(at, &short_number, 4);
    at = put(at, "\x48\xbf", 2); /* mov rdi */
    at = put(at, &first, 8);
    at = put(at, "\x48\xbe", 2); /* mov rsi */
    at = put(at, &second, 8);
    at = put(at, "\x31\xd2\x0f\x05\xeb", 5); /* xor edx, edx; syscall; jmp */
    *at = (unsigned char)(to + LOOP_AT - (at + 1));
}

static int change_for_ever(void *nothing)
{
    (void)nothing;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        if (strcmp(how, "removed") == 0) {
            munmap(page, SIZE);
            sched_yield();
            mmap(page, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            memcpy(page, other_page, SIZE);
        } else if (strcmp(how, "replaced") == 0) {
            void *new = mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            memcpy(new, other_page, SIZE);
            memcpy((unsigned char *)new + CALL_AT, changed, sizeof changed);
            mremap(new, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, page);
            sched_yield();
            new = mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            memcpy(new, other_page, SIZE);
            mremap(new, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, page);
        } else {
            memcpy(page + CALL_AT, changed, sizeof changed);
            for (volatile int spin = 0; spin < 300; spin++)
                ;
            memcpy(page + CALL_AT, "\x0f\x05", 2);
        }
        for (volatile int spin = 0; spin < 3000; spin++)
            ;
    }
    return 0;
}

static void go_on(int number)
{
    (void)number;
}

static void forbid_mkdir(void)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdir, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "PR_SET_SECCOMP");
}

int main(int count, char **arguments)
{
    check(count != 3, "usage");
    how = arguments[1];
    const char *what = arguments[2];

    page = (unsigned char *)getauxval(AT_SYSINFO_EHDR);
    void *mapped = mmap(page, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    check(mapped == MAP_FAILED, "mmap");
    other_page = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (*what == '/') {
        write_code(page, SYS_mkdir, (uint64_t)what, 0777);
    } else {
        int file = open("/proc/self/exe", O_RDONLY);
        check(file < 0, "open");
        write_code(page, SYS_lseek, file, strtoull(what, NULL, 10));
    }
    memcpy(other_page, page, SIZE);

    static const struct {
        const char *how;
        unsigned char bytes[2];
    } ways[] = {
        {"bytes", {0xeb, 0x02}}, {"replaced", {0xeb, 0x02}}, {"compat", {0xcd, 0x80}}, {"removed", {0, 0}},
        {"breakpoint", {0xcc, 0xcc}}, {"illegal", {0x0f, 0x0b}}, {"loop", {0xeb, 0xfe}},
    };
    int known = 0;
    for (size_t each = 0; each < sizeof ways / sizeof *ways; each++) {
        if (strcmp(ways[each].how, how) == 0) {
            memcpy(changed, ways[each].bytes, 2);
            known = 1;
        }
    }
    check(!known, "usage");

    /* What its own thread runs into, when it happens to run: it tries again. */
    struct sigaction again = {.sa_handler = go_on, .sa_flags = SA_NODEFER};
    sigaction(SIGTRAP, &again, NULL);
    sigaction(SIGSEGV, &again, NULL);
    sigaction(SIGILL, &again, NULL);
    static char watch_stack[STACK];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (*what == '/')
        forbid_mkdir();
    check(clone(change_for_ever, watch_stack + STACK, CLONE_VM | SIGCHLD, NULL) < 0, "clone");
    check(write(1, "ready\n", 6) != 6, "write");
    ((void (*)(void))(page + LOOP_AT))();
    return 1;
}
