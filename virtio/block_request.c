#include "virtio/block_request.h"

#include <errno.h>

#include "vmm/base/clock.h"
#include "vmm/base/log.h"

/* How often the host may put off a piece of a request. */
#define TRIES_MAX 16

static bool has_bit(uint64_t features, unsigned feature)
{
    return features & UINT64_C(1) << feature;
}

/* Whether so many bytes at a sector are whole sectors within the disk. */
static bool is_in_range(const struct block_file *f, uint64_t sector, uint64_t bytes)
{
    uint64_t capacity = f->sectors;
    uint64_t sectors = bytes / BLOCK_SECTOR_BYTES;

    return bytes % BLOCK_SECTOR_BYTES == 0 && sector <= capacity && sectors <= capacity - sector;
}

static uint8_t give_id(struct chain *c, const struct block_file *f)
{
    if (c->writable < BLOCK_ID_BYTES + 1)
        return VIRTIO_BLK_S_IOERR;
    return chain_put(c, &f->id) < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

/* Sections 5.2.6.1 and 5.2.6.2. One range a request, as the configuration says. A disk that is not
 * thin keeps its space: discarding is advice, and not taken. */
static uint8_t begin_zeroing(struct block_request *r, const struct block_file *f, uint64_t features)
{
    bool is_discard = r->type == VIRTIO_BLK_T_DISCARD;
    struct virtio_blk_discard_write_zeroes range;
    bool may_unmap;
    uint64_t bytes;

    if (!has_bit(features, is_discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES))
        return VIRTIO_BLK_S_UNSUPP;
    if (r->chain.readable != sizeof(range) || chain_get(&r->chain, &range) < 0)
        return VIRTIO_BLK_S_IOERR;
    may_unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if (range.flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP || (is_discard && may_unmap))
        return VIRTIO_BLK_S_UNSUPP;
    bytes = (uint64_t)range.num_sectors * BLOCK_SECTOR_BYTES;
    if (bytes > BLOCK_ZERO_BYTES_MAX || !is_in_range(f, range.sector, bytes))
        return VIRTIO_BLK_S_IOERR;
    if (is_discard && !f->is_thin)
        return VIRTIO_BLK_S_OK;
    r->mode = block_file_zero_mode(f, is_discard || may_unmap);
    r->offset = range.sector * BLOCK_SECTOR_BYTES;
    r->left = (uint32_t)bytes;
    return VIRTIO_BLK_S_OK;
}

static uint8_t begin_transfer(struct block_request *r, const struct block_file *f, uint64_t sector)
{
    bool is_write = r->type == VIRTIO_BLK_T_OUT;
    uint32_t bytes = is_write ? r->chain.readable : r->chain.writable - 1;

    if (!is_in_range(f, sector, bytes) || (is_write && f->is_read_only))
        return VIRTIO_BLK_S_IOERR;
    r->offset = sector * BLOCK_SECTOR_BYTES; /* in range, so it can't wrap */
    r->left = r->bytes = bytes;
    return VIRTIO_BLK_S_OK;
}

void block_request_begin(struct block_request *r, const struct block_file *f, uint64_t features)
{
    struct virtio_blk_outhdr header;

    r->left = r->piece = r->tries = 0;
    r->is_synced = !f->overlay || !block_overlay_is_dirty(f->overlay);
    r->is_under_way = false;
    r->begun_us = monotonic_us();
    r->type = BLOCK_TYPE_NONE;
    r->status = VIRTIO_BLK_S_IOERR;
    /* Without a byte for the status there is no request. */
    if (r->chain.writable == 0 || chain_get(&r->chain, &header) < 0)
        return;
    r->type = header.type;
    switch (header.type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT: r->status = begin_transfer(r, f, header.sector); break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES: r->status = begin_zeroing(r, f, features); break;
    case VIRTIO_BLK_T_GET_ID: r->status = give_id(&r->chain, f); break;
    case VIRTIO_BLK_T_FLUSH:
        r->status = has_bit(features, VIRTIO_BLK_F_FLUSH) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_UNSUPP;
        break;
    default: r->status = VIRTIO_BLK_S_UNSUPP;
    }
}

static bool is_put_off(struct block_request *r, ssize_t result)
{
    return (result == -EAGAIN || result == -EINTR) && r->tries++ < TRIES_MAX;
}

/* A transfer of nothing means a file that has become shorter than the disk. */
static void fail_request(struct block_request *r, struct block_file *f, ssize_t result)
{
    static const char *const names[] = {
        [VIRTIO_BLK_T_IN] = "read",
        [VIRTIO_BLK_T_OUT] = "write",
        [VIRTIO_BLK_T_FLUSH] = "flush",
        [VIRTIO_BLK_T_DISCARD] = "discard",
        [VIRTIO_BLK_T_WRITE_ZEROES] = "write-zeroes",
    };

    if (result == -EOPNOTSUPP && !block_request_is_transfer(r)) {
        r->status = VIRTIO_BLK_S_UNSUPP;
        return;
    }
    r->status = VIRTIO_BLK_S_IOERR;
    if (result < 0)
        log_limited(&f->failures, LOG_ERROR, "Disk %s: a %s failed: %s (os error %d)", f->path,
                    names[r->type], os_error_text((int)-result), (int)-result);
    else
        log_limited(&f->failures, LOG_ERROR, "Disk %s: a %s failed: the file is too short", f->path,
                    names[r->type]);
}

/* What an overlay has to know of a piece or a sync that was done. The bytes moved, or -errno. */
static ssize_t tell_overlay(struct block_request *r, struct block_overlay *o, ssize_t result)
{
    const bool is_transfer = block_request_is_transfer(r);
    int ret;

    if (r->type == VIRTIO_BLK_T_IN || (result == 0 && is_transfer))
        return result;
    if (r->type == VIRTIO_BLK_T_FLUSH)
        ret = r->is_synced ? 0 : block_overlay_commit(o);
    else
        ret = block_overlay_wrote(o, r->offset, is_transfer ? (uint32_t)result : r->piece);
    return ret < 0 ? ret : result;
}

bool block_request_settle(struct block_request *r, struct block_file *f, ssize_t result)
{
    const bool is_first_step = block_request_is_barrier(r);
    uint32_t done = r->piece;

    if (is_put_off(r, result))
        return false;
    if (f->overlay && result >= 0)
        result = tell_overlay(r, f->overlay, result);
    r->is_synced = true;
    if (result < 0 || (result == 0 && block_request_is_transfer(r))) {
        fail_request(r, f, result);
        return true;
    }
    if (block_request_is_transfer(r))
        done = (uint32_t)result;
    r->tries = 0;
    r->offset += done;
    r->left -= done;
    return r->left == 0 && !is_first_step;
}
