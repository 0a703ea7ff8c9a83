/*
 * A guest that is saved and goes on elsewhere, `rounds` times: at each "waiting save" the test
 * saves it, loads it into another process, and sends that a byte. What it had before must be there,
 * and what tells it that it is a clone. Command line: vcpus=N, rounds=N, gsi=N of the first device
 * of the board; disk: a drive is in slot 0, whose sectors it may write.
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/smp.h"

#define VMCLOCK 0xde000ul
#define VMGENID 0xdfff0ul

#define COM1_IER  0x3f9
#define COM1_IIR  0x3fa
#define COM1_SCR  0x3ff
#define COM1_GSI  4
#define IER_EMPTY 2

#define CTL_PORT  0x64
#define DATA_PORT 0x60
#define READ_CTL  0x20
#define WRITE_CTL 0x60

#define IN_FLIGHT 32
#define QUEUE     256

static struct driver disk;
static struct block_request requests[IN_FLIGHT];
static uint8_t *buffer; /* a sector for each */
static volatile uint64_t counts[SMP_MAX];

static void count(uint32_t apic_id)
{
    for (;;)
        counts[apic_id]++;
}

struct identity {
    uint64_t id[2], disruptions, generation;
    uint32_t sequence;
};

static struct identity identity(void)
{
    const volatile uint8_t *clock = (const volatile uint8_t *)VMCLOCK;
    const volatile uint64_t *id = (const volatile uint64_t *)VMGENID;

    return (struct identity){
        .id = { id[0], id[1] },
        .sequence = *(const volatile uint32_t *)(clock + 12),
        .disruptions = *(const volatile uint64_t *)(clock + 16),
        .generation = *(const volatile uint64_t *)(clock + 104),
    };
}

static uint8_t control_byte(void)
{
    outb(CTL_PORT, READ_CTL);
    return inb(DATA_PORT);
}

/* Requests that may be anywhere between the ring and the file when the guest stops. */
static void begin_requests(unsigned round)
{
    for (unsigned i = 0; i < IN_FLIGHT; i++) {
        struct block_part part = { buffer + SECTOR * i, SECTOR };

        for (unsigned word = 0; word < SECTOR / 8; word++)
            ((uint64_t *)part.at)[word] = (uint64_t)round << 32 | i;
        block_lay(&disk.queue, (uint16_t)(3 * i), &requests[i], BLOCK_OUT, i, &part, 1);
        ring_offer(&disk.queue, (uint16_t)(3 * i));
    }
    virtio_kick(&disk);
}

static void end_requests(unsigned round)
{
    unsigned right = 0;

    expect(virtio_wait(&disk), "what_was_asked_of_the_disk_is_done");
    for (unsigned i = 0; i < IN_FLIGHT; i++)
        right += requests[i].status == BLOCK_OK;
    expect_equal(right, IN_FLIGHT, "each_request_went_well");
    right = 0;
    for (unsigned i = 0; i < IN_FLIGHT; i++) {
        uint64_t *at = (uint64_t *)buffer;

        if (block_do(&disk, BLOCK_IN, i, at, SECTOR) == BLOCK_OK)
            right += at[0] == ((uint64_t)round << 32 | i) && at[63] == at[0];
    }
    expect_equal(right, IN_FLIGHT, "each_sector_holds_what_was_written");
}

static void check_identity(const struct identity *before, unsigned gsi, uint64_t rings)
{
    struct identity now = identity();

    expect(now.id[0] != before->id[0] && now.id[1] != before->id[1], "the_generation_id_is_new");
    expect_equal(now.generation, before->generation + 1, "the_clock_counts_the_generation");
    expect_equal(now.disruptions, before->disruptions + 1, "the_clock_counts_the_disruption");
    expect(now.sequence % 2 == 0 && now.sequence != before->sequence, "the_clock_is_consistent");
    expect(wait_until(interrupt_count[VECTOR_GSI0 + gsi] == rings), "the_generation_id_rings");
    expect(wait_until(interrupt_count[VECTOR_GSI0 + gsi + 1] == rings), "the_clock_rings");
}

/* What only this guest has, in each place where it can be lost. */
static void check_registers(uint8_t scratch, uint8_t control)
{
    expect_equal(inb(COM1_SCR), scratch, "the_serial_port_has_its_scratch_register");
    expect_equal(inb(COM1_IER), IER_EMPTY, "the_serial_port_has_its_interrupt_enabled");
    expect_equal(control_byte(), control, "the_keyboard_controller_has_its_control_byte");
}

static void go_through(unsigned round, unsigned vcpus, unsigned gsi)
{
    const struct identity before = identity();
    uint64_t counted[SMP_MAX], empty;
    uint8_t control = (uint8_t)(0x20 + round);

    outb(COM1_SCR, (uint8_t)(0x5a + round));
    outb(CTL_PORT, WRITE_CTL);
    outb(DATA_PORT, control);
    if (boot_has("disk"))
        begin_requests(round);
    outb(COM1_IER, IER_EMPTY); /* pending from here on, until IIR is read */
    empty = interrupt_count[VECTOR_GSI0 + COM1_GSI];
    wait_for_host("save");
    check_identity(&before, gsi, round);
    check_registers((uint8_t)(0x5a + round), control);
    expect(wait_until(interrupt_count[VECTOR_GSI0 + COM1_GSI] > empty),
           "the_serial_port_interrupts");
    expect_equal(inb(COM1_IIR) & 0x0f, 2, "and_says_why");
    outb(COM1_IER, 0);
    for (unsigned i = 1; i < vcpus; i++)
        counted[i] = counts[i];
    for (unsigned i = 1; i < vcpus; i++)
        expect(wait_until(counts[i] != counted[i]), "each_vcpu_goes_on");
    if (boot_has("disk"))
        end_requests(round);
}

void guest_main(void)
{
    unsigned vcpus = (unsigned)boot_number("vcpus", 1), gsi = (unsigned)boot_number("gsi", 5);

    for (uint32_t id = 1; id < vcpus; id++)
        expect(smp_start(id, count), "each_vcpu_starts");
    ioapic_route(gsi);
    ioapic_route(gsi + 1);
    ioapic_route(COM1_GSI);
    if (boot_has("disk")) {
        if (!virtio_find(0, &disk) || !virtio_start(&disk, F_EVENT_IDX, QUEUE))
            give_up("the_disk_is_there", "no drive");
        buffer = alloc_pages(IN_FLIGHT * SECTOR / 4096);
    }
    for (unsigned round = 1; round <= (unsigned)boot_number("rounds", 1); round++)
        go_through(round, vcpus, gsi);
}
