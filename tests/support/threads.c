/*
 * A program that a debugger has something to say of: threads that wait at known places, one with known
 * values in its registers, and memory of each kind that a core file treats in its own way.
 *
 * Usage: threads FILE SHARED_FILE [VMAS]: maps a file that it only reads, one that it writes to, and so many
 * more pages, each of which is a VMA of its own.
 *
 * It writes one line of JSON: where its mappings are, and its threads by name. Then each line on its
 * stdin makes it add one to `counter`, which it answers with a line.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, SIZE = 8 * PAGE, VECTORS = 16, WAITERS = 4 };

struct node {
    const char *name;
    double weight;
    struct node *next;
};

static struct node last = {"last", 0.5, NULL};
struct node first = {"first", -1.25, &last};
volatile long counter;
_Thread_local long per_thread;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t all_there;
static int silent[2];
static pid_t tids[WAITERS + 1];
static uint8_t vectors[VECTORS][32] __attribute__((aligned(32)));
static volatile int registers_loaded;

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        exit(1);
    }
}

static void arrive(int number)
{
    tids[number] = gettid();
    pthread_barrier_wait(&all_there);
}

/* Each place is one system call that does not come back, at the end of `depth` frames. */

static void sleep_long(void)
{
    struct timespec long_time = {1000000, 0};
    nanosleep(&long_time, NULL);
}

static void wait_for_condition(void)
{
    pthread_mutex_lock(&mutex);
    pthread_cond_wait(&never, &mutex);
}

static void read_silence(void)
{
    char byte;
    check(read(silent[0], &byte, 1) != 1, "read");
}

static void poll_silence(void)
{
    struct pollfd one = {silent[0], POLLIN, 0};
    poll(&one, 1, -1);
}

static int descend(int depth, void (*place)(void))
{
    char mark[16];
    double half = depth / 2.0;
    int squares[3] = {depth, depth * depth, depth * depth * depth};
    snprintf(mark, sizeof mark, "depth %d", depth);
    per_thread = 1000 + depth;
    if (depth == 1)
        place();
    else
        squares[0] += descend(depth - 1, place);
    return squares[0] + (int)half + mark[0];
}

static void (*const places[WAITERS])(void) = {sleep_long, wait_for_condition, read_silence, poll_silence};

static void *wait_somewhere(void *argument)
{
    int number = (int)(intptr_t)argument;
    arrive(number);
    descend(number + 2, places[number]);
    return NULL;
}

#define LOAD(move, kind, number, at) move " " #at "(%0), %%" kind #number "\n\t"
#define LOAD_ALL(move, kind) \
    LOAD(move, kind, 0, 0) LOAD(move, kind, 1, 32) LOAD(move, kind, 2, 64) LOAD(move, kind, 3, 96) \
    LOAD(move, kind, 4, 128) LOAD(move, kind, 5, 160) LOAD(move, kind, 6, 192) LOAD(move, kind, 7, 224) \
    LOAD(move, kind, 8, 256) LOAD(move, kind, 9, 288) LOAD(move, kind, 10, 320) LOAD(move, kind, 11, 352) \
    LOAD(move, kind, 12, 384) LOAD(move, kind, 13, 416) LOAD(move, kind, 14, 448) LOAD(move, kind, 15, 480)
#define VECTOR_REGISTERS \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
    "xmm12", "xmm13", "xmm14", "xmm15"

/* Goes round with values in its registers that nothing changes. */

static void *hold_registers(void *argument)
{
    for (int number = 0; number < VECTORS; number++)
        for (int byte = 0; byte < 32; byte++)
            vectors[number][byte] = (uint8_t)(16 * number + byte + 1);
    arrive(WAITERS);
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile(LOAD_ALL("vmovdqa", "ymm") : : "r"(vectors) : VECTOR_REGISTERS);
    else
        __asm__ volatile(LOAD_ALL("movdqa", "xmm") : : "r"(vectors) : VECTOR_REGISTERS);
    __asm__ volatile(
        "fninit \n\t fldpi \n\t fld1 \n\t"
        "movabs $0x1111111111111111, %%rbx \n\t movabs $0x2222222222222222, %%r12 \n\t"
        "movabs $0x3333333333333333, %%r13 \n\t movabs $0x4444444444444444, %%r14 \n\t"
        "movl $1, %0 \n\t"
        "1: pause \n\t jmp 1b" : "=m"(registers_loaded) : : "rbx", "r12", "r13", "r14");
    return argument;
}

static int mapped_count;

/* Memory of one kind: its pages between two guards, so that it stays a VMA of its own. */
static char *map(const char *kind, int protection, int flags, int file)
{
    char *around = mmap(NULL, SIZE + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(around == MAP_FAILED, "mmap");
    char *memory = mmap(around + PAGE, SIZE, protection, flags | MAP_FIXED, file, 0);
    check(memory == MAP_FAILED, kind);
    printf("%s\"%s\": [%lu, %lu]", mapped_count++ ? ", " : "", kind, (unsigned long)memory,
           (unsigned long)(memory + SIZE));
    return memory;
}

/* The same, with a text at the beginning of every second page. */
static char *write_to(const char *kind, int flags, int file)
{
    char *memory = map(kind, PROT_READ | PROT_WRITE, flags, file);
    for (int page = 0; page < SIZE / PAGE; page += 2)
        sprintf(memory + page * PAGE, "%s, page %d", kind, page);
    return memory;
}

static void make_memory(const char *read_path, const char *written_path)
{
    const int own = MAP_PRIVATE | MAP_ANONYMOUS, shared = MAP_SHARED | MAP_ANONYMOUS;
    int read_only = open(read_path, O_RDONLY), file = open(written_path, O_RDWR);
    int memfd = memfd_create("threads", 0);
    check(read_only < 0 || file < 0 || memfd < 0 || ftruncate(memfd, SIZE), "open");

    write_to("private", own, -1);
    map("untouched", PROT_READ | PROT_WRITE, own, -1);
    check(mprotect(write_to("none", own, -1), SIZE, PROT_NONE), "mprotect");
    check(madvise(write_to("dontdump", own, -1), SIZE, MADV_DONTDUMP), "madvise");
    write_to("shared", shared, -1);
    write_to("memfd", MAP_SHARED, memfd);
    write_to("file-shared", MAP_SHARED, file);
    map("file-shared-read-only", PROT_READ, MAP_SHARED, read_only);
    map("file-private", PROT_READ, MAP_PRIVATE, read_only);
    write_to("file-private-written", MAP_PRIVATE, read_only);
}

static void make_vmas(int count)
{
    char *memory = mmap(NULL, (size_t)count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory == MAP_FAILED, "mmap");
    for (int page = 0; page < count; page += 2)
        check(mprotect(memory + (size_t)page * PAGE, PAGE, PROT_READ), "mprotect");
}

int main(int count, char **arguments)
{
    pthread_t thread;
    struct rlimit any_size = {RLIM_INFINITY, RLIM_INFINITY};
    char line[64];

    sigset_t blocked;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    setrlimit(RLIMIT_CORE, &any_size);
    check(pipe(silent), "pipe");
    pthread_barrier_init(&all_there, NULL, WAITERS + 2);
    for (int number = 0; number < WAITERS; number++)
        check(errno = pthread_create(&thread, NULL, wait_somewhere, (void *)(intptr_t)number), "thread");
    check(errno = pthread_create(&thread, NULL, hold_registers, NULL), "thread");

    printf("{\"mappings\": {");
    make_memory(arguments[1], arguments[2]);
    if (count > 3)
        make_vmas(atoi(arguments[3]));
    pthread_barrier_wait(&all_there);
    while (!registers_loaded)
        sched_yield();
    printf("}, \"threads\": {\"main\": %d, \"sleep\": %d, \"condition\": %d, \"read\": %d, \"poll\": %d, "
           "\"registers\": %d}}\n",
           gettid(), tids[0], tids[1], tids[2], tids[3], tids[4]);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        counter++;
        printf("%ld\n", counter);
        fflush(stdout);
    }
    return 0;
}
