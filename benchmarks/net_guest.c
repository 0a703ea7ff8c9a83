/*
 * Both ends of benchmarks/net: a program in the guest answers, one on the host asks and measures.
 *
 * - net_guest answer
 * - net_guest measure ADDRESS PID: for each figure a line "figure NAME TOTAL VMM", nanoseconds for
 * a round trip or KiB, and those of them in which threads of process PID ran that are no vCPU's
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "clock.h"

#define PORT        7
#define ROUND_TRIPS 100
#define WARM_BYTES  (256u << 10)
#define BULK_BYTES  (2u << 20)

enum direction { TO_GUEST, FROM_GUEST };

struct order {
    uint32_t direction, bytes;
};

static char buffer[65536];

_Noreturn static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int open_socket(int type, const char *address)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(PORT) };
    const int one = 1;
    int fd = socket(AF_INET, type, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0)
        die("socket");
    if (address && inet_pton(AF_INET, address, &a.sin_addr) != 1)
        die(address);
    if ((address ? connect : bind)(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        die("address");
    return fd;
}

static void take(int fd, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = read(fd, buffer, bytes < sizeof(buffer) ? bytes : sizeof(buffer));

        if (n <= 0)
            die("read");
        bytes -= (size_t)n;
    }
}

static void give(int fd, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = write(fd, buffer, bytes < sizeof(buffer) ? bytes : sizeof(buffer));

        if (n <= 0)
            die("write");
        bytes -= (size_t)n;
    }
}

/* Whoever receives says with a byte that all has come. */
static void carry_out(int fd, bool sends, uint32_t bytes)
{
    if (sends) {
        give(fd, bytes);
        take(fd, 1);
    } else {
        take(fd, bytes);
        give(fd, 1);
    }
}

static void echo(int fd)
{
    struct sockaddr_in from;
    socklen_t length = sizeof(from);
    ssize_t n;

    while ((n = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &length)) >= 0)
        if (sendto(fd, buffer, (size_t)n, 0, (struct sockaddr *)&from, length) < 0)
            die("sendto");
    die("recvfrom");
}

static void answer(void)
{
    int udp = open_socket(SOCK_DGRAM, NULL), listener = open_socket(SOCK_STREAM, NULL), fd;
    struct order order;

    if (listen(listener, 1) < 0)
        die("listen");
    if (fork() == 0)
        echo(udp);
    fd = accept(listener, NULL, NULL);
    while (read(fd, &order, sizeof(order)) == sizeof(order))
        carry_out(fd, order.direction == FROM_GUEST, order.bytes);
}

static void read_file(const char *directory, const char *task, const char *name)
{
    char path[300];
    FILE *f;
    size_t n;

    snprintf(path, sizeof(path), "%s/%s/%s", directory, task, name);
    f = fopen(path, "r");
    if (!f)
        die(path);
    n = fread(buffer, 1, 200, f);
    buffer[n] = '\0';
    fclose(f);
}

/* What the threads of a process have run that are no vCPU's: its name is fc_vcpu or CPU. */
static uint64_t device_ran(const char *pid)
{
    char path[64];
    uint64_t sum = 0;
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%s/task", pid);
    tasks = opendir(path);
    if (!tasks)
        die(path);
    for (struct dirent *d; (d = readdir(tasks));) {
        if (d->d_name[0] == '.')
            continue;
        read_file(path, d->d_name, "comm");
        if (strncmp(buffer, "fc_vcpu", 7) == 0 || strncmp(buffer, "CPU", 3) == 0)
            continue;
        read_file(path, d->d_name, "schedstat");
        sum += strtoull(buffer, NULL, 10);
    }
    closedir(tasks);
    return sum;
}

static void tell(const char *name, uint64_t start, uint64_t ran, const char *pid, unsigned units)
{
    const uint64_t end = now_ns();

    printf("figure %s %.1f %.1f\n", name, (double)(end - start) / units,
           (double)(device_ran(pid) - ran) / units);
}

static void ask(int fd, uint32_t direction, uint32_t bytes)
{
    const struct order order = { direction, bytes };

    if (write(fd, &order, sizeof(order)) != sizeof(order))
        die("write");
    carry_out(fd, direction == TO_GUEST, bytes);
}

static void measure_round_trips(const char *address, const char *pid)
{
    const struct timeval patience = { .tv_sec = 1 };
    int fd = open_socket(SOCK_DGRAM, address);
    uint64_t start, ran;

    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0)
        die("setsockopt");
    for (int n = 0; n < 8;) { /* until the guest answers, and some more */
        if (send(fd, "", 1, 0) == 1 && recv(fd, buffer, 1, 0) == 1)
            n++;
        else
            usleep(100000);
    }
    ran = device_ran(pid);
    start = now_ns();
    for (int i = 0; i < ROUND_TRIPS; i++)
        if (send(fd, "", 1, 0) != 1 || recv(fd, buffer, 1, 0) != 1)
            die("round trip");
    tell("udp-round-trip", start, ran, pid, ROUND_TRIPS);
    close(fd);
}

static void measure_streams(const char *address, const char *pid)
{
    static const char *const names[] = { "tcp-KiB-to-guest", "tcp-KiB-from-guest" };
    const int fd = open_socket(SOCK_STREAM, address);

    for (uint32_t direction = TO_GUEST; direction <= FROM_GUEST; direction++) {
        uint64_t start, ran;

        ask(fd, direction, WARM_BYTES);
        ran = device_ran(pid);
        start = now_ns();
        ask(fd, direction, BULK_BYTES);
        tell(names[direction], start, ran, pid, BULK_BYTES >> 10);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "answer") == 0) {
        answer();
    } else if (argc == 4 && strcmp(argv[1], "measure") == 0) {
        measure_round_trips(argv[2], argv[3]);
        measure_streams(argv[2], argv[3]);
    } else {
        fprintf(stderr, "usage: net_guest answer | measure ADDRESS PID\n");
        return 2;
    }
    return 0;
}
