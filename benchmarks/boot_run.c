/*
 * Boots microVMs and notes when each phase was reached: what benchmarks/boot starts on the host
 * that it measures, be it this one or an emulated one. Knows nothing of any VMM: a file for each
 * says how it is started and configured.
 *
 * usage: boot-run [--runs N] [--at-once K] [--inside] [--kill] VMM-FILE...
 *   --runs     rounds; in each, every VMM has its turn
 *   --at-once  so many of one VMM at the same time
 *   --inside   also the first entry into the guest, from KVM's trace point, and the VMM's CPU time;
 *              costs time itself; one at a time only
 *   --kill     ends a guest that is ready; otherwise it ends itself
 *
 * A line of a VMM-FILE is a word and what belongs to it; {} is a directory of this one start:
 *   name NAME   exec ARGUMENT   socket PATH   put PATH BODY   ready TEXT-ON-STDOUT   vsock PATH
 * A guest is ready with that text, or with a first byte to the socket that vsock names. Of several
 * "put" the last one starts the guest. Prints for each boot, in nanoseconds since exec, -1 for what
 * there is not:
 *   boot NAME API-ANSWERS CONFIGURED STARTED ENTRY READY ENDED CPU-STARTED CPU-READY
 *     KERNEL INIT
 * where CPU times are times, and KERNEL and INIT are what the guest's own clock says: until its
 * first process, and that process until it was ready; and with --at-once: all NAME K
 * UNTIL-THE-LAST-IS-READY
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"

#define WORDS_MAX  64
#define PUTS_MAX   16
#define TRACING    "/sys/kernel/tracing/"
#define ENTRY      TRACING "events/kvm/kvm_entry/"
#define TIMEOUT_MS 60000

struct vmm {
    char *name, *socket, *ready, *vsock;
    char *exec[WORDS_MAX];
    struct {
        char *path, *body;
    } puts[PUTS_MAX];
    unsigned put_count;
};

enum phase {
    API,
    CONFIGURED,
    STARTED,
    GUEST_ENTRY,
    READY,
    ENDED,
    CPU_STARTED,
    CPU_READY,
    KERNEL,
    INIT,
    PHASES
};

struct boot {
    int64_t begin_ns;
    int64_t at[PHASES];
    bool done;
};

static struct {
    unsigned runs, at_once;
    bool inside, kill;
} options = { .runs = 1, .at_once = 1 };

static void check(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "boot-run: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* text with each {} replaced by the directory. */
static char *fill(const char *text, const char *directory)
{
    static char out[8192];
    size_t n = 0;

    while (*text) {
        check(n + strlen(directory) + 1 < sizeof(out), "a line is too long");
        if (text[0] == '{' && text[1] == '}') {
            strcpy(out + n, directory);
            n += strlen(directory);
            text += 2;
        } else {
            out[n++] = *text++;
        }
    }
    out[n] = '\0';
    return strdup(out);
}

static void parse_line(struct vmm *v, char *line)
{
    char *rest = line + strcspn(line, " "), *body;
    unsigned words = 0;

    if (*rest)
        *rest++ = '\0';
    if (!strcmp(line, "name")) {
        v->name = strdup(rest);
    } else if (!strcmp(line, "socket")) {
        v->socket = strdup(rest);
    } else if (!strcmp(line, "ready")) {
        v->ready = strdup(rest);
    } else if (!strcmp(line, "vsock")) {
        v->vsock = strdup(rest);
    } else if (!strcmp(line, "exec")) {
        while (v->exec[words])
            words++;
        check(words < WORDS_MAX - 1, "too many arguments");
        v->exec[words] = strdup(rest);
    } else if (!strcmp(line, "put")) {
        body = rest + strcspn(rest, " ");
        check(*body && v->put_count < PUTS_MAX, "a put has no body");
        *body++ = '\0';
        v->puts[v->put_count].path = strdup(rest);
        v->puts[v->put_count++].body = strdup(body);
    }
}

static void parse(struct vmm *v, const char *path)
{
    char line[4096];
    FILE *f = fopen(path, "r");

    check(f, path);
    *v = (struct vmm){ .name = "vmm", .ready = "mayfly-bench" };
    while (fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = '\0';
        parse_line(v, line);
    }
    fclose(f);
}

static pid_t spawn(const struct vmm *v, const char *directory, int out)
{
    char *argv[WORDS_MAX] = { NULL };
    char *const environment[] = { "PATH=/usr/bin:/bin", "HOME=.", NULL };
    posix_spawn_file_actions_t files;
    pid_t pid;

    for (unsigned i = 0; v->exec[i]; i++)
        argv[i] = fill(v->exec[i], directory);
    check(argv[0], "there is nothing to execute");
    check(posix_spawn_file_actions_init(&files) == 0, "file actions");
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&files, out, 1);
    posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_RDWR, 0);
    errno = posix_spawn(&pid, argv[0], &files, NULL, argv, environment);
    check(errno == 0, argv[0]);
    return pid;
}

/* Waits for the file without asking again and again, which would cost the VMM its CPU. */
static int connect_to(const char *path, int watch)
{
    const struct timespec pause = { .tv_nsec = 20000 };
    struct pollfd poll_fd = { .fd = watch, .events = POLLIN };
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    check(fd >= 0, "socket");
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (access(path, F_OK) < 0)
        check(poll(&poll_fd, 1, TIMEOUT_MS) == 1, path);
    for (unsigned tries = 0; connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0;
         tries++) {
        check(tries < 100000, path);
        nanosleep(&pause, NULL);
    }
    return fd;
}

static void request(int fd, const char *method, const char *path, const char *body)
{
    char text[8192];
    int n = snprintf(text, sizeof(text),
                     "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     method, path, strlen(body), body);

    check(n > 0 && n < (int)sizeof(text) && write(fd, text, (size_t)n) == n, path);
    n = (int)read(fd, text, sizeof(text) - 1);
    check(n > 0, path);
    text[n] = '\0';
    if (strncmp(text, "HTTP/1.1 20", 11) == 0)
        return;
    fprintf(stderr, "boot-run: %s %s: %s\n", method, path, text);
    exit(1);
}

/* CPU time of all threads. */
static int64_t cpu_ns(pid_t pid)
{
    char path[64];
    int64_t total = 0, one;
    struct dirent *d;
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    tasks = opendir(path);
    while (tasks && (d = readdir(tasks))) {
        char file[400];
        FILE *f;

        snprintf(file, sizeof(file), "%s/%s/schedstat", path, d->d_name);
        f = d->d_name[0] == '.' ? NULL : fopen(file, "r");
        if (!f)
            continue;
        if (fscanf(f, "%" SCNd64, &one) == 1)
            total += one;
        fclose(f);
    }
    if (tasks)
        closedir(tasks);
    return total;
}

static void put_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

    if (fd < 0)
        return;
    check(write(fd, text, strlen(text)) >= 0 || errno == EINVAL || errno == ENOENT, path);
    close(fd);
}

/* One trace record: the first, which switches tracing off. */
static void arm_entry(void)
{
    put_text(TRACING "tracing_on", "0");
    put_text(TRACING "trace_clock", "mono");
    put_text(TRACING "trace", "");
    put_text(ENTRY "trigger", "!traceoff");
    put_text(ENTRY "trigger", "traceoff:1");
    put_text(ENTRY "enable", "1");
    put_text(TRACING "tracing_on", "1");
}

static int64_t read_entry(void)
{
    char line[512];
    int64_t at = -1;
    FILE *f = fopen(TRACING "trace", "r");

    put_text(ENTRY "enable", "0");
    while (f && at < 0 && fgets(line, sizeof(line), f)) {
        const char *time = strstr(line, ": kvm_entry:");
        long seconds, micros;

        while (time && time > line && time[-1] != ' ')
            time--;
        if (time && sscanf(time, "%ld.%ld", &seconds, &micros) == 2)
            at = seconds * 1000000000 + micros * 1000;
    }
    if (f)
        fclose(f);
    return at;
}

static void configure(const struct vmm *v, struct boot *b, const char *directory, int watch,
                      pid_t pid)
{
    int fd = connect_to(fill(v->socket, directory), watch);

    request(fd, "GET", "/", "");
    b->at[API] = now_ns();
    for (unsigned i = 0; i + 1 < v->put_count; i++)
        request(fd, "PUT", v->puts[i].path, fill(v->puts[i].body, directory));
    b->at[CONFIGURED] = now_ns();
    request(fd, "PUT", v->puts[v->put_count - 1].path, v->puts[v->put_count - 1].body);
    b->at[STARTED] = now_ns();
    if (options.inside)
        b->at[CPU_STARTED] = cpu_ns(pid);
    close(fd);
}

/* Where the guest's first byte on vsock comes in; -1 if it is to say so on its console. */
static int listen_to(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = path ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;

    if (!path)
        return -1;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    check(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
              listen(fd, 1) == 0,
          path);
    return fd;
}

static void read_first_byte(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    char byte;

    check(fd >= 0 && read(fd, &byte, 1) == 1, "the guest's first byte");
    close(fd);
}

static void guest_clock(struct boot *b, const char *text)
{
    const char *at = strstr(text, "kernel_us=");
    long kernel_us, init_us;

    if (!at || sscanf(at, "kernel_us=%ld init_us=%ld", &kernel_us, &init_us) != 2)
        return;
    b->at[KERNEL] = kernel_us * 1000;
    b->at[INIT] = init_us * 1000;
}

/* Reads the console until its end; notes when the text, or the first byte on vsock, was there. */
static void watch_guest(const struct vmm *v, struct boot *b, int console, int vsock, pid_t pid)
{
    static char text[1 << 20];
    size_t have = 0;
    struct pollfd fds[] = { { .fd = console, .events = POLLIN },
                            { .fd = vsock, .events = POLLIN } };
    bool is_ready = false;
    ssize_t got;

    while (poll(fds, 2, TIMEOUT_MS) > 0) {
        if (fds[1].revents) {
            read_first_byte(vsock);
            is_ready = true;
            fds[1].fd = -1;
        } else {
            got = read(console, text + have, sizeof(text) - 1 - have);
            if (got <= 0)
                break;
            have += (size_t)got;
            text[have] = '\0';
            is_ready = is_ready || (vsock < 0 && strstr(text, v->ready));
        }
        if (b->at[READY] >= 0 || !is_ready)
            continue;
        b->at[READY] = now_ns();
        if (options.inside)
            b->at[CPU_READY] = cpu_ns(pid);
        if (options.kill)
            return;
    }
    guest_clock(b, text);
    if (b->at[READY] < 0)
        fprintf(stderr, "boot-run: %s was never ready; its last words:\n%s\n", v->name,
                text + (have > 800 ? have - 800 : 0));
}

static void boot(const struct vmm *v, struct boot *b)
{
    char directory[] = "/tmp/boot-run.XXXXXX";
    int console[2], vsock, watch = inotify_init1(IN_CLOEXEC);
    pid_t pid;

    check(mkdtemp(directory) && pipe2(console, O_CLOEXEC) == 0, directory);
    check(inotify_add_watch(watch, directory, IN_CREATE) >= 0, directory);
    vsock = listen_to(v->vsock ? fill(v->vsock, directory) : NULL);
    if (options.inside)
        arm_entry();
    b->begin_ns = now_ns();
    pid = spawn(v, directory, console[1]);
    close(console[1]);
    if (v->socket)
        configure(v, b, directory, watch, pid);
    watch_guest(v, b, console[0], vsock, pid);
    if (options.kill || b->at[READY] < 0)
        kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    b->at[ENDED] = now_ns();
    if (options.inside)
        b->at[GUEST_ENTRY] = read_entry();
    if (v->socket)
        unlink(fill(v->socket, directory));
    if (v->vsock)
        unlink(fill(v->vsock, directory));
    rmdir(directory);
    b->done = b->at[READY] >= 0;
}

static void print(const struct vmm *v, const struct boot *b)
{
    printf("boot %s", v->name);
    for (unsigned p = 0; p < PHASES; p++) {
        bool is_since = p < CPU_STARTED;

        printf(" %" PRId64, b->at[p] < 0 ? -1 : b->at[p] - (is_since ? b->begin_ns : 0));
    }
    printf("\n");
}

/* Each in a process of its own; what they note is in memory that all of them share. */
static bool boot_all(const struct vmm *v, struct boot *boots)
{
    int64_t begin_ns = now_ns(), last = 0;
    bool ok = true;

    for (unsigned i = 0; i < options.at_once; i++) {
        boots[i] = (struct boot){ 0 };
        for (unsigned p = 0; p < PHASES; p++)
            boots[i].at[p] = -1;
        if (fork() == 0) {
            boot(v, &boots[i]);
            _exit(0);
        }
    }
    while (wait(NULL) > 0)
        ;
    for (unsigned i = 0; i < options.at_once; i++) {
        ok = ok && boots[i].done;
        last = boots[i].at[READY] > last ? boots[i].at[READY] : last;
        print(v, &boots[i]);
    }
    if (options.at_once > 1)
        printf("all %s %u %" PRId64 "\n", v->name, options.at_once, last - begin_ns);
    fflush(stdout);
    return ok;
}

int main(int argc, char **argv)
{
    static struct vmm vmms[16];
    unsigned count = 0;
    struct boot *boots;
    bool ok = true;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            options.runs = (unsigned)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--at-once") && i + 1 < argc)
            options.at_once = (unsigned)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--inside"))
            options.inside = true;
        else if (!strcmp(argv[i], "--kill"))
            options.kill = true;
        else if (count < sizeof(vmms) / sizeof(*vmms))
            parse(&vmms[count++], argv[i]);
    }
    if (!count || !options.at_once)
        return 2;
    boots = mmap(NULL, options.at_once * sizeof(*boots), PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(boots != MAP_FAILED, "mmap");
    for (unsigned run = 0; run < options.runs; run++)
        for (unsigned i = 0; i < count; i++)
            ok = boot_all(&vmms[i], boots) && ok;
    return ok ? 0 : 1;
}
