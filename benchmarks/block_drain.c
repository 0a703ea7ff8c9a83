/*
 * How long a pause waits for a disk whose guest asks for as much as it can: a ring of requests of
 * 4 GiB each, by indirect tables whose buffers are all the same. The device side alone, as device.h
 * says.
 *
 * usage: block_drain ENGINE REQUESTS DISK
 * ENGINE is Sync or Async, DISK a file of 4 GiB or more. Prints the milliseconds of the pause.
 */
#include "benchmarks/disk.h"

#define HEADERS      0x10000u
#define STATUSES     0x20000u
#define TABLES       0x100000u
#define BUFFER       0x1000000u
#define BUFFER_BYTES (16u << 20)
#define BUFFERS      254u

static void on_interrupt(const struct kvm_line *line)
{
    (void)line;
}

static void set_up(const char *engine, const char *disk)
{
    disk_init(engine, disk);
    if (file.sectors < (uint64_t)BUFFERS * BUFFER_BYTES / BLOCK_SECTOR_BYTES)
        die("the disk is smaller than a request");
    disk_start(on_interrupt);
}

static void offer(uint16_t i)
{
    const struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN };
    const struct ring table = { .mem = &bench.d.mem, .desc = TABLES + 0x1000u * i };

    put(&bench, HEADERS + 16u * i, &header, sizeof(header));
    ring_buffer(&table, 0, HEADERS + 16u * i, sizeof(header), VRING_DESC_F_NEXT);
    for (uint16_t k = 1; k <= BUFFERS; k++)
        ring_buffer(&table, k, BUFFER, BUFFER_BYTES, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
    ring_buffer(&table, BUFFERS + 1, STATUSES + i, 1, VRING_DESC_F_WRITE);
    ring_desc(bench.ring, i, table.desc, (BUFFERS + 2) * sizeof(struct vring_desc),
              VRING_DESC_F_INDIRECT, 0);
    ring_add(bench.ring, i);
}

int main(int argc, char **argv)
{
    unsigned requests = argc == 4 ? (unsigned)atoi(argv[2]) : 0;
    uint64_t before;

    if (requests == 0 || requests > QUEUE_SIZE)
        die("ENGINE REQUESTS DISK, at most 256 of them");
    set_up(argv[1], argv[3]);
    for (uint16_t i = 0; i < requests; i++)
        offer(i);
    kick(&bench);
    loop_turn(&bench.d.loop, -1);
    before = now_ns();
    virtio_mmio_pause(&bench.d.transport);
    printf("%.2f\n", (double)(now_ns() - before) / 1e6);
    return 0;
}
