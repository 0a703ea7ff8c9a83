/*
 * A driver that lies to virtio-block: malformed rings, addresses that are no RAM, queues that can't
 * be. Each time the first disk either answers with an error or asks for a reset, works again after
 * one, and the second disk never notices. "storm" does it at random from a second vCPU.
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/smp.h"

#define QUEUE       64
#define STORM_QUEUE 8

enum outcome { NEEDS_RESET, IO_ERROR, ANSWERED };

static struct driver victim, bystander;
static struct block_request request;
static uint8_t *data, *other;
static uint64_t ram_end; /* of the range that begins at 1 MiB */

/* A good read: header at 0, data at 1, status at 2. The attacks below spoil it. */
static void lay_read(struct ring *q)
{
    struct block_part part = { data, SECTOR };
    block_lay(q, 0, &request, BLOCK_IN, 1, &part, 1);
}

static void loop_to_itself(struct ring *q)
{
    desc_of(q)[0].next = 0;
}

static void loop_of_three(struct ring *q)
{
    desc_of(q)[2].flags |= VRING_DESC_F_NEXT;
    desc_of(q)[2].next = 1;
}

static void next_is_the_queue_size(struct ring *q)
{
    desc_of(q)[1].next = QUEUE;
}

static void next_is_far_off(struct ring *q)
{
    desc_of(q)[1].next = 0xffff;
}

static void head_is_the_queue_size(struct ring *q)
{
    avail_of(q)->ring[q->offered % QUEUE] = QUEUE;
}

static void head_is_far_off(struct ring *q)
{
    avail_of(q)->ring[q->offered % QUEUE] = 0xffff;
}

static void data_in_the_gap(struct ring *q)
{
    desc_of(q)[1].addr = 0xd0000000;
}

static void data_in_its_own_registers(struct ring *q)
{
    desc_of(q)[1].addr = victim.base;
}

static void data_at_the_local_apic(struct ring *q)
{
    desc_of(q)[1].addr = LAPIC;
}

static void data_across_the_end_of_ram(struct ring *q)
{
    desc_of(q)[1].addr = ram_end - 256;
}

static void data_behind_all_ram(struct ring *q)
{
    desc_of(q)[1].addr = 1ul << 46;
}

static void data_that_wraps(struct ring *q)
{
    desc_of(q)[1].addr = ~0ul - 255;
}

static void data_of_four_gibibytes(struct ring *q)
{
    desc_of(q)[1].len = 0xffffffff;
}

/* Each fits the RAM, their sum does not fit 32 bits. */
static void data_whose_sum_wraps(struct ring *q)
{
    for (uint16_t i = 1; i < QUEUE; i++)
        ring_buffer(q, i, 0x1000000, 0x6000000, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    desc_of(q)[QUEUE - 1].flags = VRING_DESC_F_WRITE;
}

static void header_in_the_gap(struct ring *q)
{
    desc_of(q)[0].addr = 0xc0000000;
}

static void status_in_the_gap(struct ring *q)
{
    desc_of(q)[2].addr = 0xfffffff0;
}

static void header_of_eight_bytes(struct ring *q)
{
    desc_of(q)[0].len = 8;
}

static void header_of_nothing(struct ring *q)
{
    desc_of(q)[0].len = 0;
}

static void data_of_nothing(struct ring *q)
{
    desc_of(q)[1].len = 0;
}

static void status_of_nothing(struct ring *q)
{
    desc_of(q)[1].flags = VRING_DESC_F_NEXT;
    desc_of(q)[2].len = 0;
}

static void header_for_the_device(struct ring *q)
{
    desc_of(q)[0].flags |= VRING_DESC_F_WRITE;
}

static void data_from_the_driver(struct ring *q)
{
    desc_of(q)[1].flags &= (uint16_t)~VRING_DESC_F_WRITE;
}

static void status_from_the_driver(struct ring *q)
{
    desc_of(q)[2].flags &= (uint16_t)~VRING_DESC_F_WRITE;
}

static void header_alone(struct ring *q)
{
    desc_of(q)[0].flags = 0;
}

static void all_for_the_device(struct ring *q)
{
    ring_lay(q, 0, data, SECTOR, VRING_DESC_F_WRITE);
}

static void an_indirect_table(struct ring *q)
{
    ring_lay(q, 0, &desc_of(q)[4], 48, VRING_DESC_F_INDIRECT);
}

static void index_jumps_past_the_queue(struct ring *q)
{
    q->offered = (uint16_t)(q->offered + QUEUE);
}

static void index_jumps_half_way(struct ring *q)
{
    q->offered = (uint16_t)(q->offered + 0x8000);
}

static void index_steps_back(struct ring *q)
{
    q->offered = (uint16_t)(q->offered - 2);
}

static void data_over_the_used_ring(struct ring *q)
{
    desc_of(q)[1].addr = q->used;
}

static void data_over_the_descriptors(struct ring *q)
{
    desc_of(q)[1].addr = q->desc;
}

static void status_over_the_available_index(struct ring *q)
{
    desc_of(q)[2].addr = (uint64_t)&avail_of(q)->idx;
}

#define ATTACK(name, outcome)                                                                      \
    {                                                                                              \
#name, name, outcome                                                                       \
    }

static const struct {
    const char *name;
    void (*spoil)(struct ring *q);
    enum outcome outcome;
} attacks[] = {
    ATTACK(loop_to_itself, NEEDS_RESET),
    ATTACK(loop_of_three, NEEDS_RESET),
    ATTACK(next_is_the_queue_size, NEEDS_RESET),
    ATTACK(next_is_far_off, NEEDS_RESET),
    ATTACK(head_is_the_queue_size, NEEDS_RESET),
    ATTACK(head_is_far_off, NEEDS_RESET),
    ATTACK(data_in_the_gap, NEEDS_RESET),
    ATTACK(data_in_its_own_registers, NEEDS_RESET),
    ATTACK(data_at_the_local_apic, NEEDS_RESET),
    ATTACK(data_across_the_end_of_ram, NEEDS_RESET),
    ATTACK(data_behind_all_ram, NEEDS_RESET),
    ATTACK(data_that_wraps, NEEDS_RESET),
    ATTACK(data_of_four_gibibytes, NEEDS_RESET),
    ATTACK(data_whose_sum_wraps, NEEDS_RESET),
    ATTACK(header_in_the_gap, NEEDS_RESET),
    ATTACK(status_in_the_gap, NEEDS_RESET),
    ATTACK(header_of_eight_bytes, IO_ERROR),
    ATTACK(header_of_nothing, IO_ERROR),
    ATTACK(data_of_nothing, ANSWERED),
    ATTACK(status_of_nothing, ANSWERED),
    ATTACK(header_for_the_device, IO_ERROR),
    ATTACK(data_from_the_driver, ANSWERED),
    ATTACK(status_from_the_driver, NEEDS_RESET),
    ATTACK(header_alone, ANSWERED),
    ATTACK(all_for_the_device, ANSWERED),
    ATTACK(an_indirect_table, NEEDS_RESET),
    ATTACK(index_jumps_past_the_queue, NEEDS_RESET),
    ATTACK(index_jumps_half_way, NEEDS_RESET),
    ATTACK(index_steps_back, NEEDS_RESET),
    ATTACK(data_over_the_used_ring, ANSWERED),
    ATTACK(data_over_the_descriptors, ANSWERED),
    ATTACK(status_over_the_available_index, ANSWERED),
};

/* What became of the request: an answer, an error in the status byte, or a request for a reset. */
static bool ended_as(enum outcome outcome)
{
    switch (outcome) {
    case NEEDS_RESET: return wait_until(needs_reset(&victim));
    case IO_ERROR: return wait_until(request.status == BLOCK_IOERR) && !needs_reset(&victim);
    default: return wait_until(ring_used_idx(&victim.queue) != 0 || needs_reset(&victim));
    }
}

static void attack(const char *name, void (*spoil)(struct ring *q), enum outcome outcome)
{
    struct ring *q = &victim.queue;

    if (!virtio_start(&victim, 0, QUEUE))
        give_up(name, "the disk does not start before it");
    lay_read(q);
    avail_of(q)->ring[0] = 0;
    spoil(q);
    q->offered++;
    ring_publish(q);
    virtio_kick(&victim);
    if (!ended_as(outcome))
        print("not ok %s: status 0x%x, used %u, request 0x%x\n", name,
              reg_read(&victim, VIRTIO_MMIO_STATUS), ring_used_idx(q), request.status);
    else if (!block_reads(&bystander, 4, other))
        print("not ok %s: the other disk suffers\n", name);
    else if (!virtio_start(&victim, 0, QUEUE) || !block_reads(&victim, 3, data))
        print("not ok %s: a reset does not help\n", name);
    else
        print("ok %s\n", name);
}

/* Addresses and sizes of a queue that can't be: DRIVER_OK must not lead to a working device. */
static void bad_queue(const char *name, uint16_t size, uint64_t desc, uint64_t avail, uint64_t used)
{
    struct ring *q = &victim.queue, good = *q;

    virtio_reset(&victim);
    virtio_negotiate(&victim, 0);
    virtq_init(q, 0, QUEUE);
    *q = (struct ring){ .size = size,
                        .desc = desc != 0 ? desc : q->desc,
                        .avail = avail != 0 ? avail : q->avail,
                        .used = used != 0 ? used : q->used };
    driver_set_queue(&victim, q);
    driver_ok(&victim);
    virtio_kick(&victim);
    *q = good;
    expect(wait_until(needs_reset(&victim)) && block_reads(&bystander, 3, other) &&
               virtio_start(&victim, 0, QUEUE) && block_reads(&victim, 2, data),
           name);
}

static void check_bad_queues(void)
{
    uint64_t in_page = victim.queue.desc;

    bad_queue("a_queue_of_nothing", 0, 0, 0, 0);
    bad_queue("a_queue_of_three", 3, 0, 0, 0);
    bad_queue("a_queue_of_257", 257, 0, 0, 0);
    bad_queue("a_queue_of_512", 512, 0, 0, 0);
    bad_queue("a_queue_of_32768", 32768, 0, 0, 0);
    bad_queue("descriptors_in_the_gap", QUEUE, 0xc0000000, 0, 0);
    bad_queue("descriptors_behind_all_ram", QUEUE, 1ul << 47, 0, 0);
    bad_queue("descriptors_across_the_end_of_ram", QUEUE, ram_end - 16, 0, 0);
    bad_queue("descriptors_that_wrap", QUEUE, ~0xful, 0, 0);
    bad_queue("descriptors_misaligned", QUEUE, in_page + 8, 0, 0);
    bad_queue("an_available_ring_in_the_gap", QUEUE, 0, victim.base, 0);
    bad_queue("an_available_ring_misaligned", QUEUE, 0, in_page + 1, 0);
    bad_queue("an_available_ring_across_the_end_of_ram", QUEUE, 0, ram_end - 4, 0);
    bad_queue("a_used_ring_in_the_gap", QUEUE, 0, 0, 0xfffff000);
    bad_queue("a_used_ring_misaligned", QUEUE, 0, 0, in_page + 2);
    bad_queue("a_used_ring_across_the_end_of_ram", QUEUE, 0, 0, ram_end - 8);
}

static volatile uint32_t stop, stopped;

static uint32_t draw(void)
{
    static uint32_t state = 1;
    state = state * 1664525 + 1013904223;
    return state >> 8;
}

/* Scribbles over the rings of the first disk while the other vCPU kicks and resets it. The device
 * is lured into pages of their own only: this guest wants to live. */
static void scribble(uint32_t apic_id)
{
    static const uint32_t sizes[] = { 0, 1, 16, 512, 513, 1024, 4096, 0x80000000 };
    struct ring *q = &victim.queue;
    uint64_t places[] = { (uint64_t)data, q->desc, q->used,       q->avail,
                          0xc0000000,     LAPIC,   ram_end - 100, ~0ul - 10 };

    (void)apic_id;
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        uint32_t r = draw();
        desc_of(q)[r % STORM_QUEUE] =
            (struct vring_desc){ places[r >> 3 & 7], sizes[r >> 6 & 7], r >> 9 & 7,
                                 (uint16_t)((r >> 12 & 15) % (STORM_QUEUE + 1)) };
        avail_of(q)->ring[r >> 16 & 7] = (uint16_t)((r >> 19 & 15) % (STORM_QUEUE + 1));
        if ((r & 3) != 0)
            avail_of(q)->idx++;
    }
    __atomic_store_n(&stopped, 1, __ATOMIC_RELEASE);
}

static void storm(void)
{
    uint64_t rounds = boot_number("rounds", 2000);
    unsigned wrong = 0, resets = 0;

    virtio_start(&victim, 0, STORM_QUEUE);
    if (!expect(smp_start(1, scribble), "the_second_vcpu_starts"))
        return;
    for (uint64_t i = 0; i < rounds; i++) {
        virtio_kick(&victim);
        if (i % 8 == 7)
            wrong += !block_reads(&bystander, i % 64, other);
        if (!needs_reset(&victim) && i % 16 != 15)
            continue;
        resets++;
        virtio_reset(&victim);
        virtio_negotiate(&victim, i % 2 ? F_EVENT_IDX : 0);
        driver_set_queue(&victim, &victim.queue);
        driver_ok(&victim);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    expect(wait_until(stopped), "the_second_vcpu_stops");
    expect_equal(wrong, 0, "the_other_disk_works_throughout");
    expect(resets > 0, "the_storm_led_to_resets");
    expect(virtio_start(&victim, 0, QUEUE) && block_reads(&victim, 5, data),
           "after_the_storm_it_works");
}

static bool both_start(void)
{
    return virtio_find(0, &victim) && virtio_find(1, &bystander) &&
           virtio_start(&victim, 0, QUEUE) && virtio_start(&bystander, 0, QUEUE);
}

void guest_main(void)
{
    data = alloc_pages(2);
    other = alloc_pages(1);
    for (unsigned i = 0; i < boot.range_count; i++)
        if (boot.ranges[i].start == 0x100000)
            ram_end = 0x100000 + boot.ranges[i].bytes;
    if (!expect(both_start(), "both_disks_start"))
        return;
    if (boot_has("storm")) {
        storm();
        return;
    }
    for (unsigned i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++)
        attack(attacks[i].name, attacks[i].spoil, attacks[i].outcome);
    check_bad_queues();
}
