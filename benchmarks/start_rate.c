/*
 * How many microVMs a host starts in a second: exec, configure over the API, start, kill, so many
 * at once. A client in C, because one in Python costs more than what it measures. With a jailer
 * each has a jail, whose binary is mounted, not copied, and whose kernel and disk are links.
 *
 * usage: start-rate BINARY KERNEL DISK DIRECTORY COUNT AT-ONCE [JAILER]; prints starts a second.
 * DIRECTORY is on the file system of the other files.
 */
#include <signal.h>
#include <sys/wait.h>

#include "vmm_client.h"

static const char *binary, *kernel, *disk, *directory, *jailer;

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
    start(spawn(argv, -1), path, kernel, disk);
}

static void start_jailed(unsigned i)
{
    const char *const files[] = { kernel, disk, NULL };
    char id[16], root[400], path[512];

    snprintf(id, sizeof(id), "%u", i);
    make_jail(root, sizeof(root), directory, binary, id, files);
    snprintf(path, sizeof(path), "%s/run/firecracker.socket", root);
    start(spawn_jailed(jailer, binary, id, directory, -1), path, strrchr(kernel, '/'),
          strrchr(disk, '/'));
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
