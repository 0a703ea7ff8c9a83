#include "vmm/boot/copy_ahead.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#include "vmm/base/log.h"

#define FIRST_NS    100000 /* the answer to the start goes out before, and the vCPUs are off */
#define PERIOD_NS   1000000
#define PIECE_BYTES (1u << 20) /* less than a period's work; a request waits for it */
#define SOURCES     (sizeof((struct copy_ahead *)0)->sources / sizeof(struct image_source))

static bool is_in_the_list(const struct copy_ahead *c, gpa_t at, uint64_t bytes)
{
    for (unsigned i = c->next; i < c->count; i++) {
        const struct copy_part *p = &c->parts[i];

        if (p->is_final && p->at.v <= at.v && at.v + bytes <= p->at.v + p->bytes)
            return true;
    }
    return false;
}

/* All that is mapped of it; once for each file, so that there is room. */
static void part_from(struct copy_ahead *c, struct image_source *s)
{
    for (unsigned i = 0; i < c->mem->file_part_count; i++) {
        const struct gmem_file_part *part = &c->mem->file_parts[i];

        if (part->fd == s->fd && !is_in_the_list(c, part->at, part->bytes))
            c->parts[c->count++] = (struct copy_part){ part->at, part->bytes, true };
    }
    s->guard = IMAGE_LOOSE;
}

static void part_from_all(struct copy_ahead *c, enum image_guard guard)
{
    for (unsigned i = 0; i < SOURCES; i++)
        if (c->sources[i].guard == guard)
            part_from(c, &c->sources[i]);
}

static bool is_mapped(const struct guest_mem *m, gpa_t at, uint64_t bytes, int fd)
{
    for (unsigned i = 0; i < m->file_part_count; i++) {
        const struct gmem_file_part *p = &m->file_parts[i];

        if (p->fd == fd && p->at.v < at.v + bytes && at.v < p->at.v + p->bytes)
            return true;
    }
    return false;
}

/* Whole pages, as mappings are. */
static void add_written(struct copy_ahead *c, struct image_part part, const struct image_source *s)
{
    uint64_t head = part.at.v % GMEM_PAGE_BYTES;
    uint64_t bytes = (part.bytes + head + GMEM_PAGE_BYTES - 1) & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    gpa_t at = gpa(part.at.v - head);

    if (part.bytes)
        c->parts[c->count++] =
            (struct copy_part){ at, bytes,
                                s->guard == IMAGE_LOOSE && is_mapped(c->mem, at, bytes, s->fd) };
}

static int part_from_file(struct copy_ahead *c, gpa_t at, uint64_t bytes)
{
    void *spare;
    int ret;

    for (unsigned i = 0; i < SOURCES; i++)
        if (c->sources[i].guard == IMAGE_LOOSE &&
            gmem_file_bytes(c->sources[i].fd) < c->sources[i].bytes)
            return -EFAULT;
    spare = gmem_spare(bytes);
    if (!spare)
        return -ENOMEM;
    if (!c->hold(c)) {
        munmap(spare, bytes);
        return -EAGAIN;
    }
    ret = gmem_part_from_file(c->mem, at, bytes, spare);
    c->release(c);
    return ret;
}

/* One piece, or what is left of the part. Where what is not final can't be copied, the guest's own
 * faults do it. 0 or -errno. */
static int copy_piece(struct copy_ahead *c)
{
    struct copy_part *part = &c->parts[c->next];
    uint64_t bytes = part->bytes < PIECE_BYTES ? part->bytes : PIECE_BYTES;
    int ret = 0;

    if (part->is_final)
        ret = part_from_file(c, part->at, bytes);
    else if (!gmem_make_own(c->mem, part->at, bytes))
        bytes = part->bytes;
    part->at.v += bytes;
    part->bytes -= bytes;
    if (part->bytes == 0)
        c->next++;
    return ret;
}

/* Memory has parted from the files whose parts were in the list, or could not. */
static void end_copying(struct copy_ahead *c, int error)
{
    static const char *const names[SOURCES] = { "kernel", "initrd" };

    loop_remove_timer(c->loop, &c->timer);
    c->next = c->count = 0;
    for (unsigned i = 0; i < SOURCES; i++) {
        struct image_source *s = &c->sources[i];

        if (s->guard != IMAGE_LOOSE)
            continue;
        s->guard = IMAGE_NONE;
        if (error)
            log_error("The guest goes on depending on its %s's file, which can't be copied: %s",
                      names[i], error == -EFAULT ? "it was truncated" : os_error_text(-error));
        else
            image_guard_give_back(s->fd);
    }
}

static void on_piece_due(struct loop_source *src, uint32_t ready)
{
    struct copy_ahead *c = owner_of(src, struct copy_ahead, timer);
    int ret;

    (void)ready;
    loop_drain(src->fd);
    ret = copy_piece(c);
    if (ret < 0 || c->next == c->count)
        end_copying(c, ret);
}

static void copy_all_now(struct copy_ahead *c)
{
    int ret = 0;

    while (ret == 0 && c->next < c->count)
        ret = copy_piece(c);
    end_copying(c, ret);
}

/* Copies what is in the list; all of it now where the host has no timer to give. */
static void begin_copying(struct copy_ahead *c)
{
    const struct itimerspec times = { { 0, PERIOD_NS }, { 0, FIRST_NS } };

    if (c->timer.fd >= 0)
        return;
    if (c->next < c->count && loop_add_timer(c->loop, &c->timer, on_piece_due) == 0)
        loop_set_timer(&c->timer, 0, &times, NULL);
    else
        copy_all_now(c);
}

static void on_lease_break(struct loop_source *src, uint32_t ready)
{
    struct copy_ahead *c = owner_of(src, struct copy_ahead, breaks);
    struct signalfd_siginfo info;

    (void)ready;
    (void)!read(src->fd, &info, sizeof(info)); /* does not say which file it is: so both */
    part_from_all(c, IMAGE_LEASED);
    begin_copying(c);
}

static int watch_leases(struct copy_ahead *c)
{
    sigset_t lease;

    sigemptyset(&lease);
    sigaddset(&lease, SIGIO);
    c->breaks = (struct loop_source){
        .fd = signalfd(-1, &lease, SFD_CLOEXEC | SFD_NONBLOCK),
        .want = EPOLLIN,
        .on_ready = on_lease_break,
    };
    return c->breaks.fd < 0 ? -errno : loop_add(c->loop, &c->breaks);
}

void copy_ahead_init(struct copy_ahead *c, struct guest_mem *mem, const struct kernel_image *kernel,
                     const struct initrd *initrd, copy_ahead_hold_fn *hold,
                     copy_ahead_release_fn *release)
{
    *c = (struct copy_ahead){
        .timer = { .fd = -1 },
        .breaks = { .fd = -1 },
        .mem = mem,
        .hold = hold,
        .release = release,
        .sources = { kernel->source, initrd->source },
    };
    for (unsigned i = 0; i < IMAGE_PARTS_MAX; i++)
        add_written(c, kernel->written[i], &kernel->source);
    add_written(c, unpacked_part(initrd->start, initrd->bytes), &initrd->source);
    part_from_all(c, IMAGE_LOOSE);
}

void copy_ahead_start(struct copy_ahead *c, struct loop *loop)
{
    bool is_leased = false;

    c->loop = loop;
    for (unsigned i = 0; i < SOURCES; i++)
        is_leased = is_leased || c->sources[i].guard == IMAGE_LEASED;
    if (is_leased && watch_leases(c) < 0)
        part_from_all(c, IMAGE_LEASED);
    begin_copying(c);
}

void copy_ahead_let_write(struct copy_ahead *c, const char *path)
{
    struct stat file, image;

    if (stat(path, &file) < 0)
        return;
    for (unsigned i = 0; i < SOURCES; i++) {
        if (c->sources[i].guard == IMAGE_NONE || c->sources[i].guard == IMAGE_FIXED ||
            fstat(c->sources[i].fd, &image) < 0 || image.st_dev != file.st_dev ||
            image.st_ino != file.st_ino)
            continue;
        part_from_all(c, IMAGE_LEASED);
        copy_all_now(c);
        return;
    }
}
