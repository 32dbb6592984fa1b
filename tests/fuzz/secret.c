/* The set-uid program of the fuzzer: a short life whose pages lie where those of the caller's lay. No
 * descriptor that was opened on an earlier life may show a line of it. Usage: secret SEED PARENT FAMILY */

#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "living.h"

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    random_state = strtoull(argv[1], NULL, 10);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* an exec of a set-uid program has cleared it */
    prctl(PR_SET_NAME, NAME);
    alarm(120);
    begin_life(SECRET, strtoull(argv[2], NULL, 10), atoi(argv[3]));
    for (unsigned number = 0; number < SLOTS; number++)
        fill_slot_plainly(number, number % 4 ? 64 : MOST_PAGES / 2);
    long until = 30 + below(600);
    for (long i = 0; i < until; i++) {
        control->steps++;
        (*second_steps)++;
        sleep_us(1000);
    }
    return 0;
}
