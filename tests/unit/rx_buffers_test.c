#include "virtio/rx_buffers.h"

#include <errno.h>
#include <sys/socket.h>

#include "tests/unit/support/driver.h"

#define NEXT  VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE

static struct guest_mem mem;
static struct ring ring;
static struct virtq q;
static struct chain chain;
static struct rx_buffers list;
static int ends[2];

static void set_up(void)
{
    struct error e;

    cr_assert_eq(gmem_init(&mem, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    ring = ring_of(&mem, 0, 8);
    ring_empty(&ring);
    q = (struct virtq){ .state = ring_state(&ring) };
    list = (struct rx_buffers){ 0 };
    cr_assert_eq(virtq_start(&q, &mem, 0), 0);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends), 0);
}

static void tear_down(void)
{
    close(ends[0]);
    close(ends[1]);
    virtq_stop(&q);
    gmem_fini(&mem);
}

TestSuite(rx_buffers, .init = set_up, .fini = tear_down);

static void pop(uint32_t limit)
{
    cr_assert(rx_buffers_has_room(&list));
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK);
    rx_buffers_add(&list, &chain, limit);
}

/* A chain of two buffers, of 3 bytes and of `rest`, 64 bytes apart. */
static void offer(uint16_t first, uint32_t rest)
{
    const uint64_t at = RING_DATA + 0x100u * first;

    ring_desc(&ring, first, at, 3, NEXT | WRITE, first + 1);
    ring_desc(&ring, first + 1, at + 64, rest, WRITE, 0);
    ring_offer(&ring, first);
}

static void expect_bytes(uint64_t at, const char *bytes)
{
    char seen[32];

    cr_assert_eq(gmem_read_(&mem, gpa(at), seen, strlen(bytes)), 0);
    cr_expect_arr_eq(seen, bytes, strlen(bytes), "%.*s at 0x%lx", (int)strlen(bytes), seen, at);
}

Test(rx_buffers, take_a_stream_behind_headers_that_are_written_last)
{
    list.header_bytes = 5;
    offer(0, 10); /* takes 8 */
    offer(2, 10);
    offer(4, 10);
    for (unsigned i = 0; i < 3; i++)
        pop(100);
    cr_expect_eq(list.bytes, 24);
    cr_assert_eq(write(ends[1], "0123456789", 10), 10);
    cr_assert_eq(rx_buffers_read(&list, ends[0]), 10);
    cr_expect_eq(rx_buffers_next(&list), 8);
    rx_buffers_put(&list, 0, "HEAD0", 5);
    rx_buffers_give(&list, &q, 8);
    rx_buffers_put(&list, 0, "HEAD1", 5);
    rx_buffers_give(&list, &q, 2);
    cr_expect_eq(ring_used_idx(&ring), 0, "the guest sees nothing yet");
    virtq_publish(&q);
    cr_expect_eq(ring_used_idx(&ring), 2);
    cr_expect_eq(ring_used(&ring, 0).len, 13);
    cr_expect_eq(ring_used(&ring, 1).len, 7);
    expect_bytes(RING_DATA, "HEA");
    expect_bytes(RING_DATA + 64, "D001234567");
    expect_bytes(RING_DATA + 0x200, "HEA");
    expect_bytes(RING_DATA + 0x200 + 64, "D189");
    rx_buffers_unpop(&list, &q);
    cr_assert_eq(virtq_pop(&q, &chain), POP_OK, "the third is offered again");
    cr_expect_eq(chain.head, 4);
}

Test(rx_buffers, go_on_with_what_is_left_and_with_nothing_behind_it)
{
    list.header_bytes = 5;
    for (uint16_t first = 0; first < 6; first += 2) {
        offer(first, 10);
        pop(100);
    }
    rx_buffers_unpop(&list, &q);
    pop(100);
    pop(100);
    cr_assert_eq(write(ends[1], "01234567", 8), 8);
    cr_assert_eq(rx_buffers_read(&list, ends[0]), 8);
    rx_buffers_give(&list, &q, 8);
    cr_expect_eq(list.bytes, 8);
    cr_assert_eq(write(ends[1], "abcdefghijklmnop", 16), 16);
    cr_expect_eq(rx_buffers_read(&list, ends[0]), 8, "the third chain is the guest's");
    expect_bytes(RING_DATA + 64 + 2, "01234567");
    expect_bytes(RING_DATA + 0x200 + 64 + 2, "abcdefgh");
}

Test(rx_buffers, take_a_frame_over_several_chains_and_say_how_many)
{
    offer(0, 4);
    offer(2, 4);
    offer(4, 4);
    for (unsigned i = 0; i < 3; i++)
        pop(6); /* of 7 */
    cr_assert_eq(write(ends[1], "0123456789", 10), 10);
    cr_assert_eq(rx_buffers_read_frame(&list, ends[0], false), 10);
    cr_expect_eq(rx_buffers_count(&list, 6), 1);
    cr_expect_eq(rx_buffers_count(&list, 10), 2);
    rx_buffers_put(&list, 2, "xy", 2); /* across a cut */
    rx_buffers_give(&list, &q, 10);
    expect_bytes(RING_DATA, "01x");
    expect_bytes(RING_DATA + 64, "y45");
    expect_bytes(RING_DATA + 0x200, "678");
    expect_bytes(RING_DATA + 0x200 + 64, "9");
    cr_expect_eq(list.bytes, 6);
    cr_expect_eq(rx_buffers_read_frame(&list, ends[0], false), -EAGAIN);
}

Test(rx_buffers, lose_a_frame_that_is_longer_and_touch_nothing_behind)
{
    offer(0, 4);
    offer(2, 4);
    for (unsigned i = 0; i < 2; i++)
        pop(100);
    cr_assert_eq(gmem_write_(&mem, gpa(RING_DATA + 0x200), "---", 3), 0);
    cr_assert_eq(write(ends[1], "0123456789", 10), 10);
    cr_expect_eq(rx_buffers_read_frame(&list, ends[0], true), 0, "of one chain");
    expect_bytes(RING_DATA + 0x200, "---");
    cr_assert_eq(write(ends[1], "0123456789abcdef", 16), 16);
    cr_expect_eq(rx_buffers_read_frame(&list, ends[0], false), 0, "of both");
    cr_assert_eq(write(ends[1], "0123456", 7), 7);
    cr_expect_eq(rx_buffers_read_frame(&list, ends[0], true), 7, "as long as the chain");
}

/* The list starts anew in the middle of its arrays many times. */
Test(rx_buffers, go_on_for_ever_while_some_always_wait)
{
    for (unsigned i = 0; i < 3000; i++) {
        const char frame[] = { 'f', (char)('a' + i % 26), '\0' };
        const uint16_t first = (uint16_t)(2 * (i % 3));

        offer(first, 4);
        pop(100);
        if (i < 2)
            continue;
        cr_assert_eq(write(ends[1], frame, 2), 2);
        cr_assert_eq(rx_buffers_read_frame(&list, ends[0], true), 2);
        rx_buffers_give(&list, &q, 2);
        virtq_publish(&q);
        cr_assert_eq(ring_used(&ring, (uint16_t)(i - 2)).id, 2 * ((i - 2) % 3));
        expect_bytes(RING_DATA + 0x200u * ((i - 2) % 3), frame);
    }
    cr_expect_eq(list.last - list.first, 2);
}

Test(rx_buffers, have_room_for_a_queue_s_worth_of_chains)
{
    ring_desc(&ring, 0, RING_DATA, 64, WRITE, 0);
    for (unsigned i = 0; i < VIRTQ_SIZE_MAX; i++) {
        ring_offer(&ring, 0);
        pop(100);
    }
    cr_expect_not(rx_buffers_has_room(&list));
}

static uint64_t take_marked(void)
{
    const uint64_t marked = mem.written[0] >> RING_DATA / GMEM_PAGE_BYTES;

    memset(mem.written, 0, gmem_pages(&mem) / 8);
    return marked;
}

/* A buffer at the end of each of three pages. */
Test(rx_buffers, mark_the_pages_that_are_filled)
{
    for (uint16_t i = 0; i < 3; i++) {
        ring_desc(&ring, i, RING_DATA + (i + 1) * GMEM_PAGE_BYTES - 4, 4, WRITE, 0);
        ring_offer(&ring, i);
        pop(100);
    }
    cr_assert_eq(gmem_track_writes(&mem), 0);
    cr_expect_eq(rx_buffers_read_frame(&list, ends[0], false), -EAGAIN);
    cr_expect_eq(take_marked(), 0);
    cr_assert_eq(write(ends[1], "01234", 5), 5);
    cr_assert_eq(rx_buffers_read_frame(&list, ends[0], false), 5);
    cr_expect_eq(take_marked(), 3, "two of them");
    cr_assert_eq(write(ends[1], "01234", 5), 5);
    cr_assert_eq(rx_buffers_read_frame(&list, ends[0], true), 0);
    cr_expect_eq(take_marked(), 1, "where it is lost, what it was cut off at");
    cr_assert_eq(write(ends[1], "0123456789", 10), 10);
    cr_assert_eq(rx_buffers_read(&list, ends[0]), 10);
    cr_expect_eq(take_marked(), 7);
    rx_buffers_put(&list, 0, "x", 1);
    cr_expect_eq(take_marked(), 1);
}
