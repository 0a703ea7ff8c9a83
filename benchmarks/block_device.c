/*
 * The device side of virtio-block alone: a driver in this process puts requests into a ring in
 * memory and kicks; the event loop serves them as it would a guest's. No KVM, no guest: what is
 * measured is what the VMM and the host's file system spend. The kick costs one write(2) here,
 * which with a guest is KVM's; the interrupt costs nothing, where it is two ioctls.
 *
 * usage: block_device ENGINE OPERATION BYTES DEPTH REQUESTS DISK
 * ENGINE is Sync or Async, OPERATION read or write. Prints CPU and wall nanoseconds a request.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "virtio/block.h"
#include "virtio/mmio.h"

#include <linux/virtio_mmio.h>

#define MEMORY_MIB 64
#define RING_DESC  0x1000u
#define RING_AVAIL 0x2000u
#define RING_USED  0x3000u
#define HEADERS    0x10000u
#define STATUSES   0x20000u
#define TABLES     0x30000u
#define DATA       0x100000u
#define DRIVER     (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
#define QUEUE_SIZE VIRTQ_SIZE_MAX

struct bench {
    struct guest_mem mem;
    struct loop loop;
    struct virtio_mmio transport;
    struct block block;
    struct block_file file;
    _Alignas(8) uint8_t page[LAYOUT_VIRTIO_STEP];
    uint32_t type, bytes;
    unsigned depth;
    uint64_t sectors, next_sector;
    uint16_t offered, used;
    uint64_t left; /* requests not yet offered */
};

static struct bench bench;

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "block_device: %s\n", what);
    exit(2);
}

static void put(uint64_t at, const void *object, size_t bytes)
{
    if (gmem_write_(&bench.mem, gpa(at), object, bytes) < 0)
        die("beyond the memory");
}

static uint16_t used_index(void)
{
    uint16_t index;

    if (gmem_get(&bench.mem, gpa(RING_USED + 2), &index) < 0)
        die("beyond the memory");
    return index;
}

/* Slot i owns a descriptor, its table, a header, a status byte and data; nothing of it changes
 * later but the sector. */
static void lay(unsigned i)
{
    const uint16_t direction = bench.type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0;
    const struct vring_desc table[] = {
        { HEADERS + 16 * i, 16, VRING_DESC_F_NEXT, 1 },
        { DATA + (uint64_t)i * bench.bytes, bench.bytes, (uint16_t)(VRING_DESC_F_NEXT | direction),
          2 },
        { STATUSES + i, 1, VRING_DESC_F_WRITE, 0 },
    };
    const struct vring_desc desc = { TABLES + sizeof(table) * i, sizeof(table),
                                     VRING_DESC_F_INDIRECT, 0 };

    put(desc.addr, table, sizeof(table));
    put(RING_DESC + sizeof(desc) * i, &desc, sizeof(desc));
}

static void offer(unsigned i)
{
    const struct virtio_blk_outhdr header = { .type = bench.type, .sector = bench.next_sector };
    const uint16_t head = (uint16_t)i;

    put(HEADERS + 16 * i, &header, sizeof(header));
    put(RING_AVAIL + 4 + 2u * (bench.offered % QUEUE_SIZE), &head, sizeof(head));
    bench.offered++;
    bench.next_sector = (bench.next_sector + bench.bytes / 512) % bench.sectors;
    bench.left--;
}

static void kick(void)
{
    const uint64_t one = 1;

    put(RING_AVAIL + 2, &bench.offered, sizeof(bench.offered));
    if (write(bench.transport.notifiers[0].source.fd, &one, sizeof(one)) != sizeof(one))
        die("a kick failed");
}

/* Takes what is answered and offers as much again. */
static void on_interrupt(const struct kvm_line *line)
{
    const uint16_t now = used_index();
    const bool more = bench.left > 0;

    (void)line;
    for (; bench.used != now; bench.used++) {
        struct vring_used_elem elem;

        if (gmem_get(&bench.mem, gpa(RING_USED + 4 + 8u * (bench.used % QUEUE_SIZE)), &elem) < 0)
            die("beyond the memory");
        if (bench.left > 0)
            offer(elem.id % bench.depth);
    }
    if (bench.used == bench.offered)
        loop_stop(&bench.loop, 0);
    else if (more)
        kick();
}

static void set(unsigned offset, uint32_t value)
{
    struct bus_device *bus = &bench.transport.bus;

    bus->ops->write(bus, offset, (const uint8_t *)&value, sizeof(value));
}

static void start_driver(void)
{
    set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set(VIRTIO_MMIO_STATUS, DRIVER);
    set(VIRTIO_MMIO_DRIVER_FEATURES, 1u << VIRTIO_RING_F_INDIRECT_DESC);
    set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    set(VIRTIO_MMIO_DRIVER_FEATURES, 1u << (VIRTIO_F_VERSION_1 - 32));
    set(VIRTIO_MMIO_STATUS, DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    set(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE);
    set(VIRTIO_MMIO_QUEUE_DESC_LOW, RING_DESC);
    set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, RING_AVAIL);
    set(VIRTIO_MMIO_QUEUE_USED_LOW, RING_USED);
    set(VIRTIO_MMIO_QUEUE_READY, 1);
    set(VIRTIO_MMIO_STATUS, DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void set_up(const char *engine, const char *disk, struct error *e)
{
    struct block_host host = { .file = &bench.file, .loop = &bench.loop };

    if (loop_init(&bench.loop, e) < 0 ||
        gmem_init(&bench.mem, MEMORY_MIB, HUGE_PAGES_NONE, e) < 0 ||
        block_file_open(&bench.file, disk, false, e) < 0 ||
        (strcmp(engine, "Async") == 0 && block_async_new(&host.async, &bench.file, e) < 0) ||
        block_init(&bench.block, &host, e) < 0 ||
        virtio_mmio_init(&bench.transport, &bench.block.dev, gpa(LAYOUT_VIRTIO), bench.page,
                         &bench.mem, &bench.loop, e) < 0)
        die(e->msg);
    bench.transport.pulse = on_interrupt;
    bench.sectors = bench.file.sectors / (bench.bytes / 512) * (bench.bytes / 512);
    if (bench.sectors == 0)
        die("the disk is smaller than a request");
}

static void serve(uint64_t requests)
{
    bench.left = requests;
    for (unsigned i = 0; i < bench.depth && bench.left > 0; i++)
        offer(i);
    kick();
    bench.loop.stopping = 0;
    loop_run(&bench.loop);
}

int main(int argc, char **argv)
{
    struct error e;
    uint64_t requests, cpu, wall;

    if (argc != 7)
        die("ENGINE OPERATION BYTES DEPTH REQUESTS DISK");
    bench.type = strcmp(argv[2], "write") == 0 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
    bench.bytes = (uint32_t)atoi(argv[3]);
    bench.depth = (unsigned)atoi(argv[4]);
    requests = (uint64_t)atoll(argv[5]);
    if (bench.bytes < 512 || bench.bytes % 512 || bench.depth == 0 || bench.depth > QUEUE_SIZE ||
        (uint64_t)bench.depth * bench.bytes > (MEMORY_MIB - 1u) << 20 || requests == 0)
        die("BYTES are whole sectors, DEPTH at most 256, both in 63 MiB");
    set_up(argv[1], argv[6], &e);
    for (unsigned i = 0; i < bench.depth; i++)
        lay(i);
    start_driver();
    serve(bench.depth); /* touches what there is to touch */
    cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
    wall = nanoseconds(CLOCK_MONOTONIC);
    serve(requests);
    cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = nanoseconds(CLOCK_MONOTONIC) - wall;
    printf("%.1f %.1f\n", (double)cpu / (double)requests, (double)wall / (double)requests);
    return 0;
}
