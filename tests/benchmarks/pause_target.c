/*
 * The process that is stopped: one thread of it writes down how long it was not running.
 *
 * Usage: pause_target CONTROL SIZE_BYTES 4k|huge|shared THREADS
 *
 * It fills SIZE_BYTES of private memory, or of shared memory of 4 KiB pages, and starts THREADS - 1 threads that wait. The first thread then looks
 * at the clock for ever, and every 50 us writes to a page of shared memory; the longest time between two looks is
 * the longest pause that it had. It is spoken to
 * through the file CONTROL, which it maps, so that it has no pipe and no terminal. Knows nothing of memfs.
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, WRITE_EVERY_NS = 50000, STEP_PAGES = 4099 };
enum command { RESET = 1, FORK, WRITE };

struct control {
    _Atomic uint64_t wanted; /* counts commands: one is new where this differs from `done` */
    _Atomic uint64_t done;
    uint64_t command, from, to, result;
    uint64_t longest_ns;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void *wait_for_ever(void *argument)
{
    for (;;)
        pause();
    return argument;
}

/* How long one fork takes, for the one who calls it. */
static uint64_t time_fork(void)
{
    uint64_t begun = now_ns(), taken;
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    taken = now_ns() - begun;
    if (child < 0)
        return 0;
    waitpid(child, NULL, 0);
    return taken;
}

/* Writes to each page from one to another; how long that takes. */
static uint64_t time_writes(char *memory, uint64_t from, uint64_t to)
{
    uint64_t begun = now_ns();
    for (uint64_t page = from; page < to; page++)
        memory[page * PAGE]++;
    return now_ns() - begun;
}

static void obey(struct control *control, char *memory)
{
    switch (control->command) {
    case FORK:
        control->result = time_fork();
        break;
    case WRITE:
        control->result = time_writes(memory, control->from, control->to);
        break;
    }
}

int main(int count, char **arguments)
{
    if (count != 5)
        return 2;
    int file = open(arguments[1], O_RDWR), huge = !strcmp(arguments[3], "huge"), threads = atoi(arguments[4]);
    int shared = !strcmp(arguments[3], "shared"), sharing = shared ? MAP_SHARED : MAP_PRIVATE;
    uint64_t size = strtoull(arguments[2], NULL, 10), before, now, written = 0, at = 0;
    struct control *control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *memory = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
    if (control == MAP_FAILED || memory == MAP_FAILED)
        return 1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memory += -(uintptr_t)memory % HUGE_PAGE;
    madvise(memory, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memset(memory, 1, size);
    for (int number = 1; number < threads; number++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, wait_for_ever, NULL))
            return 1;
    }
    control->result = (uint64_t)memory;

    atomic_store(&control->done, 1);
    for (before = now_ns();; before = now) {
        now = now_ns();
        if (shared && now - written > WRITE_EVERY_NS) {
            memory[at] = 2;
            at = (at + STEP_PAGES * (uint64_t)PAGE) % size;
            written = now;
            now = now_ns();
        }
        if (now - before > control->longest_ns)
            control->longest_ns = now - before;
        if (atomic_load(&control->wanted) > atomic_load(&control->done)) {
            obey(control, memory);
            now = now_ns();
            if (control->command == RESET)
                control->longest_ns = 0;
            atomic_fetch_add(&control->done, 1);
        }
    }
}
