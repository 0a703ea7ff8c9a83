/*
 * The device side of virtio-block alone, as device.h says, on this host's file system.
 *
 * usage: block_device ENGINE OPERATION BYTES DEPTH REQUESTS DISK
 * ENGINE is Sync or Async, OPERATION read or write. Prints CPU and wall nanoseconds a request.
 */
#include "benchmarks/disk.h"

#define HEADERS  0x10000u
#define STATUSES 0x20000u
#define TABLES   0x30000u
#define DATA     0x100000u

static uint32_t type, bytes; /* of each request */
static unsigned depth;
static uint64_t sectors, next_sector;

/* Slot i owns a descriptor, its table, a header, a status byte and data; nothing of it changes
 * later but the sector. */
static void lay(uint16_t i)
{
    const unsigned direction = type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0;
    const uint32_t table_bytes = 3 * sizeof(struct vring_desc);
    const struct ring table = { .mem = &bench.d.mem, .desc = TABLES + table_bytes * i };

    ring_buffer(&table, 0, HEADERS + 16u * i, 16, VRING_DESC_F_NEXT);
    ring_buffer(&table, 1, DATA + (uint64_t)i * bytes, bytes, VRING_DESC_F_NEXT | direction);
    ring_buffer(&table, 2, STATUSES + i, 1, VRING_DESC_F_WRITE);
    ring_buffer(bench.ring, i, table.desc, table_bytes, VRING_DESC_F_INDIRECT);
}

static void offer(uint32_t i)
{
    const struct virtio_blk_outhdr header = { .type = type, .sector = next_sector };

    put(&bench, HEADERS + 16 * i, &header, sizeof(header));
    ring_add(bench.ring, (uint16_t)i);
    next_sector = (next_sector + bytes / 512) % sectors;
    bench.left--;
}

static void on_interrupt(const struct kvm_line *line)
{
    (void)line;
    take_and_offer(&bench, offer);
}

static void set_up(const char *engine, const char *disk)
{
    disk_init(engine, disk);
    sectors = file.sectors / (bytes / 512) * (bytes / 512);
    if (sectors == 0)
        die("the disk is smaller than a request");
    disk_start(on_interrupt);
    for (uint16_t i = 0; i < depth; i++)
        lay(i);
}

static void serve(uint64_t requests)
{
    bench.left = requests;
    for (unsigned i = 0; i < depth && bench.left > 0; i++)
        offer(i);
    kick_and_serve(&bench);
}

int main(int argc, char **argv)
{
    uint64_t requests;
    struct cost before;

    if (argc != 7)
        die("ENGINE OPERATION BYTES DEPTH REQUESTS DISK");
    type = strcmp(argv[2], "write") == 0 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
    bytes = (uint32_t)atoi(argv[3]);
    depth = (unsigned)atoi(argv[4]);
    requests = (uint64_t)atoll(argv[5]);
    if (bytes < 512 || bytes % 512 || depth == 0 || depth > QUEUE_SIZE ||
        (uint64_t)depth * bytes > (MEMORY_MIB - 1u) << 20 || requests == 0)
        die("BYTES are whole sectors, DEPTH at most 256, both in 63 MiB");
    set_up(argv[1], argv[6]);
    serve(depth); /* touches what there is to touch */
    before = cost_now();
    serve(requests);
    print_costs(before, 0, requests);
    return 0;
}
