// Stops one thread of another process, and only that, until it is killed itself (ptrace(2)).
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count != 2)
        return 2;
    pid_t thread = atoi(words[1]);
    if (ptrace(PTRACE_SEIZE, thread, 0, 0) || ptrace(PTRACE_INTERRUPT, thread, 0, 0)) {
        perror("ptrace");
        return 1;
    }
    int status;
    while (waitpid(thread, &status, __WALL) != thread)
        if (errno != EINTR) {
            perror("waitpid");
            return 1;
        }
    if (!WIFSTOPPED(status)) {
        fprintf(stderr, "the thread has ended\n");
        return 1;
    }
    puts("frozen");
    fflush(stdout);
    for (;;)
        pause();
}
