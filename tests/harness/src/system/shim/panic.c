/* A process in which the clock of one thread fails, once: of the thread whose name a file says. A clock
 * that exists never fails, so whoever asks takes that for impossible; Rust's standard library panics. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NAME_BYTES = 16 };

static char *place;

__attribute__((constructor)) static void begin(void)
{
	const char *name = getenv("MILLRACE_TEST_PANIC");
	int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
	if (file < 0)
		return;
	void *mapped = mmap(NULL, NAME_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	if (mapped != MAP_FAILED)
		place = mapped;
}

static int is_struck(void)
{
	char name[NAME_BYTES] = "";
	if (!place || !__atomic_load_n(place, __ATOMIC_ACQUIRE))
		return 0;
	prctl(PR_GET_NAME, name);
	return !strncmp(name, place, NAME_BYTES) && __atomic_exchange_n(place, 0, __ATOMIC_ACQ_REL);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	if (is_struck()) {
		errno = EINVAL;
		return -1;
	}
	return (int)syscall(SYS_clock_gettime, clock, now);
}
