/*
 * The guest of benchmarks/block-guest, as its init: reads and writes its disk at each depth of the
 * queue, keeping so many requests in flight with Linux's own asynchronous I/O, past its page cache.
 * On the kernel's command line: mayfly.bytes=N a request, mayfly.requests=N at least at each depth.
 * It says when each part begins and ends, and of one request after another what each took.
 */
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

#define DEPTH_MAX    128
#define REQUESTS_MAX 4096
#define DISK_BYTES   (64u << 20)

/* Init must not return. */
_Noreturn static void end(void)
{
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

static void check(long ret, const char *what)
{
    if (ret >= 0)
        return;
    perror(what);
    end();
}

static void load_module(const char *path)
{
    int fd = open(path, O_RDONLY);

    check(fd, path);
    check(syscall(SYS_finit_module, fd, "", 0), path);
    close(fd);
}

/* /modules has them numbered in the order of loading. */
static void load_modules(void)
{
    char line[256];
    FILE *list = fopen("/modules/list", "r");

    check(list ? 0 : -1, "/modules/list");
    while (fgets(line, sizeof(line), list)) {
        line[strcspn(line, "\n")] = '\0';
        load_module(line);
    }
    fclose(list);
}

static unsigned option(const char *name)
{
    char line[4096] = "";
    const char *at;
    FILE *f = fopen("/proc/cmdline", "r");

    check(f && fgets(line, sizeof(line), f) ? 0 : -1, "/proc/cmdline");
    fclose(f);
    at = strstr(line, name);
    check(at ? 0 : -1, name);
    return (unsigned)strtoul(at + strlen(name), NULL, 10);
}

struct load {
    int fd;
    bool is_write;
    unsigned bytes, depth, requests, before; /* before: what was asked for in all */
    char *buffers;
    aio_context_t context;
    struct iocb slots[DEPTH_MAX];
    uint64_t took_ns[REQUESTS_MAX]; /* each of them, at a depth of 1 */
};

/* Places that do not follow each other, so that the guest's kernel merges nothing, and are new ones
 * as long as there are such. */
static void prepare(struct load *l, unsigned slot, unsigned number)
{
    const unsigned places = DISK_BYTES / l->bytes / 2;

    l->slots[slot] = (struct iocb){
        .aio_data = slot,
        .aio_lio_opcode = l->is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)l->fd,
        .aio_buf = (uint64_t)(l->buffers + (size_t)slot * l->bytes),
        .aio_nbytes = l->bytes,
        .aio_offset = (int64_t)((l->before + number) * 7 % places) * 2 * l->bytes,
    };
}

/* As a busy server does: what was completed together is asked for again together. */
static void carry_out(struct load *l)
{
    struct io_event events[DEPTH_MAX];
    struct iocb *batch[DEPTH_MAX];
    unsigned sent = 0, done = 0, count = 0;
    uint64_t before = now_ns();

    for (; sent < l->depth && sent < l->requests; sent++) {
        prepare(l, sent, sent);
        batch[count++] = &l->slots[sent];
    }
    while (done < l->requests) {
        long got;

        if (count > 0)
            check(syscall(SYS_io_submit, l->context, count, batch) == count ? 0 : -1, "io_submit");
        got = syscall(SYS_io_getevents, l->context, 1, DEPTH_MAX, events, NULL);
        check(got, "io_getevents");
        if (l->depth == 1) {
            l->took_ns[done] = now_ns() - before;
            before += l->took_ns[done];
        }
        count = 0;
        for (long i = 0; i < got; i++, done++) {
            check(events[i].res == (int64_t)l->bytes ? 0 : -1, "a request failed");
            if (sent == l->requests)
                continue;
            prepare(l, (unsigned)events[i].data, sent++);
            batch[count++] = &l->slots[events[i].data];
        }
    }
    l->before += l->requests;
}

static int by_size(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* So many in a hundred took no longer. */
static void say_percentiles(struct load *l)
{
    static const unsigned percents[] = { 50, 90, 99, 100 };

    qsort(l->took_ns, l->requests, sizeof(*l->took_ns), by_size);
    for (unsigned i = 0; i < sizeof(percents) / sizeof(*percents); i++)
        printf(" %llu", (unsigned long long)l->took_ns[(l->requests * percents[i] + 99) / 100 - 1]);
}

/* The pauses leave the host time to read the line before. */
static void measure(struct load *l, unsigned requests)
{
    uint64_t start;

    l->requests = requests / 2; /* warm */
    carry_out(l);
    l->requests = requests;
    printf("begin\n");
    usleep(20000);
    start = now_ns();
    carry_out(l);
    start = now_ns() - start;
    printf("end %s %u %u %u %llu", l->is_write ? "write" : "read", l->bytes, l->depth, requests,
           (unsigned long long)start);
    if (l->depth == 1)
        say_percentiles(l);
    printf("\n");
    usleep(20000);
}

int main(void)
{
    static struct load l;
    unsigned requests;

    mount("proc", "/proc", "proc", 0, NULL);
    load_modules();
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    l.bytes = option("mayfly.bytes=");
    requests = option("mayfly.requests=");
    check(requests > 0 && requests <= REQUESTS_MAX ? 0 : -1, "mayfly.requests");
    l.fd = open("/dev/vda", O_RDWR | O_DIRECT);
    check(l.fd, "/dev/vda");
    check(syscall(SYS_io_setup, DEPTH_MAX, &l.context), "io_setup");
    l.buffers = aligned_alloc(4096, (size_t)DEPTH_MAX * l.bytes);
    check(l.buffers ? 0 : -1, "memory");
    memset(l.buffers, 'x', (size_t)DEPTH_MAX * l.bytes);
    for (int write = 0; write < 2; write++) {
        l.is_write = write;
        l.before = 0;
        for (l.depth = 1; l.depth <= DEPTH_MAX; l.depth *= 2)
            measure(&l, requests < l.depth ? l.depth : requests);
    }
    end();
}
