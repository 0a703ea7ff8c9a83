#include "vmm/legacy/serial.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/base/clock.h"
#include "vmm/base/metrics.h"

/* Register offsets; the first two are the divisor latch while LCR_DLAB is set. */
enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define IER_RX        0x01
#define IER_THR_EMPTY 0x02
#define IER_MASK      0x0f
#define IIR_NONE      0x01
#define IIR_THR_EMPTY 0x02
#define IIR_RX        0x04
#define IIR_FIFO_ON   0xc0
#define FCR_ENABLE    0x01
#define FCR_CLEAR_RX  0x02
#define LCR_DLAB      0x80
#define MCR_LOOP      0x10
#define MCR_MASK      0x1f
#define LSR_RX_READY  0x01
#define LSR_IDLE      0x60 /* holding and shift register empty: output is never slow */
#define MSR_PRESENT   0xb0 /* carrier, data set ready, clear to send */

static uint8_t pending(const struct serial_state *st)
{
    if (st->fifo_count && st->ier & IER_RX)
        return IIR_RX;
    if (st->thr_empty_pending && st->ier & IER_THR_EMPTY)
        return IIR_THR_EMPTY;
    return IIR_NONE;
}

/* The line is edge-triggered for the guest: an edge is due only where nothing was pending before,
 * since a driver reads IIR until nothing is left. */
static void raise_from(struct serial *s, uint8_t before)
{
    if (before == IIR_NONE && pending(&s->state) != IIR_NONE)
        s->pulse(&s->line);
}

static void fifo_push(struct serial_state *st, uint8_t byte)
{
    if (st->fifo_count == SERIAL_FIFO_BYTES)
        return;
    st->fifo[(st->fifo_head + st->fifo_count++) % SERIAL_FIFO_BYTES] = byte;
}

/* Called before the guest makes room in the FIFO: input that waits for a full one may go on. */
static void announce_space(struct serial *s)
{
    if (s->state.fifo_count == SERIAL_FIFO_BYTES && s->has_input)
        loop_signal(s->fifo_space.fd);
}

static uint8_t fifo_pop(struct serial *s)
{
    struct serial_state *st = &s->state;
    uint8_t byte;

    if (!st->fifo_count)
        return 0;
    announce_space(s);
    byte = st->fifo[st->fifo_head];
    st->fifo_head = (st->fifo_head + 1) % SERIAL_FIFO_BYTES;
    st->fifo_count--;
    return byte;
}

/* Loopback ties each modem output to an input: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD. */
static uint8_t modem_status(uint8_t mcr)
{
    if (!(mcr & MCR_LOOP))
        return MSR_PRESENT;
    return (uint8_t)((mcr & 0x01) << 5 | (mcr & 0x02) << 3 | (mcr & 0x0c) << 4);
}

static uint8_t read_iir(struct serial_state *st)
{
    uint8_t iir = pending(st);

    if (iir == IIR_THR_EMPTY)
        st->thr_empty_pending = false;
    return st->fifo_on ? iir | IIR_FIFO_ON : iir;
}

static uint8_t read_register(struct serial *s, uint64_t offset)
{
    struct serial_state *st = &s->state;

    switch (offset) {
    case REG_DATA: return st->lcr & LCR_DLAB ? st->dll : fifo_pop(s);
    case REG_IER: return st->lcr & LCR_DLAB ? st->dlh : st->ier;
    case REG_IIR_FCR: return read_iir(st);
    case REG_LCR: return st->lcr;
    case REG_MCR: return st->mcr;
    case REG_LSR: return LSR_IDLE | (st->fifo_count ? LSR_RX_READY : 0);
    case REG_MSR: return modem_status(st->mcr);
    default: return st->scr;
    }
}

static bool may_send(struct serial *s)
{
    uint64_t now;

    if (s->limit.size == 0)
        return true;
    now = monotonic_ns();
    bucket_refill(&s->limit, now - s->counted_ns);
    s->counted_ns = now;
    if (bucket_wait(&s->limit, 1) > 0)
        return false;
    bucket_spend(&s->limit, 1);
    return true;
}

static void pass_on(struct serial *s, uint8_t byte)
{
    if (write(s->out_fd, &byte, 1) == 1)
        return;
    metric_inc(&metrics.uart.error_count);
    log_limited(&s->trouble, LOG_ERROR, "Output of the guest's console is lost: %s (os error %d)",
                os_error_text(errno), errno);
}

static void transmit_byte(struct serial *s, uint8_t byte)
{
    if (s->state.mcr & MCR_LOOP)
        fifo_push(&s->state, byte);
    else if (!may_send(s))
        metric_inc(&metrics.uart.rate_limiter_dropped_bytes);
    else
        pass_on(s, byte);
    s->state.thr_empty_pending = true;
}

static void write_fcr(struct serial *s, uint8_t value)
{
    s->state.fifo_on = value & FCR_ENABLE;
    if (!(value & FCR_CLEAR_RX))
        return;
    announce_space(s);
    s->state.fifo_count = 0;
}

static void write_uart(struct serial *s, uint64_t offset, uint8_t value)
{
    struct serial_state *st = &s->state;

    switch (offset) {
    case REG_DATA:
        if (st->lcr & LCR_DLAB)
            st->dll = value;
        else
            transmit_byte(s, value);
        break;
    case REG_IER:
        if (st->lcr & LCR_DLAB) {
            st->dlh = value;
            break;
        }
        /* Enabling the interrupt of a transmitter that is empty, as ours always is, raises it. */
        if (value & ~st->ier & IER_THR_EMPTY)
            st->thr_empty_pending = true;
        st->ier = value & IER_MASK;
        break;
    case REG_IIR_FCR: write_fcr(s, value); break;
    case REG_LCR: st->lcr = value; break;
    case REG_MCR: st->mcr = value & MCR_MASK; break;
    case REG_SCR: st->scr = value; break;
    default: break; /* LSR and MSR are read-only */
    }
}

static void serial_read(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes)
{
    struct serial *s = owner_of(d, struct serial, bus);

    if (bytes != 1) {
        metric_inc(&metrics.uart.missed_read_count);
        return;
    }
    pthread_mutex_lock(&s->lock);
    *data = read_register(s, offset);
    pthread_mutex_unlock(&s->lock);
    metric_inc(&metrics.uart.read_count);
}

static void serial_write(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    struct serial *s = owner_of(d, struct serial, bus);
    uint8_t before;

    if (bytes != 1) {
        metric_inc(&metrics.uart.missed_write_count);
        return;
    }
    pthread_mutex_lock(&s->lock);
    before = pending(&s->state);
    write_uart(s, offset, *data);
    raise_from(s, before);
    pthread_mutex_unlock(&s->lock);
    metric_inc(&metrics.uart.write_count);
}

static const struct bus_ops serial_ops = { .read = serial_read, .write = serial_write };

void serial_init(struct serial *s, struct kvm_line line, int out_fd)
{
    *s = (struct serial){
        .bus = { .ops = &serial_ops, .base = SERIAL_PORT, .bytes = 8 },
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .state = { .dll = 12 /* 9600 baud */ },
        .line = line,
        .pulse = kvm_pulse,
        .out_fd = out_fd,
    };
}

void serial_limit(struct serial *s, const struct token_bucket *limit)
{
    bucket_init(&s->limit, limit);
    s->counted_ns = monotonic_ns();
}

void serial_restore(struct serial *s, const struct serial_state *state)
{
    s->state = *state;
    raise_from(s, IIR_NONE);
}

/* A source that is not wanted leaves the loop: one whose writer is gone would wake it for ever. */
static void watch_input(struct serial *s, bool wanted)
{
    if (wanted == s->is_watching)
        return;
    s->is_watching = wanted;
    if (wanted)
        BUG_ON(loop_add(s->loop, &s->input) < 0);
    else
        loop_remove(s->loop, &s->input);
}

/* Takes what the FIFO has room for. False: the input has ended, and the line just stays silent. */
static bool take_input(struct serial *s)
{
    uint8_t bytes[SERIAL_FIFO_BYTES], before = pending(&s->state);
    ssize_t got = read(s->input.fd, bytes, SERIAL_FIFO_BYTES - s->state.fifo_count);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (got < 0)
        log_error("The guest's console has no input any more: %s (os error %d)",
                  os_error_text(errno), errno);
    for (ssize_t i = 0; i < got; i++)
        fifo_push(&s->state, bytes[i]);
    raise_from(s, before);
    return got > 0;
}

static void on_input(struct loop_source *src, uint32_t ready)
{
    struct serial *s = owner_of(src, struct serial, input);

    (void)ready;
    pthread_mutex_lock(&s->lock);
    if (s->state.fifo_count < SERIAL_FIFO_BYTES && !take_input(s))
        s->has_input = false;
    /* Full: fifo_space says when to go on. The lock keeps a vCPU from emptying it in between. */
    watch_input(s, s->has_input && s->state.fifo_count < SERIAL_FIFO_BYTES);
    pthread_mutex_unlock(&s->lock);
}

static void on_fifo_space(struct loop_source *src, uint32_t ready)
{
    struct serial *s = owner_of(src, struct serial, fifo_space);

    (void)ready;
    loop_drain(src->fd);
    watch_input(s, s->has_input && !s->is_paused);
}

int serial_attach_input(struct serial *s, struct loop *loop, struct error *e)
{
    int space = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int ret;

    s->loop = loop;
    s->fifo_space = (struct loop_source){ space, EPOLLIN, on_fifo_space };
    s->input = (struct loop_source){ STDIN_FILENO, EPOLLIN, on_input };
    ret = space < 0 ? -errno : loop_add(loop, &s->fifo_space);
    if (ret == 0)
        ret = loop_add(loop, &s->input);
    if (ret < 0) {
        loop_remove(loop, &s->fifo_space);
        close_fdp(&s->fifo_space.fd);
        return fail_os(e, -ret, "The guest's console has no input");
    }
    s->has_input = s->is_watching = true;
    return 0;
}

void serial_pause(struct serial *s)
{
    s->is_paused = true;
    watch_input(s, false);
}

void serial_resume(struct serial *s)
{
    s->is_paused = false;
    watch_input(s, s->has_input);
}
