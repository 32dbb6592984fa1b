/* A life: its record, its control page, and the pages that it fills. No call here goes by way of the vDSO. */

#ifndef LIVING_H
#define LIVING_H

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "life.h"

static struct control *const control = (struct control *)CONTROL;
static volatile u64 *const second_steps = (u64 *)(CONTROL + PAGE);
static struct ledger *const ledger = (struct ledger *)LEDGER_PAGE;
static u64 random_state;

#define barrier() __asm__ volatile("" ::: "memory")

static u64 now_ns(void)
{
    struct timespec t = {0, 0};
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void sleep_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    syscall(SYS_nanosleep, &t, NULL);
}

static u64 next_random(void) /* splitmix64 */
{
    u64 z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static u64 below(u64 limit) { return next_random() % limit; }

/* Put a record into the ledger; returns its nonce. */
static u64 write_record(enum kind kind, u64 parent, unsigned family, u64 first, u64 second, u64 third)
{
    u64 index = __atomic_fetch_add(&ledger->next, 1, __ATOMIC_SEQ_CST);
    struct record record = {index | (next_random() << 32), parent, syscall(SYS_getpid), syscall(SYS_getuid),
                            family, kind, first, second, third, now_ns()};
    if (syscall(SYS_pwrite64, LEDGER_FD, &record, sizeof record, PAGE + index * sizeof record) != sizeof record)
        _exit(90);
    return record.nonce;
}

static void *map_at(u64 address, u64 length, int prot, int flags, int fd)
{
    void *got = mmap((void *)address, length, prot, flags | MAP_FIXED, fd, 0);
    return got == MAP_FAILED ? NULL : got;
}

/* Begin the life of a program that was just exec'ed. */
static void begin_life(enum kind kind, u64 parent, unsigned family)
{
    if (!map_at(LEDGER_PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, LEDGER_FD) ||
        !map_at(CONTROL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1))
        _exit(91);
    control->parent = parent;
    control->pid = getpid();
    control->family = family;
    control->nonce = write_record(kind, parent, family, 0, 0, 0);
    barrier();
    control->magic = CONTROL_MAGIC;
}

static void fill(u64 at, u64 pages, u64 nonce, u64 address, u64 other, u64 generation)
{
    for (u64 i = 0; i < pages * LINES; i++)
        make_line((struct line *)(at + i * LINE), nonce, address + i * LINE, other + i * LINE, generation);
}

static void fill_slot_plainly(unsigned number, u64 pages)
{
    struct slot *slot = &control->slots[number];
    u64 at = ARENA + (u64)number * SLOT;
    slot->state = BUSY;
    barrier();
    if (!map_at(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1)) {
        slot->state = EMPTY;
        return;
    }
    *slot = (struct slot){BUSY, PLAIN, pages, control->nonce, ++control->generation, 0};
    fill(at, pages, slot->nonce, at, at, slot->generation);
    barrier();
    slot->state = FILLED;
}

#endif
