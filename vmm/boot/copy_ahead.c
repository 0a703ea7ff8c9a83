#include "vmm/boot/copy_ahead.h"

#define FIRST_NS    100000 /* the answer to the start goes out before, and the vCPUs are off */
#define PERIOD_NS   1000000
#define PIECE_BYTES (1u << 20) /* less than a period's work; a request waits for it */

/* One piece, or what is left of the part. False: there is nothing more to copy. */
static bool copy_piece(struct copy_ahead *c)
{
    struct image_part *part = &c->parts[c->next];
    uint64_t bytes = part->bytes < PIECE_BYTES ? part->bytes : PIECE_BYTES;

    if (!gmem_make_own(c->mem, part->at, bytes))
        return false;
    part->at.v += bytes;
    part->bytes -= bytes;
    if (part->bytes == 0)
        c->next++;
    return c->next < c->count;
}

static void on_piece_due(struct loop_source *src, uint32_t ready)
{
    struct copy_ahead *c = owner_of(src, struct copy_ahead, timer);

    (void)ready;
    loop_drain(src->fd);
    if (!copy_piece(c))
        loop_remove_timer(c->loop, &c->timer);
}

static void add_part(struct copy_ahead *c, struct image_part part)
{
    if (part.bytes)
        c->parts[c->count++] = part;
}

void copy_ahead_init(struct copy_ahead *c, const struct guest_mem *mem,
                     const struct kernel_image *kernel, const struct initrd *initrd)
{
    *c = (struct copy_ahead){ .timer = { .fd = -1 }, .mem = mem };
    for (unsigned i = 0; i < IMAGE_PARTS_MAX; i++)
        add_part(c, kernel->written[i]);
    add_part(c, unpacked_part(initrd->start, initrd->bytes));
}

void copy_ahead_start(struct copy_ahead *c, struct loop *loop)
{
    const struct itimerspec times = { { 0, PERIOD_NS }, { 0, FIRST_NS } };

    if (c->count == 0)
        return;
    c->loop = loop;
    if (loop_add_timer(loop, &c->timer, on_piece_due) == 0)
        loop_set_timer(&c->timer, 0, &times, NULL);
}
