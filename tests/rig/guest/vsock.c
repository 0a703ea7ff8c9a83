/*
 * AF_VSOCK from a shell: the guest's and the host's ends of the Linux tests and of
 * benchmarks/vsock.
 *
 * - vsock serve PORT COMMAND... runs the command for each connection, its stdin and stdout
 * - vsock connect CID PORT: stdin and stdout to a port of that CID
 * - vsock dial PATH PORT: the same from the host, through the VMM's UNIX socket
 * - vsock listen PATH COMMAND...: as serve, on a UNIX socket: what a guest reaches as PATH's port
 *
 * It ends when both directions have. For the benchmark:
 *
 * - vsock answer - - does on stdin and stdout what `measure` asks for
 * - vsock measure PATH|CID PORT: figures of a port that serves `vsock answer - -`, in nanoseconds
 * - vsock hold PATH PORT COUNT opens so many connections, says so and keeps them
 */
#define _GNU_SOURCE
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int vsock(unsigned cid, const char *port, int is_server)
{
    struct sockaddr_vm a = { .svm_family = AF_VSOCK,
                             .svm_cid = cid,
                             .svm_port = (unsigned)strtoul(port, NULL, 10) };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || (is_server ? bind : connect)(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        die("vsock");
    return fd;
}

static int unix_socket(const char *path, int is_server)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (strlen(path) >= sizeof(a.sun_path)) {
        fprintf(stderr, "%s: too long\n", path);
        exit(1);
    }
    strcpy(a.sun_path, path);
    if (fd < 0 || (is_server ? bind : connect)(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        die(path);
    return fd;
}

/* The guest's server may not be there yet: asks until it is. */
static int dial(const char *path, const char *port)
{
    for (;; usleep(10000)) {
        int fd = unix_socket(path, 0);
        char c = 0;

        if (dprintf(fd, "CONNECT %s\n", port) > 0 && read(fd, &c, 1) == 1) {
            while (c != '\n' && read(fd, &c, 1) == 1)
                ;
            return fd;
        }
        close(fd);
    }
}

static void serve(int listener, char **command)
{
    signal(SIGCHLD, SIG_IGN);
    if (listen(listener, 64) < 0)
        die("listen");
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);

        if (fd < 0)
            die("accept");
        if (fork() == 0) {
            signal(SIGCHLD, SIG_DFL);
            dup2(fd, 0);
            dup2(fd, 1);
            close(fd);
            execvp(command[0], command);
            die(command[0]);
        }
        close(fd);
    }
}

/* Moves all that comes from one to the other. */
static void pass(int from, int to)
{
    static char buffer[65536];
    ssize_t n;

    while ((n = read(from, buffer, sizeof(buffer))) > 0)
        for (ssize_t done = 0, sent; done < n; done += sent) {
            sent = write(to, buffer + done, (size_t)(n - done));
            if (sent < 0)
                die("write");
        }
    if (n < 0)
        die("read");
}

/* A process for each direction, so that neither waits for the other. */
static void relay(int fd)
{
    if (fork() == 0) {
        pass(0, fd);
        shutdown(fd, SHUT_WR);
        _exit(0);
    }
    pass(fd, 1);
    wait(NULL);
}

#define BULK (2l << 20)

static char bulk[65536];

static void write_all(int fd, long n)
{
    for (ssize_t sent; n > 0; n -= sent) {
        sent = write(fd, bulk, n < (long)sizeof(bulk) ? (size_t)n : sizeof(bulk));
        if (sent < 0)
            die("write");
    }
}

static void read_all(int fd, long n)
{
    for (ssize_t got; n > 0; n -= got) {
        got = read(fd, bulk, n < (long)sizeof(bulk) ? (size_t)n : sizeof(bulk));
        if (got <= 0)
            die("read");
    }
}

static void answer(void)
{
    while (read(0, bulk, 1) == 1) {
        const char what = bulk[0];

        if (what == 's')
            read_all(0, BULK);
        write_all(1, what == 'g' ? BULK : 1);
    }
}

static int open_any(char **to)
{
    return to[0][0] == '/' ? dial(to[0], to[1])
                           : vsock((unsigned)strtoul(to[0], NULL, 10), to[1], 0);
}

static long now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000l + t.tv_nsec;
}

static void ask(int fd, char what)
{
    bulk[0] = what;
    write_all(fd, 1);
    if (what == 's')
        write_all(fd, BULK);
    read_all(fd, what == 'g' ? BULK : 1);
}

/* Each figure is of the second of two rounds. */
static void measure(char **to)
{
    static const struct {
        const char *name;
        char what;
        int times;
        long units;
    } kinds[] = { { "round-trip", 'p', 200, 1 },
                  { "KiB-to-guest", 's', 1, BULK >> 10 },
                  { "KiB-to-host", 'g', 1, BULK >> 10 } };
    int fd = open_any(to);
    long start = 0;

    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        for (int k = 0; k < 2 * kinds[i].times; k++) {
            if (k == kinds[i].times)
                start = now_ns();
            ask(fd, kinds[i].what);
        }
        printf("figure %s %ld\n", kinds[i].name,
               (now_ns() - start) / kinds[i].times / kinds[i].units);
    }
    start = now_ns();
    for (int k = 0; k < 50; k++) {
        close(fd);
        fd = open_any(to);
        ask(fd, 'p');
    }
    printf("figure connection %ld\n", (now_ns() - start) / 50);
}

static void hold(char **words)
{
    for (int i = atoi(words[2]); i > 0; i--)
        dial(words[0], words[1]);
    printf("held\n");
    fflush(stdout);
    pause();
}

int main(int count, char **words)
{
    const char *what = count > 3 ? words[1] : "";

    if (strcmp(what, "serve") == 0)
        serve(vsock(VMADDR_CID_ANY, words[2], 1), words + 3);
    else if (strcmp(what, "listen") == 0)
        serve(unix_socket(words[2], 1), words + 3);
    else if (strcmp(what, "connect") == 0)
        relay(vsock((unsigned)strtoul(words[2], NULL, 10), words[3], 0));
    else if (strcmp(what, "dial") == 0)
        relay(dial(words[2], words[3]));
    else if (strcmp(what, "answer") == 0)
        answer();
    else if (strcmp(what, "measure") == 0)
        measure(words + 2);
    else if (strcmp(what, "hold") == 0 && count > 4)
        hold(words + 2);
    else
        return fprintf(stderr, "see the head of vsock.c\n"), 2;
    return 0;
}
