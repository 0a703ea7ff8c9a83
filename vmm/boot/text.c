#include "vmm/boot/text.h"

#include <sys/timerfd.h>
#include <time.h>

#include "vmm/error.h"

#define PERIOD_NS   1000000
#define PIECE_BYTES (1u << 20) /* less than a period's work; a request waits for it */

static void stop(struct text *t)
{
    loop_remove(t->loop, &t->timer);
    close_fdp(&t->timer.fd);
    t->timer.fd = -1;
}

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
        stop(t);
}

void text_init(struct text *t, const struct guest_mem *mem, gpa_t at, uint64_t bytes)
{
    uint64_t head = -at.v & (GMEM_PAGE_BYTES - 1);

    *t = (struct text){
        .timer = { .fd = -1, .want = EPOLLIN, .on_ready = on_timer },
        .mem = mem,
        .at = gpa(at.v + head),
        .bytes = bytes < head ? 0 : (bytes - head) & ~(uint64_t)(GMEM_PAGE_BYTES - 1),
    };
}

void text_copy(struct text *t, struct loop *loop)
{
    const struct itimerspec period = { { 0, PERIOD_NS }, { 0, PERIOD_NS } };

    if (t->bytes == 0)
        return;
    t->loop = loop;
    t->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (t->timer.fd < 0 || loop_add(loop, &t->timer) < 0 ||
        timerfd_settime(t->timer.fd, 0, &period, NULL) < 0)
        stop(t);
}
