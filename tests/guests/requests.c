/*
 * Requests to the first disk, one for each letter that the test sends to the serial port: r(ead),
 * w(rite), f(lush), d(iscard), z(eroes); q ends the guest. Says the letter and the status, and of a
 * read whether the sector held its number. b(usy) reads, and works while there is no answer; n
 * notifies 10000 times of nothing.
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define COM1            0x3f8
#define QUEUE           16
#define TARGET          4u /* sector */
#define NOTIFICATIONS   10000u
#define BLOCK_DISCARD   11
#define BLOCK_ZEROES    13
#define F_BLOCK_DISCARD (1ul << 13)
#define F_BLOCK_ZEROES  (1ul << 14)

static struct driver disk;
static uint8_t *data;

struct range {
    uint64_t sector;
    uint32_t sectors, flags;
};

static uint8_t zero(uint32_t type)
{
    static struct block_request request;
    static struct range range;
    struct block_part part = { &range, sizeof(range) };
    struct ring *q = &disk.queue;

    range = (struct range){ TARGET, 8, 0 };
    block_lay(q, 0, &request, type, 0, &part, 1);
    desc_of(q)[1].flags = VRING_DESC_F_NEXT; /* the device reads it */
    ring_offer(q, 0);
    virtio_kick(&disk);
    return virtio_wait(&disk) ? request.status : BLOCK_NONE;
}

static uint8_t work_meanwhile(void)
{
    static struct block_request request;
    struct block_part part = { data, 2 * SECTOR };
    struct ring *q = &disk.queue;

    block_lay(q, 0, &request, BLOCK_IN, TARGET, &part, 1);
    ring_offer(q, 0);
    virtio_kick(&disk);
    for (unsigned i = 0; i < 10; i++)
        print("%s\n", ring_used_idx(q) == q->offered ? "answered" : "at work");
    return virtio_wait(&disk) ? request.status : BLOCK_NONE;
}

static uint8_t notify(void)
{
    for (unsigned i = 0; i < NOTIFICATIONS; i++)
        virtio_kick(&disk);
    return 0;
}

static uint8_t carry_out(char letter)
{
    switch (letter) {
    case 'b': return work_meanwhile();
    case 'n': return notify();
    case 'r': return block_do(&disk, BLOCK_IN, TARGET, data, 2 * SECTOR);
    case 'w': return block_do(&disk, BLOCK_OUT, TARGET, data, 2 * SECTOR);
    case 'f': return block_do(&disk, BLOCK_FLUSH, 0, data, 0);
    case 'd': return zero(BLOCK_DISCARD);
    default: return zero(BLOCK_ZEROES);
    }
}

static char next_letter(void)
{
    while (!wait_until((inb(COM1 + 5) & 1) != 0))
        ;
    return (char)inb(COM1);
}

void guest_main(void)
{
    char letter;

    data = alloc_pages(1);
    if (!expect(virtio_find(0, &disk) &&
                    virtio_start(&disk, F_BLOCK_FLUSH | F_BLOCK_DISCARD | F_BLOCK_ZEROES, QUEUE),
                "the_disk_starts"))
        return;
    *(uint64_t *)data = TARGET;
    print("ready\n");
    while ((letter = next_letter()) != 'q')
        print("%c %u%s\n", letter, carry_out(letter),
              *(uint64_t *)data == TARGET ? "" : " with other data");
}
