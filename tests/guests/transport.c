/* The virtio-mmio transport (VIRTIO 1.2, section 4.2) and its status machine (section 3.1), by a
 * driver that tries the wrong steps as well. The sectors are numbered as for block.c. */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define ACK_DRIVER (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)

static struct driver disk;
static uint64_t *sector;

static uint32_t status(void)
{
    return reg_read(&disk, VIRTIO_MMIO_STATUS);
}

static uint32_t set_status(uint32_t value)
{
    reg_write(&disk, VIRTIO_MMIO_STATUS, value);
    return status();
}

static void check_identity(void)
{
    expect_equal(reg_read(&disk, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976, "the_magic_is_virt");
    expect_equal(reg_read(&disk, VIRTIO_MMIO_VERSION), 2, "the_version_is_2");
    expect_equal(reg_read(&disk, VIRTIO_MMIO_DEVICE_ID), 2, "the_device_is_a_disk");
    expect_equal(reg_read(&disk, VIRTIO_MMIO_VENDOR_ID), 0, "the_vendor_is_0");
    expect_equal(status(), 0, "the_status_begins_at_0");
}

static void check_queue_registers(void)
{
    virtio_reset(&disk);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_SEL, 0);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_QUEUE_NUM_MAX), 256, "queue_0_has_256_entries");
    reg_write(&disk, VIRTIO_MMIO_QUEUE_READY, 1);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_QUEUE_READY), 0,
                 "a_queue_is_not_set_up_after_a_reset");
    reg_write(&disk, VIRTIO_MMIO_QUEUE_SEL, 1);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "queue_1_does_not_exist");
    reg_write(&disk, VIRTIO_MMIO_QUEUE_SEL, 0xffffffff);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_NUM, 16);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_READY, 1);
    expect(reg_read(&disk, VIRTIO_MMIO_QUEUE_NUM_MAX) == 0 &&
               reg_read(&disk, VIRTIO_MMIO_QUEUE_READY) == 0,
           "the_last_queue_number_does_not_exist");
    virtio_reset(&disk);
    virtio_negotiate(&disk, 0);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_SEL, 0);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_READY, 1);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_QUEUE_READY), 1, "a_queue_can_be_made_ready");
    reg_write(&disk, VIRTIO_MMIO_QUEUE_READY, 0);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_QUEUE_READY), 0, "and_taken_back");
}

static void check_features(void)
{
    uint64_t offered = offered_features(&disk);

    reg_write(&disk, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_DEVICE_FEATURES), 0, "there_is_no_third_feature_word");
    virtio_reset(&disk);
    set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set_status(ACK_DRIVER);
    driver_accept(&disk, offered & ~F_VERSION_1);
    expect_equal(set_status(ACK_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK), ACK_DRIVER,
                 "a_driver_without_version_1_is_refused");
    driver_accept(&disk, F_VERSION_1 | 1ul << 27);
    expect_equal(set_status(ACK_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK), ACK_DRIVER,
                 "an_unoffered_low_bit_is_refused");
    driver_accept(&disk, F_VERSION_1 | 1ul << 63);
    expect_equal(set_status(ACK_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK), ACK_DRIVER,
                 "an_unoffered_high_bit_is_refused");
    driver_accept(&disk, offered);
    expect_equal(set_status(ACK_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK),
                 ACK_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK, "all_that_is_offered_is_accepted");
    driver_accept(&disk, ~0ul);
    expect_equal(status(), ACK_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK,
                 "later_features_change_nothing");
}

static void check_status_machine(void)
{
    virtio_reset(&disk);
    expect_equal(set_status(VIRTIO_CONFIG_S_DRIVER), 0, "driver_before_acknowledge_is_ignored");
    expect_equal(set_status(ACK_DRIVER), 0, "two_steps_at_once_are_ignored");
    set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set_status(ACK_DRIVER);
    expect_equal(set_status(ACK_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK), ACK_DRIVER,
                 "driver_ok_before_features_ok_is_ignored");
    expect_equal(set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE), ACK_DRIVER, "a_step_back_is_ignored");
    expect_equal(set_status(0x30), ACK_DRIVER, "unknown_bits_are_ignored");
    expect((set_status(VIRTIO_CONFIG_S_FAILED) & VIRTIO_CONFIG_S_FAILED) != 0, "failed_is_kept");
    expect((set_status(ACK_DRIVER) & VIRTIO_CONFIG_S_FAILED) != 0, "failed_stays_until_a_reset");
    expect_equal(set_status(0), 0, "a_reset_clears_failed");
}

static void check_config(void)
{
    uint64_t base = disk.base + VIRTIO_MMIO_CONFIG, capacity = boot_number("sectors", 0);
    uint64_t bytes = 0, words = 0;

    for (unsigned i = 0; i < 8; i++)
        bytes |= (uint64_t)mmio_read8(base + i) << 8 * i;
    for (unsigned i = 0; i < 8; i += 2)
        words |= (uint64_t)mmio_read16(base + i) << 8 * i;
    expect_equal(bytes, capacity, "the_capacity_reads_by_bytes");
    expect_equal(words, capacity, "the_capacity_reads_by_words");
    expect_equal(block_capacity(&disk), capacity, "the_capacity_reads_by_doublewords");
    expect_equal(mmio_read64(base), capacity, "the_capacity_reads_at_once");
    mmio_write32(base, 1);
    mmio_write8(base + 7, 0xff);
    expect_equal(mmio_read64(base), capacity, "the_capacity_can_not_be_written");
    expect(mmio_read64(base + 0xef8) == 0 && mmio_read32(base + 0x800) == 0,
           "behind_the_configuration_are_zeroes");
    expect_equal(reg_read(&disk, VIRTIO_MMIO_CONFIG_GENERATION),
                 reg_read(&disk, VIRTIO_MMIO_CONFIG_GENERATION), "the_generation_stands_still");
}

static void check_interrupt_status(void)
{
    virtio_start(&disk, 0, 8);
    ioapic_mask(disk.gsi); /* so that no handler acknowledges */
    expect_equal(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS), 0, "no_interrupt_is_pending");
    block_reads(&disk, 1, sector);
    expect(wait_until(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS) == 1), "a_used_buffer_shows");
    reg_write(&disk, VIRTIO_MMIO_INTERRUPT_ACK, 0xfffffffe);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS), 1, "other_bits_do_not_acknowledge");
    reg_write(&disk, VIRTIO_MMIO_INTERRUPT_ACK, 1);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS), 0, "an_acknowledgement_clears");
    block_reads(&disk, 2, sector);
    wait_until(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS) == 1);
    virtio_reset(&disk);
    expect_equal(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS), 0, "a_reset_clears_interrupts");
    ioapic_route(disk.gsi);
}

static void check_early_kick(void)
{
    struct block_part part = { sector, SECTOR };
    static struct block_request request;

    virtio_reset(&disk);
    virtio_kick(&disk);
    virtio_negotiate(&disk, 0);
    virtq_init(&disk.queue, 0, 8);
    driver_set_queue(&disk, &disk.queue);
    block_lay(&disk.queue, 0, &request, BLOCK_IN, 5, &part, 1);
    ring_offer(&disk.queue, 0);
    virtio_kick(&disk);
    expect_equal(ring_used_idx(&disk.queue), 0, "nothing_happens_before_driver_ok");
    driver_ok(&disk);
    virtio_kick(&disk);
    expect(virtio_wait(&disk) && request.status == BLOCK_OK && sector[0] == 5,
           "what_was_offered_early_is_done_after_driver_ok");
}

static void check_stray_writes(void)
{
    expect(virtio_start(&disk, 0, 8) && block_reads(&disk, 3, sector), "the_device_works");
    for (uint32_t reg = 0; reg < 0x200; reg += 4)
        if (reg != VIRTIO_MMIO_STATUS && reg != VIRTIO_MMIO_QUEUE_NOTIFY)
            reg_write(&disk, reg, reg % 8 == 0 ? 0xffffffff : 0x5a5a5a5a);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    reg_write(&disk, VIRTIO_MMIO_QUEUE_NOTIFY, 0xffffffff);
    mmio_write16(disk.base + VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    mmio_write64(disk.base + VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    expect(block_reads(&disk, 4, sector), "a_running_device_stands_stray_writes");
    expect_equal(set_status(ACK_DRIVER),
                 ACK_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK,
                 "a_running_device_keeps_its_status");
}

static void check_restarts(void)
{
    unsigned wrong = 0;

    for (unsigned i = 0; i < 20; i++) {
        wrong += !virtio_start(&disk, i % 2 ? F_EVENT_IDX : 0, (uint16_t)(4u << i % 7));
        ring_set_used_event(&disk.queue, 0);
        wrong += !block_reads(&disk, i, sector);
    }
    expect_equal(wrong, 0, "twenty_resets_and_restarts_work");
}

/* Whatever was in flight, a reset ends it: the old rings and buffers are the driver's again. */
static void check_reset_in_flight(void)
{
    enum { REQUESTS = 4, PAGES = 2048 }; /* 8 MiB: more than one turn of the device */
    static struct block_request requests[REQUESTS];
    uint64_t *data = alloc_pages(PAGES);
    struct ring old;
    uint64_t changed = 0;

    virtio_start(&disk, 0, 64);
    for (uint16_t i = 0; i < REQUESTS; i++) {
        struct block_part part = { data, PAGES * 4096 };
        block_lay(&disk.queue, (uint16_t)(i * 3), &requests[i], BLOCK_IN, 0, &part, 1);
        ring_offer(&disk.queue, (uint16_t)(i * 3));
    }
    virtio_kick(&disk);
    /* The second sector's number is there: the first request is under way. */
    for (unsigned spins = 0; __atomic_load_n(&data[64], __ATOMIC_ACQUIRE) != 1;)
        if (++spins == 10000000)
            give_up("a_reset_in_flight_ends_well", "the request was never begun");
    virtio_reset(&disk);
    old = disk.queue;
    for (unsigned i = 0; i < PAGES; i++)
        data[i * 512] = 0x5a5a5a5a;
    used_of(&old)->idx = 0x77;
    disk.queue.desc = 0; /* other rings from here on */
    expect(virtio_start(&disk, 0, 8) && block_reads(&disk, 6, sector) &&
               block_reads(&disk, 7, sector),
           "a_reset_in_flight_ends_well");
    for (unsigned i = 0; i < PAGES; i++)
        changed += data[i * 512] != 0x5a5a5a5a;
    expect(changed == 0 && used_of(&old)->idx == 0x77, "nothing_is_written_after_a_reset");
}

void guest_main(void)
{
    sector = alloc_pages(1);
    if (!expect(virtio_find(0, &disk), "the_disk_answers"))
        return;
    check_identity();
    check_queue_registers();
    check_features();
    check_status_machine();
    check_config();
    check_interrupt_status();
    check_early_kick();
    check_stray_writes();
    check_restarts();
    check_reset_in_flight();
}
