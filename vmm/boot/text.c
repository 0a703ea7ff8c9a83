#include "vmm/boot/text.h"

#include <sys/timerfd.h>

#define PERIOD_NS   1000000
#define PIECE_BYTES (1u << 20) /* less than a period's work; a request waits for it */

static void on_timer(struct loop_source *src, uint32_t ready)
{
    struct text *t = owner_of(src, struct text, timer);
    uint64_t piece = t->bytes < PIECE_BYTES ? t->bytes : PIECE_BYTES;

    (void)ready;
    loop_drain(src->fd);
    if (!gmem_make_own(t->mem, t->at, piece))
        piece = t->bytes;
    t->at.v += piece;
    t->bytes -= piece;
    if (t->bytes == 0)
        loop_remove_timer(t->loop, &t->timer);
}

void text_init(struct text *t, const struct guest_mem *mem, gpa_t at, uint64_t bytes)
{
    *t = (struct text){ .timer = { .fd = -1 }, .mem = mem, .at = at, .bytes = bytes };
}

void text_copy(struct text *t, struct loop *loop)
{
    const struct itimerspec period = { { 0, PERIOD_NS }, { 0, PERIOD_NS } };

    if (t->bytes == 0)
        return;
    t->loop = loop;
    if (loop_add_timer(loop, &t->timer, on_timer) == 0)
        timerfd_settime(t->timer.fd, 0, &period, NULL);
}
