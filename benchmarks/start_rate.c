/*
 * How many microVMs a host starts in a second: exec, configure over the API, start, kill, so many
 * at once. A client in C, because one in Python costs more than what it measures.
 *
 * usage: start-rate BINARY KERNEL DISK DIRECTORY COUNT AT-ONCE; prints starts a second.
 */
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_PAUSE_NS 50000
#define CONNECT_TRIES    100000 /* 5 seconds */

static const char *kernel, *disk;

static void check(int holds, const char *what)
{
    if (holds)
        return;
    perror(what);
    exit(1);
}

static pid_t spawn(const char *binary, const char *path)
{
    char *const argv[] = { (char *)binary, "--api-sock", (char *)path, NULL };
    char *const environment[] = { NULL };
    posix_spawn_file_actions_t files;
    pid_t pid;

    check(posix_spawn_file_actions_init(&files) == 0, "file actions");
    for (int fd = 0; fd <= 2; fd++)
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    check(posix_spawn(&pid, binary, &files, NULL, argv, environment) == 0, binary);
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

static void start_one(const char *binary, const char *socket_path)
{
    char body[4096];
    pid_t pid = spawn(binary, socket_path);
    int fd = connect_to(socket_path);

    put(fd, "/machine-config", "{\"vcpu_count\": 1, \"mem_size_mib\": 128}");
    snprintf(body, sizeof(body), "{\"kernel_image_path\": \"%s\", \"boot_args\": \"x\"}", kernel);
    put(fd, "/boot-source", body);
    snprintf(body, sizeof(body),
             "{\"drive_id\": \"d\", \"path_on_host\": \"%s\", \"is_root_device\": false}", disk);
    put(fd, "/drives/d", body);
    put(fd, "/actions", "{\"action_type\": \"InstanceStart\"}");
    kill(pid, SIGKILL);
    close(fd);
    unlink(socket_path);
}

int main(int argc, char **argv)
{
    struct timespec begin, end;
    unsigned count, at_once;

    if (argc != 7)
        return 2;
    kernel = argv[2];
    disk = argv[3];
    count = (unsigned)atoi(argv[5]);
    at_once = (unsigned)atoi(argv[6]);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (unsigned worker = 0; worker < at_once; worker++) {
        if (fork() != 0)
            continue;
        for (unsigned i = worker; i < count; i += at_once) {
            char path[sizeof(((struct sockaddr_un *)0)->sun_path)];

            snprintf(path, sizeof(path), "%s/%u", argv[4], i);
            start_one(argv[1], path);
        }
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
