/*
 * A program with memory that is pinned: a buffer of its own is registered with an io_uring (io_uring_register(2),
 * IORING_REGISTER_BUFFERS), and a read into it waits in the kernel. It writes the address of the buffer, which
 * begins with "early"; what comes on stdin then is read into it, and it writes what the buffer begins with. Where
 * io_uring is not to be had it writes 0.
 *
 * Usage: fixed
 */

#define _GNU_SOURCE

#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SIZE = 64 << 10 };

static int enter(int ring, unsigned submit, unsigned complete)
{
    return syscall(__NR_io_uring_enter, ring, submit, complete, complete ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

int main(void)
{
    struct io_uring_params params = {0};
    char *buffer = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct iovec whole = {buffer, SIZE};
    int ring = syscall(__NR_io_uring_setup, 1, &params);
    strcpy(buffer, "early");
    if (ring < 0 || syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &whole, 1) != 0)
        return puts("0") < 0;

    char *queue = mmap(NULL, params.sq_off.array + params.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
                       IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry = mmap(NULL, params.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED,
                                      ring, IORING_OFF_SQES);
    *entry = (struct io_uring_sqe){
        .opcode = IORING_OP_READ_FIXED, .fd = 0, .addr = (uintptr_t)buffer, .len = SIZE, .off = -1};
    *(uint32_t *)(queue + params.sq_off.array) = 0;
    __atomic_store_n((uint32_t *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (enter(ring, 1, 0) != 1)
        return 1;
    printf("%lu\n", (unsigned long)buffer);
    fflush(stdout);
    while (enter(ring, 0, 1) < 0)
        ;
    printf("%s\n", buffer);
    fflush(stdout);
    pause();
    return 0;
}
