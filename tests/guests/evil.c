/*
 * A guest that attacks its VMM at full speed, from two vCPUs and until the test sends a byte, in
 * the way that the command line names. Meanwhile the first vCPU reads from a disk as an honest
 * guest does; in the end the victims, other devices of the machine, work after a reset. Command
 * line: the name of the attack, or "everything", which is another one at each strike, at another
 * victim; victim=SLOT (0), a disk, a network interface or a vsock; victims=N (1), so many from
 * there on; queue=N (0), which of the queues is attacked where there are two; seed=N;
 * "writable": the disks under attack are.
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/smp.h"

#define COM1    0x3f8
#define I8042   0x60
#define QUEUE   256
#define SPOILED 8 /* descriptors and heads that are garbage */
#define SECTORS 64
#define VICTIMS 4
#define RX      0 /* of a network interface, or a vsock */
#define TX      1
#define PAGE    4096u

#define ID_NET   1
#define ID_BLOCK 2

static struct victim {
    struct driver d;
    uint32_t id; /* of the kind of device */
    struct block_request request;
    uint8_t *data;
    uint64_t places[8]; /* where it is lured to: pages of our own, or no RAM */
    volatile uint32_t wraps;
} victims[VICTIMS];
static unsigned victim_count;
static struct driver bystander;
static uint8_t *other;
static volatile uint32_t stop, stopped;

static uint32_t draw(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

/* Without a look at what the device makes of it. */
static void start_again(struct victim *v, uint64_t wanted)
{
    reg_write(&v->d, VIRTIO_MMIO_STATUS, 0);
    virtio_negotiate(&v->d, wanted);
    avail_of(&v->d.queue)->idx = 0;
    driver_set_queue(&v->d, &v->d.queue);
    driver_ok(&v->d);
}

/* A frame for everybody behind its header, or a packet that asks for a connection. */
static void lay_message(const struct victim *v, struct ring *q)
{
    static const uint8_t frame[72] = { [12] = 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
                                       0,           0,    0,    0,    1,    0x88, 0xb5 };
    static const uint32_t packet[11] = { [0] = 3, [2] = 2, [4] = 1000, 1, [7] = 1u << 16 | 1 };

    if (v->id == ID_NET)
        ring_lay(q, 0, frame, sizeof(frame), 0);
    else
        ring_lay(q, 0, packet, sizeof(packet), 0);
}

/* A good request, for an attack that is about something else: the head is always 0. */
static void offer_good(struct victim *v)
{
    struct block_part part = { v->data, SECTOR };
    struct ring *q = &v->d.queue;

    if (v->id == ID_BLOCK)
        block_lay(q, 0, &v->request, BLOCK_IN, 1, &part, 1);
    else if (q->queue == RX)
        ring_lay(q, 0, v->data, PAGE, VRING_DESC_F_WRITE);
    else
        lay_message(v, q);
    avail_of(q)->idx++;
    virtio_kick(&v->d);
}

static void garbage(struct victim *v, uint32_t id, uint32_t r)
{
    static const uint32_t sizes[] = { 0, 1, 16, 512, 513, 1024, 4096, 0x80000000 };
    struct ring *q = &v->d.queue;

    desc_of(q)[r % SPOILED] =
        (struct vring_desc){ v->places[r >> 3 & 7], sizes[r >> 6 & 7], r >> 9 & 7,
                             (uint16_t)((r >> 12 & 15) % (SPOILED + 1)) };
    avail_of(q)->ring[r >> 16 & 7] = r >> 19 & 15 ? (r >> 19) % SPOILED : QUEUE;
    if ((r & 3) != 0)
        avail_of(q)->idx++;
    virtio_kick(&v->d);
    if (id == 1 && needs_reset(&v->d))
        start_again(v, r & 1 ? ~0ul : 0);
}

/* The rings move and vanish while the device is active and its requests are under way. */
static void moving_rings(struct victim *v, uint32_t id, uint32_t r)
{
    static const uint32_t registers[] = { VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                                          VIRTIO_MMIO_QUEUE_USED_LOW };

    if (id == 2) {
        offer_good(v);
        return;
    }
    reg_write(&v->d, VIRTIO_MMIO_QUEUE_SEL, r >> 20 & 1);
    reg_write(&v->d, registers[r % 3], (uint32_t)v->places[r >> 3 & 7]);
    reg_write(&v->d, registers[r % 3] + 4, (uint32_t)(v->places[r >> 3 & 7] >> 32));
    reg_write(&v->d, VIRTIO_MMIO_QUEUE_NUM, r >> 6 & 0x1ff);
    reg_write(&v->d, VIRTIO_MMIO_QUEUE_READY, r >> 15 & 1);
    if ((r & 0xf0000) == 0)
        start_again(v, 0);
}

static void resets(struct victim *v, uint32_t id, uint32_t r)
{
    if (id == 1)
        start_again(v, r & 1 ? F_EVENT_IDX : 0);
    else
        offer_good(v);
}

/* Every status after every other, right and wrong. */
static void statuses(struct victim *v, uint32_t id, uint32_t r)
{
    static const uint8_t values[] = { 0, 1, 3, 0xb, 0xf, 0x4f, 0x80, 0xff };

    reg_write(&v->d, VIRTIO_MMIO_STATUS, values[(id == 1 ? r >> 3 : r) & 7]);
    if ((r & 0x100) != 0)
        driver_set_queue(&v->d, &v->d.queue);
    virtio_kick(&v->d);
}

/* Notifications to a queue that is not ready, to queues that do not exist, in every width. */
static void notifications(struct victim *v, uint32_t id, uint32_t r)
{
    uint64_t at = v->d.base + VIRTIO_MMIO_QUEUE_NOTIFY;

    if (id == 1 && (r & 0xff) == 0)
        reg_write(&v->d, VIRTIO_MMIO_STATUS, 0);
    mmio_write32(at, 0);
    mmio_write32(at, r & 1 ? r : 1);
    mmio_write8(at, (uint8_t)r);
    mmio_write64(at, r);
}

/* Interrupts acknowledged before they came, or never. */
static void acknowledgements(struct victim *v, uint32_t id, uint32_t r)
{
    if (id == 1)
        reg_write(&v->d, VIRTIO_MMIO_INTERRUPT_ACK, r & 1 ? 3 : ~0u);
    else
        offer_good(v);
    if (id == 1 && needs_reset(&v->d))
        start_again(v, 0);
}

/* Writes of every width to the configuration space and to the registers below the queue's, aligned
 * or not, and across the end of the device. */
static void configuration(struct victim *v, uint32_t id, uint32_t r)
{
    uint64_t at =
        v->d.base + (id == 1 ? VIRTIO_MMIO_CONFIG + r % 0xf00 : r % VIRTIO_MMIO_QUEUE_NUM);

    mmio_write8(at, (uint8_t)r);
    mmio_write16(at, (uint16_t)r);
    mmio_write64(at, r);
    if (id == 1)
        mmio_write32(at & ~3ul, r);
    mmio_write64(v->d.base + VIRTIO_STEP - 1 - r % 8, r);
}

/* Never the divisor latch, nor loopback, and what the host sends is not thrown away. */
static void serial_ports(struct victim *v, uint32_t id, uint32_t r)
{
    (void)v;
    if (id == 1)
        outb(COM1, '\n');
    else
        outb((uint16_t)(COM1 + 1 + r % 7), (uint8_t)(r >> 8) & 0x6d);
}

/* Any command but the reset, any v->data, any width. */
static void keyboard_ports(struct victim *v, uint32_t id, uint32_t r)
{
    (void)v;
    uint8_t value = (uint8_t)(r >> 8);

    if (value != 0xfe)
        outb(I8042 + 4, value);
    outb(I8042, value);
    outl((uint16_t)(I8042 + r % 2), r);
    if (id == 2)
        inb((uint16_t)(I8042 + (r & 4)));
}

/* The indices go round: each time a whole ring of requests without a buffer. */
static void wrapping_indices(struct victim *v, uint32_t id, uint32_t r)
{
    struct ring *q = &v->d.queue;
    uint16_t index = avail_of(q)->idx;

    (void)r;
    if (id != 1 || ring_used_idx(q) != index)
        return;
    desc_of(q)[0] = (struct vring_desc){ (uint64_t)v->data, 0, 0, 0 };
    avail_of(q)->idx = (uint16_t)(index + QUEUE);
    v->wraps += avail_of(q)->idx == 0;
    virtio_kick(&v->d);
}

static const struct attack {
    const char *name;
    void (*strike)(struct victim *v, uint32_t id,
                   uint32_t r); /* id: 1 or 2, of the vCPU; r: random */
} attacks[] = {
    { "garbage", garbage },
    { "moving_rings", moving_rings },
    { "resets", resets },
    { "statuses", statuses },
    { "notifications", notifications },
    { "acknowledgements", acknowledgements },
    { "configuration", configuration },
    { "serial_ports", serial_ports },
    { "keyboard_ports", keyboard_ports },
    { "wrapping_indices", wrapping_indices },
}, *chosen; /* NULL: everything */

#define ATTACKS (sizeof(attacks) / sizeof(attacks[0]))

static volatile uint64_t strikes[3];

static void attack(uint32_t id)
{
    uint32_t state = (uint32_t)boot_number("seed", 0) * 2 + id;

    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        struct victim *v = &victims[victim_count > 1 ? draw(&state) % victim_count : 0];
        const struct attack *a = chosen ? chosen : &attacks[draw(&state) % ATTACKS];

        a->strike(v, id, draw(&state));
        strikes[id]++;
    }
    __atomic_add_fetch(&stopped, 1, __ATOMIC_RELEASE);
}

/* The host has written, both attackers have struck, and indices that are to wrap have. */
static bool is_over(void)
{
    return (inb(COM1 + 5) & 1) != 0 && strikes[1] > 0 && strikes[2] > 0 &&
           (!chosen || chosen->strike != wrapping_indices || victims[0].wraps > 1);
}

static bool victim_starts(struct victim *v, unsigned slot)
{
    if (!virtio_find(slot, &v->d))
        return false;
    v->id = reg_read(&v->d, VIRTIO_MMIO_DEVICE_ID);
    v->d.queue.queue = v->id == ID_BLOCK ? 0 : (uint16_t)boot_number("queue", 0);
    return virtio_start(&v->d, 0, QUEUE);
}

static bool all_start(void)
{
    unsigned slot = (unsigned)boot_number("victim", 0);

    victim_count = (unsigned)boot_number("victims", 1);
    if (victim_count > VICTIMS)
        return false;
    for (unsigned i = 0; i < victim_count; i++)
        if (!victim_starts(&victims[i], slot + i))
            return false;
    return virtio_find(slot == 0 ? victim_count : 0, &bystander) && virtio_start(&bystander, 0, 64);
}

/* The sector may hold anything after an attack. */
static bool writes_its_number(struct victim *v, uint64_t sector)
{
    *(uint64_t *)v->data = sector;
    return block_do(&v->d, BLOCK_OUT, sector, v->data, SECTOR) == BLOCK_OK;
}

static bool victim_works(struct victim *v)
{
    v->d.queue.queue = v->id == ID_BLOCK ? 0 : TX;
    if (!virtio_start(&v->d, 0, QUEUE))
        return false;
    if (v->id == ID_BLOCK)
        return (!boot_has("writable") || writes_its_number(v, 5)) && block_reads(&v->d, 5, v->data);
    offer_good(v);
    return wait_until(ring_used_idx(&v->d.queue) == 1);
}

static void lay_out(struct victim *v)
{
    v->data = alloc_pages(2);
    v->places[0] = v->places[1] = (uint64_t)v->data;
    v->places[2] = v->d.queue.desc;
    v->places[3] = v->d.queue.used;
    v->places[4] = v->d.base;
    v->places[5] = LAPIC;
    v->places[6] = 1ul << 46;
    v->places[7] = ~0ul - 10;
    ioapic_mask(v->d.gsi); /* nobody waits for it */
}

static uint64_t read_meanwhile(unsigned *wrong)
{
    uint64_t rounds = 0;

    do
        *wrong += !block_reads(&bystander, rounds++ % SECTORS, other);
    while (!is_over());
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    return rounds;
}

void guest_main(void)
{
    unsigned wrong = 0, working = 0;
    uint64_t rounds;

    for (unsigned i = 0; i < ATTACKS; i++)
        if (boot_has(attacks[i].name))
            chosen = &attacks[i];
    if (!expect(chosen || boot_has("everything"), "the_attack_is_known") ||
        !expect(all_start(), "all_devices_start"))
        return;
    other = alloc_pages(1);
    for (unsigned i = 0; i < victim_count; i++)
        lay_out(&victims[i]);
    print("attacking\n"); /* before they do: one of them writes to this port, too */
    if (!expect(smp_start(1, attack) && smp_start(2, attack), "the_attackers_start"))
        return;
    rounds = read_meanwhile(&wrong);
    expect(wait_until(stopped == 2), "the_attackers_stop");
    outb(COM1 + 3, 3); /* as it was: eight bits, no interrupts */
    outb(COM1 + 1, 0);
    print("\n");
    expect_equal(wrong, 0, "the_other_disk_works_throughout");
    for (unsigned i = 0; i < victim_count; i++)
        working += victim_works(&victims[i]);
    expect_equal(working, victim_count, "the_victims_work_again");
    print("%lu and %lu strikes in %lu rounds\n", strikes[1], strikes[2], rounds);
}
