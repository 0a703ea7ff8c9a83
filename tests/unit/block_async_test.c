#include "virtio/block_async.h"

#include <errno.h>
#include <liburing.h>
#include <signal.h>

#include "tests/unit/support/disk.h"

/*
 * What a host's kernel answers when it is short of something: the linker puts these in the place of
 * the functions that they call.
 */

static int submit_error, operation_error; /* -errno, or 0 */
static unsigned error_count;              /* how often */
static bool is_quick;                     /* what is submitted is done when that returns */

int __real_io_uring_submit(struct io_uring *r);
int __real_io_uring_submit_and_wait(struct io_uring *r, unsigned n);

/* Results are changed where the kernel has left them, once they are there. */
static void put_errors(struct io_uring *r)
{
    struct io_uring_cqe *cqe;
    unsigned at;

    io_uring_for_each_cqe(r, at, cqe) cqe->res =
        error_count > 0 ? (error_count--, operation_error) : cqe->res;
}

static int submit(struct io_uring *r, unsigned wait_for)
{
    int ret;

    if (submit_error && error_count > 0) {
        error_count--;
        return submit_error;
    }
    if (!operation_error && !is_quick)
        return wait_for ? __real_io_uring_submit_and_wait(r, wait_for) : __real_io_uring_submit(r);
    ret = __real_io_uring_submit_and_wait(r, io_uring_sq_ready(r));
    if (operation_error)
        put_errors(r);
    return ret;
}

int __wrap_io_uring_submit(struct io_uring *r)
{
    return submit(r, 0);
}

int __wrap_io_uring_submit_and_wait(struct io_uring *r, unsigned n)
{
    return submit(r, n);
}

static const int transient[] = { -EAGAIN, -EBUSY, -EINTR, -ENOMEM };
#define TRANSIENT (sizeof(transient) / sizeof(*transient))

Test(async, a_ring_that_is_not_taken_is_submitted_in_a_later_turn)
{
    for (unsigned i = 0; i < TRANSIENT; i++) {
        uint64_t before = metric_get(&block.metrics.io_engine_throttled_events);
        bool is_tried_at_once = transient[i] == -EINTR;

        submit_error = transient[i];
        error_count = 5;
        offer(0, VIRTIO_BLK_T_IN, i, SECTOR, 1);
        cr_expect_eq(driver_serve(&d), !is_tried_at_once, "error %d asks for a turn", submit_error);
        for (unsigned turn = 2; turn <= 5; turn++)
            cr_expect_eq(driver_serve(&d), !is_tried_at_once, "turn %u", turn);
        cr_expect_eq(error_count, 0);
        kick();
        cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK, "error %d", submit_error);
        cr_expect_eq(metric_get(&block.metrics.io_engine_throttled_events) - before,
                     is_tried_at_once ? 0 : 5);
    }
}

/* The results of all that is under way are taken in by a turn that had no room for more: no other
 * one will come and bring the next turn. */
Test(async, a_device_that_was_full_asks_for_a_turn_when_it_is_not)
{
    fill_ring_with_big_reads();
    is_quick = true;
    submit_error = -EAGAIN;
    error_count = 1;
    cr_assert(driver_serve(&d));
    cr_assert_eq(block.operations, BIG_FITTING);
    cr_expect(driver_serve(&d));
    cr_expect_eq(ring_used_idx(ring), BIG_FITTING);
    while (driver_serve(&d))
        ;
    cr_expect_eq(ring_used_idx(ring), BIG_REQUESTS);
}

Test(async, a_drain_submits_until_it_is_taken)
{
    for (unsigned i = 0; i < TRANSIENT; i++) {
        submit_error = transient[i];
        error_count = transient[i] == -EINTR ? 0 : 1;
        offer(0, VIRTIO_BLK_T_IN, i, SECTOR, 1);
        driver_serve(&d);
        error_count = 5;
        virtio_mmio_pause(&d.transport);
        cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK, "error %d", submit_error);
        virtio_mmio_resume(&d.transport);
        error_count = 0;
        driver_serve(&d);
    }
}

/* A ring that can't be used any more is a fault of ours. */
Test(async, a_ring_that_is_refused_for_another_reason_ends_the_process, .signal = SIGABRT)
{
    submit_error = -EBADF;
    error_count = 1;
    offer(0, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    driver_serve(&d);
}

Test(async, an_operation_that_the_host_puts_off_is_tried_again)
{
    static const int errors[] = { -EAGAIN, -EINTR };

    for (unsigned i = 0; i < 2; i++) {
        operation_error = errors[i];
        error_count = 5;
        cr_expect_eq(request(VIRTIO_BLK_T_IN, 9, SECTOR, 1), VIRTIO_BLK_S_OK);
        cr_expect_eq(error_count, 0);
        cr_expect_eq(get16(ring, DATA + SECTOR - 2), 0x0909);
        error_count = 5;
        cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
        cr_expect_eq(error_count, 0);
        error_count = 1000;
        cr_expect_eq(request(VIRTIO_BLK_T_IN, 9, SECTOR, 1), VIRTIO_BLK_S_IOERR);
        cr_expect_gt(error_count, 900, "it gives up");
    }
}

/* A request of many pieces may meet that more often than one piece may. */
Test(async, each_piece_is_tried_as_often)
{
    uint32_t left = HUGE_BYTES;
    unsigned rounds = 1;

    make_huge(HUGE_BYTES);
    offer_huge(0, VIRTIO_BLK_T_IN, 0);
    operation_error = -EAGAIN;
    error_count = 10;
    while (kick())
        if (block.current && block.current->left < left) {
            left = block.current->left;
            error_count = 10;
            rounds++;
        }
    cr_expect_gt(rounds, 1);
    cr_expect_eq(get16(ring, STATUS) & 0xff, VIRTIO_BLK_S_OK);
}

Test(async, a_drain_tries_again_what_the_host_puts_off)
{
    operation_error = -EAGAIN;
    fill_ring(VIRTIO_BLK_T_IN);
    error_count = 300;
    driver_serve(&d);
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(ring_used_idx(ring), 80);
    for (uint16_t i = 0; i < 80; i++)
        cr_expect_eq(status_of((uint16_t)(3 * i)), VIRTIO_BLK_S_OK, "request %u", i);
}

Test(async, a_piece_that_fails_ends_its_request)
{
    make_huge(HUGE_BYTES);
    offer_huge(0, VIRTIO_BLK_T_IN, 0);
    operation_error = -EIO;
    error_count = 1;
    while (kick())
        ;
    cr_expect_eq(ring_used_idx(ring), 1);
    cr_expect_eq(get16(ring, STATUS) & 0xff, VIRTIO_BLK_S_IOERR);
    cr_expect_eq(block.idle_count, block.request_count);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 9, SECTOR, 1), VIRTIO_BLK_S_OK, "and it goes on");
}

static void start_with_overlay(void)
{
    start((struct options){ .is_read_only = true, .is_async = true, .has_overlay = true });
}

TestSuite(async_overlay, .init = start_with_overlay, .fini = tear_down);

/* In however many pieces an overlay has what the page cache can answer at once, the event loop
 * isn't asked in between. */
Test(async_overlay, a_request_in_many_pieces_takes_one_turn)
{
    for (unsigned sector = 0; sector < 8; sector += 2)
        cr_assert_eq(request(VIRTIO_BLK_T_OUT, sector, SECTOR, 1), VIRTIO_BLK_S_OK);
    is_quick = true;
    offer(0, VIRTIO_BLK_T_IN, 0, 8 * SECTOR, 1);
    cr_expect_not(driver_serve(&d));
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_eq(get16(ring, DATA + 7 * SECTOR), 0x0707);
}

/* The descriptor that would be given next. */
static int next_descriptor(void)
{
    int fd = dup(STDIN_FILENO);

    close(fd);
    return fd;
}

/* What a drive opens, it closes. */
Test(async_engine, gives_back_its_ring)
{
    struct block_file f;
    struct block_async *a;
    struct error e;
    int before;

    close(new_file(path));
    cr_assert_eq(block_file_open(&f, path, false, &e), 0, "%s", e.msg);
    before = next_descriptor();
    cr_assert_eq(block_async_new(&a, &f, &e), 0, "%s", e.msg);
    cr_expect_gt(next_descriptor(), before);
    block_async_free(a);
    cr_expect_eq(next_descriptor(), before);
    block_file_close(&f);
    unlink(path);
}
