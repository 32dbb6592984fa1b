/*
 * Opens, reads and closes a file again and again while a signal comes every millisecond.
 *
 * Usage: signals FILE TIMES: it writes how many times a call failed, and with which errno the last of them.
 * The handler is set without SA_RESTART: a call that the signal interrupts fails with EINTR.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void count(int number)
{
	(void)number;
	signals = signals + 1;
}

int main(int argc, char **argv)
{
	static char buffer[1 << 16];
	struct sigaction action = {.sa_handler = count};
	struct itimerval every = {{0, 1000}, {0, 1000}};
	struct stat found;
	int failed = 0, error = 0;

	if (argc != 3)
		return 2;
	if (sigaction(SIGALRM, &action, NULL) || setitimer(ITIMER_REAL, &every, NULL))
		return 1;
	/* Until so many signals have come: however fast the machine is, some come in the middle of a call. */
	while (signals < atoi(argv[2])) {
		int file = open(argv[1], O_RDONLY);
		if (file < 0 || stat(argv[1], &found) || read(file, buffer, sizeof buffer) < 0) {
			failed++;
			error = errno;
		}
		if (file >= 0)
			close(file);
	}
	printf("%d %d\n", failed, error);
	return 0;
}
