/* A plain user's process that maps files whose paths are the kernel's own words.

   spoofed DIRECTORY

   In a user and mount namespace of its own it mounts a tmpfs, in which it may call files as it likes. Each file
   has 16 pages; page n is full of the letter 'A' + n. It is mapped privately and shared, at addresses of its own,
   three times each: never touched, read (page 3), and, where private, written (page 5, full of '!'). Then the
   tmpfs is detached, so that its root is the root of all paths that maps prints. Half of the files, those of the
   first round, are on a tmpfs that stays mounted in the namespace.

   One line is printed for each mapping: START END p|s untouched|read|written PATH; then "ready". Any byte on
   stdin, or its end, ends the program. */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 16, LENGTH = PAGE * PAGES };

static const char *const names[] = {
    "anon_hugepage",
    "anon_hugepage (deleted)",
    "anon_hugepage-x",
    "secretmem",
    "secretmem-x",
    "dev/zero",
    "dev/mem",
    "sys/x",
    "proc/x",
    "[vvar]",
    "[vdso]",
    "[heap]",
    "[stack]",
    "[anon:x]",
    "memfd:x (deleted)",
    "SYSV00000000 (deleted)",
    "line\n7f0000000000-7f0000001000 r--p 00000000 00:00 0 [vvar]",
};
enum { NAMES = sizeof names / sizeof *names };

static char *next = (char *)0x200000000000;

static void fail(const char *what) {
    err(1, "%s", what);
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail(path);
    close(fd);
}

static void enter_namespaces(void) {
    char map[64];
    uid_t uid = getuid();
    gid_t gid = getgid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC))
        fail("unshare");
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    write_file("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    write_file("/proc/self/gid_map", map);
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
        fail("make private");
    prctl(PR_SET_DUMPABLE, 1);
}

static char *map(int fd, int flags) {
    int prot = flags & MAP_SHARED ? PROT_READ : PROT_READ | PROT_WRITE;
    char *at = mmap(next, LENGTH, prot, flags | MAP_FIXED_NOREPLACE, fd, 0);
    if (at == MAP_FAILED)
        fail("mmap");
    next += 2 * LENGTH;
    return at;
}

static void tell(const char *at, char letter, const char *how, const char *path) {
    printf("%lx %lx %c %s ", (long)at, (long)(at + LENGTH), letter, how);
    for (; *path; path++)
        putchar(*path == '\n' ? '|' : *path);
    putchar('\n');
}

static void fill(int fd) {
    char page[PAGE];
    for (int n = 0; n < PAGES; n++) {
        memset(page, 'A' + n, PAGE);
        if (pwrite(fd, page, PAGE, n * PAGE) != PAGE)
            fail("pwrite");
    }
    struct timespec long_ago[2] = {{1000000000, 0}, {1000000000, 0}};
    if (futimens(fd, long_ago))
        fail("futimens");
}

static void map_all_ways(int fd, const char *name) {
    tell(map(fd, MAP_SHARED), 's', "untouched", name);
    char *read_shared = map(fd, MAP_SHARED);
    *(volatile char *)(read_shared + 3 * PAGE);
    tell(read_shared, 's', "read", name);
    tell(map(fd, MAP_PRIVATE), 'p', "untouched", name);
    char *read_private = map(fd, MAP_PRIVATE);
    *(volatile char *)(read_private + 3 * PAGE);
    tell(read_private, 'p', "read", name);
    char *written = map(fd, MAP_PRIVATE);
    memset(written + 5 * PAGE, '!', PAGE);
    tell(written, 'p', "written", name);
}

static void map_files(const char *directory, int detach) {
    char root[256];
    snprintf(root, sizeof root, "%s/%s", directory, detach ? "detached" : "mounted");
    if (mkdir(root, 0755) || mount("tmpfs", root, "tmpfs", 0, NULL))
        fail(root);
    int top = open(root, O_PATH | O_DIRECTORY);
    mkdirat(top, "dev", 0755);
    mkdirat(top, "sys", 0755);
    mkdirat(top, "proc", 0755);
    for (int i = 0; i < NAMES; i++) {
        int fd = openat(top, names[i], O_RDWR | O_CREAT | O_EXCL, 0600);
        if (fd < 0)
            fail(names[i]);
        fill(fd);
        map_all_ways(fd, names[i]);
        close(fd);
    }
    close(top);
    if (detach && umount2(root, MNT_DETACH))
        fail("umount2");
}

/* Segments of two IPC namespaces have the same numbers, and the same path. */
static void map_segments(void) {
    for (int round = 0; round < 2; round++) {
        int id = shmget(IPC_PRIVATE, LENGTH, IPC_CREAT | 0600);
        char *at = id < 0 ? (char *)-1 : shmat(id, next, 0);
        if (at == (char *)-1)
            fail("shmat");
        for (int n = 0; n < PAGES; n++)
            memset(at + n * PAGE, round ? '0' + n : 'A' + n, PAGE);
        shmctl(id, IPC_RMID, NULL);
        printf("%lx %lx s segment%d SYSV\n", (long)at, (long)(at + LENGTH), round);
        next += 2 * LENGTH;
        if (unshare(CLONE_NEWIPC))
            fail("unshare");
    }
}

/* A lease holds up everyone who opens the file, for 45 s. */
static void map_leased(const char *directory) {
    char path[256];
    snprintf(path, sizeof path, "%s/leased", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        fail(path);
    fill(fd);
    tell(map(fd, MAP_SHARED), 's', "leased", path);
    tell(map(fd, MAP_PRIVATE), 'p', "leased", path);
    signal(SIGIO, SIG_IGN);
    if (fcntl(fd, F_SETLEASE, F_WRLCK))
        fail("F_SETLEASE");
}

int main(int count, char **words) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (count != 2)
        errx(2, "usage: spoofed DIRECTORY");
    map_leased(words[1]);
    enter_namespaces();
    map_files(words[1], 0);
    map_files(words[1], 1);
    map_segments();
    puts("ready");
    fflush(stdout);
    getchar();
    return 0;
}
