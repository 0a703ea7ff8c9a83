#include "vmm/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <time.h>

#include "vmm/console.h"

static struct {
    struct log_options options;
    const char *instance;
    int fd; /* -1: the console */
    atomic_uint_fast64_t missed;
} sink = { .options.level = LOG_INFO, .instance = "anonymous-instance", .fd = -1 };

void log_set_instance(const char *id)
{
    sink.instance = id;
}

void log_set_options(struct log_options options)
{
    sink.options = options;
}

int log_level_parse(const char *name)
{
    static const struct {
        const char *name;
        enum log_level level;
    } names[] = {
        { "off", LOG_OFF },      { "error", LOG_ERROR }, { "warn", LOG_WARN },
        { "warning", LOG_WARN }, { "info", LOG_INFO },   { "debug", LOG_DEBUG },
        { "trace", LOG_TRACE },
    };

    for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcasecmp(name, names[i].name) == 0)
            return (int)names[i].level;
    return -1;
}

int log_open(const char *path, struct error *e)
{
    /* Read and write, so that opening a FIFO waits for no reader (fifo(7)). */
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC, 0600);

    if (fd < 0)
        return fail_os(e, errno, "cannot open the log %s", path);
    close_fdp(&sink.fd);
    sink.fd = fd;
    return 0;
}

uint64_t log_missed(void)
{
    return sink.missed;
}

static size_t prefix(char *line, size_t size, enum log_level level, const char *file, int at)
{
    static const char *const names[] = { "", "ERROR", "WARN", "INFO", "DEBUG", "TRACE" };
    char thread[16] = "main";
    struct timespec now;
    struct tm tm;
    size_t used;

    if (gettid() != getpid())
        prctl(PR_GET_NAME, thread);
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    used = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &tm);
    used += (size_t)snprintf(line + used, size - used, ".%09ld [%s:%s", now.tv_nsec, sink.instance,
                             thread);
    if (sink.options.show_level)
        used += (size_t)snprintf(line + used, size - used, ":%s", names[level]);
    if (sink.options.show_origin)
        used += (size_t)snprintf(line + used, size - used, ":%s:%d", file, at);
    used += (size_t)snprintf(line + used, size - used, "] ");
    return used;
}

void log_line(enum log_level level, const char *file, int at, const char *fmt, ...)
{
    char line[2048];
    int saved = errno;
    size_t used;
    va_list ap;
    int fd;

    if (level > sink.options.level)
        return;
    used = prefix(line, sizeof(line), level, file, at);
    va_start(ap, fmt);
    used += (size_t)vsnprintf(line + used, sizeof(line) - used, fmt, ap);
    va_end(ap);
    if (used > sizeof(line) - 2)
        used = sizeof(line) - 2;
    line[used++] = '\n';
    fd = sink.fd >= 0 ? sink.fd : console_out();
    if (write(fd, line, used) != (ssize_t)used)
        sink.missed++;
    errno = saved;
}
