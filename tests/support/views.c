/*
 * Shared memory that is mapped several times, and written in an order that tells one moment from two.
 *
 * Usage: views MIB COUNT PAGES HOW
 *
 * One memfd of MIB mebibytes is mapped COUNT times. A thread writes a number, one higher each turn: into private
 * memory, then into the first page of the object, then into PAGES pages all over it, then into the last page, each
 * through the next mapping in turn. So at any moment private >= first >= every one of those >= last >= private - 1.
 * Between two turns it sleeps for a millisecond. It writes a line of JSON, answers each line of its input with one
 * that has the number of turns, and ends with its input.
 *
 * HOW is "plain", or
 *   forks    a child maps the object as well, and does nothing
 *   writes   each turn a page in the middle is written too, by write(2)
 *   drops    each turn the page tables of all mappings are emptied, by MADV_DONTNEED: what was written stays
 *   remaps   each turn the last mapping is made anew, at the same place
 *   watches  the first mapping is registered with a userfaultfd of the program's own, and nothing is protected
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, MOST_VIEWS = 16 };

static _Atomic uint64_t turns;
static char *view[MOST_VIEWS];
static size_t size, count, pages;

static int object;
static const char *how;

static void put(size_t at, size_t through, uint64_t number) {
    atomic_store((_Atomic uint64_t *)(view[through % count] + at), number);
}

static void *write_all(void *unused) {
    for (uint64_t turn = 1;; turn++) {
        atomic_store(&turns, turn);
        put(0, turn, turn);
        for (size_t page = 1; page <= pages; page++)
            put(size / (pages + 1) * page & -PAGE, turn + page, turn);
        put(size - PAGE, turn + 1, turn);
        if (!strcmp(how, "writes") && pwrite(object, &turn, sizeof turn, (off_t)(size / 2) + 8) < 0) abort();
        if (!strcmp(how, "drops"))
            for (size_t each = 0; each < count; each++)
                if (madvise(view[each], size, MADV_DONTNEED)) abort();
        if (!strcmp(how, "remaps") &&
            mmap(view[count - 1], size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, object, 0) == MAP_FAILED)
            abort();
        usleep(1000);
    }
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    how = argv[4];
    size = (size_t)atoi(argv[1]) << 20;
    count = (size_t)atoi(argv[2]);
    pages = (size_t)atoi(argv[3]);
    object = memfd_create("heap", MFD_CLOEXEC);
    if (object < 0 || ftruncate(object, (off_t)size) || count > MOST_VIEWS) return 1;
    for (size_t each = 0; each < count; each++) {
        view[each] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, object, 0);
        if (view[each] == MAP_FAILED) return 1;
    }
    for (size_t at = 0; at < size; at += PAGE) memset(view[0] + at + 64, (int)(at / PAGE % 251) + 1, PAGE - 64);
    if (!strcmp(how, "forks") && fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    if (!strcmp(how, "watches")) {
        int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
        struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
        struct uffdio_register all = {
            .range = {.start = (uintptr_t)view[0], .len = size}, .mode = UFFDIO_REGISTER_MODE_WP};
        if (faults < 0 || ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &all)) return 1;
    }
    pthread_t writer;
    if (pthread_create(&writer, NULL, write_all, NULL)) return 1;
    printf("{\"turns\": %lu, \"views\": [", (unsigned long)(uintptr_t)&turns);
    for (size_t each = 0; each < count; each++) printf("%s%lu", each ? ", " : "", (unsigned long)(uintptr_t)view[each]);
    printf("]}\n");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        printf("{\"turns\": %lu}\n", (unsigned long)atomic_load(&turns));
        fflush(stdout);
    }
    return 0;
}
