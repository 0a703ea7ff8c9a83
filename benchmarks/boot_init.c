/*
 * The guest's first process in benchmarks/boot: says at once that it is there, and how long that
 * took it, and reboots, which ends the VMM. With ready=vsock on the kernel's command line, of which
 * Linux makes an environment variable, it says so to port 52 of the host first. In an initramfs it
 * loads /modules/NN-NAME.ko before all else, in order, and waits for the disk.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

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

#define VSOCK_PORT 52

static void say_to_vsock(void)
{
    struct sockaddr_vm host = {
        .svm_family = AF_VSOCK,
        .svm_cid = VMADDR_CID_HOST,
        .svm_port = VSOCK_PORT,
    };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (connect(fd, (struct sockaddr *)&host, sizeof(host)) < 0 || write(fd, "!", 1) != 1)
        perror("vsock");
}

int main(void)
{
    const char *where = getenv("ready");
    uint64_t begin = now_ns(), ready;
    int fd;

    load_modules();
    if (access("/dev/console", F_OK) < 0)
        mount("dev", "/dev", "devtmpfs", 0, NULL);
    if (where && !strcmp(where, "vsock"))
        say_to_vsock();
    fd = open("/dev/console", O_RDWR);
    ready = now_ns();
    dprintf(fd, "mayfly-bench ready\n");
    dprintf(fd, "kernel_us=%lu init_us=%lu\n", begin / 1000, (ready - begin) / 1000);
    sync();
    reboot(LINUX_REBOOT_CMD_RESTART);
    return 1;
}
