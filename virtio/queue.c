#include "virtio/queue.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Layout of the rings in 16-bit words (sections 2.7.6 and 2.7.8). */
enum { RING_FLAGS, RING_IDX, RING_FIRST };
#define USED_ELEM_WORDS (sizeof(struct vring_used_elem) / sizeof(uint16_t))

static uint64_t avail_bytes(uint16_t size)
{
    return sizeof(uint16_t) * (RING_FIRST + (uint64_t)size + 1);
}

static uint64_t used_bytes(uint16_t size)
{
    return sizeof(uint16_t) * (RING_FIRST + USED_ELEM_WORDS * size + 1);
}

/* Writes guest memory. */
static void store(const struct guest_mem *m, void *to, const void *from, size_t n)
{
    memcpy(to, from, n);
    gmem_wrote_(m, to, n);
}

/* Writes guest memory. Pairs with the driver's read barrier after it reads the index (2.7.14). */
static void put_used_word(struct virtq *q, size_t word, uint16_t value)
{
    __atomic_store_n(&q->used[word], value, __ATOMIC_RELEASE);
    gmem_wrote_(q->mem, &q->used[word], sizeof(value));
}

int virtq_start(struct virtq *q, const struct guest_mem *m, uint64_t features)
{
    const struct virtq_state *st = &q->state;

    if (st->size == 0 || st->size > VIRTQ_SIZE_MAX || (st->size & (st->size - 1)))
        return -EINVAL;
    if (st->desc.v % 16 || st->avail.v % 2 || st->used.v % 4)
        return -EINVAL;
    q->desc = gmem_host_(m, st->desc, sizeof(struct vring_desc) * st->size);
    q->avail = gmem_host_(m, st->avail, avail_bytes(st->size));
    q->used = gmem_host_(m, st->used, used_bytes(st->size));
    if (!q->desc || !q->avail || !q->used)
        return -EINVAL;
    q->event_idx = features & UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX;
    q->takes_indirect = features & UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC;
    q->mem = m;
    return 0;
}

void virtq_stop(struct virtq *q)
{
    *q = (struct virtq){ 0 };
}

/* Pairs with the driver's write barrier between filling a chain and publishing it (2.7.13.3). */
static uint16_t load_avail_idx(const struct virtq *q)
{
    return __atomic_load_n(&q->avail[RING_IDX], __ATOMIC_ACQUIRE);
}

uint16_t virtq_waiting(const struct virtq *q)
{
    return (uint16_t)(load_avail_idx(q) - q->state.next_avail);
}

/* Where descriptors come from: the queue's own table, or an indirect one. */
struct table {
    const uint8_t *at;
    size_t size; /* descriptors */
};

/* The one copy of a descriptor. The guest may change it while it is copied: then the copy is
 * garbage, and is judged like any other. */
static struct vring_desc load_desc(const struct table *t, uint16_t index)
{
    struct vring_desc d;

    memcpy(&d, t->at + index * sizeof(d), sizeof(d));
    __asm__ volatile("" : : : "memory"); /* and the compiler must not look again */
    return d;
}

/* The table that a descriptor leads to (2.7.5.3): the end of a chain, and not again from a table.
 */
static bool open_table(const struct virtq *q, const struct vring_desc *d, struct table *t)
{
    if (!q->takes_indirect || t->at != (const uint8_t *)q->desc || d->flags & VRING_DESC_F_NEXT ||
        d->len == 0 || d->len % sizeof(*d))
        return false;
    t->at = gmem_host_(q->mem, gpa(d->addr), d->len);
    t->size = d->len / sizeof(*d);
    return t->at;
}

static bool chain_add_buffer(struct virtq *q, struct chain *c, const struct vring_desc *d)
{
    bool is_writable = d->flags & VRING_DESC_F_WRITE;
    uint32_t *total = is_writable ? &c->writable : &c->readable;
    void *host;

    if (!is_writable && c->writable)
        return false; /* readable buffers come first (2.7.4.2) */
    if (d->len == 0)
        return true;
    if (c->count == VIRTQ_SIZE_MAX)
        return false;
    host = gmem_host_(q->mem, gpa(d->addr), d->len);
    if (!host || __builtin_add_overflow(*total, d->len, total))
        return false;
    if (!is_writable)
        c->write_at++;
    c->iov[c->count++] = (struct iovec){ .iov_base = host, .iov_len = d->len };
    return true;
}

/* Follows a chain from its head to its end. False: it breaks the rules. A chain is no longer than
 * the queue, the descriptor that leads to a table not counted; a longer one is a loop. */
static bool chain_gather(struct virtq *q, struct chain *c)
{
    struct table table = { (const uint8_t *)q->desc, q->state.size };
    uint16_t index = c->head;

    for (unsigned hops = 0; hops <= q->state.size; hops++) {
        struct vring_desc d;

        if (index >= table.size)
            return false;
        d = load_desc(&table, index);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (!open_table(q, &d, &table))
                return false;
            index = 0;
            continue;
        }
        if (!chain_add_buffer(q, c, &d))
            return false;
        if (!(d.flags & VRING_DESC_F_NEXT)) {
            c->descriptors = hops + 1;
            return true;
        }
        index = d.next;
    }
    return false;
}

enum pop virtq_pop(struct virtq *q, struct chain *c)
{
    struct virtq_state *st = &q->state;
    uint16_t pending = virtq_waiting(q);

    if (pending == 0)
        return POP_EMPTY;
    if (pending > st->size)
        return POP_BROKEN;
    c->head = __atomic_load_n(&q->avail[RING_FIRST + st->next_avail % st->size], __ATOMIC_RELAXED);
    c->readable = c->writable = c->written = 0;
    c->read_at = c->write_at = c->count = 0;
    c->mem = q->mem;
    if (!chain_gather(q, c))
        return POP_BROKEN;
    st->next_avail++;
    return POP_OK;
}

enum pop virtq_pop_in_turn(struct virtq *q, struct chain *c, unsigned *descriptors)
{
    const enum pop popped = virtq_pop(q, c);
    const unsigned cost = popped == POP_OK ? c->descriptors : 1;

    *descriptors -= cost < *descriptors ? cost : *descriptors;
    return popped;
}

void virtq_unpop(struct virtq *q)
{
    q->state.next_avail--;
}

void virtq_push(struct virtq *q, const struct chain *c)
{
    virtq_push_head(q, c->head, c->written);
}

void virtq_push_head(struct virtq *q, uint16_t head, uint32_t written)
{
    virtq_use(q, head, written);
    virtq_publish(q);
}

void virtq_use(struct virtq *q, uint16_t head, uint32_t written)
{
    struct virtq_state *st = &q->state;
    struct vring_used_elem elem = { .id = head, .len = written };

    store(q->mem, &q->used[RING_FIRST + USED_ELEM_WORDS * (st->next_used % st->size)], &elem,
          sizeof(elem));
    st->next_used++;
}

void virtq_publish(struct virtq *q)
{
    put_used_word(q, RING_IDX, q->state.next_used);
}

/* Asks to be notified of the chain of that number. True: it is there already. */
static bool ask_for(struct virtq *q, uint16_t number)
{
    if (q->event_idx) {
        put_used_word(q, RING_FIRST + USED_ELEM_WORDS * q->state.size, number); /* avail_event */
        /* Pairs with the driver's full barrier between publishing a chain and reading avail_event
         * (2.7.13.4.1): one of us sees the other's write. */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    return load_avail_idx(q) != number;
}

bool virtq_rearm(struct virtq *q)
{
    return ask_for(q, q->state.next_avail);
}

uint16_t virtq_offered(const struct virtq *q)
{
    return load_avail_idx(q);
}

uint16_t virtq_await(struct virtq *q)
{
    const uint16_t offered = load_avail_idx(q);

    /* One that comes meanwhile is seen when the number is compared. */
    (void)ask_for(q, offered);
    return offered;
}

bool virtq_wants_interrupt(struct virtq *q)
{
    struct virtq_state *st = &q->state;
    uint16_t before = st->signalled_used;
    uint16_t used_event;

    st->signalled_used = st->next_used;
    /* Pairs with the driver's full barrier between writing used_event or flags and reading the used
     * index (2.7.7, 2.7.10). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!q->event_idx)
        return !(__atomic_load_n(&q->avail[RING_FLAGS], __ATOMIC_RELAXED) &
                 VRING_AVAIL_F_NO_INTERRUPT);
    used_event = __atomic_load_n(&q->avail[RING_FIRST + st->size], __ATOMIC_RELAXED);
    return vring_need_event(used_event, st->next_used, before);
}

void iov_write_(const struct guest_mem *m, const struct iovec *v, size_t at, const void *src,
                size_t n)
{
    const uint8_t *from = src;

    for (; n; v++) {
        size_t step;

        if (at >= v->iov_len) {
            at -= v->iov_len;
            continue;
        }
        step = v->iov_len - at < n ? v->iov_len - at : n;
        store(m, (uint8_t *)v->iov_base + at, from, step);
        from += step;
        n -= step;
        at = 0;
    }
}

/* Moves the start of the buffers iov[*at..] on by n bytes. */
static void chain_advance(struct chain *c, unsigned *at, size_t n)
{
    while (n) {
        struct iovec *v = &c->iov[*at];
        size_t step = n < v->iov_len ? n : v->iov_len;

        v->iov_base = (uint8_t *)v->iov_base + step;
        v->iov_len -= step;
        n -= step;
        if (v->iov_len == 0)
            ++*at;
    }
}

int chain_write_(struct chain *c, const void *src, size_t n)
{
    if (n > c->writable)
        return -EBADMSG;
    iov_write_(c->mem, &c->iov[c->write_at], 0, src, n);
    chain_advance(c, &c->write_at, n);
    c->writable -= (uint32_t)n;
    c->written += (uint32_t)n;
    return 0;
}

int chain_peek_(const struct chain *c, size_t at, void *dst, size_t n)
{
    const struct iovec *v = &c->iov[c->read_at];
    uint8_t *to = dst;

    if (at > c->readable || n > c->readable - at)
        return -EBADMSG;
    for (; n; v++) {
        size_t step;

        if (at >= v->iov_len) {
            at -= v->iov_len;
            continue;
        }
        step = v->iov_len - at < n ? v->iov_len - at : n;
        memcpy(to, (const uint8_t *)v->iov_base + at, step);
        to += step;
        n -= step;
        at = 0;
    }
    return 0;
}

/* Not by chain_peek_() and chain_advance() of all: that goes through the buffers twice. */
int chain_read_(struct chain *c, void *dst, size_t n)
{
    uint8_t *to = dst;

    if (n > c->readable)
        return -EBADMSG;
    c->readable -= (uint32_t)n;
    while (n) {
        const struct iovec *v = &c->iov[c->read_at];
        size_t step = n < v->iov_len ? n : v->iov_len;

        memcpy(to, v->iov_base, step);
        chain_advance(c, &c->read_at, step);
        to += step;
        n -= step;
    }
    return 0;
}

int chain_put_last(struct chain *c, uint8_t byte)
{
    const struct iovec *v;

    if (c->writable == 0)
        return -EBADMSG;
    v = &c->iov[c->count - 1];
    store(c->mem, (uint8_t *)v->iov_base + v->iov_len - 1, &byte, sizeof(byte));
    c->writable = 0;
    c->write_at = c->count;
    c->written++;
    return 0;
}

unsigned chain_take_(struct chain *c, uint32_t n, struct iovec *list)
{
    struct iovec *v = &c->iov[c->write_at], *to = list;

    c->writable -= n;
    for (; n && n >= v->iov_len; to++, v++) {
        *to = *v;
        n -= (uint32_t)v->iov_len;
    }
    c->write_at = (unsigned)(v - c->iov);
    if (n) {
        *to++ = (struct iovec){ v->iov_base, n };
        chain_advance(c, &c->write_at, n);
    }
    return (unsigned)(to - list);
}

const struct iovec *chain_lend_(struct chain *c, bool is_writable, uint32_t n, unsigned *count)
{
    struct iovec *first = &c->iov[is_writable ? c->write_at : c->read_at];
    struct iovec *last = first;
    size_t bytes = 0;

    while (bytes < n)
        bytes += last++->iov_len;
    *count = (unsigned)(last - first);
    c->clipped = n > 0 ? last - 1 : NULL;
    c->clipped_bytes = bytes - n;
    if (c->clipped)
        c->clipped->iov_len -= c->clipped_bytes;
    return first;
}

void chain_return(struct chain *c, bool is_writable, uint32_t moved)
{
    if (is_writable && c->clipped) /* all of it: what failed may have begun */
        for (const struct iovec *v = &c->iov[c->write_at]; v <= c->clipped; v++)
            gmem_wrote_(c->mem, v->iov_base, v->iov_len);
    if (c->clipped)
        c->clipped->iov_len += c->clipped_bytes;
    if (is_writable) { /* the kernel has written guest memory */
        chain_advance(c, &c->write_at, moved);
        c->writable -= moved;
        c->written += moved;
    } else {
        chain_advance(c, &c->read_at, moved);
        c->readable -= moved;
    }
}

struct way {
    enum { FROM_FILE, TO_FILE, TRY_FROM_FILE, TRY_TO_FILE, TO_STREAM } call;
    int fd;
    off_t offset;
    int flags;
};

/* Not by libc's functions, which prepare for a cancellation that never comes: what is to be tried
 * is done by the time that takes. The kernel takes an offset in two words; 64 bits fit into one. */
static ssize_t try_call(long number, const struct way *w, const struct iovec *iov, int count)
{
    return syscall(number, w->fd, iov, (long)count, w->offset, 0L, w->flags);
}

static ssize_t chain_call(const struct way *w, const struct iovec *iov, int count)
{
    switch (w->call) {
    case FROM_FILE: return preadv(w->fd, iov, count, w->offset);
    case TO_FILE: return pwritev(w->fd, iov, count, w->offset);
    case TRY_FROM_FILE: return try_call(SYS_preadv2, w, iov, count);
    case TRY_TO_FILE: return try_call(SYS_pwritev2, w, iov, count);
    default: return writev(w->fd, iov, count);
    }
}

static ssize_t chain_move(struct chain *c, const struct way *w, uint32_t n)
{
    const bool is_writable = w->call == FROM_FILE || w->call == TRY_FROM_FILE;
    unsigned count;
    const struct iovec *iov = chain_lend_(c, is_writable, n, &count);
    ssize_t moved;

    do
        moved = chain_call(w, iov, (int)count);
    while (moved < 0 && errno == EINTR);
    chain_return(c, is_writable, moved > 0 ? (uint32_t)moved : 0);
    return moved < 0 ? -errno : moved;
}

ssize_t chain_pread(struct chain *c, int fd, uint64_t offset, uint32_t n)
{
    return chain_move(c, &(struct way){ FROM_FILE, fd, (off_t)offset, 0 }, n);
}

ssize_t chain_pwrite(struct chain *c, int fd, uint64_t offset, uint32_t n)
{
    return chain_move(c, &(struct way){ TO_FILE, fd, (off_t)offset, 0 }, n);
}

ssize_t chain_try_pread(struct chain *c, int fd, uint64_t offset, uint32_t n, int flags)
{
    return chain_move(c, &(struct way){ TRY_FROM_FILE, fd, (off_t)offset, flags }, n);
}

ssize_t chain_try_pwrite(struct chain *c, int fd, uint64_t offset, uint32_t n, int flags)
{
    return chain_move(c, &(struct way){ TRY_TO_FILE, fd, (off_t)offset, flags }, n);
}

ssize_t chain_send(struct chain *c, int fd, uint32_t n)
{
    return chain_move(c, &(struct way){ TO_STREAM, fd, 0, 0 }, n);
}
