#include "virtio/block.h"

#include <linux/virtio_blk.h>

/* Of a queue of 256 descriptors, header and status need two. */
#define SEG_MAX (VIRTQ_SIZE_MAX - 2)

/* What one turn may do before others get theirs: about a millisecond of copying. */
#define TURN_BYTES    (4u << 20)
#define TURN_REQUESTS VIRTQ_SIZE_MAX

#define QUEUE 0u

/* Checks a read or write of `left` bytes at sector; a status. */
static uint8_t check_range(const struct block *b, uint64_t sector, uint32_t left)
{
    uint64_t sectors = left / BLOCK_SECTOR_BYTES;

    if (left % BLOCK_SECTOR_BYTES || sector > b->file->sectors ||
        sectors > b->file->sectors - sector)
        return VIRTIO_BLK_S_IOERR;
    return VIRTIO_BLK_S_OK;
}

static uint8_t give_id(struct block *b)
{
    struct chain *c = &b->chain;

    if (c->writable < BLOCK_ID_BYTES + 1)
        return VIRTIO_BLK_S_IOERR;
    return chain_put(c, &b->file->id) < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

static uint8_t flush(struct block *b)
{
    if (!(b->dev.acked & UINT64_C(1) << VIRTIO_BLK_F_FLUSH))
        return VIRTIO_BLK_S_UNSUPP;
    return block_file_sync(b->file) < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

/* Reads the header and sets up what is to be moved. The chain has at least a status byte. */
static void begin(struct block *b)
{
    struct block_request *r = &b->request;
    struct virtio_blk_outhdr header;
    struct chain *c = &b->chain;

    *r = (struct block_request){ .busy = true, .status = VIRTIO_BLK_S_OK };
    if (chain_get(c, &header) < 0) {
        r->status = VIRTIO_BLK_S_IOERR;
        return;
    }
    r->type = header.type;
    switch (header.type) {
    case VIRTIO_BLK_T_IN: r->left = c->writable - 1; break;
    case VIRTIO_BLK_T_OUT: r->left = c->readable; break;
    case VIRTIO_BLK_T_FLUSH: r->status = flush(b); return;
    case VIRTIO_BLK_T_GET_ID: r->status = give_id(b); return;
    default: r->status = VIRTIO_BLK_S_UNSUPP; return;
    }
    r->status = check_range(b, header.sector, r->left);
    if (header.type == VIRTIO_BLK_T_OUT && b->file->is_read_only)
        r->status = VIRTIO_BLK_S_IOERR;
    if (r->status != VIRTIO_BLK_S_OK)
        r->left = 0;
    else
        r->offset = header.sector * BLOCK_SECTOR_BYTES; /* in range, so it can't wrap */
}

/* Moves at most `budget` bytes; the number moved. A failure, or a file that has become shorter than
 * the disk, ends the request. */
static uint32_t step(struct block *b, uint32_t budget)
{
    struct block_request *r = &b->request;
    uint32_t n = r->left < budget ? r->left : budget;
    ssize_t moved;

    if (r->type == VIRTIO_BLK_T_IN)
        moved = chain_pread(&b->chain, b->file->fd, r->offset, n);
    else
        moved = chain_pwrite(&b->chain, b->file->fd, r->offset, n);
    if (moved <= 0) {
        r->status = VIRTIO_BLK_S_IOERR;
        r->left = 0;
        return 0;
    }
    r->offset += (uint64_t)moved;
    r->left -= (uint32_t)moved;
    return (uint32_t)moved;
}

/* The status is the last writable byte, wherever the data ended. */
static void finish(struct block *b)
{
    struct chain *c = &b->chain;

    chain_skip_writable(c, c->writable - 1);
    (void)!chain_put(c, &b->request.status);
    virtq_push(&b->dev.queues[QUEUE], c);
    b->request.busy = false;
}

/* Takes up the next request. POP_EMPTY: there is none, and the guest will kick for the next. */
static enum pop next(struct block *b)
{
    struct virtq *q = &b->dev.queues[QUEUE];
    enum pop popped;

    do
        popped = virtq_pop(q, &b->chain);
    while (popped == POP_EMPTY && virtq_rearm(q));
    if (popped == POP_OK && b->chain.writable > 0)
        begin(b);
    return popped;
}

static bool block_kick(struct virtio_device *dev, unsigned queue)
{
    struct block *b = owner_of(dev, struct block, dev);
    uint32_t budget = TURN_BYTES;
    enum pop popped = POP_OK;
    unsigned done = 0;

    while (budget && done < TURN_REQUESTS) {
        if (!b->request.busy && (popped = next(b)) != POP_OK)
            break;
        while (b->request.left && budget)
            budget -= step(b, budget);
        if (b->request.left)
            break;
        if (b->request.type == VIRTIO_BLK_T_FLUSH)
            budget = 0; /* the file system took its time */
        if (b->request.busy)
            finish(b);
        else
            virtq_push(&dev->queues[queue], &b->chain); /* no status byte: nothing can be told */
        done++;
    }
    if (done)
        virtio_signal_used(dev, queue);
    if (popped == POP_BROKEN)
        virtio_needs_reset(dev, "the ring is malformed");
    return popped == POP_OK;
}

static void block_activate(struct virtio_device *dev)
{
    (void)dev; /* the driver kicks when it has something */
}

static void block_reset(struct virtio_device *dev)
{
    struct block *b = owner_of(dev, struct block, dev);

    b->request = (struct block_request){ 0 };
}

static const struct virtio_ops block_ops = {
    .name = "block",
    .id = VIRTIO_ID_BLOCK,
    .queue_count = 1,
    .activate = block_activate,
    .kick = block_kick,
    .reset = block_reset,
};

void block_init(struct block *b, const struct block_file *file, bool offer_flush)
{
    *b = (struct block){
        .dev = { .ops = &block_ops,
                 .offered = UINT64_C(1) << VIRTIO_F_VERSION_1 |
                            UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX |
                            UINT64_C(1) << VIRTIO_BLK_F_SEG_MAX,
                 .config = &b->config,
                 .config_bytes = sizeof(b->config) },
        .file = file,
        .config = { .capacity = file->sectors, .seg_max = SEG_MAX },
    };
    if (file->is_read_only)
        b->dev.offered |= UINT64_C(1) << VIRTIO_BLK_F_RO;
    if (offer_flush)
        b->dev.offered |= UINT64_C(1) << VIRTIO_BLK_F_FLUSH;
}
