#!/usr/bin/env bash
# Linux 6.18 with libbpf 1.1.2 and glibc 2.36: what a BPF_PROG_LOAD is told while another thread of the
# process starts children.
#
# The verifier looks for signals while it works, and gives up with EAGAIN when one is there; libbpf then tries
# again, five times in all. Nobody handles SIGCHLD here, and its default is to be ignored, so one would expect
# children to have no part in it. Seen, with a program whose verification takes about 100 ms:
#
#   no children                                    every load succeeds
#   children, one after the other                  almost no load succeeds
#   the same, all signals blocked by the loader    every load succeeds
#
# posix_spawn blocks all signals of its thread until the child has called exec. A child that ends before its
# parent is scheduled again ends while SIGCHLD is blocked, and a blocked signal is not ignored but queued, for
# whichever thread of the process has it not blocked. One every few milliseconds, and neither five tries nor
# fifty are enough: block signals in the thread that loads.
#
# Needs root, gcc, and Debian's package sources.
set -euo pipefail
LIBBPF=1.1.2-0+deb12u1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download "libbpf1=1:$LIBBPF" "libbpf-dev=1:$LIBBPF"
for package in ./*.deb; do dpkg-deb --extract "$package" root; done

cat >load.c <<'C'
#include <bpf/bpf.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LENGTH = 500000, LOADS = 20 };
static struct bpf_insn program[LENGTH]; /* r0 = 0, again and again; exit */
static atomic_bool over;
static atomic_int children;
extern char **environ;

static void *start_children(void *unused)
{
	char *arguments[] = { "true", NULL };

	while (!over) {
		pid_t child;

		if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ))
			exit(2);
		while (waitpid(child, NULL, 0) < 0)
			;
		children++;
	}
	return unused;
}

int main(int count, char **words)
{
	int with_children = count > 1, blocked = count > 2, loaded = 0, again = 0;
	struct sigaction action;
	pthread_t starter;
	sigset_t all;

	if (sigaction(SIGCHLD, NULL, &action) || action.sa_handler != SIG_DFL)
		return 2;
	for (int i = 0; i < LENGTH - 1; i++)
		program[i] = (struct bpf_insn){ .code = BPF_ALU64 | BPF_MOV | BPF_K };
	program[LENGTH - 1] = (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
	if (with_children && pthread_create(&starter, NULL, start_children, NULL))
		return 2;
	sigfillset(&all);
	if (blocked)
		pthread_sigmask(SIG_BLOCK, &all, NULL);
	for (int i = 0; i < LOADS; i++) {
		int fd = bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, NULL, "GPL", program, LENGTH, NULL);

		if (fd >= 0) {
			loaded++;
			close(fd);
		} else if (fd == -EAGAIN) {
			again++;
		} else {
			fprintf(stderr, "%s\n", strerror(-fd));
			return 2;
		}
	}
	over = 1;
	if (with_children)
		pthread_join(starter, NULL);
	fprintf(stderr, "%-24s %2d loaded, %2d EAGAIN, %d children\n",
		blocked ? "children, blocked" : with_children ? "children" : "no children",
		loaded, again, children);
	printf("%d\n", again);
	return words == NULL;
}
C
library=$(dirname "$folder"/root/usr/lib/*/libbpf.so.1)
gcc -O1 -I root/usr/include -o load load.c -L "$library" -l:libbpf.so.1 -Wl,-rpath,"$library" -pthread

echo "Linux $(uname -r), libbpf $LIBBPF, $(ldd --version | sed -n 1p)"
without=$(./load)
with=$(./load children)
blocked=$(./load children blocked)
if [ "$without" -ne 0 ] || [ "$with" -eq 0 ] || [ "$blocked" -ne 0 ]; then
    echo "the behaviour has changed" >&2
    exit 1
fi
