#include "virtio/block_overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>

#include "virtio/block_layer.h"

#define SEARCH_BYTES (16u << 20) /* for what is to be folded, at once */

struct block_overlay {
    unsigned count; /* of layers, the top included, which is the last */
    struct block_layer layers[BLOCK_LAYERS_MAX + 1];
    bool has_frozen; /* the layer below the top is not sealed yet */
    uint64_t folded; /* sectors from the first on: the top has what any layer has of them */
    unsigned left;   /* layers behind the only one, between the end of a fold and its close */
};

static struct block_layer *top_of(struct block_overlay *o)
{
    return &o->layers[o->count - 1];
}

/* Opens the next file, above those that are open. */
static int push_layer(struct block_overlay *o, const char *path, struct block_layer_way way,
                      struct error *e)
{
    if (o->count > 0)
        way.below = top_of(o)->name;
    if (block_layer_open(&o->layers[o->count], path, &way, e) < 0)
        return -1;
    o->count++;
    return 0;
}

/* The VMM was killed when it had gone on in a new top, and not sealed the layer below. */
static bool has_unsealed(const struct drive_config *d)
{
    return !d->is_frozen && d->layers.count > 0 &&
           block_layer_is_top(d->layers.items[d->layers.count - 1]) &&
           block_layer_is_top(d->overlay_path);
}

int block_overlay_open(struct block_overlay **out, const struct drive_config *d, int base_fd,
                       uint64_t sectors, struct error *e)
{
    struct block_overlay *o = calloc(1, sizeof(*o));
    struct block_layer_way way = { .base_fd = base_fd, .sectors = sectors };
    int ret = 0;

    BUG_ON(!o);
    o->has_frozen = has_unsealed(d);
    for (size_t i = 0; ret == 0 && i < d->layers.count; i++) {
        way.is_frozen = i + 1 < d->layers.count || !o->has_frozen;
        ret = push_layer(o, d->layers.items[i], way, e);
    }
    way.is_frozen = false;
    way.is_fresh = d->is_frozen;
    if (ret == 0)
        ret = push_layer(o, d->overlay_path, way, e);
    if (ret == 0)
        ret = block_layer_name(top_of(o), e);
    if (ret < 0) {
        block_overlay_close(o);
        return -1;
    }
    *out = o;
    return 0;
}

void block_overlay_close(struct block_overlay *o)
{
    if (!o)
        return;
    while (o->count > 0)
        block_layer_close(&o->layers[--o->count]);
    free(o);
}

void block_overlay_drop(struct block_overlay *o)
{
    block_layer_drop(&o->layers[--o->count]);
    block_overlay_close(o);
}

/* Of the files that are to be written. */
static void lock_own(const struct block_overlay *o, int operation)
{
    for (unsigned i = o->count - (o->has_frozen ? 2 : 1); i < o->count; i++)
        (void)flock(o->layers[i].fd, operation);
}

void block_overlay_lend(const struct block_overlay *o)
{
    lock_own(o, LOCK_UN);
}

void block_overlay_take_back(const struct block_overlay *o)
{
    lock_own(o, LOCK_EX | LOCK_NB);
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
    const uint64_t first = offset / BLOCK_SECTOR_BYTES;
    uint64_t sectors = (offset + n + BLOCK_SECTOR_BYTES - 1) / BLOCK_SECTOR_BYTES - first, bytes;
    unsigned file = o->count;

    for (; is_read && file > 0; file--) {
        sectors = block_layer_run(&o->layers[file - 1], first, sectors);
        if (block_layer_has(&o->layers[file - 1], first))
            break;
    }
    bytes = (first + sectors) * BLOCK_SECTOR_BYTES - offset;
    return (struct block_extent){
        .fd = file ? o->layers[file - 1].fd : base_fd,
        .file = file,
        .offset = file ? block_layer_data(&o->layers[file - 1]) + offset : offset,
        .bytes = bytes < n ? (uint32_t)bytes : n,
    };
}

int block_overlay_wrote(struct block_overlay *o, uint64_t offset, uint32_t n)
{
    return block_layer_add(top_of(o), offset / BLOCK_SECTOR_BYTES,
                           (offset + n) / BLOCK_SECTOR_BYTES);
}

bool block_overlay_is_dirty(const struct block_overlay *o)
{
    return block_layer_is_dirty(&o->layers[o->count - 1]) || o->has_frozen;
}

static int seal_frozen(struct block_overlay *o)
{
    int ret = o->has_frozen ? block_layer_freeze(&o->layers[o->count - 2]) : 0;

    if (ret == 0)
        o->has_frozen = false;
    return ret;
}

int block_overlay_commit(struct block_overlay *o)
{
    const int ret = seal_frozen(o);

    return ret < 0 ? ret : block_layer_commit(top_of(o));
}

int block_overlay_sync(struct block_overlay *o)
{
    int ret = block_layer_sync(top_of(o));

    if (ret == 0)
        ret = block_overlay_commit(o);
    return ret > 0 ? block_layer_sync(top_of(o)) : ret;
}

int block_overlay_freeze(struct block_overlay *o, const char *path, int base_fd, struct error *e)
{
    const struct block_layer_way way = { .is_fresh = true,
                                         .base_fd = base_fd,
                                         .sectors = top_of(o)->sectors };
    const int ret = seal_frozen(o); /* the one before */

    if (ret < 0)
        return fail_os(e, -ret, "Virtio backend error: A layer can't be sealed");
    if (o->count > BLOCK_LAYERS_MAX)
        return fail(e, ERR_INVALID,
                    "Virtio backend error: It has %u layers, and no more are possible before they "
                    "are folded, which is done while it runs.",
                    BLOCK_LAYERS_MAX);
    if (push_layer(o, path, way, e) < 0)
        return -1;
    o->has_frozen = true;
    o->folded = 0;
    return 0;
}

void block_overlay_thaw(struct block_overlay *o)
{
    block_layer_drop(&o->layers[--o->count]);
    if (!o->has_frozen)
        block_layer_thaw(top_of(o));
    o->has_frozen = false;
    o->folded = 0;
}

bool block_overlay_is_folded(const struct block_overlay *o)
{
    return o->folded == o->layers[o->count - 1].sectors;
}

/* What was passed begins to be written, so that a flush to come has less to wait for. */
static void pass_folded(struct block_overlay *o, uint64_t bytes)
{
    const struct block_layer *top = top_of(o);
    const uint64_t from = o->folded * BLOCK_SECTOR_BYTES / SEARCH_BYTES;

    o->folded += bytes / BLOCK_SECTOR_BYTES;
    if (o->folded * BLOCK_SECTOR_BYTES / SEARCH_BYTES > from)
        (void)sync_file_range(top->fd, (off_t)(block_layer_data(top) + from * SEARCH_BYTES),
                              SEARCH_BYTES, SYNC_FILE_RANGE_WRITE);
}

bool block_overlay_fold_next(struct block_overlay *o, uint64_t *offset, uint32_t *n)
{
    const uint64_t left = (top_of(o)->sectors - o->folded) * BLOCK_SECTOR_BYTES;
    struct block_extent x;

    *offset = o->folded * BLOCK_SECTOR_BYTES;
    x = block_overlay_find(o, -1, true, *offset,
                           left < SEARCH_BYTES ? (uint32_t)left : SEARCH_BYTES);
    *n = x.bytes;
    if (x.file > 0 && x.file < o->count)
        return true;
    pass_folded(o, x.bytes);
    return false;
}

int block_overlay_fold_copy(struct block_overlay *o, uint64_t offset, uint32_t n)
{
    const struct block_extent x = block_overlay_find(o, -1, true, offset, n);
    const int count = block_layer_copy(top_of(o), &o->layers[x.file - 1], offset, n);
    int ret = count;

    if (count > 0)
        ret = block_overlay_wrote(o, offset, (uint32_t)count);
    if (ret < 0)
        return ret;
    pass_folded(o, (uint32_t)count);
    return count;
}

static void swap_ends(struct block_overlay *o, unsigned last)
{
    const struct block_layer first = o->layers[0];

    o->layers[0] = o->layers[last];
    o->layers[last] = first;
}

int block_overlay_fold_end(struct block_overlay *o)
{
    int ret = block_overlay_sync(o);

    if (ret == 0)
        ret = block_layer_put_on_base(top_of(o));
    if (ret < 0)
        return ret;
    o->left = o->count - 1;
    swap_ends(o, o->left);
    o->count = 1;
    return 0;
}

void block_overlay_fold_close(struct block_overlay *o)
{
    for (; o->left > 0; o->left--)
        block_layer_close(&o->layers[o->left]);
}

void block_overlay_fold_undo(struct block_overlay *o)
{
    swap_ends(o, o->left);
    o->count = o->left + 1;
    o->left = 0;
}
