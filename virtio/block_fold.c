#include "virtio/block.h"

/* Of a turn; and how often it lets a flush go before, until it waits for one. */
#define FOLD_STEPS    64u
#define FOLD_BYTES    262144u
#define FOLD_PATIENCE 16u

/* What the guest writes is newer than any layer; and a flush must not commit what was copied behind
 * its first step. */
static bool is_in_the_way(const struct block_request *r, uint64_t offset, uint32_t n)
{
    if (r->type == VIRTIO_BLK_T_FLUSH)
        return block_request_is_barrier(r) && r->is_under_way;
    return r->type != VIRTIO_BLK_T_IN &&
           r->offset / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES < offset + n &&
           offset < r->offset + r->left;
}

static bool is_way_free(const struct block *b, uint64_t offset, uint32_t n)
{
    if (b->current && is_in_the_way(b->current, offset, n))
        return false;
    for (unsigned i = 0; b->operations > 0 && i < b->request_count; i++)
        if (b->requests[i].is_under_way && is_in_the_way(&b->requests[i], offset, n))
            return false;
    return true;
}

/* The ring knows the files by their places. If it can't learn the new ones, the layers stay open,
 * and all is found in the top. */
static int end_fold(struct block *b)
{
    struct block_overlay *o = b->host.file->overlay;
    int ret;

    block_await(b);
    ret = block_overlay_fold_end(o);
    if (ret < 0)
        return ret;
    if (b->host.async && block_async_set_file(b->host.async, b->host.file) < 0)
        block_overlay_fold_undo(o);
    block_overlay_fold_close(o);
    return 0;
}

/* What was begun will be done in a bounded number of turns, and leaves less to be copied where it
 * writes. But a guest may flush so often that there is a flush whenever the fold comes. */
static int fold_piece(struct block *b)
{
    struct block_overlay *o = b->host.file->overlay;
    uint32_t bytes = 0;

    for (unsigned i = 0; i < FOLD_STEPS && bytes < FOLD_BYTES; i++) {
        uint64_t offset;
        uint32_t n;
        int ret;

        if (block_overlay_is_folded(o))
            return end_fold(b);
        if (!block_overlay_fold_next(o, &offset, &n))
            continue;
        if (!is_way_free(b, offset, n)) {
            if (++b->fold_waits < FOLD_PATIENCE)
                return 1;
            b->fold_waits = 0;
            block_await(b);
            continue; /* the top may have some of it now */
        }
        ret = block_overlay_fold_copy(o, offset, n);
        if (ret < 0)
            return ret;
        bytes += (uint32_t)ret;
    }
    return 1;
}

int block_fold(struct block *b)
{
    int ret;

    virtio_lock(&b->dev);
    ret = fold_piece(b);
    virtio_unlock(&b->dev);
    return ret;
}
