/* The oracle's eyes: looks at bytes that were read of a target, line by line. A library for ctypes. */

#include <stddef.h>
#include <string.h>

#include "life.h"

enum { MOST_NONCES = 64 };

struct verdict {
    u64 lines, zeros, others;
    u64 torn, torn_address;       /* lines that begin as one and are none, and where the first stands */
    u64 misplaced, misplaced_address;
    u64 nonces;                   /* how many distinct ones of lives, and of objects, are in the arrays */
    u64 nonce[MOST_NONCES], address[MOST_NONCES], of_object[MOST_NONCES];
};

static int all_zero(const unsigned char *at)
{
    static const unsigned char zeros[LINE];
    return !memcmp(at, zeros, LINE);
}

static int in_place(const struct line *line, u64 address)
{
    if (line->address & OF_OBJECT)
        return (line->address & (PAGE - 1)) == (address & (PAGE - 1));
    return line->address == address || line->other == address;
}

/* Look at *size* bytes that are said to stand at *base*. */
void look(const unsigned char *bytes, u64 size, u64 base, struct verdict *v)
{
    memset(v, 0, sizeof *v);
    for (u64 at = -base % LINE; at + LINE <= size; at += LINE) {
        struct line line;
        memcpy(&line, bytes + at, LINE);
        if (line.magic != LINE_MAGIC) {
            all_zero(bytes + at) ? v->zeros++ : v->others++;
            continue;
        }
        if (!is_line(&line)) {
            if (!v->torn++)
                v->torn_address = base + at;
            continue;
        }
        v->lines++;
        if (!in_place(&line, base + at) && !v->misplaced++)
            v->misplaced_address = base + at;
        u64 i = v->nonces; /* the last one found is nearly always it */
        while (i > 0 && v->nonce[i - 1] != line.nonce)
            i--;
        if (i == 0 && v->nonces < MOST_NONCES) {
            v->nonce[v->nonces] = line.nonce;
            v->address[v->nonces] = base + at;
            v->of_object[v->nonces++] = line.address >> 63;
        }
    }
}

/* Where the first line is that was the same *before* and *after*, and that *got* shows in another way; -1 if
 * there is none. No program here makes the same line twice, so it stood there all the time. */
int64_t contradiction(const unsigned char *before, const unsigned char *got, const unsigned char *after,
                      u64 size, u64 base)
{
    for (u64 at = -base % LINE; at + LINE <= size; at += LINE) {
        struct line line;
        memcpy(&line, before + at, LINE);
        if (is_line(&line) && !memcmp(before + at, after + at, LINE) && memcmp(before + at, got + at, LINE))
            return at;
    }
    return -1;
}

/* Where the first line is that is not the one of *nonce* and *generation* for its address; -1 if there is
 * none. Of an object *address* is its offset with the mark of one. */
int64_t mismatch(const unsigned char *bytes, u64 size, u64 nonce, u64 address, u64 generation)
{
    for (u64 at = 0; at + LINE <= size; at += LINE) {
        struct line line;
        memcpy(&line, bytes + at, LINE);
        if (!is_line(&line) || line.nonce != nonce || line.address != address + at || line.generation != generation)
            return at;
    }
    return -1;
}
