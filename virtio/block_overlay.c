#include "virtio/block_overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "vmm/base/clock.h"
#include "vmm/base/uuid.h"

#define MAGIC          "MAYFLYO" /* and its NUL */
#define FORMAT         1u
#define FROZEN         1u
#define HEADER_BYTES   4096u
#define SECTOR         512u
#define WORD_BITS      64u
#define STAMP_SLACK_NS 100000 /* two clocks can't be read at once */

/* What a commit writes at least: a bit of `dirty` stands for so many sectors. */
#define GRANULE_BYTES 512u
#define GRANULE_BITS  (GRANULE_BYTES * 8u)

struct header {
    char magic[8];
    uint32_t version, state;
    struct uuid name, below;
    uint64_t sectors;
    int64_t stamp;
};
_Static_assert(sizeof(struct header) == 64, "the format's");

struct layer {
    int fd;
    char *path;
    bool was_made;   /* here */
    bool name_lasts; /* is on the disk, too */
    struct uuid name;
    uint64_t *present; /* a bit a sector */
    /* Of what is not sealed: a bit a granule of those bits that is not committed, and the granules
     * outside of which none is. */
    uint64_t *dirty, dirty_from, dirty_end;
};

struct block_overlay {
    uint64_t sectors, bitmap_bytes;
    unsigned count; /* of layers, the top included, which is the last */
    struct layer layers[BLOCK_LAYERS_MAX + 1];
    bool has_frozen; /* the layer below the top is not sealed yet */
};

static uint64_t committed_at(void)
{
    return HEADER_BYTES;
}

static uint64_t recent_at(const struct block_overlay *o)
{
    return committed_at() + o->bitmap_bytes;
}

static uint64_t data_at(const struct block_overlay *o)
{
    return recent_at(o) + o->bitmap_bytes;
}

static uint64_t file_bytes(const struct block_overlay *o)
{
    return data_at(o) + o->sectors * SECTOR;
}

static struct layer *top_of(struct block_overlay *o)
{
    return &o->layers[o->count - 1];
}

/* How many of the n bits from `at` on are what the first is. */
static uint64_t run_of(const uint64_t *bits, uint64_t at, uint64_t n)
{
    const uint64_t flip = bits[at / WORD_BITS] >> at % WORD_BITS & 1 ? UINT64_MAX : 0;
    uint64_t other = (bits[at / WORD_BITS] ^ flip) >> at % WORD_BITS;
    uint64_t run = WORD_BITS - at % WORD_BITS;

    if (other)
        run = (uint64_t)__builtin_ctzll(other);
    for (; !other && run < n; run += WORD_BITS) {
        other = bits[(at + run) / WORD_BITS] ^ flip;
        if (other) {
            run += (uint64_t)__builtin_ctzll(other);
            break;
        }
    }
    return run < n ? run : n;
}

static bool has_bit_at(const uint64_t *bits, uint64_t at)
{
    return bits[at / WORD_BITS] >> at % WORD_BITS & 1;
}

/* Sets bits; whether one of them was not. */
static bool set_bits(uint64_t *bits, uint64_t first, uint64_t end)
{
    bool is_new = false;

    for (uint64_t at = first; at < end;) {
        const uint64_t room = WORD_BITS - at % WORD_BITS;
        const uint64_t n = end - at < room ? end - at : room;
        const uint64_t mask = (UINT64_MAX >> (WORD_BITS - n)) << at % WORD_BITS;

        is_new |= (bits[at / WORD_BITS] & mask) != mask;
        bits[at / WORD_BITS] |= mask;
        at += n;
    }
    return is_new;
}

static void mark_dirty(struct layer *l, uint64_t granule, uint64_t n)
{
    (void)set_bits(l->dirty, granule, granule + n);
    if (l->dirty_end == 0 || granule < l->dirty_from)
        l->dirty_from = granule;
    if (granule + n > l->dirty_end)
        l->dirty_end = granule + n;
}

/* The closest of some readings counts. */
static int64_t boot_stamp(void)
{
    uint64_t best_ns = UINT64_MAX;
    int64_t stamp = 0;

    for (unsigned i = 0; i < 10; i++) {
        const uint64_t before = clock_ns(CLOCK_BOOTTIME);
        const uint64_t now = clock_ns(CLOCK_REALTIME);
        const uint64_t took = clock_ns(CLOCK_BOOTTIME) - before;

        if (took >= best_ns)
            continue;
        best_ns = took;
        stamp = (int64_t)(now - before - took / 2);
    }
    return stamp;
}

static bool is_of_this_boot(int64_t stamp)
{
    const int64_t now = boot_stamp();

    return stamp > now - STAMP_SLACK_NS && stamp < now + STAMP_SLACK_NS;
}

/* All of it: 0 or -errno. */
static int write_at(int fd, const void *bytes, size_t n, uint64_t offset)
{
    while (n) {
        const struct iovec v = { (void *)bytes, n };
        const ssize_t wrote = pwritev(fd, &v, 1, (off_t)offset);

        if (wrote < 0 && errno != EINTR)
            return -errno;
        if (wrote <= 0)
            continue;
        bytes = (const uint8_t *)bytes + wrote;
        offset += (uint64_t)wrote;
        n -= (size_t)wrote;
    }
    return 0;
}

/* All of it: 0 or -errno; -ENODATA: the file is shorter. */
static int read_at(int fd, void *bytes, size_t n, uint64_t offset)
{
    while (n) {
        const struct iovec v = { bytes, n };
        const ssize_t got = preadv(fd, &v, 1, (off_t)offset);

        if (got < 0 && errno != EINTR)
            return -errno;
        if (got == 0)
            return -ENODATA;
        if (got < 0)
            continue;
        bytes = (uint8_t *)bytes + got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

static int fail_overlay(struct error *e, const char *path, int os_errno, const char *what)
{
    if (os_errno)
        return fail(e, ERR_HOST, "Virtio backend error: Overlay %.400s: %s: %s (os error %d)", path,
                    what, os_error_text(os_errno), os_errno);
    return fail(e, ERR_INVALID, "Virtio backend error: Overlay %.400s: %s", path, what);
}

static int write_header(const struct block_overlay *o, const struct layer *l, bool is_frozen)
{
    const struct header h = {
        .magic = MAGIC,
        .version = FORMAT,
        .state = is_frozen ? FROZEN : 0,
        .name = l->name,
        .below = l > o->layers ? l[-1].name : (struct uuid){ { 0 } },
        .sectors = o->sectors,
        .stamp = boot_stamp(),
    };

    return write_at(l->fd, &h, sizeof(h), 0);
}

/* The next block of a bitmap that is not a hole, of which a young file's is made: 1, with its
 * offset; 0: there is none; or -errno. */
static int next_block(const struct layer *l, uint64_t *at, uint64_t end)
{
    const off_t data = *at < end ? lseek(l->fd, (off_t)*at, SEEK_DATA) : (off_t)end;

    if (data < 0 && errno != ENXIO)
        return -errno;
    if (data < 0 || (uint64_t)data >= end)
        return 0;
    *at = (uint64_t)data / HEADER_BYTES * HEADER_BYTES;
    return 1;
}

/* What a bitmap of a file has is added to a layer's; of the recent one, it is still to be
 * committed.
 */
static int add_bits(const struct block_overlay *o, struct layer *l, uint64_t bitmap_at)
{
    const bool is_recent = bitmap_at == recent_at(o);
    uint64_t words[HEADER_BYTES / sizeof(uint64_t)], at = bitmap_at;
    int ret;

    for (; (ret = next_block(l, &at, bitmap_at + o->bitmap_bytes)) > 0; at += sizeof(words)) {
        uint64_t *to = &l->present[(at - bitmap_at) / sizeof(*to)];

        ret = read_at(l->fd, words, sizeof(words), at);
        if (ret < 0)
            return ret;
        for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
            if (is_recent && words[i] & ~to[i])
                mark_dirty(l, (at - bitmap_at + i * sizeof(*words)) / GRANULE_BYTES, 1);
            to[i] |= words[i];
        }
    }
    return ret;
}

static int clear_recent(const struct block_overlay *o, const struct layer *l)
{
    static const uint8_t zeroes[HEADER_BYTES];
    uint64_t at = recent_at(o);
    int ret;

    for (; (ret = next_block(l, &at, data_at(o))) > 0; at += sizeof(zeroes)) {
        ret = write_at(l->fd, zeroes, sizeof(zeroes), at);
        if (ret < 0)
            return ret;
    }
    return ret;
}

/* A file that was just made, or is empty. */
static int make_top(struct block_overlay *o, struct layer *l, const char *path, struct error *e)
{
    int ret;

    if (uuid_make(&l->name, e) < 0)
        return -1;
    if (ftruncate(l->fd, (off_t)file_bytes(o)) < 0)
        return fail_overlay(e, path, errno, "it can't be made as long as it has to be");
    ret = write_header(o, l, false);
    if (ret < 0)
        return fail_overlay(e, path, -ret, "it can't be written");
    return 0;
}

static const char *judge_overlay(const struct block_overlay *o, const struct layer *l,
                                 const struct header *h, bool is_layer, uint64_t bytes)
{
    static const struct uuid none;
    const struct uuid *below = l > o->layers ? &l[-1].name : &none;

    if (memcmp(h->magic, MAGIC, sizeof(h->magic)) != 0)
        return "it is none: it does not begin with " MAGIC;
    if (h->version != FORMAT)
        return "its format has a version that this mayfly does not know";
    if (h->state & ~FROZEN)
        return "its header says neither that it is frozen nor that it is not";
    if (!is_layer && h->state == FROZEN)
        return "it is frozen: it can only be one of the layers";
    if (is_layer && h->state != FROZEN)
        return "it is not frozen, and can't be one of the layers";
    if (h->sectors != o->sectors)
        return "it is of a disk of another size";
    if (!uuid_equal(&h->below, below))
        return "it was made above something else than what is below it here";
    if (uuid_equal(&h->name, &none))
        return "its header has no UUID";
    if (bytes < file_bytes(o))
        return "it is too short";
    return NULL;
}

/* What the recent bitmap says of another boot is taken away, before the file is one of this boot.
 * (That the host may die in between is no matter: then it is of another boot again.) */
static int enter_boot(struct block_overlay *o, struct layer *l, const struct header *h)
{
    int ret;

    if (is_of_this_boot(h->stamp))
        return add_bits(o, l, recent_at(o));
    ret = clear_recent(o, l);
    return ret < 0 ? ret : write_header(o, l, false);
}

static int read_layer(struct block_overlay *o, struct layer *l, const char *path, bool is_layer,
                      uint64_t bytes, struct error *e)
{
    struct header h;
    const char *trouble;
    int ret = read_at(l->fd, &h, sizeof(h), 0);

    if (ret == -ENODATA)
        return fail_overlay(e, path, 0, "it is too short");
    if (ret == 0) {
        trouble = judge_overlay(o, l, &h, is_layer, bytes);
        if (trouble)
            return fail_overlay(e, path, 0, trouble);
        l->name = h.name;
        ret = add_bits(o, l, committed_at());
    }
    if (ret == 0 && !is_layer)
        ret = enter_boot(o, l, &h);
    return ret < 0 ? fail_overlay(e, path, -ret, "it can't be read") : 0;
}

/* A regular file that is not the base, and locked. */
static int hold_file(int fd, const char *path, bool is_layer, int base_fd, struct stat *st,
                     struct error *e)
{
    struct stat base;

    if (fstat(fd, st) < 0 || fstat(base_fd, &base) < 0 || fcntl(fd, F_SETFL, 0) < 0)
        return fail_overlay(e, path, errno, "it can't be opened");
    if (!S_ISREG(st->st_mode))
        return fail_overlay(e, path, 0, "it is no regular file");
    if (st->st_dev == base.st_dev && st->st_ino == base.st_ino)
        return fail_overlay(e, path, 0, "it is the drive's base");
    if (flock(fd, (is_layer ? LOCK_SH : LOCK_EX) | LOCK_NB) < 0)
        return errno == EWOULDBLOCK
                   ? fail_overlay(e, path, 0,
                                  is_layer ? "somebody writes to it"
                                           : "it is in use, by another drive or as a layer")
                   : fail_overlay(e, path, errno, "it can't be locked");
    return 0;
}

/* A link is not followed to what is written: whoever may put one there would choose that. */
static int open_overlay(const char *path, bool is_layer)
{
    const int flags = O_NOCTTY | O_NONBLOCK | O_CLOEXEC;

    return is_layer ? open(path, O_RDONLY | flags)
                    : open(path, O_RDWR | O_CREAT | O_NOFOLLOW | flags, 0666);
}

/* Opens the next layer. */
static int open_layer(struct block_overlay *o, const char *path, bool is_layer, bool is_fresh,
                      int base_fd, struct error *e)
{
    struct layer *l = &o->layers[o->count];
    struct stat st;
    const bool was_there = is_layer || lstat(path, &st) == 0;

    l->fd = open_overlay(path, is_layer);
    if (l->fd < 0)
        return fail_overlay(e, path, errno, "it can't be opened");
    o->count++;
    l->present = calloc(o->bitmap_bytes + 1, 1);
    l->dirty = calloc(o->sectors / GRANULE_BITS / WORD_BITS + 1, sizeof(*l->dirty));
    if (!l->present || !l->dirty)
        return fail_overlay(e, path, ENOMEM, "its bitmap has no room");
    if (hold_file(l->fd, path, is_layer, base_fd, &st, e) < 0)
        return -1;
    l->path = strdup(path);
    l->was_made = !was_there;
    l->name_lasts = is_layer;
    if (!is_layer && st.st_size == 0)
        return make_top(o, l, path, e);
    if (read_layer(o, l, path, is_layer, (uint64_t)st.st_size, e) < 0)
        return -1;
    if (is_fresh && (run_of(l->present, 0, o->sectors) < o->sectors || has_bit_at(l->present, 0)))
        return fail_overlay(e, path, 0, "it has to be a new one, since its drive was frozen");
    return 0;
}

int block_overlay_open(struct block_overlay **out, const struct drive_config *d, int base_fd,
                       uint64_t sectors, struct error *e)
{
    struct block_overlay *o = calloc(1, sizeof(*o));
    int ret = 0;

    BUG_ON(!o);
    o->sectors = sectors;
    o->bitmap_bytes = (sectors + HEADER_BYTES * 8 - 1) / (HEADER_BYTES * 8) * HEADER_BYTES;
    if (file_bytes(o) > INT64_MAX)
        ret = fail_overlay(e, d->overlay_path, EFBIG, "the base is too large");
    for (size_t i = 0; ret == 0 && i < d->layers.count; i++)
        ret = open_layer(o, d->layers.items[i], true, false, base_fd, e);
    if (ret == 0)
        ret = open_layer(o, d->overlay_path, false, d->is_frozen, base_fd, e);
    if (ret < 0) {
        block_overlay_remove(o);
        block_overlay_close(o);
        return -1;
    }
    *out = o;
    return 0;
}

static void close_top(struct block_overlay *o)
{
    struct layer *l = top_of(o);

    close_fdp(&l->fd);
    free(l->path);
    free(l->present);
    free(l->dirty);
    *l = (struct layer){ .fd = -1 };
    o->count--;
}

void block_overlay_close(struct block_overlay *o)
{
    if (!o)
        return;
    while (o->count > 0)
        close_top(o);
    free(o);
}

void block_overlay_remove(const struct block_overlay *o)
{
    if (o->count > 0 && o->layers[o->count - 1].was_made)
        (void)!unlink(o->layers[o->count - 1].path);
}

void block_overlay_lend(const struct block_overlay *o)
{
    (void)flock(block_overlay_fd(o), LOCK_UN);
}

void block_overlay_take_back(const struct block_overlay *o)
{
    (void)flock(block_overlay_fd(o), LOCK_EX | LOCK_NB);
}

int block_overlay_fd(const struct block_overlay *o)
{
    return o->layers[o->count - 1].fd;
}

unsigned block_overlay_files(const struct block_overlay *o)
{
    return o->count;
}

int block_overlay_file(const struct block_overlay *o, unsigned file)
{
    return o->layers[file - 1].fd;
}

struct block_extent block_overlay_find(const struct block_overlay *o, int base_fd, bool is_read,
                                       uint64_t offset, uint32_t n)
{
    const uint64_t first = offset / SECTOR;
    uint64_t sectors = (offset + n + SECTOR - 1) / SECTOR - first, bytes;
    unsigned file = o->count;

    for (; is_read && file > 0; file--) {
        const uint64_t *present = o->layers[file - 1].present;

        sectors = run_of(present, first, sectors);
        if (has_bit_at(present, first))
            break;
    }
    bytes = (first + sectors) * SECTOR - offset;
    return (struct block_extent){
        .fd = file ? o->layers[file - 1].fd : base_fd,
        .file = file,
        .offset = file ? data_at(o) + offset : offset,
        .bytes = bytes < n ? (uint32_t)bytes : n,
    };
}

int block_overlay_wrote(struct block_overlay *o, uint64_t offset, uint32_t n)
{
    const uint64_t first = offset / SECTOR, end = (offset + n) / SECTOR;
    const uint64_t from = first / GRANULE_BITS, to = (end + GRANULE_BITS - 1) / GRANULE_BITS;
    struct layer *top = top_of(o);

    if (first == end || !set_bits(top->present, first, end))
        return 0;
    mark_dirty(top, from, to - from);
    return write_at(top->fd, (const uint8_t *)top->present + first / 8, (end + 7) / 8 - first / 8,
                    recent_at(o) + first / 8);
}

bool block_overlay_is_dirty(const struct block_overlay *o)
{
    const struct layer *top = &o->layers[o->count - 1];

    return top->dirty_end > 0 || !top->name_lasts || o->has_frozen;
}

/* 1: bits were written; 0: there was none; or -errno. */
static int commit(const struct block_overlay *o, struct layer *l)
{
    if (l->dirty_end == 0)
        return 0;
    for (uint64_t at = l->dirty_from, n; at < l->dirty_end; at += n) {
        const uint64_t offset = at * GRANULE_BYTES;
        uint64_t bytes;
        int ret;

        n = run_of(l->dirty, at, l->dirty_end - at);
        bytes = n * GRANULE_BYTES;
        if (!has_bit_at(l->dirty, at))
            continue;
        if (bytes > o->bitmap_bytes - offset)
            bytes = o->bitmap_bytes - offset;
        ret = write_at(l->fd, (const uint8_t *)l->present + offset, bytes, committed_at() + offset);
        if (ret < 0)
            return ret;
    }
    memset(&l->dirty[l->dirty_from / WORD_BITS], 0,
           ((l->dirty_end - 1) / WORD_BITS - l->dirty_from / WORD_BITS + 1) * sizeof(*l->dirty));
    l->dirty_from = l->dirty_end = 0;
    return 1;
}

static int sync_file(int fd)
{
    int ret;

    do
        ret = fdatasync(fd);
    while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

/* Makes the file's name durable, if its directory may be read: what file systems do for a new file
 * that is synced has to do else. */
static int keep_name(struct layer *l)
{
    const char *slash = strrchr(l->path, '/');
    autofree char *directory = NULL;
    autofd int fd = -1;

    if (l->name_lasts)
        return 0;
    directory = slash ? strndup(l->path, (size_t)(slash - l->path) + 1) : strdup(".");
    BUG_ON(!directory);
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && fsync(fd) < 0)
        return -errno;
    l->name_lasts = true;
    return 0;
}

/* The header and the last bits may get to the disk in any order: what a flush has promised is
 * there before, and nobody knows of a layer before this returns. */
static int seal(struct block_overlay *o)
{
    struct layer *l;
    int ret;

    if (!o->has_frozen)
        return 0;
    l = &o->layers[o->count - 2];
    ret = sync_file(l->fd);
    if (ret == 0)
        ret = keep_name(l);
    if (ret == 0)
        ret = commit(o, l);
    if (ret >= 0)
        ret = write_header(o, l, true);
    if (ret == 0)
        ret = sync_file(l->fd);
    if (ret == 0 && flock(l->fd, LOCK_SH | LOCK_NB) < 0)
        ret = -errno;
    o->has_frozen = ret < 0;
    return ret;
}

int block_overlay_commit(struct block_overlay *o)
{
    int ret = seal(o);

    if (ret == 0)
        ret = keep_name(top_of(o));
    return ret < 0 ? ret : commit(o, top_of(o));
}

int block_overlay_sync(struct block_overlay *o)
{
    int ret = sync_file(block_overlay_fd(o));

    if (ret == 0)
        ret = block_overlay_commit(o);
    return ret > 0 ? sync_file(block_overlay_fd(o)) : ret;
}

static void drop_top(struct block_overlay *o)
{
    block_overlay_remove(o);
    close_top(o);
}

int block_overlay_freeze(struct block_overlay *o, const char *path, int base_fd, struct error *e)
{
    const unsigned count = o->count;
    int ret = seal(o); /* the one before */

    if (ret < 0)
        return fail_os(e, -ret, "Virtio backend error: A layer can't be sealed");
    if (count > BLOCK_LAYERS_MAX)
        return fail(e, ERR_INVALID,
                    "Virtio backend error: It has %u layers, and no more are possible.",
                    BLOCK_LAYERS_MAX);
    if (open_layer(o, path, false, true, base_fd, e) < 0) {
        if (o->count > count)
            drop_top(o);
        return -1;
    }
    o->has_frozen = true;
    return 0;
}

void block_overlay_thaw(struct block_overlay *o)
{
    struct layer *l;

    drop_top(o);
    l = top_of(o);
    if (!o->has_frozen) {
        (void)!write_header(o, l, false);
        (void)flock(l->fd, LOCK_EX | LOCK_NB);
    }
    o->has_frozen = false;
}
