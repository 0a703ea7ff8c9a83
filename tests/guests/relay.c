/*
 * Two virtio-net interfaces (VIRTIO 1.2, section 5.1) and a guest that sends what the one receives
 * by the other, so that a program on the host speaks with its own TCP to what is behind the first:
 * the metadata service. Nothing is copied. Ends with a frame of type END from the second.
 * Command line: what is negotiated (offload, eventidx); slot=N is where the first one is (0);
 * drop=N loses every Nth frame of the first.
 */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/report.h"
#include "runtime/virtio.h"

#define F_CSUM       (1ul << 0)
#define F_GUEST_CSUM (1ul << 1)
#define F_MAC        (1ul << 5)
/* GUEST_TSO4, HOST_TSO4 */
#define F_SEGMENTATION (1ul << 7 | 1ul << 11)

#define QUEUE     256
#define FRAME_MAX 65562u
#define HEADER    12u
#define TYPE_END  0x88b6

enum { RX, TX, PORTS = 2 };

struct port {
    struct driver device;
    struct ring queues[2];
    uint8_t *memory;
};

static struct port ports[PORTS];
static uint32_t chain_bytes, chain_count;
static uint64_t received;

static uint8_t *buffer_of(struct port *p, uint32_t i)
{
    return p->memory + (uint64_t)i * chain_bytes;
}

static void kick(struct port *p, uint16_t queue)
{
    reg_write(&p->device, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

static void offer(struct port *p, uint32_t i)
{
    ring_lay(&p->queues[RX], (uint16_t)i, buffer_of(p, i), chain_bytes, VRING_DESC_F_WRITE);
    ring_offer(&p->queues[RX], (uint16_t)i);
}

static bool start(unsigned port)
{
    struct port *p = &ports[port];
    uint64_t features = F_MAC | (boot_has("eventidx") ? F_EVENT_IDX : 0);

    if (boot_has("offload"))
        features |= F_CSUM | F_GUEST_CSUM | F_SEGMENTATION;
    if (!virtio_find((unsigned)boot_number("slot", 0) + port, &p->device))
        return false;
    virtio_reset(&p->device);
    if (!virtio_negotiate(&p->device, features))
        return false;
    for (uint16_t i = RX; i <= TX; i++) {
        virtq_init(&p->queues[i], i, QUEUE);
        driver_set_queue(&p->device, &p->queues[i]);
    }
    driver_ok(&p->device);
    p->memory = alloc_pages(chain_count * chain_bytes / 4096 + 1);
    for (uint32_t i = 0; i < chain_count; i++)
        offer(p, i);
    kick(p, RX);
    return !needs_reset(&p->device);
}

static bool is_end(const uint8_t *frame)
{
    return frame[HEADER + 12] == TYPE_END >> 8 && frame[HEADER + 13] == (TYPE_END & 0xff);
}

/* False: it says that this is the end. */
static bool pass_on(struct port *from, struct port *to, struct vring_used_elem used)
{
    uint8_t *frame = buffer_of(from, used.id);

    if (is_end(frame))
        return false;
    received += from == &ports[0];
    if (from == &ports[0] && boot_number("drop", 0) && received % boot_number("drop", 0) == 0) {
        offer(from, used.id);
        kick(from, RX);
        return true;
    }
    ring_lay(&to->queues[TX], (uint16_t)used.id, frame, used.len, 0);
    ring_offer(&to->queues[TX], (uint16_t)used.id);
    kick(to, TX);
    return true;
}

/* False: that is the end. */
static bool turn(struct port *from, struct port *to)
{
    struct vring_used_elem used;
    bool is_freed = false;

    while (ring_take(&from->queues[RX], &used))
        if (!pass_on(from, to, used))
            return false;
    while (ring_take(&to->queues[TX], &used)) {
        offer(from, used.id);
        is_freed = true;
    }
    if (is_freed)
        kick(from, RX);
    return true;
}

static bool has_news(void)
{
    for (unsigned i = 0; i < PORTS; i++)
        for (unsigned k = RX; k <= TX; k++) {
            struct ring *q = &ports[i].queues[k];

            ring_set_used_event(q, q->taken);
            if (ring_used_idx(q) != q->taken)
                return true;
        }
    return false;
}

void guest_main(void)
{
    chain_bytes = boot_has("offload") ? FRAME_MAX + 2 : 2048;
    chain_count = boot_has("offload") ? 16 : 64;
    if (!expect(start(0) && start(1), "both_interfaces_start"))
        return;
    print("relaying\n");
    while (turn(&ports[0], &ports[1]) && turn(&ports[1], &ports[0]))
        (void)wait_until(has_news());
    expect(!needs_reset(&ports[0].device) && !needs_reset(&ports[1].device),
           "both_interfaces_still_work");
}
