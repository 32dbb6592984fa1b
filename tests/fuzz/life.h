/* What the programs of the fuzzer share: how a page says whose it is, and how a life is written down.
 *
 * A life is one address space of one process: it begins with an exec or a fork and has a nonce. Every page
 * that a life fills consists of lines of 64 bytes, each of which names the nonce, the address at which the
 * line stands and the generation of the fill. So a reader can tell of any byte whose it is.
 *
 * The ledger is a file of root's that all of them have open: a page with a counter and the pids of the
 * victims, then one record for each life, object or alarm. A life writes its record before it uses its nonce.
 */

#ifndef LIFE_H
#define LIFE_H

#include <stdint.h>

typedef uint64_t u64;

enum { PAGE = 4096, LINE = 64, LINES = PAGE / LINE };
enum { LEDGER_FD = 100, FAULTS_FD = 101, DIRECTORY_FD = 102, SCRATCH_FD = 103 };

#define LINE_MAGIC 0x3a6c7e91d25b40f8ull
#define CONTROL_MAGIC 0x91c4b0a7e65d2f38ull
#define OF_OBJECT (1ull << 63) /* in line.address: the rest is the offset in a file or a shared object */

#define CONTROL 0x10000000000ull
#define LEDGER_PAGE (CONTROL + 0x10000)
#define ARENA 0x20000000000ull
#define SCRATCH 0x30000000000ull
enum { SLOTS = 48, SLOT = 4 << 20, MOST_PAGES = 300 };

struct line {
    u64 magic, nonce, address, other; /* other: a second address at which the line may stand */
    u64 generation, check, not_nonce, not_address;
};

enum kind { FORKED = 1, EXECED, SECRET, OBJECT, ALARM, HARM };

struct record {
    u64 nonce, parent;
    uint32_t pid, uid, family, kind;
    u64 first, second, third, time_ns; /* of an alarm: signal, si_code, si_pid */
};

struct ledger {
    u64 next;
    uint32_t victims[32]; /* ends with 0 */
};

/* What a slot of the arena holds. While state is BUSY its owner is changing it. */
enum state { EMPTY = 0, BUSY, FILLED };
enum content { PLAIN = 0, MOVED, WIPED, NOT_FORKED, SHARED, MIXED, SUPPLIED };

struct slot {
    u64 state, content, pages, nonce, generation, object; /* object: nonce of the object behind the mapping */
};

/* The page at CONTROL. The page after it begins with a second count of the steps: in a frozen copy it is
 * the same as the first, or one less. */
struct control {
    u64 magic, nonce, parent;
    uint32_t pid, family;
    u64 steps, generation, flags, last;
    struct slot slots[SLOTS];
};

static inline void make_line(struct line *line, u64 nonce, u64 address, u64 other, u64 generation)
{
    line->magic = LINE_MAGIC;
    line->nonce = nonce;
    line->address = address;
    line->other = other;
    line->generation = generation;
    line->check = ~(nonce ^ address ^ (other << 1) ^ (generation << 7));
    line->not_nonce = ~nonce;
    line->not_address = ~address;
}

static inline int is_line(const struct line *line)
{
    return line->magic == LINE_MAGIC && line->not_nonce == ~line->nonce && line->not_address == ~line->address &&
           line->check == ~(line->nonce ^ line->address ^ (line->other << 1) ^ (line->generation << 7));
}

#endif
