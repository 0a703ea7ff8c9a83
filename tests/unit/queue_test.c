#include "virtio/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "tests/unit/support/driver.h"

#define NEXT  VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE

static struct guest_mem mem;
static struct ring ring;
static struct virtq q;
static struct chain chain;

#define EVENT_IDX     FEATURE(VIRTIO_RING_F_EVENT_IDX)
#define INDIRECT_DESC FEATURE(VIRTIO_RING_F_INDIRECT_DESC)

static void start_with(uint16_t size, uint64_t features)
{
    struct error e;

    cr_assert_eq(gmem_init(&mem, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    ring = ring_of(&mem, 0, size);
    q = (struct virtq){ .state = ring_state(&ring) };
    cr_assert_eq(virtq_start(&q, &mem, features), 0);
}

static void start(uint64_t features)
{
    start_with(8, features);
}

static void set_up(void)
{
    start(0);
}

static void tear_down(void)
{
    virtq_stop(&q);
    gmem_fini(&mem);
}

TestSuite(virtq_pop, .init = set_up, .fini = tear_down);
TestSuite(virtq_start, .init = set_up, .fini = tear_down);
TestSuite(virtq_push, .init = set_up, .fini = tear_down);
TestSuite(chain, .init = set_up, .fini = tear_down);

Test(virtq_start, refuses_sizes_that_are_no_power_of_two_up_to_256)
{
    static const uint16_t bad[] = { 0, 3, 7, 255, 257, 512, 0x8000, 0xffff };

    for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        q.state.size = bad[i];
        cr_expect_eq(virtq_start(&q, &mem, 0), -EINVAL, "size %u", bad[i]);
    }
    for (uint16_t good = 1; good <= 256; good *= 2) {
        q.state.size = good;
        cr_expect_eq(virtq_start(&q, &mem, 0), 0, "size %u", good);
    }
}

Test(virtq_start, refuses_misaligned_rings)
{
    q.state.desc.v += 8;
    cr_expect_eq(virtq_start(&q, &mem, 0), -EINVAL);
    q.state = ring_state(&ring);
    q.state.avail.v += 1;
    cr_expect_eq(virtq_start(&q, &mem, 0), -EINVAL);
    q.state = ring_state(&ring);
    q.state.used.v += 2;
    cr_expect_eq(virtq_start(&q, &mem, 0), -EINVAL);
}

Test(virtq_start, refuses_rings_that_leave_memory)
{
    static const uint64_t outside[] = {
        (1u << 20) - 16,            /* the first entries fit, the rest does not */
        1u << 20,                   /* just behind */
        0xc0001000u,                /* in the MMIO gap */
        UINT64_MAX & ~UINT64_C(15), /* wraps */
    };

    for (unsigned i = 0; i < sizeof(outside) / sizeof(*outside); i++) {
        gpa_t *rings[] = { &q.state.desc, &q.state.avail, &q.state.used };

        for (unsigned k = 0; k < 3; k++) {
            q.state = ring_state(&ring);
            rings[k]->v = outside[i];
            cr_expect_eq(virtq_start(&q, &mem, 0), -EINVAL, "ring %u at 0x%lx", k, outside[i]);
        }
    }
}

Test(virtq_start, accepts_rings_that_end_with_memory)
{
    q.state.used.v = (1u << 20) - (4 + 8 * 8 + 2) - 2;
    cr_expect_eq(q.state.used.v % 4, 0);
    cr_expect_eq(virtq_start(&q, &mem, 0), 0);
    q.state.used.v += 4;
    cr_expect_eq(virtq_start(&q, &mem, 0), -EINVAL);
}

Test(virtq_pop, finds_an_empty_ring_empty)
{
    cr_expect_eq(virtq_pop(&q, &chain), POP_EMPTY);
}

Test(virtq_pop, gives_the_bytes_of_a_chain_in_order)
{
    char text[8];

    cr_assert_eq(gmem_write_(&mem, gpa(RING_DATA), "virt", 4), 0);
    cr_assert_eq(gmem_write_(&mem, gpa(RING_DATA + 100), "queue", 4), 0);
    ring_desc(&ring, 5, RING_DATA, 4, NEXT, 2);
    ring_desc(&ring, 2, RING_DATA + 100, 4, NEXT, 0);
    ring_desc(&ring, 0, RING_DATA + 200, 16, WRITE, 0);
    ring_offer(&ring, 5);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain.head, 5);
    cr_expect_eq(chain.readable, 8);
    cr_expect_eq(chain.writable, 16);
    cr_assert_eq(chain_get(&chain, &text), 0);
    cr_expect_arr_eq(text, "virtqueu", 8);
    cr_expect_eq(chain_read_(&chain, text, 1), -EBADMSG);
    cr_expect_eq(virtq_pop(&q, &chain), POP_EMPTY);
}

Test(virtq_pop, refuses_a_head_past_the_queue)
{
    ring_offer(&ring, 8);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, refuses_a_next_past_the_queue)
{
    ring_desc(&ring, 0, RING_DATA, 4, NEXT, 0xffff);
    ring_offer(&ring, 0);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, refuses_a_loop)
{
    ring_desc(&ring, 0, RING_DATA, 4, NEXT, 1);
    ring_desc(&ring, 1, RING_DATA, 4, NEXT, 0);
    ring_offer(&ring, 0);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, refuses_a_loop_of_empty_buffers)
{
    ring_desc(&ring, 3, RING_DATA, 0, NEXT, 3);
    ring_offer(&ring, 3);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, accepts_a_chain_as_long_as_the_queue)
{
    for (uint16_t i = 0; i < 8; i++)
        ring_desc(&ring, i, RING_DATA + i, 1, i < 7 ? NEXT : 0, i + 1);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain.readable, 8);
}

Test(virtq_pop, refuses_a_readable_buffer_behind_a_writable_one)
{
    ring_desc(&ring, 0, RING_DATA, 4, NEXT | WRITE, 1);
    ring_desc(&ring, 1, RING_DATA, 4, 0, 0);
    ring_offer(&ring, 0);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, gives_an_undone_chain_again_as_it_is_then)
{
    ring_desc(&ring, 0, 0x20000, 10, 0, 0);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    virtq_unpop(&q);
    ring_desc(&ring, 0, 0x20000, 11, 0, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain.readable, 11);
    cr_expect_eq(virtq_pop(&q, &chain), POP_EMPTY);
}

static void start_indirect(void)
{
    start(INDIRECT_DESC);
}

TestSuite(indirect, .init = start_indirect, .fini = tear_down);

#define TABLE (RING_DATA + 8) /* of no particular alignment */

static void table_desc(uint16_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    const struct ring table = { .mem = &mem, .desc = TABLE };

    ring_desc(&table, i, addr, len, flags, next);
}

static enum pop pop_table(uint32_t bytes, uint16_t flags)
{
    ring_desc(&ring, 0, TABLE, bytes, flags | VRING_DESC_F_INDIRECT, 1);
    ring_offer(&ring, 0);
    return virtq_pop(&q, &chain);
}

Test(indirect, chain_in_a_table_is_followed_in_its_order)
{
    table_desc(0, 0x20000, 10, NEXT, 2);
    table_desc(2, 0x30000, 20, NEXT | WRITE, 1);
    table_desc(1, 0x40000, 30, WRITE, 0);
    cr_assert_eq(pop_table(3 * 16, 0), POP_OK);
    cr_expect_eq(chain.readable, 10);
    cr_expect_eq(chain.writable, 50);
    cr_expect_eq(chain.count, 3);
    cr_expect_eq(chain.head, 0);
}

Test(indirect, table_may_end_a_chain_of_buffers)
{
    ring_desc(&ring, 0, 0x20000, 10, NEXT, 1);
    ring_desc(&ring, 1, TABLE, 16, VRING_DESC_F_INDIRECT, 0);
    table_desc(0, 0x30000, 20, WRITE, 0);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain.readable, 10);
    cr_expect_eq(chain.writable, 20);
}

Test(indirect, table_as_long_as_the_queue_is_taken_and_no_longer)
{
    for (uint16_t i = 0; i < 9; i++)
        table_desc(i, 0x20000, 1, i == 7 ? 0 : NEXT, i + 1);
    cr_expect_eq(pop_table(9 * 16, 0), POP_OK);
    cr_expect_eq(chain.count, 8);
    table_desc(7, 0x20000, 1, NEXT, 8);
    table_desc(8, 0x20000, 1, NEXT, 0);
    cr_expect_eq(pop_table(9 * 16, 0), POP_BROKEN, "a loop in the table");
}

Test(indirect, refuses_malformed_tables)
{
    table_desc(0, 0x20000, 1, 0, 0);
    cr_expect_eq(pop_table(0, 0), POP_BROKEN, "of nothing");
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN, "and it stays broken");
    tear_down();
    start_indirect();
    table_desc(0, 0x20000, 1, 0, 0);
    cr_expect_eq(pop_table(17, 0), POP_BROKEN, "of no whole number of descriptors");
    tear_down();
    start_indirect();
    table_desc(0, 0x20000, 1, 0, 0);
    cr_expect_eq(pop_table(16, NEXT), POP_BROKEN, "with a next");
    tear_down();
    start_indirect();
    cr_expect_eq(pop_table(0xfffffff0, 0), POP_BROKEN, "that leaves memory");
    tear_down();
    start_indirect();
    table_desc(0, TABLE + 16, 16, VRING_DESC_F_INDIRECT, 0);
    table_desc(1, 0x20000, 1, 0, 0);
    cr_expect_eq(pop_table(16, 0), POP_BROKEN, "that leads to another");
    tear_down();
    start_indirect();
    table_desc(0, 0x20000, 1, NEXT, 1);
    cr_expect_eq(pop_table(16, 0), POP_BROKEN, "whose chain leaves it");
}

Test(virtq_pop, holds_as_many_buffers_as_the_largest_queue_and_no_more)
{
    tear_down();
    start_with(256, INDIRECT_DESC);
    ring_desc(&ring, 0, 0x20000, 1, NEXT, 1);
    ring_desc(&ring, 1, TABLE, 256 * 16, VRING_DESC_F_INDIRECT, 0);
    for (uint16_t i = 0; i < 256; i++)
        table_desc(i, 0x20000, 1, i == 254 ? 0 : NEXT, i + 1);
    ring_offer(&ring, 0);
    cr_expect_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain.count, 256);
    table_desc(254, 0x20000, 1, NEXT, 255);
    table_desc(255, 0x20000, 1, 0, 0);
    ring_offer(&ring, 0);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, refuses_an_indirect_table_that_was_not_offered)
{
    ring_desc(&ring, 0, RING_DATA, 16, VRING_DESC_F_INDIRECT, 0);
    ring_offer(&ring, 0);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, refuses_buffers_outside_memory)
{
    static const struct {
        uint64_t addr;
        uint32_t len;
    } bad[] = {
        { 1u << 20, 1 },       { (1u << 20) - 1, 2 }, { 0xc0000000u, 4096 },   { UINT64_MAX, 1 },
        { UINT64_MAX - 3, 8 }, { 0, UINT32_MAX },     { 0xfffff000u, 0x2000 },
    };

    for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        ring_desc(&ring, 0, bad[i].addr, bad[i].len, WRITE, 0);
        ring_offer(&ring, 0);
        cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN, "0x%lx", bad[i].addr);
        q.state.next_avail = ring.offered;
    }
}

Test(virtq_pop, ignores_the_address_of_an_empty_buffer)
{
    ring_desc(&ring, 0, UINT64_MAX, 0, NEXT, 1);
    ring_desc(&ring, 1, RING_DATA, 3, 0, 0);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain.readable, 3);
    cr_expect_eq(chain.count, 1);
}

Test(virtq_pop, refuses_an_index_that_jumps_by_more_than_the_queue)
{
    put16(&ring, ring.avail + 2, 9);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
    put16(&ring, ring.avail + 2, 0xffff);
    cr_expect_eq(virtq_pop(&q, &chain), POP_BROKEN);
}

Test(virtq_pop, follows_the_index_around_its_16_bits)
{
    ring_desc(&ring, 1, RING_DATA, 4, 0, 0);
    for (unsigned i = 0; i < 70000; i++) {
        ring_offer(&ring, 1);
        cr_assert_eq(virtq_pop(&q, &chain), POP_OK, "request %u", i);
        virtq_push(&q, &chain);
        cr_assert_eq(ring_used_idx(&ring), (uint16_t)(i + 1));
    }
}

Test(virtq_push, tells_head_and_length)
{
    uint32_t value = 0x12345678;

    ring_desc(&ring, 6, RING_DATA, 64, WRITE, 0);
    ring_offer(&ring, 6);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_assert_eq(chain_put(&chain, &value), 0);
    virtq_push(&q, &chain);
    cr_expect_eq(ring_used_idx(&ring), 1);
    cr_expect_eq(ring_used(&ring, 0).id, 6);
    cr_expect_eq(ring_used(&ring, 0).len, 4);
    cr_expect_eq(get16(&ring, RING_DATA), 0x5678);
}

Test(virtq_wants_interrupt, obeys_the_flag_without_event_idx, .init = set_up, .fini = tear_down)
{
    cr_expect(virtq_wants_interrupt(&q));
    put16(&ring, ring.avail, VRING_AVAIL_F_NO_INTERRUPT);
    cr_expect_not(virtq_wants_interrupt(&q));
}

Test(virtq_wants_interrupt, comes_once_when_used_event_is_passed, .fini = tear_down)
{
    start(EVENT_IDX);
    ring_desc(&ring, 0, RING_DATA, 4, WRITE, 0);
    ring_set_used_event(&ring, 2);
    for (unsigned i = 0; i < 5; i++) {
        ring_offer(&ring, 0);
        cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
        virtq_push(&q, &chain);
        cr_expect_eq(virtq_wants_interrupt(&q), i == 2, "after request %u", i);
    }
}

Test(virtq_rearm, publishes_how_far_the_device_came, .fini = tear_down)
{
    start(EVENT_IDX);
    ring_desc(&ring, 0, RING_DATA, 4, 0, 0);
    ring_offer(&ring, 0);
    cr_expect(virtq_rearm(&q), "one is pending");
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_not(virtq_rearm(&q));
    cr_expect_eq(ring_avail_event(&ring), 1);
}

Test(virtq_await, asks_for_what_is_not_there_yet, .fini = tear_down)
{
    uint16_t offered;

    start(EVENT_IDX);
    ring_desc(&ring, 0, RING_DATA, 4, 0, 0);
    for (unsigned i = 0; i < 3; i++)
        ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    offered = virtq_await(&q);
    cr_expect_eq(ring_avail_event(&ring), 3, "not of those that wait already");
    cr_expect_eq(virtq_offered(&q), offered);
    ring_offer(&ring, 0);
    cr_expect_neq(virtq_offered(&q), offered);
}

Test(chain, writes_across_buffers_and_refuses_more_than_they_hold)
{
    uint8_t bytes[12] = "hello world";
    uint8_t seen[6];

    ring_desc(&ring, 0, RING_DATA, 5, NEXT | WRITE, 1);
    ring_desc(&ring, 1, RING_DATA + 64, 6, WRITE, 0);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain_write_(&chain, bytes, 12), -EBADMSG);
    cr_assert_eq(chain_write_(&chain, bytes, 11), 0);
    cr_assert_eq(gmem_get(&mem, gpa(RING_DATA + 64), &seen), 0);
    cr_expect_arr_eq(seen, " world", 6);
    cr_expect_eq(chain.written, 11);
    cr_expect_eq(chain.writable, 0);
}

Test(chain, writes_the_last_byte_without_counting_those_before_it)
{
    ring_desc(&ring, 0, RING_DATA, 5, NEXT | WRITE, 1);
    ring_desc(&ring, 1, RING_DATA + 64, 6, WRITE, 0);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_assert_eq(chain_write_(&chain, "ab", 2), 0);
    cr_assert_eq(chain_put_last(&chain, 7), 0);
    cr_expect_eq(chain.written, 3);
    cr_expect_eq(get16(&ring, RING_DATA + 64 + 4) & 0xff, 0, "what lies before it is as it was");
    cr_expect_eq(chain_put_last(&chain, 8), -EBADMSG);
    cr_expect_eq(get16(&ring, RING_DATA + 64 + 4) >> 8, 7);
}

Test(chain, moves_file_bytes_in_pieces_of_any_size)
{
    uint8_t file[4096], back[4096];
    int fd = memfd_create("disk", MFD_CLOEXEC);
    uint32_t at = 0;

    for (unsigned i = 0; i < sizeof(file); i++)
        file[i] = (uint8_t)(i * 7 + i / 256);
    cr_assert_eq(write(fd, file, sizeof(file)), sizeof(file));
    for (uint16_t i = 0; i < 7; i++)
        ring_desc(&ring, i, RING_DATA + 0x1000u * i, i == 6 ? 4096 - 6 * 100 : 100,
                  WRITE | (i < 6 ? NEXT : 0), i + 1);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    while (chain.writable) {
        uint32_t n = chain.writable < 333 ? chain.writable : 333;

        cr_assert_eq(chain_pread(&chain, fd, at, n), n);
        at += n;
    }
    cr_expect_eq(chain.written, 4096);
    for (unsigned i = 0; i < 6; i++)
        cr_assert_eq(gmem_read_(&mem, gpa(RING_DATA + 0x1000u * i), back + 100 * i, 100), 0);
    cr_assert_eq(gmem_read_(&mem, gpa(RING_DATA + 0x6000), back + 600, 3496), 0);
    cr_expect_arr_eq(back, file, sizeof(file));
    close(fd);
}

Test(chain, tells_the_end_of_a_file_and_errors_apart)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);

    ring_desc(&ring, 0, RING_DATA, 512, WRITE, 0);
    ring_offer(&ring, 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    cr_expect_eq(chain_pread(&chain, fd, 0, 512), 0);
    close(fd);
    cr_expect_eq(chain_pread(&chain, fd, 0, 512), -EBADF);
    cr_expect_eq(chain.written, 0);
    cr_expect_eq(chain.writable, 512);
}

/* What is written for a guest is marked, if somebody asks: each page once, and no other. */

static void expect_marked(uint64_t first, uint64_t count)
{
    for (uint64_t page = 0; page < gmem_pages(&mem); page++)
        cr_expect_eq(mem.written[page / 64] >> page % 64 & 1, page >= first && page < first + count,
                     "page %lu", page);
    memset(mem.written, 0, gmem_pages(&mem) / 8);
}

#define DATA_PAGE 20u

/* A chain of a readable page, and of two writable pages that begin in the middle of one. */
static void pop_tracked(void)
{
    ring_desc(&ring, 0, (DATA_PAGE - 2) * GMEM_PAGE_BYTES, GMEM_PAGE_BYTES, NEXT, 1);
    ring_desc(&ring, 1, DATA_PAGE * GMEM_PAGE_BYTES + 2048, 2 * GMEM_PAGE_BYTES, WRITE, 0);
    ring_offer(&ring, 0);
    cr_assert_eq(gmem_track_writes(&mem), 0);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    expect_marked(0, 0);
}

Test(chain, marks_what_a_device_writes)
{
    uint8_t bytes[4096];

    pop_tracked();
    cr_expect_eq(chain_read_(&chain, bytes, sizeof(bytes)), 0);
    expect_marked(0, 0);
    cr_expect_eq(chain_write_(&chain, bytes, 2048), 0);
    expect_marked(DATA_PAGE, 1);
    cr_expect_eq(chain_write_(&chain, bytes, 4096), 0);
    expect_marked(DATA_PAGE + 1, 1);
    cr_expect_eq(chain_write_(&chain, bytes, 1), 0);
    expect_marked(DATA_PAGE + 2, 1);
}

Test(chain, marks_what_the_kernel_writes_and_what_it_may_have)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);
    uint8_t bytes[4096] = { 1 };

    pop_tracked();
    cr_assert_eq(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
    cr_expect_eq(chain_pwrite(&chain, fd, 0, 4096), 4096);
    expect_marked(0, 0);
    cr_expect_eq(chain_pread(&chain, fd, 0, 2049), 2049);
    expect_marked(DATA_PAGE, 2);
    cr_expect_eq(chain_pread(&chain, -1, 0, 4096), -EBADF);
    expect_marked(DATA_PAGE + 1, 2);
    close(fd);
}

Test(virtq_push, marks_the_used_ring)
{
    const uint64_t page = ring_used_at(&ring, 0) / GMEM_PAGE_BYTES;

    pop_tracked();
    virtq_push(&q, &chain);
    expect_marked(page, 1);
    q.event_idx = true;
    (void)!virtq_rearm(&q);
    expect_marked(page, 1);
}
