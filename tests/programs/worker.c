/* A program of ours: two threads hash blocks of memory that never change, and look that the digests do not either.

   It prints "ready", works until stdin ends, and prints "ok" and the number of digests, or what is wrong. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 2, BLOCKS = 16, BLOCK = 1 << 20 };

static char text[64] = "the plain text of worker.c is ";
static unsigned char *blocks[BLOCKS];
static uint64_t digests[BLOCKS];
static volatile int done, wrong;
static volatile unsigned long counts[THREADS];

static uint64_t digest_of(const unsigned char *block) {
    uint64_t digest = 14695981039346656037u; /* FNV-1a */
    for (int i = 0; i < BLOCK; i++)
        digest = (digest ^ block[i]) * 1099511628211u;
    return digest;
}

static void *work(void *number) {
    long own = (long)number;
    while (!done) {
        int block = (own + counts[own] * 7) % BLOCKS;
        if (digest_of(blocks[block]) != digests[block])
            wrong = 1;
        counts[own]++;
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    char byte;
    strcat(text, "known");
    for (int block = 0; block < BLOCKS; block++) {
        blocks[block] = malloc(BLOCK);
        for (int i = 0; i < BLOCK; i++)
            blocks[block][i] = (unsigned char)(i * 31 + block);
        digests[block] = digest_of(blocks[block]);
    }
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    puts("ready");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    done = 1;
    unsigned long sum = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        sum += counts[i];
    }
    if (wrong)
        puts("a digest is wrong");
    else
        printf("ok %lu\n", sum);
    return wrong;
}
