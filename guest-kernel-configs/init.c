/*
 * The first process of a guest whose root is an OCI image (./devtool rootfs oci). It mounts what a
 * process expects, sets up the network as ip= on the kernel's command line says, runs the image's
 * process, reaps what that leaves behind, and tells its status:
 *
 *   - to port STATUS_PORT of the host, where there is a vsock, as "status N\n";
 *   - as the last line of the console, "mayfly: status N";
 *
 * and reboots the guest, which ends the VMM. N is the process's exit code, 128 + N after a signal,
 * 126 or 127 where there was nothing to execute. The power button, Ctrl-Alt-Del and SIGTERM are
 * handed on as the image's signal to stop. A root that is read-only gets a layer in memory on top.
 *
 * It is linked statically and trusts the image no more than that one trusts itself: it is in the
 * same guest.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/input.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define IMAGE_PATH  "/.mayfly/image"
#define STATUS_PORT 1000
#define BUTTONS_MAX 8
#define TEXTS_MAX   4096
#define GROUPS_MAX  64
#define CANNOT_EXEC 126
#define NOT_FOUND   127

/* What the image says is to be run: texts with a letter for their kind. */
struct image {
    char *text;
    char *arguments[TEXTS_MAX], *environment[TEXTS_MAX];
    size_t argument_count, environment_count, group_count;
    gid_t groups[GROUPS_MAX], gid;
    uid_t uid;
    int stop_signal;
    const char *directory;
};

static void complain(const char *what)
{
    fprintf(stderr, "mayfly: %s: %s\n", what, strerror(errno));
}

/* A file's content with a NUL behind it, or NULL. */
static char *read_whole(const char *path, size_t *size)
{
    char *text = NULL, *larger;
    size_t room = 0, used = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : 1;

    while (n > 0) {
        if (used + 1 >= room) {
            room = room * 2 + 4096;
            larger = realloc(text, room);
            if (!larger)
                break;
            text = larger;
        }
        n = read(fd, text + used, room - used - 1);
        used += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        close(fd);
    if (text)
        text[used] = '\0';
    *size = used;
    return text;
}

static void take_text(struct image *i, char *text)
{
    const unsigned number = (unsigned)strtoul(text + 1, NULL, 10);

    switch (text[0]) {
    case 'u': i->uid = number; break;
    case 'g': i->gid = number; break;
    case 'm':
        if (i->group_count < GROUPS_MAX)
            i->groups[i->group_count++] = number;
        break;
    case 'd': i->directory = text + 1; break;
    case 's': i->stop_signal = (int)number; break;
    case 'e':
        if (i->environment_count < TEXTS_MAX - 1)
            i->environment[i->environment_count++] = text + 1;
        break;
    case 'a':
        if (i->argument_count < TEXTS_MAX - 1)
            i->arguments[i->argument_count++] = text + 1;
        break;
    default: break;
    }
}

static bool read_image(struct image *i)
{
    size_t size;

    i->text = read_whole(IMAGE_PATH, &size);
    if (!i->text)
        return false;
    for (char *text = i->text; text < i->text + size; text += strlen(text) + 1)
        take_text(i, text);
    return i->argument_count > 0 && i->directory;
}

static void mount_at(const char *type, const char *path, unsigned long flags, const char *options)
{
    mkdir(path, 0755);
    if (mount(type, path, type, flags, options) < 0 && errno != EBUSY)
        complain(path);
}

/* Writes go to memory, where the root can't take them. */
static void cover_read_only_root(void)
{
    struct statvfs root;

    if (statvfs("/", &root) < 0 || !(root.f_flag & ST_RDONLY))
        return;
    mount_at("tmpfs", "/.mayfly", MS_NODEV | MS_NOSUID, "mode=700");
    mkdir("/.mayfly/upper", 0755);
    mkdir("/.mayfly/work", 0755);
    mkdir("/.mayfly/root", 0755);
    if (mount("root", "/.mayfly/root", "overlay", 0,
              "lowerdir=/,upperdir=/.mayfly/upper,workdir=/.mayfly/work") < 0 ||
        chdir("/.mayfly/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0)
        complain("a layer in memory over the root");
}

static void mount_all(void)
{
    static const char *const links[][2] = { { "/proc/self/fd", "/dev/fd" },
                                            { "/proc/self/fd/0", "/dev/stdin" },
                                            { "/proc/self/fd/1", "/dev/stdout" },
                                            { "/proc/self/fd/2", "/dev/stderr" } };
    const unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV;

    cover_read_only_root();
    mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=755");
    mount_at("proc", "/proc", flags, NULL);
    mount_at("sysfs", "/sys", flags, NULL);
    mount_at("cgroup2", "/sys/fs/cgroup", flags, NULL);
    mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "ptmxmode=666,mode=620,gid=5");
    mount_at("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
    for (size_t i = 0; i < sizeof(links) / sizeof(*links); i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            complain(links[i][1]);
}

/* The console's own device, which can be a controlling terminal and be given to a user; or nothing.
 * The kernel's lines stay off it from now on. */
static void open_console(uid_t owner)
{
    char path[80] = "/dev/", *end;
    size_t size;
    char *names = read_whole("/sys/class/tty/console/active", &size);
    int fd = -1;

    if (names) {
        names[strcspn(names, "\n")] = '\0';
        end = strrchr(names, ' ');
        strncat(path, end ? end + 1 : names, sizeof(path) - strlen(path) - 1);
        fd = open(path, O_RDWR | O_NOCTTY);
        free(names);
    }
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    else if (fchown(fd, owner, (gid_t)-1) < 0)
        complain(path);
    for (int i = 0; i < 3; i++)
        if (fd >= 0 && fd != i)
            dup2(fd, i);
    if (fd > 2)
        close(fd);
    fd = open("/proc/sys/kernel/printk", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "0", 1) != 1)
        complain("printk");
    if (fd >= 0)
        close(fd);
}

static bool set_address(int s, unsigned long request, const char *name, const char *text)
{
    struct ifreq r = { 0 };
    struct sockaddr_in a = { .sin_family = AF_INET };

    if (inet_pton(AF_INET, text, &a.sin_addr) != 1)
        return errno = EINVAL, false;
    memcpy(&r.ifr_addr, &a, sizeof(a));
    strncpy(r.ifr_name, name, IFNAMSIZ - 1);
    return ioctl(s, request, &r) == 0;
}

static bool set_up(int s, const char *name)
{
    struct ifreq r = { 0 };

    strncpy(r.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(s, SIOCGIFFLAGS, &r) < 0)
        return false;
    r.ifr_flags |= IFF_UP;
    return ioctl(s, SIOCSIFFLAGS, &r) == 0;
}

static bool set_gateway(int s, const char *text)
{
    struct sockaddr_in any = { .sin_family = AF_INET }, gateway = any;
    struct rtentry r = { .rt_flags = RTF_UP | RTF_GATEWAY };

    if (inet_pton(AF_INET, text, &gateway.sin_addr) != 1)
        return errno = EINVAL, false;
    memcpy(&r.rt_dst, &any, sizeof(any));
    memcpy(&r.rt_genmask, &any, sizeof(any));
    memcpy(&r.rt_gateway, &gateway, sizeof(gateway));
    return ioctl(s, SIOCADDRT, &r) == 0;
}

/* Behind a name server's line another one's may follow. */
static void add_name_server(const char *text, int flags)
{
    FILE *file;
    int fd;

    if (!*text)
        return;
    fd = open("/etc/resolv.conf", O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
    file = fd < 0 ? NULL : fdopen(fd, "a");
    if (!file) {
        complain("/etc/resolv.conf");
        return;
    }
    fprintf(file, "nameserver %s\n", text);
    fclose(file);
}

/* ip=CLIENT:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF:DNS0:DNS1, as the kernel would do it
 * that has IP_PNP (nfsroot.rst), by hand only. */
static void set_up_network(char *line)
{
    enum { CLIENT, SERVER, GATEWAY, NETMASK, HOSTNAME, DEVICE, AUTOCONF, DNS0, DNS1, FIELDS };
    const char *field[FIELDS], *device;
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char *ip = line;

    if (s < 0 || !set_up(s, "lo"))
        complain("lo");
    while (ip && strncmp(ip, "ip=", 3) != 0)
        ip = (ip = strchr(ip, ' ')) ? ip + 1 : NULL;
    if (!ip)
        return;
    ip += 3;
    ip[strcspn(ip, " \n")] = '\0';
    for (int i = 0; i < FIELDS; i++) {
        field[i] = strsep(&ip, ":");
        if (!field[i])
            field[i] = "";
    }
    device = *field[DEVICE] ? field[DEVICE] : "eth0";
    if (!set_address(s, SIOCSIFADDR, device, field[CLIENT]) ||
        (*field[NETMASK] && !set_address(s, SIOCSIFNETMASK, device, field[NETMASK])) ||
        !set_up(s, device) || (*field[GATEWAY] && !set_gateway(s, field[GATEWAY])))
        complain("ip=");
    if (*field[HOSTNAME] && sethostname(field[HOSTNAME], strlen(field[HOSTNAME])) < 0)
        complain("hostname");
    add_name_server(field[DNS0], O_TRUNC);
    add_name_server(field[DNS1], 0);
    close(s);
}

/* Descriptors of the devices that have a power key. */
static nfds_t open_buttons(struct pollfd *at)
{
    unsigned char keys[KEY_MAX / 8 + 1];
    char path[32];
    nfds_t count = 0;

    for (int i = 0; i < 32 && count < BUTTONS_MAX; i++) {
        int fd;

        snprintf(path, sizeof(path), "/dev/input/event%d", i);
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            continue;
        memset(keys, 0, sizeof(keys));
        if (ioctl(fd, EVIOCGBIT(EV_KEY, sizeof(keys)), keys) > 0 &&
            keys[KEY_POWER / 8] & 1 << KEY_POWER % 8)
            at[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
        else
            close(fd);
    }
    return count;
}

static bool is_pressed(int fd)
{
    struct input_event event;
    bool pressed = false;

    while (read(fd, &event, sizeof(event)) == sizeof(event))
        pressed |= event.type == EV_KEY && event.code == KEY_POWER && event.value == 1;
    return pressed;
}

/* In the child. */
static void become(const struct image *i, const sigset_t *before)
{
    sigprocmask(SIG_SETMASK, before, NULL);
    setsid();
    ioctl(STDIN_FILENO, TIOCSCTTY, 0);
    if (chdir(i->directory) < 0 || setgroups(i->group_count, i->groups) < 0 || setgid(i->gid) < 0 ||
        setuid(i->uid) < 0) {
        complain(i->directory);
        _exit(CANNOT_EXEC);
    }
    environ = (char **)i->environment;
    execvp(i->arguments[0], i->arguments);
    complain(i->arguments[0]);
    _exit(errno == ENOENT ? NOT_FOUND : CANNOT_EXEC);
}

/* Takes the status of each child that has ended; true once the image's process is among them. */
static bool reap(pid_t process, int *status)
{
    bool is_done = false;
    pid_t pid;
    int how;

    while ((pid = waitpid(-1, &how, WNOHANG)) > 0)
        if (pid == process) {
            *status = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
            is_done = true;
        }
    return is_done;
}

/* Until the image's process has ended: its status. */
static int serve(const struct image *i, pid_t process, int signals)
{
    struct pollfd fds[1 + BUTTONS_MAX] = { { .fd = signals, .events = POLLIN } };
    nfds_t count = 1 + open_buttons(fds + 1);
    struct signalfd_siginfo signal;
    int status = 0;

    while (!reap(process, &status)) {
        bool is_asked = false;

        if (poll(fds, count, -1) < 0 && errno != EINTR)
            complain("poll");
        while (read(signals, &signal, sizeof(signal)) == sizeof(signal))
            is_asked |= signal.ssi_signo != SIGCHLD;
        for (nfds_t k = 1; k < count; k++)
            is_asked |= is_pressed(fds[k].fd);
        if (is_asked)
            kill(process, i->stop_signal);
    }
    return status;
}

static int run(const struct image *i)
{
    sigset_t mask, before;
    pid_t process;
    int signals;

    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT); /* Ctrl-Alt-Del's */
    sigprocmask(SIG_BLOCK, &mask, &before);
    reboot(RB_DISABLE_CAD);
    signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    process = fork();
    if (process == 0)
        become(i, &before);
    if (signals < 0 || process < 0) {
        complain("fork");
        return CANNOT_EXEC;
    }
    return serve(i, process, signals);
}

static void tell_host(int status)
{
    const struct sockaddr_vm host = { .svm_family = AF_VSOCK,
                                      .svm_cid = VMADDR_CID_HOST,
                                      .svm_port = STATUS_PORT };
    int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (s < 0)
        return;
    if (connect(s, (const struct sockaddr *)&host, sizeof(host)) == 0)
        dprintf(s, "status %d\n", status);
    shutdown(s, SHUT_WR);
    /* Until the host has closed it too: a reboot would lose what is under way. */
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ .tv_sec = 5 },
               sizeof(struct timeval));
    if (read(s, &(char){ 0 }, 1) > 0)
        errno = EPROTO;
    close(s);
}

int main(void)
{
    static struct image image;
    const bool has_image = read_image(&image);
    size_t size;
    char *line;
    int status = NOT_FOUND;

    mount_all();
    open_console(image.uid);
    line = read_whole("/proc/cmdline", &size);
    if (line)
        set_up_network(line);
    if (has_image)
        status = run(&image);
    else
        complain(IMAGE_PATH);
    kill(-1, SIGKILL);
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    sync();
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    tell_host(status);
    open_console(0); /* the end of the session that it was the terminal of has hung it up */
    dprintf(STDOUT_FILENO, "mayfly: status %d\n", status);
    tcdrain(STDOUT_FILENO);
    reboot(RB_AUTOBOOT);
    return 1;
}
