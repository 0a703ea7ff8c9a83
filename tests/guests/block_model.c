/*
 * Random requests to a virtio block device, against a model of what the disk must hold: which
 * version of each sector was written last. Many requests are in flight, in areas of the disk that
 * do not overlap, so that the answer is known whatever order the device chooses.
 * Command line: sectors=N, requests=N, seed=N; full: the host's file system has no room for it all;
 * flushes: write, flush (if that is offered) and say so, until the host ends it; leaves: ends
 * without waiting for what it asked for; changes=N: the disk is another one N times; rounds=N:
 * writes and flushes so often, in steps with the host.
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/power.h"
#include "runtime/report.h"

#define AREAS         48 /* requests in flight: five descriptors each */
#define PARTS_MAX     3
#define DESCS         (PARTS_MAX + 2)
#define SECTORS_MAX   16
#define BUFFER_BYTES  (SECTORS_MAX * SECTOR)
#define WORDS         (SECTOR / 8)
#define PAGE          4096u
#define KINDS         8
#define NEVER_WRITTEN 0

static struct driver disk;
static struct block_request requests[AREAS], flushes[AREAS];
static struct vring_desc tables[AREAS][DESCS]; /* indirect */
static uint32_t *versions;                     /* of each sector */
static uint8_t *buffers;                       /* BUFFER_BYTES for each area */
static uint64_t sectors, area_sectors, state;
static unsigned wrong_data, wrong_statuses;

static uint64_t random(uint64_t below)
{
    state ^= state << 13; /* xorshift64 */
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

/* What each word of a sector holds. */
static uint64_t content(uint64_t sector, uint32_t version)
{
    return version == NEVER_WRITTEN ? 0 : (sector << 32 | version) * 0x9e3779b97f4a7c15;
}

/* Three words tell: a sector is written whole or not at all. */
static bool holds(const uint8_t *at, uint64_t sector, uint32_t version)
{
    const uint64_t *words = (const uint64_t *)at;
    uint64_t want = content(sector, version);

    return words[0] == want && words[random(WORDS)] == want && words[WORDS - 1] == want;
}

static void fill(uint8_t *at, uint64_t sector, uint32_t version)
{
    uint64_t words = WORDS;

    __asm__ volatile("rep stosq"
                     : "+D"(at), "+c"(words)
                     : "a"(content(sector, version))
                     : "memory");
}

struct plan {
    uint32_t type;
    uint64_t sector, count;
    uint8_t status; /* expected */
} plans[AREAS];

static void choose(struct plan *p, unsigned area)
{
    uint64_t kind = random(KINDS);

    p->count = 1 + random(SECTORS_MAX);
    p->sector = area * area_sectors + random(area_sectors - p->count + 1);
    p->type = kind < 3 ? BLOCK_IN : BLOCK_OUT;
    p->status = BLOCK_OK;
    if (kind == 6) { /* no data */
        p->type = BLOCK_FLUSH;
        p->count = 0;
        p->status = disk.features & F_BLOCK_FLUSH ? BLOCK_OK : BLOCK_UNSUPP;
    } else if (kind == 7) { /* across the end */
        p->sector = sectors - p->count + 1;
        p->status = BLOCK_IOERR;
    }
}

/* Cuts the data into parts of any length. */
static unsigned cut(struct block_part parts[PARTS_MAX], uint8_t *at, uint32_t bytes)
{
    unsigned count = 0;

    while (bytes > 0) {
        uint32_t n = count + 1 < PARTS_MAX ? 1 + (uint32_t)random(bytes) : bytes;

        parts[count++] = (struct block_part){ at, n };
        at += n;
        bytes -= n;
    }
    return count;
}

/* Moves a chain from the queue into a table of its own. */
static void make_indirect(unsigned area, unsigned count)
{
    struct vring_desc *first = &desc_of(&disk.queue)[area * DESCS];

    for (unsigned i = 0; i < count; i++) {
        tables[area][i] = first[i];
        tables[area][i].next = (uint16_t)(i + 1);
    }
    ring_lay(&disk.queue, (uint16_t)(area * DESCS), tables[area],
             (uint32_t)(count * sizeof(struct vring_desc)), VRING_DESC_F_INDIRECT);
}

static void offer(unsigned area)
{
    struct block_part parts[PARTS_MAX];
    struct plan *p = &plans[area];
    uint8_t *buffer = buffers + area * BUFFER_BYTES;
    uint16_t head = (uint16_t)(area * DESCS);
    unsigned count;

    choose(p, area);
    for (uint64_t i = 0; p->type == BLOCK_OUT && i < p->count; i++) {
        bool counts = p->status == BLOCK_OK;

        fill(buffer + i * SECTOR, p->sector + i, counts ? ++versions[p->sector + i] : 0xffffffff);
    }
    count = cut(parts, buffer, (uint32_t)p->count * SECTOR);
    count = block_lay(&disk.queue, head, &requests[area], p->type, p->sector, parts, count);
    if (disk.features & F_INDIRECT_DESC && random(2))
        make_indirect(area, count);
    ring_offer(&disk.queue, head);
}

static void check(unsigned area)
{
    const struct plan *p = &plans[area];
    const uint8_t *buffer = buffers + area * BUFFER_BYTES;

    wrong_statuses += requests[area].status != p->status;
    if (p->type != BLOCK_IN || p->status != BLOCK_OK)
        return;
    for (uint64_t i = 0; i < p->count; i++)
        wrong_data += !holds(buffer + i * SECTOR, p->sector + i, versions[p->sector + i]);
}

static bool do_batch(void)
{
    unsigned count = 1 + (unsigned)random(AREAS);

    for (unsigned area = 0; area < count; area++) {
        offer(area);
        if (random(4) == 0)
            virtio_kick(&disk);
    }
    virtio_kick(&disk);
    if (!virtio_wait(&disk))
        return false;
    for (unsigned area = 0; area < count; area++)
        check(area);
    return true;
}

static void check_whole_disk(void)
{
    unsigned wrong = 0;

    for (uint64_t at = 0; at + SECTORS_MAX <= sectors; at += SECTORS_MAX) {
        wrong += block_do(&disk, BLOCK_IN, at, buffers, BUFFER_BYTES) != BLOCK_OK;
        for (unsigned i = 0; i < SECTORS_MAX; i++)
            wrong += !holds(buffers + i * SECTOR, at + i, versions[at + i]);
    }
    expect_equal(wrong, 0, "the_whole_disk_is_as_the_model_says");
}

static void check_model(uint64_t wanted)
{
    uint64_t before = 0;
    bool answered = true;

    for (uint64_t done = 0; answered && done < wanted; done += disk.queue.offered - before) {
        if (random(64) == 0) /* a reset in between */
            virtio_start(&disk,
                         F_BLOCK_FLUSH | (random(2) ? F_EVENT_IDX : 0) |
                             (random(2) ? F_INDIRECT_DESC : 0),
                         VIRTQ_SIZE_MAX);
        before = disk.queue.offered;
        answered = do_batch();
    }
    expect(answered, "each_request_is_answered");
    expect_equal(wrong_statuses, 0, "each_status_is_as_the_model_says");
    expect_equal(wrong_data, 0, "each_sector_read_is_as_the_model_says");
    check_whole_disk();
}

/* The host runs out of space: that is an error, and neither the end nor a lie. */
static void check_full(void)
{
    unsigned failed = 0, wrong = 0;

    for (uint64_t at = 0; at + SECTORS_MAX <= sectors; at += SECTORS_MAX) {
        uint8_t status;

        for (unsigned i = 0; i < SECTORS_MAX; i++)
            fill(buffers + i * SECTOR, at + i, 1);
        status = block_do(&disk, BLOCK_OUT, at, buffers, BUFFER_BYTES);
        failed += status == BLOCK_IOERR;
        if (status == BLOCK_OK)
            wrong += block_do(&disk, BLOCK_IN, at, buffers, BUFFER_BYTES) != BLOCK_OK ||
                     !holds(buffers, at, 1) ||
                     !holds(buffers + BUFFER_BYTES - SECTOR, at + SECTORS_MAX - 1, 1);
        else if (status != BLOCK_IOERR)
            wrong++;
    }
    expect(failed > 0, "a_full_host_makes_writes_fail");
    expect_equal(wrong, 0, "a_write_that_succeeded_is_there");
    expect_equal(block_do(&disk, BLOCK_IN, 0, buffers, SECTOR), BLOCK_OK, "and_reads_go_on");
}

static void flush_for_ever(void)
{
    const uint8_t flushed = disk.features & F_BLOCK_FLUSH ? BLOCK_OK : BLOCK_UNSUPP;

    for (uint32_t version = 1;; version++) {
        for (uint64_t at = 0; at < SECTORS_MAX; at++)
            fill(buffers + at * SECTOR, at, version);
        if (block_do(&disk, BLOCK_OUT, 0, buffers, BUFFER_BYTES) != BLOCK_OK ||
            block_do(&disk, BLOCK_FLUSH, 0, NULL, 0) != flushed)
            give_up("a_write_and_a_flush_succeed", "one failed");
        print("flushed %lu\n", content(0, version));
    }
}

/* tests/rig/test_overlay_cut.py knows what is written in which round. */
static void write_in_rounds(uint64_t rounds)
{
    for (uint32_t round = 1; round <= rounds; round++) {
        for (uint64_t i = 0; i < 8; i++) {
            const uint64_t at = (round * 131 + i * 977) % (sectors - SECTORS_MAX);
            const uint32_t count = 1 + (uint32_t)(round + i * 5) % SECTORS_MAX;

            for (uint32_t n = 0; n < count; n++)
                fill(buffers + n * SECTOR, at + n, round);
            if (block_do(&disk, BLOCK_OUT, at, buffers, count * SECTOR) != BLOCK_OK)
                give_up("a_write_succeeds", "it failed");
        }
        wait_for_host("written");
        if (block_do(&disk, BLOCK_FLUSH, 0, NULL, 0) != BLOCK_OK)
            give_up("a_flush_succeeds", "it failed");
        wait_for_host("flushed");
    }
}

/* The VM ends with all of it under way: a write and a flush from each area. */
static void leave(void)
{
    for (unsigned area = 0; area < AREAS; area++) {
        struct block_part part = { buffers + area * BUFFER_BYTES, BUFFER_BYTES };
        uint16_t head = (uint16_t)(area * DESCS);

        for (uint64_t i = 0; i < SECTORS_MAX; i++)
            fill((uint8_t *)part.at + i * SECTOR, area * SECTORS_MAX + i, 1);
        block_lay(&disk.queue, head, &requests[area], BLOCK_OUT, area * SECTORS_MAX, &part, 1);
        ring_offer(&disk.queue, head);
        block_lay(&disk.queue, head + 3, &flushes[area], BLOCK_FLUSH, 0, NULL, 0);
        ring_offer(&disk.queue, head + 3);
    }
    virtio_kick(&disk);
    power_off();
}

/* The capacity changes while it is read (section 2.5.1): between two readings of the generation
 * that agree lies one capacity or the other, not half of each. */
static void check_changes(uint64_t wanted)
{
    uint32_t first = reg_read(&disk, VIRTIO_MMIO_CONFIG_GENERATION), before, after, low, high;
    uint64_t torn = 0;

    do {
        before = reg_read(&disk, VIRTIO_MMIO_CONFIG_GENERATION);
        low = reg_read(&disk, VIRTIO_MMIO_CONFIG);
        high = reg_read(&disk, VIRTIO_MMIO_CONFIG + 4);
        after = reg_read(&disk, VIRTIO_MMIO_CONFIG_GENERATION);
        torn += before == after && low != high + 1;
    } while (after - first < wanted);
    expect_equal(torn, 0, "no_capacity_is_half_of_one_and_half_of_another");
}

void guest_main(void)
{
    if (!expect(virtio_find(0, &disk), "the_disk_answers") ||
        !expect(virtio_start(&disk, F_BLOCK_FLUSH, VIRTQ_SIZE_MAX), "the_device_starts"))
        return;
    sectors = block_capacity(&disk);
    area_sectors = sectors / AREAS;
    state = boot_number("seed", 1);
    versions = alloc_pages((unsigned)(sectors * sizeof(*versions) / PAGE + 1));
    buffers = alloc_pages(AREAS * BUFFER_BYTES / PAGE);
    if (boot_has("full"))
        check_full();
    else if (boot_has("flushes"))
        flush_for_ever();
    else if (boot_has("leaves"))
        leave();
    else if (boot_number("rounds", 0))
        write_in_rounds(boot_number("rounds", 0));
    else if (boot_number("changes", 0))
        check_changes(boot_number("changes", 0));
    else
        check_model(boot_number("requests", 1000));
}
