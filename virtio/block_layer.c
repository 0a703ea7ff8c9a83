#include "virtio/block_layer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "vmm/base/clock.h"
#include "vmm/base/whole_file.h"

#define MAGIC          "MAYFLYO" /* and its NUL */
#define FORMAT         1u
#define FROZEN         1u
#define HEADER_BYTES   4096u
#define WORD_BITS      64u
#define STAMP_SLACK_NS 100000 /* two clocks can't be read at once */
#define LOCK_TRIES     50u
#define LOCK_WAIT_MS   10

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

static uint64_t committed_at(void)
{
    return HEADER_BYTES;
}

static uint64_t recent_at(const struct block_layer *l)
{
    return committed_at() + l->bitmap_bytes;
}

uint64_t block_layer_data(const struct block_layer *l)
{
    return recent_at(l) + l->bitmap_bytes;
}

static uint64_t whole_bytes(const struct block_layer *l)
{
    return block_layer_data(l) + l->sectors * BLOCK_SECTOR_BYTES;
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
static bool put_bits(uint64_t *bits, uint64_t first, uint64_t end)
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

static void mark_dirty(struct block_layer *l, uint64_t granule, uint64_t n)
{
    (void)put_bits(l->dirty, granule, granule + n);
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

static int fail_overlay(struct error *e, const char *path, int os_errno, const char *what)
{
    if (os_errno)
        return fail(e, ERR_HOST, "Virtio backend error: Overlay %.400s: %s: %s (os error %d)", path,
                    what, os_error_text(os_errno), os_errno);
    return fail(e, ERR_INVALID, "Virtio backend error: Overlay %.400s: %s", path, what);
}

static int write_header(const struct block_layer *l, bool is_frozen)
{
    const struct header h = {
        .magic = MAGIC,
        .version = FORMAT,
        .state = is_frozen ? FROZEN : 0,
        .name = l->name,
        .below = l->below,
        .sectors = l->sectors,
        .stamp = boot_stamp(),
    };

    return whole_file_write_at(l->fd, &h, sizeof(h), 0);
}

/* The next block of a bitmap that is not a hole, of which a young file's is made: 1, with its
 * offset; 0: there is none; or -errno. */
static int next_block(const struct block_layer *l, uint64_t *at, uint64_t end)
{
    const off_t data = *at < end ? lseek(l->fd, (off_t)*at, SEEK_DATA) : (off_t)end;

    if (data < 0 && errno != ENXIO)
        return -errno;
    if (data < 0 || (uint64_t)data >= end)
        return 0;
    *at = (uint64_t)data / HEADER_BYTES * HEADER_BYTES;
    return 1;
}

/* What a bitmap of a file has is added to what is known; of the recent one, it is still to be
 * committed.
 */
static int add_bits(struct block_layer *l, uint64_t bitmap_at)
{
    const bool is_recent = bitmap_at == recent_at(l);
    uint64_t words[HEADER_BYTES / sizeof(uint64_t)], at = bitmap_at;
    int ret;

    for (; (ret = next_block(l, &at, bitmap_at + l->bitmap_bytes)) > 0; at += sizeof(words)) {
        uint64_t *to = &l->present[(at - bitmap_at) / sizeof(*to)];

        ret = whole_file_read_at(l->fd, words, sizeof(words), at);
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

static int clear_recent(const struct block_layer *l)
{
    static const uint8_t zeroes[HEADER_BYTES];
    uint64_t at = recent_at(l);
    int ret;

    for (; (ret = next_block(l, &at, block_layer_data(l))) > 0; at += sizeof(zeroes)) {
        ret = whole_file_write_at(l->fd, zeroes, sizeof(zeroes), at);
        if (ret < 0)
            return ret;
    }
    return ret;
}

int block_layer_name(struct block_layer *l, struct error *e)
{
    int ret;

    if (uuid_make(&l->name, e) < 0)
        return -1;
    ret = write_header(l, false);
    return ret < 0 ? fail_overlay(e, l->path, -ret, "it can't be written") : 0;
}

/* A file that was just made, or is empty. */
static int make_top(struct block_layer *l, const char *path, struct error *e)
{
    if (ftruncate(l->fd, (off_t)whole_bytes(l)) < 0)
        return fail_overlay(e, path, errno, "it can't be made as long as it has to be");
    return block_layer_name(l, e);
}

static const char *judge_overlay(const struct block_layer *l, const struct header *h,
                                 bool is_frozen, uint64_t bytes)
{
    static const struct uuid none;

    if (memcmp(h->magic, MAGIC, sizeof(h->magic)) != 0)
        return "it is none: it does not begin with " MAGIC;
    if (h->version != FORMAT)
        return "its format has a version that this mayfly does not know";
    if (h->state & ~FROZEN)
        return "its header says neither that it is frozen nor that it is not";
    if (!is_frozen && h->state == FROZEN)
        return "it is frozen: it can only be one of the layers";
    if (is_frozen && h->state != FROZEN)
        return "it is not frozen, and can't be one of the layers";
    if (h->sectors != l->sectors)
        return "it is of a disk of another size";
    if (uuid_equal(&h->below, &none) && !uuid_equal(&l->below, &none))
        return "it has no layers below it, or they were folded into it: its base is right below";
    if (!uuid_equal(&h->below, &l->below))
        return "it was made above something else than what is below it here";
    if (uuid_equal(&h->name, &none))
        return "its header has no UUID";
    if (bytes < whole_bytes(l))
        return "it is too short";
    return NULL;
}

/* What the recent bitmap says of another boot is taken away, before the file is one of this boot.
 * (That the host may die in between is no matter: then it is of another boot again.) */
static int enter_boot(struct block_layer *l, const struct header *h)
{
    int ret;

    if (is_of_this_boot(h->stamp))
        return add_bits(l, recent_at(l));
    ret = clear_recent(l);
    return ret < 0 ? ret : write_header(l, false);
}

static int know_layer(struct block_layer *l, const char *path, bool is_frozen, uint64_t bytes,
                      struct error *e)
{
    struct header h;
    const char *trouble;
    int ret = whole_file_read_at(l->fd, &h, sizeof(h), 0);

    if (ret == -ENODATA)
        return fail_overlay(e, path, 0, "it is too short");
    if (ret == 0) {
        trouble = judge_overlay(l, &h, is_frozen, bytes);
        if (trouble)
            return fail_overlay(e, path, 0, trouble);
        l->name = h.name;
        ret = add_bits(l, committed_at());
    }
    if (ret == 0 && !is_frozen)
        ret = enter_boot(l, &h);
    return ret < 0 ? fail_overlay(e, path, -ret, "it can't be read") : 0;
}

/* The kernel takes an io_uring's files from it some time after its process has died, kworkers
 * permitting: who starts the next VMM on an overlay can't know when. */
static int lock_file(int fd, bool is_frozen)
{
    const int how = (is_frozen ? LOCK_SH : LOCK_EX) | LOCK_NB;
    int ret = flock(fd, how);

    for (unsigned i = 1; ret < 0 && errno == EWOULDBLOCK && i < LOCK_TRIES; i++) {
        (void)!poll(NULL, 0, LOCK_WAIT_MS);
        ret = flock(fd, how);
    }
    return ret;
}

/* A regular file that is not the base, and locked. */
static int hold_file(int fd, const char *path, bool is_frozen, int base_fd, struct stat *st,
                     struct error *e)
{
    struct stat base;

    if (fstat(fd, st) < 0 || fstat(base_fd, &base) < 0 || fcntl(fd, F_SETFL, 0) < 0)
        return fail_overlay(e, path, errno, "it can't be opened");
    if (!S_ISREG(st->st_mode))
        return fail_overlay(e, path, 0, "it is no regular file");
    if (st->st_dev == base.st_dev && st->st_ino == base.st_ino)
        return fail_overlay(e, path, 0, "it is the drive's base");
    if (lock_file(fd, is_frozen) < 0)
        return errno == EWOULDBLOCK
                   ? fail_overlay(e, path, 0,
                                  is_frozen ? "somebody writes to it"
                                            : "it is in use, by another drive or as a layer")
                   : fail_overlay(e, path, errno, "it can't be locked");
    return 0;
}

/* A link is not followed to what is written: whoever may put one there would choose that. */
static int open_overlay(const char *path, bool is_frozen)
{
    const int flags = O_NOCTTY | O_NONBLOCK | O_CLOEXEC;

    return is_frozen ? open(path, O_RDONLY | flags)
                     : open(path, O_RDWR | O_CREAT | O_NOFOLLOW | flags, 0666);
}

static int make_bitmaps(struct block_layer *l, const char *path, struct error *e)
{
    l->bitmap_bytes = (l->sectors + HEADER_BYTES * 8 - 1) / (HEADER_BYTES * 8) * HEADER_BYTES;
    if (whole_bytes(l) > INT64_MAX)
        return fail_overlay(e, path, EFBIG, "the base is too large");
    l->present = calloc(l->bitmap_bytes + sizeof(*l->present), 1); /* of no sectors: a word, too */
    l->dirty = calloc(l->sectors / GRANULE_BITS / WORD_BITS + 1, sizeof(*l->dirty));
    if (!l->present || !l->dirty)
        return fail_overlay(e, path, ENOMEM, "its bitmap has no room");
    return 0;
}

static int open_layer(struct block_layer *l, const char *path, const struct block_layer_way *way,
                      struct error *e)
{
    struct stat st;
    const bool was_there = way->is_frozen || lstat(path, &st) == 0;

    l->fd = open_overlay(path, way->is_frozen);
    if (l->fd < 0)
        return fail_overlay(e, path, errno, "it can't be opened");
    if (make_bitmaps(l, path, e) < 0 ||
        hold_file(l->fd, path, way->is_frozen, way->base_fd, &st, e) < 0)
        return -1;
    l->path = strdup(path);
    BUG_ON(!l->path);
    l->was_made = !was_there;
    l->name_lasts = way->is_frozen;
    if (!way->is_frozen && st.st_size == 0)
        return make_top(l, path, e);
    if (know_layer(l, path, way->is_frozen, (uint64_t)st.st_size, e) < 0)
        return -1;
    if (way->is_fresh && (block_layer_run(l, 0, l->sectors) < l->sectors || block_layer_has(l, 0)))
        return fail_overlay(e, path, 0, "it has to be a new one, since its drive was frozen");
    return 0;
}

int block_layer_open(struct block_layer *l, const char *path, const struct block_layer_way *way,
                     struct error *e)
{
    *l = (struct block_layer){ .fd = -1, .sectors = way->sectors, .below = way->below };
    if (open_layer(l, path, way, e) == 0)
        return 0;
    block_layer_drop(l);
    return -1;
}

void block_layer_close(struct block_layer *l)
{
    close_fdp(&l->fd);
    free(l->path);
    free(l->present);
    free(l->dirty);
    *l = (struct block_layer){ .fd = -1 };
}

bool block_layer_is_top(const char *path)
{
    autofd int fd = open(path, O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    struct header h;

    return fd >= 0 && whole_file_read_at(fd, &h, sizeof(h), 0) == 0 &&
           memcmp(h.magic, MAGIC, sizeof(h.magic)) == 0 && h.state == 0;
}

void block_layer_drop(struct block_layer *l)
{
    if (l->was_made)
        (void)!unlink(l->path);
    block_layer_close(l);
}

bool block_layer_has(const struct block_layer *l, uint64_t sector)
{
    return has_bit_at(l->present, sector);
}

uint64_t block_layer_run(const struct block_layer *l, uint64_t sector, uint64_t n)
{
    return run_of(l->present, sector, n);
}

int block_layer_add(struct block_layer *l, uint64_t first, uint64_t end)
{
    const uint64_t from = first / GRANULE_BITS, to = (end + GRANULE_BITS - 1) / GRANULE_BITS;

    if (first == end || !put_bits(l->present, first, end))
        return 0;
    mark_dirty(l, from, to - from);
    return whole_file_write_at(l->fd, (const uint8_t *)l->present + first / 8,
                               (end + 7) / 8 - first / 8, recent_at(l) + first / 8);
}

bool block_layer_is_dirty(const struct block_layer *l)
{
    return l->dirty_end > 0 || !l->name_lasts;
}

/* Makes the file's name durable, if its directory may be read: what file systems do for a new file
 * that is synced has to do else. */
static int keep_name(struct block_layer *l)
{
    const char *slash = strrchr(l->path, '/');
    autofree char *directory = NULL;
    autofd int fd = -1;

    if (l->name_lasts)
        return 0;
    directory = slash ? strndup(l->path, (size_t)(slash - l->path) + 1) : strdup(".");
    BUG_ON(!directory);
    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): autofree
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && fsync(fd) < 0)
        return -errno;
    l->name_lasts = true;
    return 0;
}

int block_layer_commit(struct block_layer *l)
{
    int done = keep_name(l);

    if (done < 0 || l->dirty_end == 0)
        return done;
    for (uint64_t at = l->dirty_from, n; at < l->dirty_end; at += n) {
        const uint64_t offset = at * GRANULE_BYTES;
        uint64_t bytes;
        int ret;

        n = run_of(l->dirty, at, l->dirty_end - at);
        bytes = n * GRANULE_BYTES;
        if (!has_bit_at(l->dirty, at))
            continue;
        if (bytes > l->bitmap_bytes - offset)
            bytes = l->bitmap_bytes - offset;
        ret = whole_file_write_at(l->fd, (const uint8_t *)l->present + offset, bytes,
                                  committed_at() + offset);
        if (ret < 0)
            return ret;
    }
    memset(&l->dirty[l->dirty_from / WORD_BITS], 0,
           ((l->dirty_end - 1) / WORD_BITS - l->dirty_from / WORD_BITS + 1) * sizeof(*l->dirty));
    l->dirty_from = l->dirty_end = 0;
    return 1;
}

int block_layer_sync(const struct block_layer *l)
{
    int ret;

    do
        ret = fdatasync(l->fd);
    while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

void block_layer_thaw(struct block_layer *l)
{
    (void)!write_header(l, false);
    (void)flock(l->fd, LOCK_EX | LOCK_NB);
}

/* The header and the last bits may get to the disk in any order: what a flush has promised is
 * there before, and nobody knows of a layer before this returns. */
int block_layer_freeze(struct block_layer *l)
{
    int ret = block_layer_sync(l);

    if (ret == 0)
        ret = block_layer_commit(l);
    if (ret >= 0)
        ret = write_header(l, true);
    if (ret == 0)
        ret = block_layer_sync(l);
    if (ret == 0 && flock(l->fd, LOCK_SH | LOCK_NB) < 0)
        ret = -errno;
    if (ret < 0)
        block_layer_thaw(l);
    return ret;
}

int block_layer_put_on_base(struct block_layer *l)
{
    const struct uuid below = l->below;
    int ret;

    l->below = (struct uuid){ 0 };
    ret = write_header(l, false);
    if (ret == 0)
        ret = block_layer_sync(l);
    if (ret == 0)
        return 0;
    l->below = below;
    (void)!write_header(l, false);
    return ret;
}
