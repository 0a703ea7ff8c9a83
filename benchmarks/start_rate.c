/*
 * How many microVMs a host starts in a second: exec, configure over the API, start, kill, so many
 * at once. A client in C, because one in Python costs more than what it measures. With a jailer
 * each has a jail, whose binary is mounted, not copied, and whose kernel and disk are links.
 *
 * usage: start-rate BINARY KERNEL DISK DIRECTORY COUNT AT-ONCE [JAILER]; prints starts a second.
 * DIRECTORY is on the file system of the other files.
 */
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_PAUSE_NS 50000
#define CONNECT_TRIES    100000 /* 5 seconds */

#define UID "30001" /* of a jailed VMM, and its group */

static const char *binary, *kernel, *disk, *directory, *jailer;

static void check(int holds, const char *what)
{
    if (holds)
        return;
    perror(what);
    exit(1);
}

static pid_t spawn(char *const *argv)
{
    char *const environment[] = { NULL };
    posix_spawn_file_actions_t files;
    pid_t pid;

    check(posix_spawn_file_actions_init(&files) == 0, "file actions");
    for (int fd = 0; fd <= 2; fd++)
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    check(posix_spawn(&pid, argv[0], &files, NULL, argv, environment) == 0, argv[0]);
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

static int connect_to(const char *path)
{
    const struct timespec pause = { .tv_nsec = CONNECT_PAUSE_NS };
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    check(fd >= 0, "socket");
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    for (unsigned i = 0; connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0; i++) {
        check(i < CONNECT_TRIES, path);
        nanosleep(&pause, NULL);
    }
    return fd;
}

static void put(int fd, const char *path, const char *body)
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

/* Configures the VMM that serves a socket, starts its guest, and kills it. */
static void start(pid_t pid, const char *socket_path, const char *kernel_path,
                  const char *disk_path)
{
    char body[4096];
    int fd = connect_to(socket_path);

    put(fd, "/machine-config", "{\"vcpu_count\": 1, \"mem_size_mib\": 128}");
    snprintf(body, sizeof(body), "{\"kernel_image_path\": \"%s\", \"boot_args\": \"x\"}",
             kernel_path);
    put(fd, "/boot-source", body);
    snprintf(body, sizeof(body),
             "{\"drive_id\": \"d\", \"path_on_host\": \"%s\", \"is_root_device\": false}",
             disk_path);
    put(fd, "/drives/d", body);
    put(fd, "/actions", "{\"action_type\": \"InstanceStart\"}");
    kill(pid, SIGKILL);
    close(fd);
}

static void start_plain(unsigned i)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char *const argv[] = { (char *)binary, "--api-sock", path, NULL };

    snprintf(path, sizeof(path), "%s/%u", directory, i);
    start(spawn(argv), path, kernel, disk);
}

static void start_jailed(unsigned i)
{
    char id[16], path[400], inside[512];
    const char *name = strrchr(binary, '/') ? strrchr(binary, '/') + 1 : binary;
    char *const argv[] = { (char *)jailer,
                           "--id",
                           id,
                           "--exec-file",
                           (char *)binary,
                           "--uid",
                           UID,
                           "--gid",
                           UID,
                           "--exec-method",
                           "bind",
                           "--chroot-base-dir",
                           (char *)directory,
                           NULL };
    int length = snprintf(path, sizeof(path), "%s/%s", directory, name);

    snprintf(id, sizeof(id), "%u", i);
    mkdir(path, 0700);
    length += snprintf(path + length, sizeof(path) - (size_t)length, "/%s", id);
    mkdir(path, 0700);
    length += snprintf(path + length, sizeof(path) - (size_t)length, "/root");
    mkdir(path, 0700);
    snprintf(inside, sizeof(inside), "%s/kernel", path);
    check(link(kernel, inside) == 0, inside);
    snprintf(inside, sizeof(inside), "%s/disk", path);
    check(link(disk, inside) == 0, inside);
    snprintf(inside, sizeof(inside), "%s/run/firecracker.socket", path);
    start(spawn(argv), inside, "/kernel", "/disk");
}

int main(int argc, char **argv)
{
    struct timespec begin, end;
    unsigned count, at_once;

    if (argc < 7 || argc > 8)
        return 2;
    binary = argv[1];
    kernel = argv[2];
    disk = argv[3];
    directory = argv[4];
    jailer = argv[7];
    count = (unsigned)atoi(argv[5]);
    at_once = (unsigned)atoi(argv[6]);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (unsigned worker = 0; worker < at_once; worker++) {
        if (fork() != 0)
            continue;
        for (unsigned i = worker; i < count; i += at_once)
            jailer ? start_jailed(i) : start_plain(i);
        _exit(0);
    }
    for (unsigned worker = 0; worker < at_once; worker++) {
        int status;

        check(wait(&status) > 0 && status == 0, "a worker");
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.1f\n", count / ((double)(end.tv_sec - begin.tv_sec) +
                              (double)(end.tv_nsec - begin.tv_nsec) / 1e9));
    return 0;
}
