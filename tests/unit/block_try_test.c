/*
 * Requests that a vCPU's thread carries out by itself, and which it leaves to the event loop. The
 * disk's file is tried as one on a file system that can say what it would wait for, or as one in
 * memory; what the file system under the tests can do decides about nothing.
 */
#include "virtio/block.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "tests/unit/support/disk.h"

#define IN_MEMORY    0
#define LONG_SECTORS 512u /* a hole follows the disk's usual ones */

static void start_in_memory(void)
{
    start_sync();
    cr_assert_eq(truncate(path, LONG_SECTORS * SECTOR), 0);
    file.sectors = LONG_SECTORS;
    file.read_flags = file.write_flags = IN_MEMORY;
}

TestSuite(vcpu, .init = start_in_memory, .fini = tear_down);
TestSuite(vcpu_of_another_disk, .fini = tear_down); /* the test starts it */

static void expect_left_to_the_loop(uint8_t status)
{
    cr_expect(notify());
    cr_expect_eq(ring_used_idx(ring), 0);
    cr_expect_eq(driver_interrupts(&d), 0);
    while (driver_serve(&d))
        ;
    cr_expect_eq(ring_used_idx(ring), 1);
    cr_expect_eq(status_of(0), status);
    cr_expect_eq(driver_interrupts(&d), 1);
}

Test(vcpu, reads_and_writes_without_the_loop)
{
    uint16_t back;

    offer(0, VIRTIO_BLK_T_IN, 3, 8 * SECTOR, 3);
    cr_expect_not(notify());
    cr_expect_eq(driver_interrupts(&d), 1);
    cr_expect_eq(ring_used(ring, 0).len, 8 * SECTOR + 1);
    cr_expect_eq(get16(ring, DATA + 7 * SECTOR), 10 * 0x101);
    ring_set_used_event(ring, 1);
    offer(0, VIRTIO_BLK_T_OUT, 40, 8 * SECTOR, 2);
    cr_expect_not(notify());
    cr_expect_eq(driver_interrupts(&d), 1);
    cr_expect_eq(pread(file.fd, &back, sizeof(back), 47 * SECTOR), sizeof(back));
    cr_expect_eq(back, 10 * 0x101);
    cr_expect_eq(metric_get(&block.metrics.read_count), 1);
    cr_expect_eq(metric_get(&block.metrics.write_count), 1);
    cr_expect_eq(metric_get(&block.metrics.queue_event_count), 2);
}

Test(vcpu, answers_what_needs_no_file)
{
    offer(0, VIRTIO_BLK_T_GET_ID, 0, BLOCK_ID_BYTES, 1);
    cr_expect_not(notify());
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    offer(0, VIRTIO_BLK_T_IN, LONG_SECTORS, SECTOR, 1);
    cr_expect_not(notify());
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_IOERR);
    cr_expect_not(notify(), "nothing is there");
    cr_expect_eq(metric_get(&block.metrics.no_avail_buffer), 1);
}

Test(vcpu, leaves_a_flush_to_the_loop)
{
    offer(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    expect_left_to_the_loop(VIRTIO_BLK_S_OK);
}

Test(vcpu, leaves_a_transfer_of_much_to_the_loop)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT };

    for (unsigned i = 0; i < 2; i++) {
        offer(0, types[i], 0, 256 * SECTOR, 1);
        cr_expect_not(notify(), "128 KiB");
        offer(0, types[i], 0, 257 * SECTOR, 1);
        cr_expect(notify());
        cr_assert_not_null(block.current);
        driver_serve(&d);
        cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    }
}

Test(vcpu, leaves_what_is_much_together_to_the_loop)
{
    offer(0, VIRTIO_BLK_T_IN, 0, 256 * SECTOR, 1);
    offer(3, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    cr_expect(notify());
    cr_expect_eq(ring_used_idx(ring), 1);
    cr_assert_not_null(block.current);
    driver_serve(&d);
    cr_expect_eq(ring_used_idx(ring), 2);
}

Test(vcpu, leaves_a_ring_with_many_requests_to_the_loop_as_it_is)
{
    for (uint16_t i = 0; i < 5; i++)
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i, SECTOR, 1);
    cr_expect(notify());
    cr_expect_null(block.current);
    cr_expect_eq(ring_used_idx(ring), 0);
    driver_serve(&d);
    cr_expect_eq(ring_used_idx(ring), 5);
    for (uint16_t i = 0; i < 4; i++)
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i, SECTOR, 1);
    notify();
    cr_expect_eq(ring_used_idx(ring), 9, "four are few");
}

/* The file has what the guest asks for on its disk alone; false: this host keeps it in memory. It
 * is not asked by a read, which would begin to bring it back. */
static bool evict(void)
{
    unsigned char is_there = 1;
    void *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file.fd, 0);

    cr_assert_neq(page, MAP_FAILED);
    file.read_flags = RWF_NOWAIT;
    if (fsync(file.fd) == 0 && posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED) == 0)
        cr_assert_eq(mincore(page, 4096, &is_there), 0);
    munmap(page, 4096);
    return !(is_there & 1);
}

Test(vcpu, leaves_a_read_that_waits_for_a_disk_to_the_loop)
{
    if (!evict())
        cr_skip_test("the file can't be made to leave memory");
    offer(0, VIRTIO_BLK_T_IN, 1, SECTOR, 1);
    expect_left_to_the_loop(VIRTIO_BLK_S_OK);
    cr_expect_eq(get16(ring, DATA), 0x101);
    cr_expect_eq(file.read_flags, RWF_NOWAIT);
    offer(0, VIRTIO_BLK_T_IN, 2, SECTOR, 1);
    cr_expect_not(notify(), "now it is in memory");
    cr_expect_eq(get16(ring, DATA), 0x202);
}

/* /dev/full has no flag for it. */
Test(vcpu, asks_a_file_that_can_only_wait_once)
{
    close(file.fd);
    file.fd = open("/dev/full", O_RDWR);
    file.read_flags = file.write_flags = RWF_NOWAIT;
    offer(0, VIRTIO_BLK_T_OUT, 0, SECTOR, 1);
    expect_left_to_the_loop(VIRTIO_BLK_S_IOERR);
    cr_expect_eq(file.write_flags, BLOCK_FILE_WAITS);
    cr_expect_eq(file.read_flags, RWF_NOWAIT, "writes say nothing about reads");
}

Test(vcpu, goes_on_where_a_file_ended_early_as_the_loop_does)
{
    cr_assert_eq(truncate(path, 3 * SECTOR), 0);
    offer(0, VIRTIO_BLK_T_IN, 1, 8 * SECTOR, 1);
    expect_left_to_the_loop(VIRTIO_BLK_S_IOERR);
}

Test(vcpu, does_nothing_while_the_loop_is_at_a_request)
{
    offer(0, VIRTIO_BLK_T_IN, 0, 257 * SECTOR, 1);
    cr_assert(notify());
    for (uint16_t i = 1; i <= 5; i++) {
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i, SECTOR, 1);
        cr_expect_not(notify(), "the loop has been told");
    }
    cr_expect_eq(ring_used_idx(ring), 0);
    cr_expect_eq(metric_get(&block.metrics.no_avail_buffer), 0);
    driver_serve(&d);
    cr_expect_eq(ring_used_idx(ring), 6);
}

Test(vcpu, leaves_what_it_began_in_the_ring_of_a_drained_device)
{
    const uint16_t before = block.dev.queues[0].state.next_avail;

    offer(0, VIRTIO_BLK_T_IN, 0, 257 * SECTOR, 1);
    cr_assert(notify());
    virtio_mmio_pause(&d.transport);
    cr_expect_null(block.current);
    cr_expect_eq(block.dev.queues[0].state.next_avail, before);
    virtio_mmio_resume(&d.transport);
    driver_serve(&d);
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
}

Test(vcpu, forgets_what_it_began_at_a_reset)
{
    offer(0, VIRTIO_BLK_T_IN, 0, 257 * SECTOR, 1);
    cr_assert(notify());
    driver_start(&d);
    cr_expect_null(block.current);
    offer(0, VIRTIO_BLK_T_IN, 1, SECTOR, 1);
    cr_expect_not(notify());
    cr_expect_eq(get16(ring, DATA), 0x101);
}

Test(vcpu_of_another_disk, waits_for_the_rate_limiter_as_the_loop_does)
{
    start((struct options){
        .limits = { .has_ops = true, .ops = { .size = 1, .refill_time_ms = 3600 * 1000 } } });
    file.read_flags = IN_MEMORY;
    offer(0, VIRTIO_BLK_T_IN, 1, SECTOR, 1);
    cr_expect_not(notify());
    cr_expect_eq(ring_used_idx(ring), 1);
    offer(0, VIRTIO_BLK_T_IN, 1, SECTOR, 1);
    for (unsigned i = 0; i < 3; i++)
        cr_expect_not(notify(), "the loop is woken by the timer");
    cr_expect_eq(ring_used_idx(ring), 1);
    cr_expect(block.limiter.is_blocked);
    cr_expect_eq(metric_get(&block.metrics.rate_limiter_throttled_events), 3);
}

Test(vcpu, finds_a_malformed_ring_as_the_loop_does)
{
    ring_desc(ring, 0, UINT64_C(1) << 40, 16, VRING_DESC_F_NEXT, 1);
    ring_offer(ring, 0);
    cr_expect_not(notify());
    cr_expect(needs_reset(&d));
}

Test(vcpu_of_another_disk, reads_an_overlay_and_leaves_its_writes_to_the_loop)
{
    start((struct options){ .has_overlay = true });
    cr_expect_eq(file.write_flags, BLOCK_FILE_WAITS);
    if (file.read_flags == BLOCK_FILE_WAITS)
        cr_skip_test("a file system in memory");
    offer(0, VIRTIO_BLK_T_IN, 3, SECTOR, 1);
    cr_expect_not(notify());
    cr_expect_eq(get16(ring, DATA), 0x303);
    cr_assert_eq(request(VIRTIO_BLK_T_OUT, 5, SECTOR, 1), VIRTIO_BLK_S_OK);
    offer(0, VIRTIO_BLK_T_IN, 5, 2 * SECTOR, 1);
    while (notify() && driver_serve(&d))
        ;
    cr_expect_eq(get16(ring, DATA), 0x303, "of the top");
    cr_expect_eq(get16(ring, DATA + SECTOR), 0x606, "of the base");
}

Test(vcpu_of_another_disk, has_no_part_in_a_disk_of_the_async_engine)
{
    start_async();
    cr_expect_null(block.dev.ops->try_serve);
    offer(0, VIRTIO_BLK_T_IN, 3, SECTOR, 1);
    cr_expect_not(notify());
    cr_expect_eq(ring_used_idx(ring), 0);
}

/* Each sector that is read must hold its number, whoever reads it. */
#define ROUNDS 4000u

static atomic_bool has_read_all;

static void *read_all_the_while(void *arg)
{
    unsigned *wrong = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        const unsigned sector = i * 7 % DISK_SECTORS, sectors = i % 5 ? 1 : 257;
        const uint16_t before = ring_used_idx(ring);

        offer(0, VIRTIO_BLK_T_IN, sector, sectors * SECTOR, 1);
        reg_write(&d, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        while (ring_used_idx(ring) == before)
            sched_yield();
        *wrong += get16(ring, DATA) != sector * 0x101 || status_of(0) != VIRTIO_BLK_S_OK;
    }
    has_read_all = true;
    return NULL;
}

Test(vcpu, and_the_loop_take_turns)
{
    unsigned wrong = 0;
    struct error e;
    pthread_t vcpu;

    cr_assert_eq(pthread_create(&vcpu, NULL, read_all_the_while, &wrong), 0);
    for (unsigned i = 0; !has_read_all; i++) {
        const struct rate_limits limits = {
            .has_ops = true, .ops = { .size = 1000 * (i % 2), .refill_time_ms = 1 }
        };

        loop_turn(&d.loop, 1);
        virtio_mmio_pause(&d.transport);
        virtio_mmio_resume(&d.transport);
        cr_assert_eq(block_update(&block, NULL, &limits, &e), 0, "%s", e.msg);
    }
    pthread_join(vcpu, NULL);
    cr_expect_eq(wrong, 0);
}
