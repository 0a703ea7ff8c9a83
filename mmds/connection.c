#include "mmds/connection.h"

#include <string.h>

#include "mmds/http.h"

/* How far a sequence number is ahead of another; they wrap. */
static int32_t seq_ahead(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b);
}

void mmds_connection_open(struct mmds_connection *c, const struct mmds_segment *syn,
                          uint32_t remote, uint32_t first, uint64_t now_ns)
{
    *c = (struct mmds_connection){
        .state = MMDS_HANDSHAKE,
        .remote = remote,
        .remote_port = syn->remote_port,
        .mss = syn->mss ? syn->mss : MMDS_MSS_DEFAULT,
        .window = syn->window,
        .received = syn->seq + 1,
        .first = first,
        .next = first,
        .sent = first,
        .end = first + 1, /* a SYN counts as a byte */
        .progress_ns = now_ns,
    };
}

static void drop_request(struct mmds_connection *c, struct mmds_budget *budget)
{
    mmds_budget_give_back(budget, c->request, MMDS_WINDOW);
    c->request = NULL;
    c->request_bytes = 0;
}

void mmds_connection_close(struct mmds_connection *c, struct mmds_budget *budget)
{
    drop_request(c, budget);
    mmds_answer_free(&c->answer, budget);
    c->state = MMDS_UNUSED;
}

/* What the guest may still send. */
static size_t window_of(const struct mmds_connection *c)
{
    return MMDS_WINDOW - c->request_bytes;
}

static bool fin_is_acknowledged(const struct mmds_connection *c)
{
    return c->is_closing && c->first == c->end + 1;
}

/* False: the segment acknowledges what was never sent. */
static bool take_ack(struct mmds_connection *c, const struct mmds_segment *s,
                     struct mmds_budget *budget, uint64_t now_ns)
{
    const int32_t fresh = seq_ahead(s->ack, c->first);

    if (fresh < 0)
        return true;
    if (seq_ahead(s->ack, c->sent) > 0)
        return false;
    c->window = s->window;
    if (fresh == 0) {
        if (c->window == 0 && c->resends == MMDS_RESENDS)
            c->resends--; /* it answers our probes: it may take its time */
        return true;
    }
    c->state = MMDS_OPEN;
    c->first = s->ack;
    if (seq_ahead(c->next, c->first) < 0)
        c->next = c->first;
    c->resends = 0;
    c->is_probing = false;
    c->progress_ns = now_ns;
    c->deadline_ns = c->next != c->first ? now_ns + MMDS_RESEND_NS : 0;
    if (seq_ahead(c->first, c->end) >= 0)
        mmds_answer_free(&c->answer, budget);
    if (fin_is_acknowledged(c))
        c->deadline_ns = now_ns + MMDS_LINGER_NS;
    return true;
}

/* False: there is no memory for it. */
static bool keep(struct mmds_connection *c, const uint8_t *at, size_t n, struct mmds_budget *budget)
{
    if (n == 0 || c->is_closing)
        return true;
    if (!c->request)
        c->request = mmds_budget_take(budget, MMDS_WINDOW);
    if (!c->request)
        return false;
    memcpy(c->request + c->request_bytes, at, n);
    c->request_bytes += n;
    return true;
}

/* Takes what is next of payload and FIN. False: there is no memory for it. */
static bool take_in_order(struct mmds_connection *c, const struct mmds_segment *s,
                          struct mmds_budget *budget, uint64_t now_ns)
{
    const uint32_t old = c->received - s->seq; /* wraps where there is a gap */
    size_t fresh, n;

    if (s->bytes > 0 || s->has_fin || old != 0)
        c->owes_ack = true;
    if (old > s->bytes || c->has_fin)
        return true;
    fresh = s->bytes - old;
    n = fresh < window_of(c) ? fresh : window_of(c);
    if (!keep(c, s->payload + old, n, budget))
        return false;
    c->received += (uint32_t)n;
    if (n > 0)
        c->progress_ns = now_ns;
    if (s->has_fin && n == fresh) {
        c->received++;
        c->has_fin = true;
    }
    return true;
}

/* Answers the next request, if its turn has come. False: there is no memory for that. */
static bool answer_next(struct mmds_connection *c, struct mmds_service *service,
                        struct mmds_budget *budget, uint64_t now_ns)
{
    size_t n;

    if (c->answer.memory || c->is_closing)
        return true;
    n = c->request ? mmds_http_request_bytes((char *)c->request, c->request_bytes) : 0;
    if (n > 0) {
        if (!mmds_service_answer(service, (char *)c->request, n, now_ns, budget, &c->answer))
            return false;
    } else if (c->request_bytes == MMDS_WINDOW) {
        if (!mmds_service_refuse_length(budget, &c->answer))
            return false;
    } else {
        c->is_closing = c->has_fin;
    }
    c->end += (uint32_t)c->answer.bytes;
    c->is_closing = c->is_closing || c->answer.is_last;
    c->request_bytes -= n;
    if (n > 0)
        memmove(c->request, c->request + n, c->request_bytes);
    if (c->request_bytes == 0 || c->is_closing)
        drop_request(c, budget);
    return true;
}

/* A guest that forgot its connection, or repeats itself. */
static enum mmds_outcome take_syn(struct mmds_connection *c, const struct mmds_segment *s)
{
    if (c->state == MMDS_HANDSHAKE && !s->has_ack && s->seq + 1 == c->received)
        c->next = c->first;
    else
        c->owes_ack = c->state == MMDS_OPEN; /* who did forget answers that with a RST */
    return MMDS_ODD;
}

enum mmds_outcome mmds_connection_take(struct mmds_connection *c, const struct mmds_segment *s,
                                       struct mmds_service *service, struct mmds_budget *budget,
                                       uint64_t now_ns)
{
    const bool is_next = s->seq == c->received;

    if (s->has_rst)
        return s->seq - c->received <= window_of(c) ? MMDS_ENDED : MMDS_ODD;
    if (s->has_syn)
        return take_syn(c, s);
    if (!s->has_ack || !take_ack(c, s, budget, now_ns) || c->state == MMDS_HANDSHAKE)
        return MMDS_ODD;
    if (!take_in_order(c, s, budget, now_ns) || !answer_next(c, service, budget, now_ns))
        return MMDS_RESET;
    if (mmds_connection_is_over(c))
        return MMDS_ENDED;
    return is_next ? MMDS_TAKEN : MMDS_ODD;
}

enum mmds_outcome mmds_connection_expire(struct mmds_connection *c, uint64_t now_ns)
{
    if (c->deadline_ns == 0 || now_ns < c->deadline_ns)
        return MMDS_TAKEN;
    if (fin_is_acknowledged(c) || c->resends == MMDS_RESENDS)
        return MMDS_RESET;
    c->resends++;
    c->deadline_ns = 0;
    c->next = c->first;
    c->is_probing = true;
    return MMDS_TAKEN;
}

static void start_waiting(struct mmds_connection *c, uint64_t now_ns)
{
    const uint64_t wait_ns = MMDS_RESEND_NS << c->resends;

    if (c->deadline_ns == 0)
        c->deadline_ns = now_ns + (wait_ns < MMDS_RESEND_MAX_NS ? wait_ns : MMDS_RESEND_MAX_NS);
}

/* How much of the answer is sent now, at most `room`. */
static size_t next_payload(struct mmds_connection *c, size_t room)
{
    const size_t left = c->end - c->next;
    const int32_t open = seq_ahead(c->first + c->window, c->next);
    size_t n = open > 0 ? (size_t)open : c->is_probing && room > 0 ? 1 : 0;

    n = n < left ? n : left;
    n = n < c->mss ? n : c->mss;
    return n < room ? n : room;
}

static bool next_byte_or_fin(struct mmds_connection *c, size_t room, uint64_t now_ns,
                             struct mmds_segment *out)
{
    if (c->next == c->end) {
        out->has_fin = c->is_closing;
        c->next += out->has_fin;
        return out->has_fin;
    }
    if (seq_ahead(c->next, c->end) > 0)
        return false;
    out->bytes = next_payload(c, room);
    out->payload =
        (uint8_t *)c->answer.memory + c->answer.begin + c->answer.bytes - (c->end - c->next);
    c->next += (uint32_t)out->bytes;
    out->has_push = out->bytes > 0 && c->next == c->end;
    if (out->bytes == 0 && c->window == 0)
        start_waiting(c, now_ns); /* to probe */
    return out->bytes > 0;
}

static bool next_syn(struct mmds_connection *c, struct mmds_segment *out)
{
    out->has_syn = c->next == c->first;
    out->mss = c->mss;
    c->next = c->end;
    return out->has_syn;
}

bool mmds_connection_next(struct mmds_connection *c, size_t room, uint64_t now_ns,
                          struct mmds_segment *out)
{
    bool takes_numbers;

    *out = (struct mmds_segment){
        .remote_port = c->remote_port,
        .seq = c->next,
        .ack = c->received,
        .has_ack = true,
        .window = (uint16_t)window_of(c),
    };
    takes_numbers =
        c->state == MMDS_HANDSHAKE ? next_syn(c, out) : next_byte_or_fin(c, room, now_ns, out);
    if (!takes_numbers && !c->owes_ack)
        return false;
    c->owes_ack = false;
    if (seq_ahead(c->next, c->sent) > 0)
        c->sent = c->next;
    if (takes_numbers) {
        c->is_probing = false;
        start_waiting(c, now_ns);
    }
    return true;
}

bool mmds_connection_is_over(const struct mmds_connection *c)
{
    return c->has_fin && fin_is_acknowledged(c) && !c->owes_ack;
}

struct mmds_segment mmds_connection_reset(const struct mmds_connection *c)
{
    return (struct mmds_segment){
        .remote_port = c->remote_port,
        .seq = c->next,
        .has_rst = true,
    };
}
