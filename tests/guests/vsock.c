/*
 * virtio-vsock (VIRTIO 1.2, section 5.10) by a guest that serves ports as a small server would, and
 * makes connections of its own. What arrives is sent back from the page it arrived in.
 *
 * Ports: ECHO sends back what it gets; COUNT reads to the end and then says how many bytes that
 * were; SOURCE sends `bytes` bytes of a pattern; DEAF takes a connection and reads nothing; SILENT
 * does not answer; SLAM takes a connection and resets it; OFF ends the guest; others refuse. DISK,
 * with disk=N, the slot of a drive, copies its first sector to the second and sends it, or ends
 * the connection where it is too small.
 * Command line: connect=PORT to make `count` connections to that port of the host, which must echo
 * `bytes` bytes each; bytes=N; slot=N is where the device is (0); flags: eventidx.
 */
#include "runtime/virtio.h"

#include <linux/virtio_vsock.h>

#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/power.h"
#include "runtime/report.h"

#define PORT_OFF    9
#define PORT_DISK   51
#define PORT_ECHO   52
#define PORT_COUNT  53
#define PORT_SOURCE 54
#define PORT_DEAF   55
#define PORT_SILENT 56
#define PORT_SLAM   57

#define F_IN_ORDER FEATURE(VIRTIO_F_IN_ORDER)

#define HOST_CID 2u

#define PAGE    4096u
#define PAYLOAD (PAGE - (uint32_t)sizeof(struct virtio_vsock_hdr))

struct page { /* a receive buffer; `header` and `next` are the driver's once it has arrived */
    struct virtio_vsock_hdr header;
    uint8_t payload[PAYLOAD];
};

#define RX_PAGES 256u
#define POOL     3072u
#define TX_SLOTS 128u
#define CONNS    2048u
#define WINDOW   65536u
#define EVENTS   8u

struct conn {
    bool is_open, is_ending, said_end, is_own;
    uint32_t port, peer_port;
    uint32_t received, passed, told, sent, peer_window, peer_passed;
    uint64_t left, total;     /* of a pattern to be sent; bytes counted */
    uint16_t first, last;     /* pages not sent back yet; POOL: none */
    uint32_t from;            /* of the first page, bytes gone */
    uint64_t verified;        /* own connections: bytes that came back as they went */
    struct conn *next_active; /* in the list of those with something to do */
    bool is_active;
};

static struct driver device, disk; /* disk.base 0: none */
static struct ring rx, tx, events;
static struct page *pages;
static uint16_t next_page[POOL + 1], rx_page[VIRTQ_SIZE_MAX], free_pages;
static struct virtio_vsock_hdr headers[TX_SLOTS];
static uint16_t tx_page[TX_SLOTS]; /* to be freed when the slot is used; POOL: none */
static uint16_t tx_done;
static struct conn incoming[CONNS], outgoing[CONNS], *active;
static uint8_t *pattern; /* two rounds of 251 pages, so that any offset has a page's worth */
static uint32_t event_ids[EVENTS];
static uint8_t *sector;
static uint64_t cid;
static unsigned ended_well, own_count;

/* --- pages and rings --- */

static void free_page(uint16_t page)
{
    next_page[page] = free_pages;
    free_pages = page;
}

/* Gives the device all the receive buffers it can take. */
static void refill(void)
{
    bool has_new = false;

    while ((uint16_t)(rx.offered - rx.taken) < RX_PAGES && free_pages != POOL) {
        uint16_t slot = rx.offered % RX_PAGES, page = free_pages;

        free_pages = next_page[page];
        rx_page[slot] = page;
        ring_lay(&rx, slot, &pages[page], PAGE, VRING_DESC_F_WRITE);
        ring_offer(&rx, slot);
        has_new = true;
    }
    if (has_new)
        reg_write(&device, VIRTIO_MMIO_QUEUE_NOTIFY, rx.queue);
}

/* Frees what the device has sent. */
static void reclaim(void)
{
    for (; tx_done != ring_used_idx(&tx); tx_done++) {
        uint16_t slot = tx_done % TX_SLOTS;

        if (tx_page[slot] != POOL)
            free_page(tx_page[slot]);
    }
}

static bool tx_has_room(void)
{
    reclaim();
    return (uint16_t)(tx.offered - tx_done) < TX_SLOTS;
}

static void send_packet(uint32_t port, uint32_t peer_port, uint16_t op, uint32_t flags,
                        struct conn *c, const void *payload, uint32_t bytes, uint16_t page)
{
    uint16_t slot;

    if (!wait_until(tx_has_room()))
        give_up("packets_are_taken", "the transmit queue stays full");
    slot = tx.offered % TX_SLOTS;
    headers[slot] = (struct virtio_vsock_hdr){
        .src_cid = cid,
        .dst_cid = HOST_CID,
        .src_port = port,
        .dst_port = peer_port,
        .len = bytes,
        .type = VIRTIO_VSOCK_TYPE_STREAM,
        .op = op,
        .flags = flags,
        .buf_alloc = WINDOW,
        .fwd_cnt = c != NULL ? c->passed : 0,
    };
    tx_page[slot] = page;
    ring_lay(&tx, (uint16_t)(slot * 2), &headers[slot], sizeof(headers[slot]),
             bytes > 0 ? VRING_DESC_F_NEXT : 0);
    if (bytes > 0)
        ring_lay(&tx, (uint16_t)(slot * 2 + 1), payload, bytes, 0);
    ring_offer(&tx, (uint16_t)(slot * 2));
    reg_write(&device, VIRTIO_MMIO_QUEUE_NOTIFY, tx.queue);
    if (c != NULL)
        c->told = c->passed;
}

static void say(struct conn *c, uint16_t op, uint32_t flags)
{
    send_packet(c->port, c->peer_port, op, flags, c, NULL, 0, POOL);
}

/* --- connections --- */

static struct conn *find(const struct virtio_vsock_hdr *h)
{
    struct conn *c =
        h->src_port >= 1u << 30 ? &incoming[h->src_port % CONNS] : &outgoing[h->dst_port % CONNS];
    return c->is_open && c->port == h->dst_port && c->peer_port == h->src_port ? c : NULL;
}

static void activate(struct conn *c)
{
    if (c->is_active)
        return;
    c->is_active = true;
    c->next_active = active;
    active = c;
}

static void give_event_buffer(uint16_t slot)
{
    event_ids[slot] = UINT32_MAX;
    ring_lay(&events, slot, &event_ids[slot], sizeof(event_ids[slot]), VRING_DESC_F_WRITE);
    ring_offer(&events, slot);
    if (!boot_has("eventidx") || ring_avail_event(&events) == (uint16_t)(events.offered - 1))
        reg_write(&device, VIRTIO_MMIO_QUEUE_NOTIFY, events.queue);
}

static void drop_pages(struct conn *c)
{
    while (c->first != POOL) {
        uint16_t page = c->first;

        c->first = next_page[page];
        free_page(page);
    }
}

static uint32_t room(const struct conn *c)
{
    uint32_t on_its_way = c->sent - c->peer_passed;
    return on_its_way < c->peer_window ? c->peer_window - on_its_way : 0;
}

static const uint8_t *pattern_at(uint64_t offset)
{
    return pattern + offset % 251;
}

static void end_own(struct conn *c)
{
    if (c->is_own && c->verified == c->total && c->left == 0)
        ended_well++;
    c->is_open = false;
}

/* Sends what there is, as far as the host takes it. */
static void work(struct conn *c)
{
    while (c->first != POOL && c->port == PORT_ECHO && room(c) > 0) {
        struct page *p = &pages[c->first];
        uint32_t n = p->header.len - c->from;
        uint16_t page = c->first;

        n = n < room(c) ? n : room(c);
        c->passed += n;
        c->sent += n;
        if (c->from + n == p->header.len) {
            c->first = next_page[page];
            send_packet(c->port, c->peer_port, VIRTIO_VSOCK_OP_RW, 0, c, p->payload + c->from, n,
                        page);
            c->from = 0;
        } else {
            send_packet(c->port, c->peer_port, VIRTIO_VSOCK_OP_RW, 0, c, p->payload + c->from, n,
                        POOL);
            c->from += n;
        }
    }
    while (c->left > 0 && room(c) > 0) {
        uint32_t n = c->left < PAGE ? (uint32_t)c->left : PAGE;
        uint64_t sent = c->sent;

        n = n < room(c) ? n : room(c);
        c->left -= n;
        c->sent += n;
        send_packet(c->port, c->peer_port, VIRTIO_VSOCK_OP_RW, 0, c, pattern_at(sent), n, POOL);
    }
    if (c->is_ending && c->first == POOL && c->left == 0 && !c->said_end) {
        if (c->port == PORT_COUNT && room(c) >= sizeof(c->total)) {
            c->sent += sizeof(c->total);
            send_packet(c->port, c->peer_port, VIRTIO_VSOCK_OP_RW, 0, c, &c->total,
                        sizeof(c->total), POOL);
        }
        c->said_end = true;
        say(c, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND);
    }
}

static void take_data(struct conn *c, uint16_t page)
{
    const struct page *p = &pages[page];

    c->received += p->header.len;
    if (c->is_own) {
        if (memcmp(p->payload, pattern_at(c->verified), p->header.len) == 0)
            c->verified += p->header.len;
        if (c->verified == c->total)
            c->is_ending = true;
    }
    if (c->port == PORT_COUNT)
        c->total += p->header.len;
    if (c->port == PORT_ECHO && p->header.len > 0) {
        next_page[page] = POOL;
        if (c->first == POOL)
            c->first = page;
        else
            next_page[c->last] = page;
        c->last = page;
        return;
    }
    if (c->port != PORT_DEAF)
        c->passed += p->header.len;
    free_page(page);
    if (c->passed - c->told >= WINDOW / 2)
        say(c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
}

static void send_sector(struct conn *c)
{
    if (block_capacity(&disk) >= 2 && block_do(&disk, BLOCK_IN, 0, sector, SECTOR) == BLOCK_OK &&
        block_do(&disk, BLOCK_OUT, 1, sector, SECTOR) == BLOCK_OK) {
        c->sent += SECTOR;
        send_packet(c->port, c->peer_port, VIRTIO_VSOCK_OP_RW, 0, c, sector, SECTOR, POOL);
    }
    c->is_ending = true;
}

static bool serves(uint32_t port)
{
    return port == PORT_DISK ? disk.base != 0 : port >= PORT_ECHO && port <= PORT_SLAM;
}

static void take_request(const struct virtio_vsock_hdr *h)
{
    struct conn *c = &incoming[h->src_port % CONNS];

    if (h->dst_port == PORT_OFF) {
        virtio_reset(&device); /* as Linux does when it shuts down */
        print("done\n");
        power_off();
    }
    if (h->dst_port == PORT_SILENT)
        return;
    if (!serves(h->dst_port) || c->is_open) {
        send_packet(h->dst_port, h->src_port, VIRTIO_VSOCK_OP_RST, 0, NULL, NULL, 0, POOL);
        return;
    }
    *c = (struct conn){ .is_open = true,
                        .port = h->dst_port,
                        .peer_port = h->src_port,
                        .peer_window = h->buf_alloc,
                        .first = POOL,
                        .is_active = c->is_active,
                        .next_active = c->next_active };
    say(c, VIRTIO_VSOCK_OP_RESPONSE, 0);
    if (c->port == PORT_SLAM) {
        say(c, VIRTIO_VSOCK_OP_RST, 0);
        c->is_open = false;
    }
    if (c->port == PORT_DISK)
        send_sector(c);
    if (c->port == PORT_SOURCE) {
        c->left = boot_number("bytes", 1 << 20);
        c->is_ending = true;
    }
}

/* Returns true where the page is still needed. */
static void take_packet(uint16_t page)
{
    const struct virtio_vsock_hdr *h = &pages[page].header;
    struct conn *c = find(h);

    if (h->op == VIRTIO_VSOCK_OP_REQUEST)
        take_request(h);
    c = find(h);
    if (c == NULL) {
        free_page(page);
        return;
    }
    c->peer_window = h->buf_alloc;
    c->peer_passed = h->fwd_cnt;
    activate(c);
    if (h->op == VIRTIO_VSOCK_OP_RW) {
        take_data(c, page);
        return;
    }
    if (h->op == VIRTIO_VSOCK_OP_SHUTDOWN && (h->flags & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0) {
        c->left = 0; /* nobody is there to take it */
        drop_pages(c);
    }
    if (h->op == VIRTIO_VSOCK_OP_SHUTDOWN && (h->flags & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0)
        c->is_ending = true;
    if (h->op == VIRTIO_VSOCK_OP_CREDIT_REQUEST)
        say(c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
    if (h->op == VIRTIO_VSOCK_OP_RST) {
        drop_pages(c);
        end_own(c);
    }
    free_page(page);
}

static void forget(struct conn *c)
{
    if (c->is_open)
        drop_pages(c);
    c->is_open = false;
}

/* Connections are gone after a TRANSPORT_RESET (section 5.10.6.7): with it the driver has another
 * buffer for events, which it tells of if the device asks for that. */
static void take_events(void)
{
    struct vring_used_elem used;

    while (ring_take(&events, &used)) {
        uint16_t slot = used.id % EVENTS;

        if (used.len == sizeof(event_ids[0]) && event_ids[slot] == 0) {
            for (unsigned i = 0; i < CONNS; i++) {
                forget(&incoming[i]);
                forget(&outgoing[i]);
            }
            print("transport reset\n");
        }
        give_event_buffer(slot);
    }
    ring_set_used_event(&events, events.taken);
}

static bool step(void)
{
    bool has_more = rx.taken != ring_used_idx(&rx);
    struct vring_used_elem used;

    while (ring_take(&rx, &used))
        take_packet(rx_page[used.id % RX_PAGES]);
    while (active != NULL) {
        struct conn *c = active;

        active = c->next_active;
        c->is_active = false;
        if (c->is_open)
            work(c);
    }
    take_events();
    reclaim();
    refill();
    /* An interrupt for the next packet; what came before this word is seen in the next step. */
    ring_set_used_event(&rx, rx.taken);
    ring_set_used_event(&tx, tx_done);
    return has_more || rx.taken != ring_used_idx(&rx) || events.taken != ring_used_idx(&events);
}

/* --- set-up --- */

static void start(void)
{
    uint64_t wanted = F_IN_ORDER | (boot_has("eventidx") ? F_EVENT_IDX : 0);

    virtio_reset(&device);
    if (!virtio_negotiate(&device, wanted))
        give_up("the_features_are_kept", "FEATURES_OK was lost");
    virtq_init(&rx, 0, RX_PAGES);
    virtq_init(&tx, 1, VIRTQ_SIZE_MAX);
    virtq_init(&events, 2, 16);
    driver_set_queue(&device, &rx);
    driver_set_queue(&device, &tx);
    driver_set_queue(&device, &events);
    driver_ok(&device);
    cid = reg_read(&device, VIRTIO_MMIO_CONFIG) |
          (uint64_t)reg_read(&device, VIRTIO_MMIO_CONFIG + 4) << 32;
}

static void make_pages(void)
{
    pages = alloc_pages(POOL);
    pattern = alloc_pages(2);
    sector = alloc_pages(1);
    for (unsigned i = 0; i < 2 * PAGE; i++)
        pattern[i] = (uint8_t)(i % 251);
    free_pages = POOL;
    for (uint16_t i = 0; i < POOL; i++)
        free_page(i);
    for (unsigned i = 0; i < TX_SLOTS; i++)
        tx_page[i] = POOL;
}

/* Leaves nothing that no interrupt would tell of. */
static void step_on(void)
{
    while (step())
        ;
}

/* Connections of the guest's own making, all at once. */
static void connect_all(uint32_t port, unsigned count)
{
    own_count = count;
    for (unsigned i = 0; i < count; i++) {
        struct conn *c = &outgoing[i];

        *c = (struct conn){
            .is_open = true, .is_own = true, .port = CONNS * 5 + i, .peer_port = port, .first = POOL
        };
        c->left = c->total = boot_number("bytes", 1 << 16);
        say(c, VIRTIO_VSOCK_OP_REQUEST, 0);
        step();
    }
    expect(wait_until((step_on(), ended_well == count)),
           "each_connection_brings_back_what_it_sent");
    print("ended %u\n", ended_well);
}

void guest_main(void)
{
    uint64_t offered;

    if (!virtio_find((unsigned)boot_number("slot", 0), &device) ||
        reg_read(&device, VIRTIO_MMIO_DEVICE_ID) != 19)
        give_up("the_device_is_there", "no vsock device");
    make_pages();
    if (boot_number("disk", 0) != 0 &&
        (!virtio_find((unsigned)boot_number("disk", 0), &disk) || !virtio_start(&disk, 0, 16)))
        give_up("the_disk_starts", "no disk");
    offered = offered_features(&device);
    expect((offered & F_VERSION_1) != 0, "version_1_is_offered");
    expect((offered & F_EVENT_IDX) != 0, "event_idx_is_offered");
    expect((offered & F_IN_ORDER) != 0, "in_order_is_offered");
    start();
    expect_equal(cid, boot_number("cid", 3), "the_cid_is_as_configured");
    for (uint16_t i = 0; i < EVENTS; i++)
        give_event_buffer(i);
    refill();
    print("serving\n");
    if (boot_number("connect", 0) != 0) {
        connect_all((uint32_t)boot_number("connect", 0), (unsigned)boot_number("count", 1));
        return;
    }
    for (;;)
        wait_until(step());
}
