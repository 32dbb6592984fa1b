/* The target of the fuzzer: a random program of calls that change what a process is and what it maps.
 *
 *   program walk SEED PARENT FAMILY DEPTH FLAGS   goes on until it exits, execs or is killed
 *   program victim                                does nothing; any signal that it gets is an alarm
 *
 * Descriptors: 100 the ledger, 101 /dev/userfaultfd or nothing, 102 a directory of the user's own. In the
 * environment SECRET is the set-uid program, and WITHOUT names tricks that are not to be played (vdso, auxv).
 * Everything here is bounded by limits of resources that the caller has set; every process dies with the one
 * that made it.
 *
 * What the program does to itself and would not survive is not among its calls: so a signal that nobody of
 * its family sent is an alarm, unless it has changed its own vDSO (then a HARM record says so).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <poll.h>

#include "living.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

enum flags { SANDBOXED = 1, THREADED = 2, FORGED = 4, DISTORTED = 8, HARMED = 16 };
enum { MOST_DEPTH = 2, MOST_CHILDREN = 2, MOST_TASKS = 6, STACK = 16 * PAGE };

static char *program, *secret, *without;
static pid_t parent_pid;
static char **arguments;
static unsigned depth, flags;
static pid_t children[MOST_TASKS];
static unsigned child_count;
static volatile u64 deaths_told;
static u64 deaths_reaped;
static char stacks[MOST_TASKS][STACK] __attribute__((aligned(16)));
static pid_t stack_users[MOST_TASKS];
extern char __executable_start, etext, edata, end;
extern char **environ;

/* Signals */

static void on_child(int number) { (void)number, deaths_told++; }

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    int kernels = info->si_code > 0;
    pid_t sender = info->si_pid; /* a child that shares memory knows its parent by the control page */
    int parents = !kernels && (sender == parent_pid || sender == (pid_t)control->pid || sender == syscall(SYS_getppid));
    if (parents && (number == SIGUSR1 || number == SIGUSR2 || number == SIGCONT))
        return;
    if (!(parents && number == SIGTERM))
        write_record(ALARM, control->nonce, control->family, number, info->si_code,
                     kernels ? (u64)info->si_addr : (u64)info->si_pid);
    if (kernels || number == SIGTERM)
        _exit(parents ? 0 : 99);
}

static void handle_signals(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    for (int number = 1; number < 65; number++)
        if (number != SIGKILL && number != SIGSTOP && number != SIGCHLD)
            sigaction(number, &action, NULL);
    action.sa_handler = on_child;
    action.sa_flags = SA_RESTART | SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, NULL);
}

/* A SIGCHLD for which no child of ours has died is one too many. */
static void reap(void)
{
    u64 told = deaths_told;
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
        deaths_reaped++;
        for (unsigned i = 0; i < child_count; i++)
            if (children[i] == pid)
                children[i] = children[--child_count];
        for (unsigned i = 0; i < MOST_TASKS; i++)
            if (stack_users[i] == pid)
                stack_users[i] = 0;
    }
    if (told > deaths_reaped) {
        write_record(ALARM, control->nonce, control->family, SIGCHLD, told, deaths_reaped);
        deaths_reaped = told;
    }
}

/* Memory */

static u64 random_pages(void)
{
    static const u64 choices[] = {1, 2, 7, 33, 64, 64, MOST_PAGES};
    return choices[below(sizeof choices / sizeof *choices)];
}

static void empty(unsigned number)
{
    struct slot *slot = &control->slots[number];
    u64 pages = slot->pages;
    slot->state = BUSY;
    barrier();
    if (pages)
        munmap((void *)(ARENA + (u64)number * SLOT), MOST_PAGES * PAGE);
    barrier();
    *slot = (struct slot){EMPTY, 0, 0, 0, 0, 0};
}

static struct slot *begin(unsigned number, enum content content, u64 pages, u64 object)
{
    empty(number);
    struct slot *slot = &control->slots[number];
    *slot = (struct slot){BUSY, content, pages, control->nonce, ++control->generation, object};
    barrier();
    return slot;
}

static void done(unsigned number, int filled)
{
    barrier();
    if (filled)
        control->slots[number].state = FILLED;
    else
        empty(number);
}

static void fill_moved(unsigned number)
{
    u64 pages = random_pages(), at = ARENA + (u64)number * SLOT;
    if (!map_at(SCRATCH, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1))
        return;
    struct slot *slot = begin(number, MOVED, pages, 0);
    fill(SCRATCH, pages, slot->nonce, at, SCRATCH, slot->generation);
    void *moved = mremap((void *)SCRATCH, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)at);
    done(number, moved != MAP_FAILED);
}

static void fill_advised(unsigned number, enum content content)
{
    u64 pages = random_pages(), at = ARENA + (u64)number * SLOT;
    struct slot *slot = begin(number, content, pages, 0);
    int filled = map_at(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1) != NULL &&
                 !madvise((void *)at, pages * PAGE, content == WIPED ? MADV_WIPEONFORK : MADV_DONTFORK);
    if (filled)
        fill(at, pages, slot->nonce, at, at, slot->generation);
    done(number, filled);
}

/* A new object without a name, full of lines that name their offset; returns its descriptor, or -1. */
static int make_object(u64 pages, u64 object, u64 generation, int in_memory)
{
    int fd = in_memory ? memfd_create("fz", MFD_CLOEXEC)
                       : openat(DIRECTORY_FD, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    if (!ftruncate(fd, pages * PAGE) && map_at(SCRATCH, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd)) {
        fill(SCRATCH, pages, object, OF_OBJECT, OF_OBJECT, generation);
        munmap((void *)SCRATCH, pages * PAGE);
        return fd;
    }
    close(fd);
    return -1;
}

static void fill_of_object(unsigned number, enum content content)
{
    u64 pages = random_pages(), at = ARENA + (u64)number * SLOT;
    u64 object = write_record(OBJECT, control->nonce, control->family, 0, 0, 0);
    struct slot *slot = begin(number, content, pages, object);
    int fd = make_object(pages, object, slot->generation, content == SHARED && below(2));
    int map_flags = content == SHARED ? MAP_SHARED : MAP_PRIVATE;
    int filled = fd >= 0 && map_at(at, pages * PAGE, PROT_READ | PROT_WRITE, map_flags, fd) != NULL;
    for (u64 page = 0; filled && content == MIXED && page < pages; page += 3) /* the process's own pages */
        fill(at + page * PAGE, 1, slot->nonce, at + page * PAGE, at + page * PAGE, slot->generation);
    if (fd >= 0)
        close(fd);
    done(number, filled);
}

/* Each second page is supplied, and no one supplies the others. */
static void fill_supplied(unsigned number)
{
    u64 pages = random_pages(), at = ARENA + (u64)number * SLOT;
    int fd = ioctl(FAULTS_FD, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (fd < 0)
        return;
    struct slot *slot = begin(number, SUPPLIED, pages, 0);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register area = {{at, pages * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    int filled = map_at(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1) != NULL &&
                 map_at(SCRATCH, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1) != NULL &&
                 !ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &area);
    for (u64 page = 0; filled && page < pages; page += 2) {
        struct uffdio_copy copy = {at + page * PAGE, SCRATCH, PAGE, 0, 0};
        fill(SCRATCH, 1, slot->nonce, copy.dst, SCRATCH, slot->generation);
        filled = !ioctl(fd, UFFDIO_COPY, &copy);
    }
    munmap((void *)SCRATCH, PAGE);
    done(number, filled);
    sleep_us(20000 + below(100000));
    empty(number);
    close(fd);
}

static void change_protection(unsigned number)
{
    static const int choices[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC};
    struct slot *slot = &control->slots[number];
    if (slot->state == FILLED) /* a filled slot is never written again before it is mapped anew */
        mprotect((void *)(ARENA + (u64)number * SLOT), (1 + below(slot->pages)) * PAGE, choices[below(4)]);
}

static void drop_pages(unsigned number)
{
    struct slot *slot = &control->slots[number];
    u64 pages = slot->pages;
    if (slot->state != FILLED || slot->content > NOT_FORKED)
        return;
    slot->state = BUSY;
    barrier();
    madvise((void *)(ARENA + (u64)number * SLOT), pages * PAGE, MADV_DONTNEED);
    barrier();
    slot->state = EMPTY; /* mapped, and nothing in it */
}

static void change_memory(void)
{
    unsigned number = below(SLOTS);
    switch (below(11)) {
    case 0: case 1: case 2: fill_slot_plainly((empty(number), number), random_pages()); break;
    case 3: fill_moved(number); break;
    case 4: fill_advised(number, WIPED); break;
    case 5: fill_advised(number, NOT_FORKED); break;
    case 6: fill_of_object(number, SHARED); break;
    case 7: fill_of_object(number, MIXED); break;
    case 8: empty(number); break;
    case 9: change_protection(number); break;
    default: drop_pages(number); break;
    }
}

/* What the process says of itself */

/* Set what prctl(PR_SET_MM) lets anyone set; with *forge*, AT_RANDOM to where the program's header lies, which
 * is the same in every program that is linked as this one is. */
static void set_mm(int forge)
{
    static u64 auxv[64];
    if (strstr(without, "auxv"))
        return;
    char **at = environ;
    while (*at)
        at++;
    const u64 *given = (const u64 *)(at + 1);
    unsigned count = 0;
    do {
        auxv[count] = given[count];
        auxv[count + 1] = given[count + 1];
        if (forge && auxv[count] == AT_RANDOM)
            auxv[count + 1] = (u64)&__executable_start;
        if (!forge && auxv[count] == AT_SYSINFO_EHDR && below(2))
            auxv[count + 1] = below(2) ? ARENA : (u64)&__executable_start;
        count += 2;
    } while (auxv[count - 2] != AT_NULL && count < 62);
    u64 brk_now = syscall(SYS_brk, 0);
    u64 text = (u64)arguments[0];
    struct prctl_mm_map map = {
        .start_code = (u64)&__executable_start, .end_code = (u64)&etext,
        .start_data = (u64)&etext, .end_data = (u64)&edata,
        .start_brk = brk_now - below(2) * PAGE, .brk = brk_now,
        .start_stack = forge ? (u64)arguments : CONTROL + below(PAGE),
        .arg_start = forge ? text : CONTROL, .arg_end = forge ? text + 8 : CONTROL + below(PAGE),
        .env_start = CONTROL, .env_end = CONTROL + (forge ? 0 : below(PAGE)),
        .auxv = (void *)auxv, .auxv_size = count * sizeof *auxv, .exe_fd = -1,
    };
    if (!prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0))
        control->flags = flags |= forge ? FORGED : DISTORTED;
}

static int find_vdso(u64 *begin_at, u64 *end_at)
{
    static char text[1 << 16];
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    ssize_t length = 0, got;
    while (fd >= 0 && (got = read(fd, text + length, sizeof text - 1 - length)) > 0)
        length += got;
    close(fd);
    text[length] = 0;
    char *found = strstr(text, "[vdso]");
    if (!found)
        return 0;
    while (found > text && found[-1] != '\n')
        found--;
    return sscanf(found, "%lx-%lx", begin_at, end_at) == 2;
}

enum answer { VICTIM, ZERO, LEAVE_SANDBOX };

/* A page with a system call that its toggling turns into a jump, to a call whose result is chosen. */
static void write_trap(unsigned char *page, enum answer answer, int fd)
{
    static char path[64];
    uint32_t victims = 0;
    while (ledger->victims[victims])
        victims++;
    u64 call = SYS_lseek, first = fd, second = 0;
    if (answer == VICTIM && victims)
        second = ledger->victims[below(victims)];
    if (answer == LEAVE_SANDBOX) {
        snprintf(path, sizeof path, "escaped-%u-%u", control->family, (unsigned)below(1 << 30));
        call = SYS_mkdirat, first = DIRECTORY_FD, second = (u64)path;
    }
    static const unsigned char head[] = {0x7f, 'E', 'L', 'F', 2, 1, 1};
    unsigned char *at = page + 0x840;
    memcpy(page, head, sizeof head);
    memcpy(page + 0x800, "\x0f\x05\xcc", 3);
    memcpy(at, "\xb8", 1), memcpy(at + 1, &call, 4);           /* mov eax, call */
    memcpy(at + 5, "\xbf", 1), memcpy(at + 6, &first, 4);      /* mov edi, first */
    memcpy(at + 10, "\x48\xbe", 2), memcpy(at + 12, &second, 8); /* mov rsi, second */
    memcpy(at + 20, "\x31\xd2\x0f\x05\xeb\xfe", 6);            /* xor edx, edx; syscall; loop */
}

static void toggle(volatile uint16_t *at, long ms)
{
    for (; ms > 0; ms -= 10) {
        for (u64 until = now_ns() + 5000000; now_ns() < until;)
            for (unsigned i = 0; i < 200; i++) {
                *at = 0x3eeb; /* jmp to the stub */
                for (volatile unsigned wait = 0; wait < i; wait++)
                    ;
                *at = 0x050f; /* syscall */
                for (volatile unsigned wait = 0; wait < i; wait++)
                    ;
            }
        sleep_us(5000);
    }
}

static pid_t note_child(pid_t pid)
{
    if (pid > 0)
        children[child_count++] = pid;
    return pid;
}

/* The vDSO is removed, moved, or replaced by a page that another process writes to. */
static void change_vdso(void)
{
    u64 from, to;
    if (strstr(without, "vdso") || flags & HARMED || !find_vdso(&from, &to) || child_count >= MOST_CHILDREN)
        return;
    control->flags = flags |= HARMED;
    write_record(HARM, control->nonce, control->family, 0, 0, 0);
    unsigned choice = below(8);
    if (choice == 0) {
        munmap((void *)from, to - from);
    } else if (choice == 1) {
        mremap((void *)from, to - from, to - from, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(SCRATCH + (1 << 24)));
    } else {
        int fd = memfd_create("fz-vdso", MFD_CLOEXEC);
        if (fd < 0 || dup2(fd, SCRATCH_FD) < 0 || ftruncate(fd, to - from))
            return;
        unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (page == MAP_FAILED)
            return;
        write_trap(page, flags & SANDBOXED ? LEAVE_SANDBOX : below(12) ? VICTIM : ZERO, SCRATCH_FD);
        pid_t parent = getpid();
        pid_t pid = note_child(fork());
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            prctl(PR_SET_NAME, "fz-toggler"); /* it is itself nothing to look at */
            if (getppid() == parent)
                toggle((uint16_t *)(page + 0x800), 4000);
            _exit(0);
        }
        munmap(page, PAGE);
        if (pid > 0)
            map_at(from, to - from, PROT_READ | PROT_EXEC, choice < 4 ? MAP_PRIVATE : MAP_SHARED, SCRATCH_FD);
    }
}

/* Processes */

static void exec_program(u64 parent)
{
    char seed[24], nonce[24], family[12], deep[12], flag[12];
    snprintf(seed, sizeof seed, "%lu", next_random());
    snprintf(nonce, sizeof nonce, "%lu", parent);
    snprintf(family, sizeof family, "%u", control->family);
    snprintf(deep, sizeof deep, "%u", depth);
    snprintf(flag, sizeof flag, "%u", flags & SANDBOXED);
    char *walker[] = {program, "walk", seed, nonce, family, deep, flag, NULL};
    char *keeper[] = {secret, seed, nonce, family, NULL};
    if (below(3) && !(flags & SANDBOXED))
        execve(secret, keeper, environ);
    execve(program, walker, environ);
    _exit(92);
}

static int share_and_wait(void *ms)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sleep_us((long)ms * 1000);
    syscall(SYS_exit, 0); /* of this task alone: it shares what exit(3) would clean */
    return 0;
}

/* A child that shares the address space, and keeps it when this process has exec'ed. */
static void share(long ms)
{
    if (child_count == MOST_TASKS)
        return;
    unsigned free = 0;
    while (stack_users[free])
        free++;
    pid_t pid = clone(share_and_wait, stacks[free] + STACK, CLONE_VM | SIGCHLD, (void *)ms);
    stack_users[free] = pid > 0 ? note_child(pid) : 0;
    sleep_us(500);
}

static void become_child(pid_t parent, u64 parent_nonce)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
        _exit(0);
    parent_pid = parent;
    child_count = 0;
    memset(stack_users, 0, sizeof stack_users);
    deaths_told = deaths_reaped = 0;
    depth++;
    random_state ^= (u64)getpid() << 20;
    for (unsigned number = 0; number < SLOTS; number++)
        if (control->slots[number].content == WIPED || control->slots[number].content == NOT_FORKED)
            control->slots[number] = (struct slot){EMPTY, 0, MOST_PAGES, 0, 0, 0};
    u64 nonce = write_record(FORKED, parent_nonce, control->family, 0, 0, 0);
    control->parent = parent_nonce;
    control->nonce = nonce;
    barrier();
    control->pid = getpid();
}

static void make_child(void)
{
    if (depth == MOST_DEPTH || child_count >= MOST_CHILDREN)
        return;
    pid_t parent = getpid();
    u64 nonce = control->nonce;
    if (note_child(fork()) == 0) {
        become_child(parent, nonce);
        control->last = control->steps + 20 + below(100);
    }
}

static void make_vforked(void)
{
    if (child_count == MOST_TASKS)
        return;
    long ms = below(20);
    char *argv[] = {"/bin/true", NULL};
    pid_t pid = vfork();
    if (pid == 0) {
        sleep_us(ms * 1000);
        if (ms % 2)
            execve(argv[0], argv, environ);
        _exit(0);
    }
    note_child(pid);
}

static void signal_child(void)
{
    if (!child_count)
        return;
    pid_t pid = children[below(child_count)];
    switch (below(8)) {
    case 0: kill(pid, SIGKILL); break;
    case 1: kill(pid, SIGTERM); break;
    case 2: case 3:
        kill(pid, SIGSTOP);
        sleep_us(below(30000));
        kill(pid, SIGCONT);
        break;
    default: kill(pid, below(2) ? SIGUSR1 : SIGUSR2); break;
    }
}

static void *spin(void *unused)
{
    for (volatile u64 count = 0;; count++)
        sleep_us(3000);
    return unused;
}

/* Calls that only someone else would have this program make end it; mkdir fails. */
static void enter_sandbox(void)
{
    static struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdirat, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setsid, 0, 2),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog rules = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &rules))
        _exit(93);
    if (syscall(SYS_mkdirat, DIRECTORY_FD, "escaped-by-itself", 0700) != -1 || errno != EPERM)
        _exit(94);
}

static void step(void)
{
    u64 choice = below(1000);
    if (choice < 600)
        change_memory();
    else if (choice < 640)
        fill_supplied(below(SLOTS));
    else if (choice < 720)
        make_child();
    else if (choice < 760)
        make_vforked();
    else if (choice < 800)
        share(10 + below(200));
    else if (choice < 880)
        signal_child();
    else if (choice < 900)
        set_mm(0);
    else if (choice < 920)
        set_mm(1);
    else if (choice < 925)
        change_vdso();
    else if (choice < 960)
        sleep_us(30000);
    else if (choice < 985) {
        if (below(3)) /* the old address space lives on, and looks as the new one does */
            set_mm(1), sleep_us(below(60000)), share(800);
        exec_program(control->nonce);
    } else if (choice < 988)
        _exit(0);
}

static int walk(void)
{
    prctl(PR_SET_NAME, NAME);
    handle_signals();
    if (flags & SANDBOXED)
        enter_sandbox();
    pthread_t thread;
    if (below(3) == 0 && !pthread_create(&thread, NULL, spin, NULL))
        control->flags = flags |= THREADED;
    for (unsigned i = 0; i < 6; i++)
        fill_slot_plainly(below(SLOTS), 64);
    for (;;) {
        control->steps++;
        (*second_steps)++;
        step();
        reap();
        if (control->last && control->steps > control->last)
            _exit(0);
        sleep_us(4000 + below(16000));
    }
}

static int be_victim(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    int told = signalfd(-1, &all, SFD_CLOEXEC);
    struct pollfd ends[] = {{0, POLLIN, 0}, {told, POLLIN, 0}};
    if (write(1, "\n", 1) != 1)
        return 2;
    while (poll(ends, 2, -1) > 0) {
        struct signalfd_siginfo info;
        if (ends[1].revents && read(told, &info, sizeof info) == sizeof info)
            write_record(ALARM, 0, 0, info.ssi_signo, info.ssi_code, info.ssi_pid);
        if (ends[0].revents)
            return 0;
    }
    return 1;
}

int main(int argc, char **argv)
{
    program = argv[0];
    secret = getenv("SECRET");
    without = getenv("WITHOUT") ? getenv("WITHOUT") : "";
    arguments = argv;
    if (argc == 2 && !strcmp(argv[1], "victim")) {
        if (!map_at(LEDGER_PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, LEDGER_FD))
            return 91;
        return be_victim();
    }
    if (argc != 7 || strcmp(argv[1], "walk") || !secret)
        return 2;
    random_state = strtoull(argv[2], NULL, 10);
    depth = atoi(argv[5]);
    flags = atoi(argv[6]);
    begin_life(EXECED, strtoull(argv[3], NULL, 10), atoi(argv[4]));
    control->flags = flags;
    control->last = depth ? 20 + below(100) : 0; /* else children that exec would be ever more */
    parent_pid = getppid();
    return walk();
}
