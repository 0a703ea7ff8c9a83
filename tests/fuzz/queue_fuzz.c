/*
 * virtio/queue.c over rings that an attacker wrote: whatever is popped lies in guest memory and
 * adds up, and moving its bytes in any pieces keeps it so.
 */
#include <unistd.h>

#include "tests/fuzz/support/ring.h"

#define FILE_BYTES  0x4000u
#define OTHER_TABLE (DATA_AT + 0x8000u)

static int file_fd(void)
{
    static int fd = -1;

    if (fd < 0) {
        fd = memfd_create("file", MFD_CLOEXEC);
        MUST(fd >= 0 && ftruncate(fd, FILE_BYTES) == 0);
    }
    return fd;
}

static bool is_in_memory(const struct guest_mem *m, const struct iovec *v)
{
    for (unsigned i = 0; i < m->region_count; i++) {
        const struct gmem_region *r = &m->regions[i];
        size_t offset = (size_t)((uint8_t *)v->iov_base - r->host);

        if (offset <= r->bytes && v->iov_len <= r->bytes - offset)
            return true;
    }
    return false;
}

static uint64_t sum(const struct chain *c, unsigned from, unsigned to)
{
    uint64_t bytes = 0;

    for (unsigned i = from; i < to; i++)
        bytes += c->iov[i].iov_len;
    return bytes;
}

static void check(const struct guest_mem *m, const struct chain *c, unsigned write_begin)
{
    MUST(c->count <= VIRTQ_SIZE_MAX && c->read_at <= write_begin && c->write_at <= c->count);
    MUST(sum(c, c->read_at, write_begin) == c->readable);
    MUST(sum(c, c->write_at, c->count) == c->writable);
    for (unsigned i = 0; i < c->count; i++)
        MUST(is_in_memory(m, &c->iov[i]));
}

static void lend(struct chain *c, bool is_writable, uint32_t n, struct input *in)
{
    unsigned count;
    const struct iovec *iov = chain_lend_(c, is_writable, n, &count);
    uint64_t bytes = 0;

    for (unsigned i = 0; i < count; i++)
        bytes += iov[i].iov_len;
    MUST(bytes == n);
    chain_return(c, is_writable, n ? take32(in) % (n + 1) : 0);
}

static void take(struct chain *c, uint32_t n)
{
    static struct iovec list[VIRTQ_SIZE_MAX];
    unsigned count = chain_take_(c, n, list);
    uint64_t bytes = 0;

    for (unsigned i = 0; i < count; i++)
        bytes += list[i].iov_len;
    MUST(bytes == n);
}

static void move_bytes(struct chain *c, struct input *in)
{
    static uint8_t host[0x2000];
    uint8_t how = take8(in);
    uint32_t n = take_length(in) % sizeof(host);
    uint32_t readable = n < c->readable ? n : c->readable;
    uint32_t writable = n < c->writable ? n : c->writable;
    bool is_readable = n <= c->readable, is_writable = n <= c->writable;
    bool has_writable = c->writable > 0;

    switch (how % 7) {
    case 0: MUST((chain_read_(c, host, n) == 0) == is_readable); break;
    case 1: MUST((chain_write_(c, host, n) == 0) == is_writable); break;
    case 2: MUST((chain_put_last(c, take8(in)) == 0) == has_writable); break;
    case 3: MUST(chain_pread(c, file_fd(), take16(in), writable) <= (ssize_t)writable); break;
    case 4:
        MUST(chain_pwrite(c, file_fd(), take16(in) % FILE_BYTES, readable) <= (ssize_t)readable);
        break;
    case 5: take(c, writable); break;
    default: lend(c, how & 0x80, how & 0x80 ? writable : readable, in);
    }
}

static void serve(const struct guest_mem *m, struct virtq *q, struct input *in)
{
    struct chain c;
    uint16_t used = q->state.next_used;
    enum pop popped = virtq_pop(q, &c);
    unsigned write_begin;

    if (popped != POP_OK) {
        if (popped == POP_EMPTY)
            MUST(!virtq_rearm(q));
        return;
    }
    write_begin = c.write_at;
    check(m, &c, write_begin);
    for (uint8_t moves = take8(in) & 7; moves > 0; moves--) {
        move_bytes(&c, in);
        check(m, &c, write_begin);
    }
    if (take8(in) == 0xff) {
        virtq_unpop(q);
        return;
    }
    virtq_push(q, &c);
    MUST(q->state.next_used == (uint16_t)(used + 1));
    (void)!virtq_wants_interrupt(q);
}

static void step(struct ring *r, struct virtq *q, struct input *in)
{
    uint8_t op = take8(in);
    const struct ring table = { .mem = r->mem, .desc = op & 0x80 ? OTHER_TABLE : r->desc };
    uint16_t first = take8(in), word;

    switch (op % 6) {
    case 0: serve(r->mem, q, in); break;
    case 1:
        poke_chain(&table, first, in, take_address(in), 16);
        poke_avail(r, first);
        break;
    case 2: poke_any_desc(&table, in); break;
    case 3: poke_avail(r, first); break;
    case 4:
        ring_desc(r, first, OTHER_TABLE, 16u * first, VRING_DESC_F_INDIRECT, 0);
        poke_avail(r, first);
        break;
    default: word = take16(in); poke(r->mem, take_address(in), &word, sizeof(word));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct guest_mem *m = zeroed_memory();
    struct virtq q = { 0 };
    struct ring r;
    uint8_t how = take8(&in);
    uint64_t features = (uint64_t)(how & 1) << VIRTIO_RING_F_EVENT_IDX |
                        (uint64_t)(how >> 1 & 1) << VIRTIO_RING_F_INDIRECT_DESC;

    r = ring_of(m, 0, (uint16_t)(1u << (how >> 2 & 15)));
    if (how >= 0xf0) {
        r.size = take16(&in);
        r.desc = take_address(&in);
        r.avail = take_address(&in);
        r.used = take_address(&in);
    }
    q.state = ring_state(&r);
    q.state.next_avail = q.state.next_used = how & 0x40 ? 0xfffe : 0;
    r.offered = q.state.next_avail;
    ring_publish(&r);
    if (virtq_start(&q, m, features) < 0)
        return 0;
    while (in.left > 0)
        step(&r, &q, &in);
    return 0;
}
