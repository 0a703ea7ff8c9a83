#include "virtio/vsock_table.h"

#include <stdlib.h>
#include <sys/timerfd.h>

#include "vmm/base/clock.h"
#include "vmm/base/metrics.h"

/* For a guest to answer a request, and to confirm that it has closed. */
#define PATIENCE_MS 2000

#define FIRST_PORT (UINT32_C(1) << 30)
#define PORT_MASK  (FIRST_PORT - 1)

int vsock_table_init(struct vsock_table *t, struct vsock *device, struct loop *loop,
                     loop_fn *on_stream, loop_fn *on_time, struct error *e)
{
    int ret;

    *t = (struct vsock_table){
        .device = device,
        .loop = loop,
        .on_stream = on_stream,
        .state.last_port = FIRST_PORT | PORT_MASK, /* the first is FIRST_PORT */
    };
    TAILQ_INIT(&t->turns);
    TAILQ_INIT(&t->timed);
    TAILQ_INIT(&t->idle);
    ret = loop_add_timer(loop, &t->timer, on_time);
    return ret < 0 ? fail_os(e, -ret, "timer") : 0;
}

void vsock_table_fini(struct vsock_table *t)
{
    if (!t->loop)
        return;
    vsock_table_clear(t);
    loop_remove_timer(t->loop, &t->timer);
    *t = (struct vsock_table){ 0 };
}

void vsock_table_clear(struct vsock_table *t)
{
    struct vsock_conn *c;

    for (unsigned i = 0; i < VSOCK_BUCKETS; i++)
        while ((c = LIST_FIRST(&t->by_ports[i])))
            vsock_table_remove(t, c);
    while ((c = TAILQ_FIRST(&t->idle))) /* those the guest does not know */
        vsock_table_remove(t, c);
}

struct vsock_conn *vsock_table_add(struct vsock_table *t, int fd)
{
    struct vsock_conn *c;

    if (t->count == VSOCK_CONNECTIONS_MAX && !TAILQ_EMPTY(&t->idle)) {
        vsock_table_remove(t, TAILQ_FIRST(&t->idle));
        metric_inc(&metrics.vsock.conns_killed);
    }
    if (t->count == VSOCK_CONNECTIONS_MAX) {
        close(fd);
        return NULL;
    }
    c = vsock_conn_new(t->device, t->loop, fd, t->on_stream, &t->total);
    if (c)
        t->count++;
    return c;
}

static void unname(struct vsock_conn *c)
{
    if (c->is_hashed)
        LIST_REMOVE(c, by_ports);
    c->is_hashed = false;
}

void vsock_table_remove(struct vsock_table *t, struct vsock_conn *c)
{
    unname(c);
    vsock_table_end_turn(t, c);
    vsock_table_stop_clock(t, c);
    vsock_table_set_idle(t, c, false);
    if (t->current == c)
        t->current = NULL;
    vsock_conn_free(c);
    t->count--;
}

static unsigned bucket_of(uint32_t host_port, uint32_t guest_port)
{
    return (host_port * 31 + guest_port) % VSOCK_BUCKETS;
}

struct vsock_conn *vsock_table_find(const struct vsock_table *t, uint32_t host_port,
                                    uint32_t guest_port)
{
    struct vsock_conn *c;

    LIST_FOREACH(c, &t->by_ports[bucket_of(host_port, guest_port)], by_ports)
    if (c->host_port == host_port && c->guest_port == guest_port)
        return c;
    return NULL;
}

void vsock_table_name(struct vsock_table *t, struct vsock_conn *c, uint32_t host_port,
                      uint32_t guest_port)
{
    c->host_port = host_port;
    c->guest_port = guest_port;
    LIST_INSERT_HEAD(&t->by_ports[bucket_of(host_port, guest_port)], c, by_ports);
    c->is_hashed = true;
    metric_inc(&metrics.vsock.conns_added);
}

uint32_t vsock_table_new_port(struct vsock_table *t, uint32_t guest_port)
{
    do /* there are far fewer connections than ports */
        t->state.last_port = FIRST_PORT | ((t->state.last_port + 1) & PORT_MASK);
    while (vsock_table_find(t, t->state.last_port, guest_port));
    return t->state.last_port;
}

void vsock_table_give_turn(struct vsock_table *t, struct vsock_conn *c)
{
    if (!c->has_turn)
        TAILQ_INSERT_TAIL(&t->turns, c, turn);
    c->has_turn = true;
}

void vsock_table_end_turn(struct vsock_table *t, struct vsock_conn *c)
{
    if (c->has_turn)
        TAILQ_REMOVE(&t->turns, c, turn);
    c->has_turn = false;
}

static uint64_t monotonic_ms(void)
{
    return monotonic_us() / 1000;
}

void vsock_table_stand(struct vsock_table *t)
{
    if (t->stands_since_ms == 0)
        t->stands_since_ms = monotonic_ms();
}

void vsock_table_go_on(struct vsock_table *t)
{
    if (t->stands_since_ms > 0)
        t->stood_ms += monotonic_ms() - t->stands_since_ms;
    t->stands_since_ms = 0;
}

/* The guest's time, in which deadlines are. */
static uint64_t now_ms(const struct vsock_table *t)
{
    return (t->stands_since_ms > 0 ? t->stands_since_ms : monotonic_ms()) - t->stood_ms;
}

/* One that fires while the guest stands, or too early for that it stood, is set anew. */
static void vsock_table_set_timer(struct vsock_table *t, uint64_t deadline_ms)
{
    const uint64_t at_ms = deadline_ms + t->stood_ms;
    const struct itimerspec when = { .it_value = { (time_t)(at_ms / 1000),
                                                   (long)(at_ms % 1000 * 1000000 + 1) } };

    loop_set_timer(&t->timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Everybody has the same time, so that the last to start is the last to end. A timer that is set
 * already fires early enough; it is set anew then. */
void vsock_table_start_clock(struct vsock_table *t, struct vsock_conn *c)
{
    if (c->is_timed)
        return;
    c->is_timed = true;
    c->deadline_ms = now_ms(t) + PATIENCE_MS;
    TAILQ_INSERT_TAIL(&t->timed, c, wait);
    if (!t->is_timer_set)
        vsock_table_set_timer(t, c->deadline_ms);
    t->is_timer_set = true;
}

void vsock_table_stop_clock(struct vsock_table *t, struct vsock_conn *c)
{
    if (c->is_timed)
        TAILQ_REMOVE(&t->timed, c, wait);
    c->is_timed = false;
}

struct vsock_conn *vsock_table_next_expired(struct vsock_table *t)
{
    struct vsock_conn *c = TAILQ_FIRST(&t->timed);

    t->is_timer_set = c;
    if (!c)
        return NULL;
    if (c->deadline_ms > now_ms(t)) {
        vsock_table_set_timer(t, c->deadline_ms);
        return NULL;
    }
    vsock_table_stop_clock(t, c);
    return c;
}

void vsock_table_ring(struct vsock_table *t, uint64_t ms)
{
    vsock_table_set_timer(t, now_ms(t) + ms);
}

void vsock_table_set_idle(struct vsock_table *t, struct vsock_conn *c, bool is_idle)
{
    if (is_idle == c->is_idle)
        return;
    c->is_idle = is_idle;
    if (is_idle)
        TAILQ_INSERT_TAIL(&t->idle, c, wait);
    else
        TAILQ_REMOVE(&t->idle, c, wait);
}

void vsock_table_detach(struct vsock_table *t, struct vsock_conn *c)
{
    metric_inc(&metrics.vsock.conns_removed);
    if (vsock_conn_is_done(c)) {
        vsock_table_remove(t, c);
        return;
    }
    unname(c);
    vsock_table_end_turn(t, c);
    vsock_table_stop_clock(t, c);
    vsock_table_set_idle(t, c, true);
    vsock_conn_watch(c);
}
