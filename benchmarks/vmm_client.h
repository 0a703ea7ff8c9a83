/* A client of the API for benchmarks, in C: one in Python costs more than what it measures. What
 * fails ends the process. */
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_PAUSE_NS 50000      /* between two tries, at first */
#define CONNECT_LAST_NS  500000000l /* the pause after which it is given up: some 15 seconds */

#define JAIL_UID "30001" /* of a jailed VMM, and its group */

static inline void check(int holds, const char *what)
{
    if (holds)
        return;
    perror(what);
    exit(1);
}

/* Starts a program with standard input and error on /dev/null, and output on `output`, or there,
 * too, where it is -1. */
static inline pid_t spawn(char *const *argv, int output)
{
    char *const environment[] = { NULL };
    posix_spawn_file_actions_t files;
    pid_t pid;

    check(posix_spawn_file_actions_init(&files) == 0, "file actions");
    for (int fd = 0; fd <= 2; fd++)
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    if (output >= 0)
        posix_spawn_file_actions_adddup2(&files, output, 1);
    check(posix_spawn(&pid, argv[0], &files, NULL, argv, environment) == 0, argv[0]);
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

/* A connection to a socket that may not be there yet. Pauses grow by a part of what was waited, as
 * a hundred clients that try all the time would take the processor from those they wait for. */
static inline int connect_to(const char *path)
{
    struct timespec pause = { .tv_nsec = CONNECT_PAUSE_NS };
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    check(fd >= 0, "socket");
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        check(pause.tv_nsec < CONNECT_LAST_NS, path);
        nanosleep(&pause, NULL);
        pause.tv_nsec += pause.tv_nsec / 32;
    }
    return fd;
}

/* A PUT that must succeed. */
static inline void put(int fd, const char *path, const char *body)
{
    char text[8192];
    int n = snprintf(text, sizeof(text), "PUT %s HTTP/1.1\r\nContent-Length: %zu\r\n\r\n%s", path,
                     strlen(body), body);

    check(n > 0 && n < (int)sizeof(text) && write(fd, text, (size_t)n) == n, path);
    n = (int)read(fd, text, sizeof(text) - 1);
    check(n > 0, path);
    text[n] = '\0';
    if (strncmp(text, "HTTP/1.1 204", 12) == 0)
        return;
    fprintf(stderr, "PUT %s: %s\n", path, text);
    exit(1);
}

/* Makes the jail `id` below `directory`, in which each file of `files`, up to a NULL, is linked
 * under its own name. Writes the path of its root. */
static inline void make_jail(char *root, size_t size, const char *directory, const char *binary,
                             const char *id, const char *const *files)
{
    const char *name = strrchr(binary, '/') ? strrchr(binary, '/') + 1 : binary;
    int length = snprintf(root, size, "%s/%s", directory, name);
    char inside[512];

    mkdir(root, 0700);
    length += snprintf(root + length, size - (size_t)length, "/%s", id);
    mkdir(root, 0700);
    length += snprintf(root + length, size - (size_t)length, "/root");
    check(mkdir(root, 0700) == 0, root);
    for (; *files; files++) {
        snprintf(inside, sizeof(inside), "%s%s", root, strrchr(*files, '/'));
        check(link(*files, inside) == 0, inside);
    }
}

/* Starts a VMM in that jail, whose binary is mounted, not copied. */
static inline pid_t spawn_jailed(const char *jailer, const char *binary, const char *id,
                                 const char *directory, int output)
{
    char *const argv[] = { (char *)jailer,
                           "--id",
                           (char *)id,
                           "--exec-file",
                           (char *)binary,
                           "--uid",
                           JAIL_UID,
                           "--gid",
                           JAIL_UID,
                           "--exec-method",
                           "bind",
                           "--chroot-base-dir",
                           (char *)directory,
                           NULL };
    return spawn(argv, output);
}
