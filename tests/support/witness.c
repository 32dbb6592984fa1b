/* A program that looks whether anything is done to it. Two modes, by its argument:
 *
 *   calls     threads that wait in system calls of many kinds, again and again, and note whatever a thread
 *             that no one stops would not see: EINTR, a time-out that came too early, a child, a SIGCHLD,
 *             a register that changed
 *   counters  eight threads, each of which increments a number in one page and copies it to another one
 *
 * It writes a line when it is ready, then answers each line on stdin by a line of JSON, and ends with stdin.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WAIT_MS = 20, COUNTERS = 8, PAGE = 4096 };

struct job {
    const char *name;
    int (*once)(void); /* 0: as it should be; else an errno, or -1 */
    volatile unsigned long done, surprises;
    volatile int what;
};

static volatile unsigned long children_died, alarms, interruptions;
static pthread_t interrupted;
static int pipe_ends[2], quiet_pipe[2], event, epoll, listener, semaphores, socket_ends[2];
static uint32_t futex_word;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* A call that must return *expected* (or fail with the errno -expected), and not before its time. */
#define WAITS(call, expected)                                               \
    int64_t begun = now_ns();                                               \
    errno = 0;                                                              \
    long got = (call);                                                      \
    if (got < 0)                                                            \
        got = -errno;                                                       \
    if (got != (expected))                                                  \
        return got < 0 ? -(int)got : -1;                                    \
    return now_ns() - begun < (WAIT_MS - 1) * 1000000LL ? -1 : 0;

static const struct timespec wait_time = {0, WAIT_MS * 1000000L};

static int once_nanosleep(void) { WAITS(nanosleep(&wait_time, NULL), 0) }
static int once_poll(void)
{
    struct pollfd fd = {quiet_pipe[0], POLLIN, 0};
    WAITS(poll(&fd, 1, WAIT_MS), 0)
}
static int once_ppoll(void)
{
    struct pollfd fd = {quiet_pipe[0], POLLIN, 0};
    struct timespec t = wait_time;
    WAITS(ppoll(&fd, 1, &t, NULL), 0)
}
static int once_select(void)
{
    fd_set set;
    struct timeval t = {0, WAIT_MS * 1000};
    FD_ZERO(&set);
    FD_SET(quiet_pipe[0], &set);
    WAITS(select(quiet_pipe[0] + 1, &set, NULL, NULL, &t), 0)
}
static int once_epoll(void)
{
    struct epoll_event found;
    WAITS(epoll_wait(epoll, &found, 1, WAIT_MS), 0)
}
static int once_futex(void)
{
    WAITS(syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, &wait_time, NULL, 0), -ETIMEDOUT)
}
static int once_sleep_until(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += WAIT_MS * 1000000L;
    t.tv_sec += t.tv_nsec / 1000000000L;
    t.tv_nsec %= 1000000000L;
    WAITS(-clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0)
}
static int once_semaphore(void)
{
    struct sembuf take = {0, -1, 0};
    WAITS(semtimedop(semaphores, &take, 1, &wait_time), -EAGAIN)
}
static int once_accept(void) { WAITS(accept(listener, NULL, NULL), -EAGAIN) }
static int once_receive(void)
{
    char byte;
    WAITS(recv(socket_ends[0], &byte, 1, 0), -EAGAIN)
}
static int once_signal_wait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    WAITS(sigtimedwait(&set, NULL, &wait_time), -EAGAIN)
}
static int once_read(void) /* woken by once_write, so its time is not its own */
{
    char byte;
    return read(pipe_ends[0], &byte, 1) == 1 ? 0 : errno ? errno : -1;
}
static int once_write(void)
{
    nanosleep(&wait_time, NULL);
    return write(pipe_ends[1], "x", 1) == 1 ? 0 : errno;
}
static int once_eventfd(void) /* woken by once_signal_event */
{
    uint64_t value;
    return read(event, &value, sizeof value) == sizeof value ? 0 : errno;
}
static int once_signal_event(void)
{
    uint64_t one = 1;
    nanosleep(&wait_time, NULL);
    return write(event, &one, sizeof one) == sizeof one ? 0 : errno;
}
static int once_no_child(void)
{
    siginfo_t info;
    usleep(1000);
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
        return errno ? errno : -1;
    return waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOHANG) == -1 && errno == ECHILD ? 0 : -1;
}
#ifdef __x86_64__
#define SSE "xmm13"
#define GENERAL "r12"
#define COUNT "r13"
#else
#define SSE "xmm7"
#define GENERAL "esi"
#define COUNT "edi"
#endif
static int once_registers(void)
{
    double in[4] = {1.5, -2.25, 1e300, 4096.0}, out[4];
    unsigned long general = 0x89abcdef, found;
    for (int i = 0; i < 20000; i++)
        __asm__ volatile("movupd %2, %%xmm6\n\tmovupd 16+%2, %%" SSE "\n\tmov %3, %%" GENERAL "\n\t"
                         "mov $200, %%" COUNT "\n\t1: pause\n\tdec %%" COUNT "\n\tjnz 1b\n\t"
                         "movupd %%xmm6, %0\n\tmovupd %%" SSE ", 16+%0\n\tmov %%" GENERAL ", %1"
                         : "=m"(out), "=m"(found)
                         : "m"(in), "m"(general)
                         : "xmm6", SSE, GENERAL, COUNT, "memory", "cc");
    return memcmp(in, out, sizeof in) || found != general ? -1 : 0;
}

static int once_interrupted(void) /* by once_interrupt, and by nothing else */
{
    unsigned long before = interruptions;
    struct pollfd fd = {quiet_pipe[0], POLLIN, 0};
    interrupted = pthread_self();
    return poll(&fd, 1, -1) == -1 && errno == EINTR && interruptions > before ? 0 : -1;
}
static int once_interrupt(void)
{
    nanosleep(&wait_time, NULL);
    return interrupted ? pthread_kill(interrupted, SIGUSR1) : 0;
}

#define JOB(function) {.name = #function, .once = once_##function}
static struct job jobs[] = {
    JOB(nanosleep), JOB(poll), JOB(ppoll), JOB(select), JOB(epoll), JOB(futex), JOB(sleep_until),
    JOB(semaphore), JOB(accept), JOB(receive), JOB(signal_wait), JOB(read), JOB(write), JOB(eventfd),
    JOB(signal_event), JOB(no_child), JOB(registers), JOB(interrupted), JOB(interrupt),
};
enum { JOBS = sizeof jobs / sizeof *jobs };

static void *run_job(void *argument)
{
    struct job *job = argument;
    for (;;) {
        int what = job->once();
        if (what) {
            job->what = what;
            job->surprises++;
        }
        job->done++;
    }
    return NULL;
}

static void note_child(int number) { (void)number; children_died++; }
static void note_alarm(int number) { (void)number; alarms++; }
static void note_interruption(int number) { (void)number; interruptions++; }

static void start(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, argument))
        abort();
}

/* SIGALRM and SIGCHLD go to the main thread alone, which waits in read(2); SIGUSR1 to one that asks for it. */
static void begin_calls(void)
{
    struct sigaction action = {.sa_handler = note_alarm, .sa_flags = SA_RESTART};
    struct itimerval every = {{0, 50000}, {0, 50000}};
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    struct timeval timeout = {0, WAIT_MS * 1000};
    struct epoll_event wanted = {.events = EPOLLIN};
    sigset_t all, before;

    if (pipe(pipe_ends) || pipe(quiet_pipe) || socketpair(AF_UNIX, SOCK_STREAM, 0, socket_ends))
        abort();
    event = eventfd(0, 0);
    epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, quiet_pipe[0], &wanted);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&any, sizeof(sa_family_t)) || listen(listener, 1))
        abort();
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(socket_ends[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    sigaction(SIGALRM, &action, NULL);
    action.sa_flags = 0;
    action.sa_handler = note_child;
    sigaction(SIGCHLD, &action, NULL);
    action.sa_handler = note_interruption;
    sigaction(SIGUSR1, &action, NULL);
    sigfillset(&all);
    sigdelset(&all, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    for (int i = 0; i < JOBS; i++)
        start(run_job, &jobs[i]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
}

static void report_calls(void)
{
    printf("{\"sigchld\": %lu, \"alarms\": %lu, \"jobs\": {", children_died, alarms);
    for (int i = 0; i < JOBS; i++)
        printf("%s\"%s\": [%lu, %lu, %d]", i ? ", " : "", jobs[i].name, jobs[i].done, jobs[i].surprises,
               jobs[i].what);
    puts("}}");
}

static volatile uint64_t *counters; /* two pages for each thread: the number, and its copy */

static void *count(void *argument)
{
    volatile uint64_t *number = argument, *copy = number + PAGE / sizeof *number;
    for (;;) {
        ++*number;
        __asm__ volatile("" ::: "memory");
        *copy = *number;
        __asm__ volatile("" ::: "memory");
    }
    return NULL;
}

static void begin_counters(void)
{
    counters = mmap(NULL, 2 * COUNTERS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < COUNTERS; i++)
        start(count, (void *)(counters + 2 * i * PAGE / sizeof *counters));
}

static void report_counters(void)
{
    printf("{\"address\": %lu, \"counters\": %d, \"first\": %lu}\n", (unsigned long)counters, COUNTERS,
           (unsigned long)counters[0]);
}

int main(int argc, char **argv)
{
    char line[64];
    int calls = argc > 1 && !strcmp(argv[1], "calls");

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    calls ? begin_calls() : begin_counters();
    puts("{}");
    for (;;) {
        /* fgets of a C library would hide what the kernel says. */
        ssize_t got = read(0, line, sizeof line);
        if (got <= 0)
            break;
        calls ? report_calls() : report_counters();
    }
    if (calls)
        semctl(semaphores, 0, IPC_RMID);
    return 0;
}
