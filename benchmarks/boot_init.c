/*
 * The guest's first process in benchmarks/boot: says at once that it is there, and how long that
 * took it, and reboots, which ends the VMM. In an initramfs it loads /modules/NN-NAME.ko first, in
 * order, and waits for the disk.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void load_modules(void)
{
    struct dirent **files;
    int count = scandir("/modules", &files, NULL, alphasort);

    for (int i = 0; i < count; i++) {
        char path[300];
        int fd;

        if (files[i]->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "/modules/%s", files[i]->d_name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (syscall(SYS_finit_module, fd, "", 0) < 0)
            perror(path);
        close(fd);
    }
    if (count < 0)
        return;
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    for (int tries = 0; access("/dev/vda", F_OK) < 0 && tries < 2000; tries++)
        usleep(1000);
}

int main(void)
{
    long begin = now_us(), ready;
    int fd;

    load_modules();
    if (access("/dev/console", F_OK) < 0)
        mount("dev", "/dev", "devtmpfs", 0, NULL);
    fd = open("/dev/console", O_RDWR);
    ready = now_us();
    dprintf(fd, "mayfly-bench ready\n");
    dprintf(fd, "kernel_us=%ld init_us=%ld\n", begin, ready - begin);
    sync();
    reboot(LINUX_REBOOT_CMD_RESTART);
    return 1;
}
