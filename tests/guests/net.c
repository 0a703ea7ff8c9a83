/*
 * virtio-net (VIRTIO 1.2, section 5.1) by a driver that sends each frame for it back to where it
 * came from, with the addresses of Ethernet, IP and UDP exchanged, until a frame of type END comes.
 * Command line: what is negotiated (mrg, offload, eventidx), slot=N, seed=N for chains of random
 * shapes, and what else it does:
 *   late      waits for the host first
 *   quiet     ends where it would serve
 *   lazy      offers no receive buffer until the host says so
 *   spoof     answers from another address
 *   burst=N   first fills its transmit ring N times
 *   peer=MAC count=N  sends N frames there and compares what comes back; ends the peer, and itself
 *   hostile   breaks the rules for a while first, and reads a disk in slot 0 meanwhile
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/report.h"

#define F_CSUM       (1ul << 0)
#define F_GUEST_CSUM (1ul << 1)
#define F_MTU        (1ul << 3)
#define F_MAC        (1ul << 5)
#define F_MRG_RXBUF  (1ul << 15)
/* GUEST_TSO4, TSO6, UFO; HOST_TSO4, TSO6, UFO; GUEST_USO4, USO6, HOST_USO */
#define F_SEGMENTATION (0x6ul << 6 | 1ul << 10 | 0x3ul << 11 | 1ul << 14 | 7ul << 54)

#define RX         0
#define TX         1
#define QUEUE      256
#define FRAME_MAX  65562u
#define TX_SLOTS   4
#define SLOT_PARTS (QUEUE / TX_SLOTS)
#define GAPS       1024u

#define TYPE_IPV4  0x0800
#define TYPE_IPV6  0x86dd
#define TYPE_TEST  0x88b5
#define TYPE_END   0x88b6
#define NEEDS_CSUM 1

struct header {
    uint8_t flags, gso_type;
    uint16_t header_bytes, gso_bytes, csum_start, csum_offset, buffers;
};

static struct driver net, disk;
static struct ring queues[2];
static uint8_t mac[6];
static uint32_t chain_bytes;
static unsigned chain_count, chain_parts;
static uint8_t *rx_memory, *tx_memory;
static uint64_t random_state;
static unsigned bad_counts, bad_lengths;

/* What is received, or to be sent: header and frame. */
static uint8_t buffer[FRAME_MAX + 64];
static uint8_t *const frame = buffer + sizeof(struct header);

/* 0 to n - 1; always 0 without a seed. */
static uint32_t random_below(uint32_t n)
{
    if (random_state == 0)
        return 0;
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 20) % n);
}

/* Cuts `bytes` from `at` on into at most `parts` buffers, a few bytes apart where there is a seed;
 * returns how many. */
static unsigned lay(struct ring *q, uint16_t head, uint8_t *at, uint32_t bytes, unsigned parts,
                    uint16_t flags)
{
    unsigned count = 1 + random_below(parts < bytes ? parts : bytes);

    for (unsigned i = 0; i < count; i++) {
        uint32_t left = count - 1 - i, n = bytes - left;

        if (left > 0)
            n = 1 + random_below(n);
        at += random_below(GAPS / SLOT_PARTS);
        ring_lay(q, (uint16_t)(head + i), at, n, flags | (left > 0 ? VRING_DESC_F_NEXT : 0));
        at += n;
        bytes -= n;
    }
    return count;
}

static void kick(uint16_t queue)
{
    reg_write(&net, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

static void offer_chain(unsigned chain)
{
    uint16_t head = (uint16_t)(chain * chain_parts);

    lay(&queues[RX], head, rx_memory + chain * (chain_bytes + GAPS), chain_bytes, chain_parts,
        VRING_DESC_F_WRITE);
    ring_offer(&queues[RX], head);
}

static void offer_all(void)
{
    for (unsigned i = 0; i < chain_count; i++)
        offer_chain(i);
    kick(RX);
}

static uint64_t wanted_features(void)
{
    return F_MTU | F_MAC | (boot_has("mrg") ? F_MRG_RXBUF : 0) |
           (boot_has("eventidx") ? F_EVENT_IDX : 0) |
           (boot_has("offload") ? F_CSUM | F_GUEST_CSUM | F_SEGMENTATION : 0);
}

static bool start(void)
{
    virtio_reset(&net);
    if (!virtio_negotiate(&net, wanted_features()))
        return false;
    for (uint16_t i = RX; i <= TX; i++) {
        virtq_init(&queues[i], i, QUEUE);
        driver_set_queue(&net, &queues[i]);
    }
    driver_ok(&net);
    return !needs_reset(&net);
}

/* Chains as the features want them: without merging each must hold the longest frame. */
static void choose_chains(void)
{
    bool is_long = boot_has("offload") || boot_has("long");

    if (boot_has("mrg") || !is_long) {
        chain_count = 64;
        chain_bytes = 2048;
    } else {
        chain_count = 8;
        chain_bytes = FRAME_MAX;
    }
    chain_parts = QUEUE / chain_count;
    rx_memory = alloc_pages(chain_count * (chain_bytes + GAPS) / 4096 + 1);
    tx_memory = alloc_pages(TX_SLOTS * (FRAME_MAX + GAPS + 64) / 4096 + 1);
}

static uint16_t type_of(const uint8_t *f)
{
    return (uint16_t)(f[12] << 8 | f[13]);
}

static void set_type(uint8_t *f, uint16_t type)
{
    f[12] = (uint8_t)(type >> 8);
    f[13] = (uint8_t)type;
}

static void exchange(uint8_t *a, uint8_t *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t kept = a[i];
        a[i] = b[i];
        b[i] = kept;
    }
}

/* A sum over addresses and ports stays what it was. */
static void turn_round(uint8_t *f, uint32_t bytes)
{
    exchange(f, f + 6, 6);
    if (type_of(f) == TYPE_IPV4 && bytes >= 34) {
        bool is_first = (f[20] & 0x1f) == 0 && f[21] == 0;

        exchange(f + 26, f + 30, 4);
        if (f[23] == 17 && is_first && bytes >= 38)
            exchange(f + 34, f + 36, 2);
    } else if (type_of(f) == TYPE_IPV6 && bytes >= 54) {
        exchange(f + 22, f + 38, 16);
        if (f[20] == 17 && bytes >= 58)
            exchange(f + 54, f + 56, 2);
    }
}

/* Copies what the device wrote to a chain behind `done` bytes of the buffer. */
static void gather(struct vring_used_elem used, uint32_t done)
{
    const struct vring_desc *desc = &desc_of(&queues[RX])[used.id % QUEUE];
    uint32_t left = used.len;

    for (;; desc++) {
        uint32_t n = desc->len < left ? desc->len : left;

        memcpy(buffer + done, (const void *)desc->addr, n);
        done += n;
        left -= n;
        if ((desc->flags & VRING_DESC_F_NEXT) == 0)
            return;
    }
}

/* The next frame, in `buffer`; its bytes without the header, 0 where none came in time. */
static uint32_t receive(void)
{
    struct ring *q = &queues[RX];
    struct header header;
    uint32_t done = 0;
    unsigned count = 1;

    ring_set_used_event(q, q->taken);
    if (!wait_until(ring_used_idx(q) != q->taken))
        return 0;
    for (unsigned i = 0; i < count; i++) {
        struct vring_used_elem used;

        if (!ring_take(q, &used)) { /* they come together or not at all */
            bad_counts++;
            return 0;
        }
        if (used.len > chain_bytes || done + used.len > FRAME_MAX) {
            bad_lengths++;
            return 0;
        }
        gather(used, done);
        offer_chain(used.id / chain_parts);
        done += used.len;
        memcpy(&header, buffer, sizeof(header));
        count = header.buffers;
        bad_lengths += i + 1 < count && used.len != chain_bytes;
    }
    bad_counts += count == 0 || (!boot_has("mrg") && count != 1);
    kick(RX);
    return done > sizeof(header) ? done - (uint32_t)sizeof(header) : 0;
}

/* Sends header and frame from `buffer`, in one of the slots. */
static void send(uint32_t bytes)
{
    struct ring *q = &queues[TX];
    unsigned slot = q->offered % TX_SLOTS;
    uint8_t *at = tx_memory + slot * (FRAME_MAX + GAPS);
    uint16_t head = (uint16_t)(slot * SLOT_PARTS);
    const uint8_t *from = buffer;
    unsigned count;

    ring_set_used_event(q, ring_used_idx(q));
    if (!wait_until((uint16_t)(q->offered - ring_used_idx(q)) < TX_SLOTS))
        give_up("frames_are_sent", "the transmit ring stands still");
    count = lay(q, head, at, bytes + (uint32_t)sizeof(struct header), SLOT_PARTS, 0);
    for (unsigned i = 0; i < count; i++) {
        memcpy((void *)desc_of(q)[head + i].addr, from, desc_of(q)[head + i].len);
        from += desc_of(q)[head + i].len;
    }
    ring_offer(q, head);
    kick(TX);
}

static bool all_sent(void)
{
    return wait_until(ring_used_idx(&queues[TX]) == queues[TX].offered);
}

static bool is_for_us(const uint8_t *f)
{
    return memcmp(f, mac, sizeof(mac)) == 0;
}

static void echo(void)
{
    print("serving\n");
    for (;;) {
        uint32_t bytes = receive();
        struct header *header = (struct header *)buffer;

        if (bytes < 14 || !is_for_us(frame))
            continue;
        if (type_of(frame) == TYPE_END)
            break;
        header->flags &= NEEDS_CSUM;
        header->buffers = 0;
        turn_round(frame, bytes);
        if (boot_has("spoof"))
            frame[11] = 0x66;
        send(bytes);
    }
    expect(all_sent(), "all_frames_are_sent_in_the_end");
}

static void make_frame(const uint8_t *to, uint16_t type, uint32_t bytes, uint32_t seed)
{
    memset(buffer, 0, sizeof(struct header));
    memcpy(frame, to, 6);
    memcpy(frame + 6, mac, 6);
    set_type(frame, type);
    for (uint32_t i = 14; i < bytes; i++)
        frame[i] = (uint8_t)(seed * 31 + i * 7 + i / 256);
}

static void ask_peer(uint64_t number, uint64_t count)
{
    static uint8_t sent[1514];
    uint8_t peer[6];
    unsigned wrong = 0;

    for (unsigned i = 0; i < 6; i++)
        peer[i] = (uint8_t)(number >> (40 - 8 * i));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bytes = 60 + i * 37 % 1455, got;

        make_frame(peer, TYPE_TEST, bytes, i);
        memcpy(sent, frame, bytes);
        send(bytes);
        do
            got = receive();
        while (got >= 14 && !is_for_us(frame));
        turn_round(sent, bytes);
        wrong += got != bytes || memcmp(sent, frame, bytes) != 0;
        if (got == 0)
            break;
    }
    expect_equal(wrong, 0, "the_peer_answers_each_frame");
    make_frame(peer, TYPE_END, 60, 0);
    send(60);
    expect(all_sent(), "the_peer_is_told_of_the_end");
}

/* Each round the whole ring with one kick; frames are numbered from 0 on. */
static void burst(uint64_t rounds)
{
    static const uint8_t to[6] = { 2, 0, 0, 0, 0, 0x99 };
    struct ring *q = &queues[TX];
    uint8_t *memory = alloc_pages(QUEUE * 128 / 4096);
    uint32_t number = 0;

    for (uint64_t i = 0; i < rounds; i++) {
        for (uint16_t k = 0; k < QUEUE; k++) {
            make_frame(to, TYPE_TEST, 60, 0);
            memcpy(frame + 14, &number, sizeof(number));
            number++;
            memcpy(memory + k * 128, buffer, sizeof(struct header) + 60);
            ring_lay(q, k, memory + k * 128, sizeof(struct header) + 60, 0);
            ring_offer(q, k);
        }
        kick(TX);
        if (!expect(all_sent(), "a_full_ring_is_sent"))
            return;
    }
}

/* The disk has its sectors' numbers in them. */
static unsigned disk_errors, hostile_unanswered;

static void use_disk(void)
{
    static uint64_t sector[SECTOR / 8];
    static uint64_t number;

    number = (number + 7) % 1000;
    disk_errors += !block_reads(&disk, number, sector);
}

static void lie_in_headers(void)
{
    struct ring *q = &queues[TX];

    for (unsigned i = 0; i < 1000; i++) {
        uint32_t bytes = 14 + random_below(200);

        make_frame(mac, random_below(2) ? TYPE_IPV4 : TYPE_IPV6, bytes, i);
        for (unsigned k = 0; k < sizeof(struct header); k++)
            buffer[k] = random_below(3) ? (uint8_t)random_below(256) : 0;
        send(bytes);
        if (i % 100 == 0)
            use_disk();
    }
    hostile_unanswered += !wait_until(ring_used_idx(q) == q->offered) || needs_reset(&net);
}

static void offer_junk(struct ring *q, unsigned kind)
{
    static const uint64_t addresses[] = { 1ul << 40, ~0ul, 0xc0000000, 0xfee00000, ~0ul - 4096 };
    uint16_t wrong_way = q->queue == RX ? 0 : VRING_DESC_F_WRITE;
    uint16_t right_way = q->queue == RX ? VRING_DESC_F_WRITE : 0;

    ring_lay(q, 0, buffer, 100, right_way);
    switch (kind) {
    case 0: desc_of(q)[0].addr = addresses[random_below(5)]; break;
    case 1: desc_of(q)[0].flags = (uint16_t)(wrong_way); break;
    case 2: desc_of(q)[0].len = 0; break;
    case 3: desc_of(q)[0].len = ~0u; break;
    case 4: /* a loop */
        desc_of(q)[0].flags |= VRING_DESC_F_NEXT;
        desc_of(q)[0].next = 0;
        break;
    case 5:
        desc_of(q)[0].flags |= VRING_DESC_F_NEXT;
        desc_of(q)[0].next = 60000;
        break;
    case 6: desc_of(q)[0].flags |= VRING_DESC_F_INDIRECT; break;
    case 7: desc_of(q)[0].len = 11; break;
    case 8: /* further ahead than the ring is long */
        q->offered = (uint16_t)(q->offered + 1000);
        break;
    case 9: /* a head that there is not */ ring_offer(q, 40000); return;
    case 10: desc_of(q)[0].len = 25; break;
    default: desc_of(q)[0].len = 100 << 20; desc_of(q)[0].addr = 1 << 20;
    }
    ring_offer(q, 0);
}

/* The host sends all the time, so that receive buffers are looked at. */
static void offer_junk_chains(void)
{
    for (unsigned i = 0; i < 10 * 12; i++) {
        struct ring *q = &queues[i / 12 % 2];

        if (!start())
            hostile_unanswered++;
        if (random_below(2) && q->queue == RX)
            offer_all();
        offer_junk(q, i % 12);
        kick(q->queue);
        use_disk();
        if (q->queue == TX)
            hostile_unanswered += !wait_until(needs_reset(&net) || ring_used_idx(q) == q->offered);
    }
}

static void flood_with_kicks(void)
{
    for (unsigned i = 0; i < 4000; i++) {
        kick((uint16_t)(i % 5));
        if (i % 1000 == 0)
            use_disk();
    }
}

static void be_hostile(void)
{
    if (!expect(virtio_find(0, &disk) && virtio_start(&disk, 0, 16), "the_disk_starts"))
        return;
    lie_in_headers();
    offer_junk_chains();
    flood_with_kicks();
    expect_equal(disk_errors, 0, "the_disk_works_meanwhile");
    expect_equal(hostile_unanswered, 0, "what_is_refused_is_answered_or_needs_a_reset");
    expect(start(), "the_device_starts_again");
}

static void describe(void)
{
    uint64_t offered = offered_features(&net);
    uint64_t low = reg_read(&net, VIRTIO_MMIO_CONFIG),
             high = reg_read(&net, VIRTIO_MMIO_CONFIG + 4);

    print("features 0x%lx\n", offered);
    if (offered & F_MAC) {
        memcpy(mac, &low, 4);
        memcpy(mac + 4, &high, 2);
        print("mac %x:%x:%x:%x:%x:%x\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    } else {
        memcpy(mac, (const uint8_t[]){ 2, 0, 0, 0, 0, 1 }, 6);
    }
    if (offered & F_MTU)
        print("mtu %u\n", reg_read(&net, VIRTIO_MMIO_CONFIG + 8) >> 16);
}

void guest_main(void)
{
    random_state = boot_number("seed", 0) * 0x9e3779b97f4a7c15ul;
    if (!expect(virtio_find((unsigned)boot_number("slot", 0), &net), "the_device_answers"))
        return;
    describe();
    choose_chains();
    if (!expect(start(), "the_device_starts"))
        return;
    if (boot_has("late"))
        wait_for_host("start");
    if (boot_has("hostile"))
        be_hostile();
    burst(boot_number("burst", 0));
    if (boot_has("lazy"))
        wait_for_host("buffers");
    offer_all();
    if (boot_number("peer", 0))
        ask_peer(boot_number("peer", 0), boot_number("count", 0));
    else if (!boot_has("quiet"))
        echo();
    expect_equal(bad_counts, 0, "the_number_of_buffers_is_right");
    expect_equal(bad_lengths, 0, "used_lengths_are_right");
}
