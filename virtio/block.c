#include "virtio/block.h"

#include <errno.h>
#include <string.h>

#include "vmm/base/clock.h"

/* Of a queue of 256 descriptors, header and status need two. */
#define SEG_MAX (VIRTQ_SIZE_MAX - 2)

/* What one turn may do before others get theirs: about a millisecond of copying. */
#define TURN_BYTES    (4u << 20)
#define TURN_REQUESTS VIRTQ_SIZE_MAX

/* What one discard or write-zeroes may ask for: some milliseconds of a file system's work. */
#define ZERO_BYTES_MAX (64u << 20)

#define QUEUE 0u

static bool has_feature(const struct block *b, unsigned feature)
{
    return virtio_acked(&b->dev) & UINT64_C(1) << feature;
}

/* Whether so many bytes at a sector are whole sectors within the disk. */
static bool is_in_range(const struct block *b, uint64_t sector, uint64_t bytes)
{
    uint64_t capacity = b->host.file->sectors;
    uint64_t sectors = bytes / BLOCK_SECTOR_BYTES;

    return bytes % BLOCK_SECTOR_BYTES == 0 && sector <= capacity && sectors <= capacity - sector;
}

static uint8_t give_id(struct block *b, struct chain *c)
{
    if (c->writable < BLOCK_ID_BYTES + 1)
        return VIRTIO_BLK_S_IOERR;
    return chain_put(c, &b->host.file->id) < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

/* Sections 5.2.6.1 and 5.2.6.2. One range a request, as the configuration says. A disk that is not
 * thin keeps its space: discarding is advice, and not taken. */
static uint8_t begin_zeroing(struct block *b, struct block_request *r)
{
    bool is_discard = r->type == VIRTIO_BLK_T_DISCARD;
    struct virtio_blk_discard_write_zeroes range;
    bool may_unmap;
    uint64_t bytes;

    if (!has_feature(b, is_discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES))
        return VIRTIO_BLK_S_UNSUPP;
    if (r->chain.readable != sizeof(range) || chain_get(&r->chain, &range) < 0)
        return VIRTIO_BLK_S_IOERR;
    may_unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if (range.flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP || (is_discard && may_unmap))
        return VIRTIO_BLK_S_UNSUPP;
    bytes = (uint64_t)range.num_sectors * BLOCK_SECTOR_BYTES;
    if (bytes > ZERO_BYTES_MAX || !is_in_range(b, range.sector, bytes))
        return VIRTIO_BLK_S_IOERR;
    if (is_discard && !b->host.file->is_thin)
        return VIRTIO_BLK_S_OK;
    r->mode = block_file_zero_mode(b->host.file, is_discard || may_unmap);
    r->offset = range.sector * BLOCK_SECTOR_BYTES;
    r->left = (uint32_t)bytes;
    return VIRTIO_BLK_S_OK;
}

static uint8_t begin_transfer(struct block *b, struct block_request *r, uint64_t sector)
{
    bool is_write = r->type == VIRTIO_BLK_T_OUT;
    uint32_t bytes = is_write ? r->chain.readable : r->chain.writable - 1;

    if (!is_in_range(b, sector, bytes) || (is_write && b->host.file->is_read_only))
        return VIRTIO_BLK_S_IOERR;
    r->offset = sector * BLOCK_SECTOR_BYTES; /* in range, so it can't wrap */
    r->left = r->bytes = bytes;
    return VIRTIO_BLK_S_OK;
}

/* Reads the header and finds out what is to be done: a status that is not OK, or nothing left to
 * do, ends the request. The chain has at least a status byte. */
static void block_begin(struct block *b, struct block_request *r)
{
    struct virtio_blk_outhdr header;

    r->left = 0;
    r->begun_us = monotonic_us();
    r->type = UINT32_MAX; /* of no request */
    r->status = VIRTIO_BLK_S_IOERR;
    if (chain_get(&r->chain, &header) < 0)
        return;
    r->type = header.type;
    switch (header.type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT: r->status = begin_transfer(b, r, header.sector); break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES: r->status = begin_zeroing(b, r); break;
    case VIRTIO_BLK_T_GET_ID: r->status = give_id(b, &r->chain); break;
    case VIRTIO_BLK_T_FLUSH:
        r->status = has_feature(b, VIRTIO_BLK_F_FLUSH) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_UNSUPP;
        break;
    default: r->status = VIRTIO_BLK_S_UNSUPP;
    }
}

static bool is_transfer(const struct block_request *r)
{
    return r->type == VIRTIO_BLK_T_IN || r->type == VIRTIO_BLK_T_OUT;
}

/* Whether the file has to do something for the request. */
static bool needs_file(const struct block_request *r)
{
    return r->left > 0 || (r->type == VIRTIO_BLK_T_FLUSH && r->status == VIRTIO_BLK_S_OK);
}

/* Accounts for what the file did: bytes moved, or 0 where nothing was to be moved; or -errno. A
 * transfer of nothing means a file that has become shorter than the disk. True: the request is
 * complete. */
static bool settle(struct block_request *r, ssize_t result)
{
    if (is_transfer(r) && result > 0) {
        r->offset += (uint64_t)result;
        r->left -= (uint32_t)result;
        return r->left == 0;
    }
    if (result == -EOPNOTSUPP && !is_transfer(r))
        r->status = VIRTIO_BLK_S_UNSUPP;
    else if (result < 0 || is_transfer(r))
        r->status = VIRTIO_BLK_S_IOERR;
    return true;
}

static uint32_t piece(const struct block_request *r, uint32_t budget)
{
    return r->left < budget ? r->left : budget;
}

/* Carries out at most `budget` bytes of a request. */
static ssize_t block_carry_out(struct block *b, struct block_request *r, uint32_t budget)
{
    const struct block_file *f = b->host.file;

    switch (r->type) {
    case VIRTIO_BLK_T_IN: return chain_pread(&r->chain, f->fd, r->offset, piece(r, budget));
    case VIRTIO_BLK_T_OUT: return chain_pwrite(&r->chain, f->fd, r->offset, piece(r, budget));
    case VIRTIO_BLK_T_FLUSH: return block_file_sync(f);
    default: return block_file_fallocate(f, r->mode, r->offset, r->left);
    }
}

/* The same for the kernel to do, a turn's bytes at a time. */
static void queue_up(struct block *b, struct block_request *r)
{
    struct block_async *a = b->host.async;
    uint32_t n = piece(r, TURN_BYTES);

    switch (r->type) {
    case VIRTIO_BLK_T_IN: block_async_read(a, &r->chain, r->offset, n, r); break;
    case VIRTIO_BLK_T_OUT: block_async_write(a, &r->chain, r->offset, n, r); break;
    case VIRTIO_BLK_T_FLUSH: block_async_sync(a, r); break;
    default: block_async_fallocate(a, r->mode, r->offset, r->left, r);
    }
}

static void give_back(struct block *b, const struct block_request *r)
{
    b->idle[b->idle_count++] = (uint16_t)(r - b->requests);
}

static void block_count(struct block *b, const struct block_request *r)
{
    struct block_metrics *m = &b->metrics;

    /* NOLINTNEXTLINE(*NullDereference): block_next() sets the request where it says NEXT_OK */
    if (r->type == UINT32_MAX || r->status == VIRTIO_BLK_S_UNSUPP) {
        metric_inc(&m->invalid_reqs_count);
    } else if (r->status != VIRTIO_BLK_S_OK) {
        metric_inc(&m->execute_fails);
    } else if (r->type == VIRTIO_BLK_T_FLUSH) {
        metric_inc(&m->flush_count);
    } else if (r->type == VIRTIO_BLK_T_IN) {
        metric_inc(&m->read_count);
        metric_add(&m->read_bytes, r->bytes);
        latency_record(&m->read_agg, r->begun_us);
    } else if (r->type == VIRTIO_BLK_T_OUT) {
        metric_inc(&m->write_count);
        metric_add(&m->write_bytes, r->bytes);
        latency_record(&m->write_agg, r->begun_us);
    }
}

/* The status is the last writable byte, wherever the data ended. Where there is none, nothing can
 * be told. */
static void finish(struct block *b, struct block_request *r)
{
    struct chain *c = &r->chain;

    block_count(b, r);
    if (c->writable > 0) {
        chain_skip_writable(c, c->writable - 1);
        (void)!chain_put(c, &r->status);
    }
    virtq_push(&b->dev.queues[QUEUE], c);
    give_back(b, r);
}

enum next { NEXT_OK, NEXT_NONE, NEXT_BROKEN };

/* Takes up the next request. NEXT_NONE: there is none, or it has to wait; a notification, a
 * result or the limiter's timer comes when that is over. */
static enum next block_next(struct block *b, struct block_request **out)
{
    struct virtq *q = &b->dev.queues[QUEUE];
    struct block_request *r;
    enum pop popped;

    if (b->idle_count == 0)
        return NEXT_NONE;
    r = &b->requests[b->idle[b->idle_count - 1]];
    do
        popped = virtq_pop(q, &r->chain);
    while (popped == POP_EMPTY && virtq_rearm(q));
    if (popped != POP_OK)
        return popped == POP_EMPTY ? NEXT_NONE : NEXT_BROKEN;
    metric_add(&b->metrics.remaining_reqs_count, virtq_waiting(q));
    if (r->chain.writable > 0) {
        block_begin(b, r);
    } else {
        r->left = 0;
        r->type = UINT32_MAX;
    }
    if (!rate_limiter_take(&b->limiter, is_transfer(r) ? r->left : 0)) {
        virtq_unpop(q);
        metric_inc(&b->metrics.rate_limiter_throttled_events);
        return NEXT_NONE;
    }
    b->idle_count--;
    *out = r;
    return NEXT_OK;
}

/* What one turn has to share out. */
struct turn {
    uint32_t bytes;
    unsigned requests;
    bool has_pushed;
    enum next next;
};

static bool block_turn_is_over(const struct turn *t)
{
    return t->bytes == 0 || t->requests == 0;
}

static void block_spend(struct turn *t, uint32_t bytes)
{
    t->bytes -= bytes < t->bytes ? bytes : t->bytes;
}

static void block_push(struct block *b, struct block_request *r, struct turn *t)
{
    finish(b, r);
    t->has_pushed = true;
}

/* Sync: goes on with a request; true when it is complete. */
static bool block_advance(struct block *b, struct block_request *r, struct turn *t)
{
    while (needs_file(r)) {
        ssize_t result;

        if (block_turn_is_over(t))
            return false;
        result = block_carry_out(b, r, t->bytes);
        /* A flush or the like ends the turn: the file system took its time. */
        block_spend(t, is_transfer(r) ? (result > 0 ? (uint32_t)result : 0) : TURN_BYTES);
        if (settle(r, result))
            break;
    }
    return true;
}

static void serve_sync(struct block *b, struct turn *t)
{
    while (!block_turn_is_over(t)) {
        struct block_request *r = b->current;

        if (!r && (t->next = block_next(b, &r)) != NEXT_OK)
            return;
        b->current = block_advance(b, r, t) ? NULL : r;
        if (!b->current)
            block_push(b, r, t);
        t->requests--;
    }
}

/* Async: takes the next result there is; NULL: none. The chain is not lent any more. */
static struct block_request *take_result(struct block *b, int *result)
{
    struct block_request *r;
    void *tag;

    if (!block_async_take(b->host.async, &tag, result))
        return NULL;
    r = tag;
    if (is_transfer(r))
        chain_return(&r->chain, r->type == VIRTIO_BLK_T_IN, *result > 0 ? (uint32_t)*result : 0);
    return r;
}

/* Async: takes in the results there are. A transfer that was cut short goes on. */
static void take_results(struct block *b, struct turn *t)
{
    struct block_request *r;
    int result;

    while ((r = take_result(b, &result))) {
        if (settle(r, result))
            block_push(b, r, t);
        else
            queue_up(b, r);
    }
}

static void take_requests(struct block *b, struct turn *t)
{
    while (!block_turn_is_over(t)) {
        struct block_request *r;

        t->next = block_next(b, &r);
        if (t->next != NEXT_OK)
            return;
        t->requests--;
        if (!needs_file(r)) {
            block_push(b, r, t);
            continue;
        }
        queue_up(b, r);
        block_spend(t, is_transfer(r) ? r->left : 0);
    }
}

/* Whatever the page cache could answer at once is complete when the call that submits it returns;
 * the rest makes the ring readable later. False: the host can't take all of it now. */
static bool serve_async(struct block *b, struct turn *t)
{
    take_results(b, t);
    take_requests(b, t);
    if (block_async_submit(b->host.async)) {
        take_results(b, t);
        if (block_async_submit(b->host.async))
            return true;
    }
    metric_inc(&b->metrics.io_engine_throttled_events);
    return false;
}

static bool block_serve(struct virtio_device *dev, unsigned queue)
{
    struct block *b = owner_of(dev, struct block, dev);
    struct turn t = { .bytes = TURN_BYTES, .requests = TURN_REQUESTS, .next = NEXT_OK };
    bool more = false;

    if (b->host.async)
        more = !serve_async(b, &t);
    else
        serve_sync(b, &t);
    if (t.has_pushed)
        virtio_signal_used(dev, queue);
    if (t.next == NEXT_NONE && t.requests == TURN_REQUESTS && !t.has_pushed)
        metric_inc(&b->metrics.no_avail_buffer);
    if (t.next == NEXT_BROKEN) {
        metric_inc(&b->metrics.event_fails);
        virtio_needs_reset(dev, "the ring is malformed");
    }
    return more || t.next == NEXT_OK;
}

static void on_results(struct loop_source *src, uint32_t ready)
{
    struct block *b = owner_of(src, struct block, results);

    (void)ready;
    virtio_serve(&b->dev, QUEUE);
}

static void on_refilled(struct rate_limiter *l)
{
    struct block *b = owner_of(l, struct block, limiter);

    metric_inc(&b->metrics.rate_limiter_event_count);
    virtio_serve(&b->dev, QUEUE);
}

static bool is_idle(const struct block *b)
{
    return b->idle_count == b->request_count;
}

static void block_drain(struct virtio_device *dev)
{
    struct block *b = owner_of(dev, struct block, dev);
    struct turn t = { .bytes = UINT32_MAX, .requests = 1 };

    if (b->current) {
        while (!block_advance(b, b->current, &t))
            t.bytes = UINT32_MAX;
        block_push(b, b->current, &t);
        b->current = NULL;
    }
    while (!is_idle(b)) {
        block_async_wait(b->host.async);
        take_results(b, &t);
    }
    if (t.has_pushed)
        virtio_signal_used(dev, QUEUE);
}

static void forget_requests(struct block *b)
{
    b->current = NULL;
    for (b->idle_count = 0; b->idle_count < b->request_count; b->idle_count++)
        b->idle[b->idle_count] = (uint16_t)(b->request_count - 1 - b->idle_count);
}

/* What the kernel is doing can't be stopped, only waited for: it reads or writes guest memory. */
static void block_reset(struct virtio_device *dev)
{
    struct block *b = owner_of(dev, struct block, dev);
    struct block_request *r;
    int result;

    while (b->host.async && !is_idle(b)) {
        block_async_wait(b->host.async);
        while ((r = take_result(b, &result)))
            give_back(b, r);
    }
    forget_requests(b);
}

static const struct virtio_ops block_ops = {
    .name = "block",
    .id = VIRTIO_ID_BLOCK,
    .queue_count = 1,
    .serve = block_serve,
    .drain = block_drain,
    .reset = block_reset,
};

static void offer(struct block *b, unsigned feature)
{
    b->dev.offered |= UINT64_C(1) << feature;
}

/*
 * What is offered beyond Firecracker, and why it is harmless. SEG_MAX and INDIRECT_DESC: more
 * data a request, and more requests in the ring.
 * TOPOLOGY: a hint by which partitions and file systems are laid out, so that the host needn't read
 * a page to write a part of it. DISCARD and WRITE_ZEROES: only on a thin file, whose owner does not
 * count on reserved space. Not BLK_SIZE: 512 is what a driver assumes without it, and another value
 * would change what the partition tables of existing images mean.
 */
static void block_describe(struct block *b)
{
    const struct block_file *f = b->host.file;
    const uint32_t sectors_a_unit = f->unit_bytes / BLOCK_SECTOR_BYTES;

    offer(b, VIRTIO_F_VERSION_1);
    offer(b, VIRTIO_RING_F_EVENT_IDX);
    offer(b, VIRTIO_RING_F_INDIRECT_DESC);
    offer(b, VIRTIO_BLK_F_SEG_MAX);
    offer(b, VIRTIO_BLK_F_TOPOLOGY);
    b->config = (struct virtio_blk_config){
        .capacity = f->sectors,
        .seg_max = SEG_MAX,
        .blk_size = BLOCK_SECTOR_BYTES,
        .physical_block_exp = (uint8_t)__builtin_ctz(sectors_a_unit),
        .min_io_size = (uint16_t)sectors_a_unit,
    };
    if (f->is_read_only)
        offer(b, VIRTIO_BLK_F_RO);
    if (b->host.offer_flush)
        offer(b, VIRTIO_BLK_F_FLUSH);
    if (f->is_read_only || !f->is_thin)
        return;
    offer(b, VIRTIO_BLK_F_DISCARD);
    offer(b, VIRTIO_BLK_F_WRITE_ZEROES);
    b->config.max_discard_sectors = ZERO_BYTES_MAX / BLOCK_SECTOR_BYTES;
    b->config.max_discard_seg = 1;
    b->config.discard_sector_alignment = sectors_a_unit;
    b->config.max_write_zeroes_sectors = ZERO_BYTES_MAX / BLOCK_SECTOR_BYTES;
    b->config.max_write_zeroes_seg = 1;
    b->config.write_zeroes_may_unmap = 1;
}

int block_init(struct block *b, const struct block_host *host, struct error *e)
{
    int ret;

    *b = (struct block){
        .dev = { .ops = &block_ops,
                 .config = &b->config,
                 .config_bytes = sizeof(b->config),
                 .activate_fails = &b->metrics.activate_fails,
                 .cfg_fails = &b->metrics.cfg_fails,
                 .notifications = { &b->metrics.queue_event_count } },
        .host = *host,
        .request_count = host->async ? VIRTQ_SIZE_MAX : 1,
    };
    b->requests = calloc(b->request_count, sizeof(*b->requests));
    BUG_ON(!b->requests);
    forget_requests(b);
    block_describe(b);
    if (rate_limiter_init(&b->limiter, host->loop, monotonic_ns, on_refilled, &host->limits, e) < 0)
        return -1;
    if (!host->async)
        return 0;
    b->results = (struct loop_source){ block_async_fd(host->async), EPOLLIN | EPOLLET, on_results };
    ret = loop_add(host->loop, &b->results);
    return ret < 0 ? fail_os(e, -ret, "event loop") : 0;
}

void block_fini(struct block *b)
{
    loop_remove(b->host.loop, &b->results);
    rate_limiter_fini(&b->limiter);
    free(b->requests);
    *b = (struct block){ 0 };
}

/* 0 or -errno, and nothing has changed. */
static int swap_file(struct block *b, const struct block_file *file)
{
    int ret;

    block_drain(&b->dev);
    if (b->host.async) {
        ret = block_async_set_file(b->host.async, file);
        if (ret < 0)
            return ret;
    }
    block_file_close(b->host.file);
    *b->host.file = *file;
    b->config.capacity = file->sectors;
    virtio_config_changed(&b->dev);
    return 0;
}

int block_update(struct block *b, const struct block_file *file, const struct rate_limits *limits,
                 struct error *e)
{
    int ret = 0;

    if (limits && rate_limiter_prepare(&b->limiter, limits, e) < 0)
        return -1;
    virtio_lock(&b->dev);
    if (file)
        ret = swap_file(b, file);
    if (limits && ret == 0)
        rate_limiter_update(&b->limiter, limits);
    virtio_unlock(&b->dev);
    metric_inc(ret < 0 ? &b->metrics.update_fails : &b->metrics.update_count);
    return ret < 0 ? fail_os(e, -ret, "Virtio backend error: io_uring") : 0;
}
