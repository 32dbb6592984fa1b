/* A FUSE server that stops answering, and a process that maps its only file.

   deadserver DIRECTORY own|root

   own: mounted by a plain user in namespaces of its own, where root is not let in. root: mounted in the namespace
   of the caller, for all users; the process that maps the file then goes on as user 65534.

   The file has 64 pages; page n is full of 'A' + n % 26. It is mapped shared and private, with no readahead, and
   page 3 of both is touched; page 5 of the private mapping is full of '!'. An anonymous mapping of 4 pages is full
   of '#'. One line is printed: PID SHARED PRIVATE ANONYMOUS, the addresses in hex. Then each line of stdin is
   obeyed and answered by "done":

       die     from now on requests are taken from the device, and never answered: who waits for one is in a wait
               that no signal ends

   The end of stdin ends all, and with the server the connection: who waits goes on. */

#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, LENGTH = PAGE * PAGES, FILE_NODE = 2, USER = 65534 };

static volatile int *dead; /* shared by the two processes */

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        err(1, "%s", path);
    close(fd);
}

static void enter_namespaces(void) {
    char map[64];
    uid_t uid = getuid();
    gid_t gid = getgid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
        err(1, "unshare");
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    write_file("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    write_file("/proc/self/gid_map", map);
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
        err(1, "make private");
}

static void describe(struct fuse_attr *attr, int node) {
    memset(attr, 0, sizeof *attr);
    attr->ino = node;
    attr->mode = node == FILE_NODE ? S_IFREG | 0666 : S_IFDIR | 0777;
    attr->nlink = 1;
    attr->size = node == FILE_NODE ? LENGTH : 0;
    attr->mtime = 1000000000;
    attr->blksize = PAGE;
}

static void serve(int device, int parent) {
    static char request[1 << 17], page[sizeof(struct fuse_out_header) + LENGTH];
    struct fuse_out_header *out = (void *)page;
    void *body = page + sizeof *out;
    for (;;) {
        /* No death signal: a parent that is no root any more may send none. */
        struct pollfd wait[2] = {{device, POLLIN, 0}, {parent, 0, 0}};
        poll(wait, 2, -1);
        if (wait[1].revents)
            _exit(0);
        ssize_t got = read(device, request, sizeof request);
        if (got < 0)
            _exit(0);
        if (*dead)
            continue;
        struct fuse_in_header *in = (void *)request;
        size_t size = 0;
        int error = 0;
        switch (in->opcode) {
        case FUSE_INIT: {
            struct fuse_init_out *init = body;
            memset(init, 0, sizeof *init);
            init->major = FUSE_KERNEL_VERSION;
            init->minor = FUSE_KERNEL_MINOR_VERSION;
            init->max_write = PAGE;
            size = sizeof *init;
            break;
        }
        case FUSE_LOOKUP: {
            struct fuse_entry_out *entry = body;
            memset(entry, 0, sizeof *entry);
            entry->nodeid = FILE_NODE;
            entry->attr_valid = entry->entry_valid = 1;
            describe(&entry->attr, FILE_NODE);
            size = sizeof *entry;
            break;
        }
        case FUSE_GETATTR: {
            struct fuse_attr_out *attr = body;
            memset(attr, 0, sizeof *attr);
            describe(&attr->attr, in->nodeid);
            size = sizeof *attr;
            break;
        }
        case FUSE_OPEN: {
            struct fuse_open_out *opened = body;
            memset(opened, 0, sizeof *opened);
            opened->open_flags = FOPEN_KEEP_CACHE;
            size = sizeof *opened;
            break;
        }
        case FUSE_READ: {
            struct fuse_read_in *wanted = (void *)(in + 1);
            for (size = 0; size < wanted->size && wanted->offset + size < LENGTH; size += PAGE)
                memset((char *)body + size, 'A' + (wanted->offset + size) / PAGE % 26, PAGE);
            break;
        }
        case FUSE_FLUSH:
        case FUSE_RELEASE:
            break;
        case FUSE_FORGET:
        case FUSE_INTERRUPT:
            continue;
        default:
            error = -ENOSYS;
        }
        out->len = sizeof *out + size;
        out->error = error;
        out->unique = in->unique;
        if (write(device, page, out->len) < 0 && errno != ENOENT)
            err(1, "reply");
    }
}

static char *map_file(int fd, int flags) {
    char *at = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED || madvise(at, LENGTH, MADV_RANDOM))
        err(1, "mmap");
    return at;
}

int main(int count, char **words) {
    char options[128], path[256], line[16];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (count != 3)
        errx(2, "usage: deadserver DIRECTORY own|root");
    int own = !strcmp(words[2], "own");
    if (own)
        enter_namespaces();
    int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%u,group_id=%u%s", device, getuid(), getgid(),
             own ? "" : ",allow_other");
    if (device < 0 || mount("deadserver", words[1], "fuse", MS_NODEV | MS_NOSUID, options))
        err(1, "mount");
    dead = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int pipe_ends[2];
    if (pipe(pipe_ends))
        err(1, "pipe");
    if (!fork()) {
        close(pipe_ends[1]);
        serve(device, pipe_ends[0]);
    }
    close(pipe_ends[0]);
    close(device);
    snprintf(path, sizeof path, "%s/file", words[1]);
    int fd = open(path, O_RDWR);
    if (fd < 0)
        err(1, "%s", path);
    if (!own && (setgid(USER) || setuid(USER)))
        err(1, "setuid");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 1);
    char *shared = map_file(fd, MAP_SHARED);
    char *private = map_file(fd, MAP_PRIVATE);
    char *anonymous = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    close(fd);
    memset(anonymous, '#', 4 * PAGE);
    *(volatile char *)(shared + 3 * PAGE);
    *(volatile char *)(private + 3 * PAGE);
    memset(private + 5 * PAGE, '!', PAGE);
    printf("%d %lx %lx %lx\n", getpid(), (long)shared, (long)private, (long)anonymous);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "die\n"))
            *dead = 1;
        puts("done");
        fflush(stdout);
    }
    close(pipe_ends[1]);
    wait(NULL);
    return 0;
}
