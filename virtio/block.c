#include "virtio/block.h"

#include <errno.h>

#include "vmm/base/clock.h"
#include "vmm/base/probe.h"

/* Of a queue of 256 descriptors, header and status need two. */
#define SEG_MAX (VIRTQ_SIZE_MAX - 2)

#define TURN_REQUESTS VIRTQ_SIZE_MAX
#define LITTLE_BYTES  (BLOCK_PIECE_BYTES / TURN_REQUESTS)

/* What a vCPU does of a turn by itself. To copy so much takes it about as long as to wake the event
 * loop does. */
#define TRY_REQUESTS 4u
#define TRY_BYTES    (128u << 10)

#define QUEUE 0u

/* Carries out at most `budget` bytes of a request. */
static ssize_t block_carry_out(struct block *b, struct block_request *r, uint32_t budget)
{
    const struct block_file *f = b->host.file;
    struct block_extent x;

    if (r->type == VIRTIO_BLK_T_FLUSH) {
        r->is_synced = true; /* in both steps */
        return block_file_sync(f);
    }
    x = block_request_piece(r, f, budget);
    switch (r->type) {
    case VIRTIO_BLK_T_IN: return chain_pread(&r->chain, x.fd, x.offset, x.bytes);
    case VIRTIO_BLK_T_OUT: return chain_pwrite(&r->chain, x.fd, x.offset, x.bytes);
    default: return block_file_fallocate(&x, r->mode);
    }
}

/* Whether what is left of a request, or a whole piece of it, may be under way beside what is. */
static bool has_room(const struct block *b, const struct block_request *r)
{
    if (block_request_is_barrier(r))
        return b->operations == 0;
    return b->bytes_under_way == 0 || r->left <= BLOCK_PIECE_BYTES - b->bytes_under_way;
}

/* Async: for the kernel to do. There is room. */
static void queue_up(struct block *b, struct block_request *r)
{
    struct block_async *a = b->host.async;
    struct block_extent x;

    b->operations++;
    r->is_under_way = true;
    if (r->type == VIRTIO_BLK_T_FLUSH) {
        block_async_sync(a, b->host.file, r);
        return;
    }
    x = block_request_piece(r, b->host.file, BLOCK_PIECE_BYTES);
    b->bytes_under_way += x.bytes;
    switch (r->type) {
    case VIRTIO_BLK_T_IN: block_async_read(a, &r->chain, &x, r); break;
    case VIRTIO_BLK_T_OUT: block_async_write(a, &r->chain, &x, r); break;
    default: block_async_fallocate(a, r->mode, &x, r);
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
    if (r->type == BLOCK_TYPE_NONE || r->status == VIRTIO_BLK_S_UNSUPP) {
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
    PROBE3(block_end, r, r->status, r->bytes);
    block_count(b, r);
    (void)!chain_put_last(&r->chain, r->status);
    virtq_push(&b->dev.queues[QUEUE], &r->chain);
    give_back(b, r);
}

enum next { NEXT_OK, NEXT_NONE, NEXT_FULL, NEXT_BARRIER, NEXT_BROKEN };

/* Takes up the next request. NEXT_NONE: there is none, or it has to wait; a notification, a
 * result or the limiter's timer comes when that is over. NEXT_FULL: it waits for results of
 * transfers. NEXT_BARRIER: for all results, or for its own. */
static enum next block_next(struct block *b, struct block_request **out)
{
    struct virtq *q = &b->dev.queues[QUEUE];
    struct block_request *r;
    enum pop popped;

    if (b->idle_count == 0)
        return NEXT_NONE;
    r = &b->requests[b->idle[b->idle_count - 1]];
    popped = virtq_pop(q, &r->chain);
    if (popped == POP_EMPTY && virtq_rearm(q)) /* a guest that takes it back notifies, too */
        popped = virtq_pop(q, &r->chain);
    if (popped != POP_OK)
        return popped == POP_EMPTY ? NEXT_NONE : NEXT_BROKEN;
    block_request_begin(r, b->host.file, virtio_acked(&b->dev));
    if (!has_room(b, r)) {
        virtq_unpop(q);
        return block_request_is_barrier(r) ? NEXT_BARRIER : NEXT_FULL;
    }
    if (!rate_limiter_take(&b->limiter, r->left)) {
        virtq_unpop(q);
        metric_inc(&b->metrics.rate_limiter_throttled_events);
        return NEXT_NONE;
    }
    metric_add(&b->metrics.remaining_reqs_count, virtq_waiting(q));
    b->idle_count--;
    PROBE3(block_begin, r, r->type, r->offset);
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
    while (block_request_needs_file(r)) {
        ssize_t result;

        if (block_turn_is_over(t))
            return false;
        result = block_carry_out(b, r, t->bytes);
        /* A flush or the like ends the turn: the file system took its time. And however small the
         * pieces are that an overlay is read in, a turn has a bounded number of them. */
        block_spend(t, !block_request_is_transfer(r)    ? BLOCK_PIECE_BYTES
                       : result > (ssize_t)LITTLE_BYTES ? (uint32_t)result
                                                        : LITTLE_BYTES);
        if (block_request_settle(r, b->host.file, result))
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
    b->operations--;
    b->bytes_under_way -= r->piece;
    r->is_under_way = false;
    if (block_request_is_transfer(r))
        chain_return(&r->chain, r->type == VIRTIO_BLK_T_IN, *result > 0 ? (uint32_t)*result : 0);
    return r;
}

/* Async: takes in the results there are. What was cut short or put off goes on at once; the request
 * that has more pieces does so in its turn. */
static void take_results(struct block *b, struct turn *t)
{
    struct block_request *r;
    int result;

    while ((r = take_result(b, &result))) {
        bool is_current = r == b->current;

        if (block_request_settle(r, b->host.file, result)) {
            if (is_current) /* it failed */
                b->current = NULL;
            block_push(b, r, t);
        } else if (!is_current) {
            queue_up(b, r);
        }
    }
}

/* Async: the request that is to be queued up next, or a piece of it, of which one is under way at a
 * time. */
static enum next next_to_queue(struct block *b, struct block_request **out)
{
    struct block_request *r = b->current;

    if (!r)
        return block_next(b, out);
    *out = r;
    if (r->is_under_way)
        return NEXT_BARRIER;
    return has_room(b, r) ? NEXT_OK : NEXT_FULL;
}

static void take_requests(struct block *b, struct turn *t)
{
    while (!block_turn_is_over(t)) {
        struct block_request *r;

        t->next = next_to_queue(b, &r);
        if (t->next != NEXT_OK)
            return;
        t->requests--;
        if (!block_request_needs_file(r)) {
            block_push(b, r, t);
            continue;
        }
        queue_up(b, r);
        block_spend(t, r->piece);
        b->current = block_request_has_more(r) ? r : NULL;
    }
}

/* Whether a turn can go on, or be followed by one at once: where a request waits for something, and
 * that is over, no result will say so. */
static bool block_can_go_on(const struct block *b, const struct turn *t)
{
    switch (t->next) {
    case NEXT_OK: return true;
    case NEXT_FULL: return b->bytes_under_way == 0;
    case NEXT_BARRIER: return b->current ? !b->current->is_under_way : b->operations == 0;
    default: return false;
    }
}

/* Whatever the page cache could answer at once is complete when the call that submits it returns;
 * the rest makes the ring readable later. So the next piece of a request that an overlay has in
 * many can follow. False: the host can't take all of it now. */
static bool serve_async(struct block *b, struct turn *t)
{
    take_results(b, t);
    do {
        bool is_submitted;

        take_requests(b, t);
        is_submitted = block_async_submit(b->host.async);
        if (is_submitted) {
            take_results(b, t);
            is_submitted = block_async_submit(b->host.async);
        }
        if (!is_submitted) {
            metric_inc(&b->metrics.io_engine_throttled_events);
            return false;
        }
    } while (t->next == NEXT_BARRIER && !block_turn_is_over(t) && block_can_go_on(b, t));
    return true;
}

/* True: another one is due. */
static bool end_turn(struct block *b, const struct turn *t)
{
    if (t->has_pushed)
        virtio_signal_used(&b->dev, QUEUE);
    if (t->next == NEXT_NONE && t->requests == TURN_REQUESTS && !t->has_pushed)
        metric_inc(&b->metrics.no_avail_buffer);
    if (t->next == NEXT_BROKEN) {
        metric_inc(&b->metrics.event_fails);
        virtio_needs_reset(&b->dev, "the ring is malformed");
    }
    return block_can_go_on(b, t);
}

static bool block_serve(struct virtio_device *dev, unsigned queue)
{
    struct block *b = owner_of(dev, struct block, dev);
    struct turn t = { .bytes = BLOCK_PIECE_BYTES, .requests = TURN_REQUESTS, .next = NEXT_OK };
    bool more = false;

    (void)queue;
    if (b->host.async)
        more = !serve_async(b, &t);
    else
        serve_sync(b, &t);
    return end_turn(b, &t) || more;
}

/* Sync, on a vCPU's thread: what can be done with a request without waiting for a disk. True: it
 * is complete. What the host answers but for bytes it is asked again by the loop. */
static bool block_try(struct block *b, struct block_request *r, struct turn *t)
{
    struct block_file *f = b->host.file;
    const bool is_read = r->type == VIRTIO_BLK_T_IN;
    int *flags = is_read ? &f->read_flags : &f->write_flags;
    struct block_extent x;
    ssize_t moved;

    if (!block_request_needs_file(r))
        return true;
    if (!block_request_is_transfer(r) || r->left > t->bytes || *flags == BLOCK_FILE_WAITS)
        return false;
    block_spend(t, r->left);
    x = block_request_piece(r, f, r->left);
    moved = is_read ? chain_try_pread(&r->chain, x.fd, x.offset, x.bytes, *flags)
                    : chain_try_pwrite(&r->chain, x.fd, x.offset, x.bytes, *flags);
    if (moved == -EOPNOTSUPP)
        *flags = BLOCK_FILE_WAITS;
    return moved > 0 && block_request_settle(r, f, moved);
}

/* A turn like the loop's, but that a request it can't complete is left to that, as one is that does
 * not fit into a turn. While there is one, the loop has a turn before it. */
static bool block_try_serve(struct virtio_device *dev, unsigned queue)
{
    struct block *b = owner_of(dev, struct block, dev);
    struct virtq *q = &dev->queues[queue];
    struct turn t = { .bytes = TRY_BYTES, .requests = TURN_REQUESTS, .next = NEXT_OK };
    struct block_request *r;

    if (b->current)
        return false;
    if (virtq_waiting(q) > TRY_REQUESTS)
        return true;
    while (t.requests > TURN_REQUESTS - TRY_REQUESTS && (t.next = block_next(b, &r)) == NEXT_OK) {
        t.requests--;
        if (!block_try(b, r, &t)) {
            b->current = r;
            break;
        }
        block_push(b, r, &t);
        if (!virtq_rearm(q)) { /* it was the only one, as mostly */
            t.next = NEXT_NONE;
            break;
        }
    }
    return end_turn(b, &t);
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

/* Puts back into the ring what is not done; true where there was something. It has paid for what
 * was moved, and pays anew when it is taken again. */
static bool take_back(struct block *b)
{
    struct block_request *r = b->current;

    if (!r)
        return false;
    virtq_unpop(&b->dev.queues[QUEUE]);
    rate_limiter_refund(&b->limiter, r->left);
    give_back(b, r);
    b->current = NULL;
    return true;
}

/* Waits for what is under way, and pushes what is done then. */
static void await_operations(struct block *b)
{
    struct turn t = { .has_pushed = false };

    while (b->operations) {
        block_async_wait(b->host.async);
        take_results(b, &t);
    }
    if (t.has_pushed)
        virtio_signal_used(&b->dev, QUEUE);
}

/* The same, and true: there is something in the ring again. */
static bool finish_operations(struct block *b)
{
    await_operations(b);
    return take_back(b);
}

static void block_drain(struct virtio_device *dev)
{
    (void)finish_operations(owner_of(dev, struct block, dev));
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
    int result;

    while (b->operations) {
        block_async_wait(b->host.async);
        while (take_result(b, &result))
            ;
    }
    forget_requests(b);
}

#define OPS                                                                                        \
    .name = "block", .id = VIRTIO_ID_BLOCK, .queue_count = 1, .serve = block_serve,                \
    .drain = block_drain, .reset = block_reset

static const struct virtio_ops block_ops = { OPS };
static const struct virtio_ops block_trying_ops = { OPS, .try_serve = block_try_serve };

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
    b->config.max_discard_sectors = BLOCK_ZERO_BYTES_MAX / BLOCK_SECTOR_BYTES;
    b->config.max_discard_seg = 1;
    b->config.discard_sector_alignment = sectors_a_unit;
    b->config.max_write_zeroes_sectors = BLOCK_ZERO_BYTES_MAX / BLOCK_SECTOR_BYTES;
    b->config.max_write_zeroes_seg = 1;
    b->config.write_zeroes_may_unmap = 1;
}

int block_init(struct block *b, const struct block_host *host, struct error *e)
{
    const bool tries = !host->async && host->file->read_flags != BLOCK_FILE_WAITS;
    int ret;

    *b = (struct block){
        .dev = { .ops = tries ? &block_trying_ops : &block_ops,
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

    if (finish_operations(b))
        virtio_ask_turn(&b->dev, QUEUE);
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

void block_await(struct block *b)
{
    await_operations(b);
    virtio_ask_turn(&b->dev, QUEUE);
}
