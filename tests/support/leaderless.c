/*
 * A program whose main thread may end before the others. It maps two stretches of memory, private and of a
 * memfd, and fills both with the byte FILL; it writes where they are, as JSON, and then does as it is told:
 *
 * main-ends   the main thread ends; answered when the kernel shows a zombie in its place
 * others-end  each other thread ends, and a new one answers
 * fill BYTE   fill both stretches anew
 * exec BYTE   run this program again, with that byte, and the same addresses for both stretches
 *
 * Usage: leaderless FILL
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LENGTH = 1 << 20, IDLE = 2 };

static char *const places[2] = {(char *)0x20000000, (char *)0x30000000};
static char *program;
static int main_may_end[2], others_may_end[2];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void fill(int byte)
{
    for (int n = 0; n < 2; n++)
        memset(places[n], byte, LENGTH);
}

static char state_of(int tid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/thread-self/../%d/stat", tid);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    char *read = fgets(text, sizeof text, file);
    fclose(file);
    return read ? strrchr(text, ')')[2] : 0;
}

static void *idle(void *unused)
{
    char byte;
    (void)unused;
    if (read(others_may_end[0], &byte, 1) < 0)
        die("read");
    return 0;
}

static void start_idle(void)
{
    pthread_t thread;
    if (pipe(others_may_end) != 0)
        die("pipe");
    for (int n = 0; n < IDLE; n++)
        if (pthread_create(&thread, 0, idle, 0) != 0)
            die("pthread_create");
}

static void *obey(void *last)
{
    char line[64], argument[64];
    if (last) {
        pthread_join(*(pthread_t *)last, 0);
        free(last);
        puts("{}");
        fflush(stdout);
    }
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "fill %63s", argument) == 1)
            fill(atoi(argument));
        else if (sscanf(line, "exec %63s", argument) == 1)
            execl(program, program, argument, (char *)0);
        else if (strcmp(line, "main-ends\n") == 0) {
            close(main_may_end[1]);
            while (state_of(getpid()) != 'Z')
                usleep(1000);
        } else if (strcmp(line, "others-end\n") == 0) {
            close(others_may_end[1]);
            start_idle();
            pthread_t next, *me = malloc(sizeof *me);
            *me = pthread_self();
            if (pthread_create(&next, 0, obey, me) != 0)
                die("pthread_create");
            return 0;
        }
        puts("{}");
        fflush(stdout);
    }
    _exit(0);
}

int main(int count, char **arguments)
{
    pthread_t thread;
    char byte;
    int memfd = memfd_create("leaderless", MFD_CLOEXEC);
    if (count != 2 || memfd < 0 || ftruncate(memfd, LENGTH) != 0 || pipe(main_may_end) != 0)
        die("memfd");
    program = arguments[0];
    int flags = MAP_FIXED_NOREPLACE | MAP_PRIVATE | MAP_ANONYMOUS;
    if (mmap(places[0], LENGTH, PROT_READ | PROT_WRITE, flags, -1, 0) != places[0] ||
        mmap(places[1], LENGTH, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE | MAP_SHARED, memfd, 0) != places[1])
        die("mmap");
    fill(atoi(arguments[1]));
    start_idle();
    if (pthread_create(&thread, 0, obey, 0) != 0)
        die("pthread_create");
    printf("{\"private\": [%lu, %lu], \"shared\": [%lu, %lu]}\n", (long)places[0], (long)places[0] + LENGTH,
           (long)places[1], (long)places[1] + LENGTH);
    fflush(stdout);
    if (read(main_may_end[0], &byte, 1) < 0)
        die("read");
    pthread_exit(0);
}
