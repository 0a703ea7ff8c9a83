#include "vmm/legacy/serial.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>

#include "tests/unit/support/lock.h"
#include "vmm/base/metrics.h"

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };

static struct serial s;
static struct loop loop;
static int out[2], in[2], irq;

static void count_edge(const struct kvm_line *line)
{
    loop_signal(line->vm_fd);
}

static void set_up(void)
{
    cr_assert_eq(pipe2(out, O_NONBLOCK), 0);
    irq = eventfd(0, EFD_NONBLOCK);
    serial_init(&s, (struct kvm_line){ .vm_fd = irq }, out[1]);
    s.pulse = count_edge;
}

TestSuite(serial, .init = set_up);
TestSuite(serial_input, .init = set_up);

static uint8_t in8(unsigned reg)
{
    uint8_t value = 0x5a;

    s.bus.ops->read(&s.bus, reg, &value, 1);
    return value;
}

static void out8(unsigned reg, uint8_t value)
{
    s.bus.ops->write(&s.bus, reg, &value, 1);
}

static unsigned edges(void)
{
    return (unsigned)loop_drain(irq);
}

Test(serial, passes_output_on_byte_by_byte)
{
    char got[4];

    out8(DATA, 'v');
    out8(DATA, 'm');
    cr_expect_eq(read(out[0], got, 4), 2);
    cr_expect_arr_eq(got, "vm", 2);
    cr_expect_eq(in8(LSR) & 0x60, 0x60, "the transmitter is always ready");
}

Test(serial, drops_and_counts_what_the_reader_does_not_take)
{
    for (unsigned i = 0; i < 70000; i++)
        out8(DATA, 'x');
    cr_expect_gt(metrics.uart.error_count, 0);
    cr_expect_lt(metrics.uart.error_count, 70000);
}

Test(serial, survives_a_reader_that_is_gone)
{
    signal(SIGPIPE, SIG_IGN);
    close(out[0]);
    out8(DATA, 'x');
    cr_expect_eq(metrics.uart.error_count, 1);
}

static unsigned passed_on(unsigned bytes)
{
    uint8_t got[64];
    ssize_t n;

    for (unsigned i = 0; i < bytes; i++)
        out8(DATA, 'x');
    n = read(out[0], got, sizeof(got));
    return n < 0 ? 0 : (unsigned)n;
}

/* As if so much time had passed. */
static void let_minutes_pass(uint64_t minutes)
{
    s.counted_ns -= minutes * 60 * 1000000000;
}

Test(serial, passes_on_as_much_as_its_limit_gains_in_time)
{
    serial_limit(&s, &(struct token_bucket){ .size = 10, .refill_time_ms = 10 * 3600 * 1000 });
    cr_expect_eq(passed_on(15), 10);
    cr_expect_eq(metrics.uart.rate_limiter_dropped_bytes, 5);
    let_minutes_pass(181);
    cr_expect_eq(passed_on(15), 3, "one an hour");
    cr_expect_eq(passed_on(15), 0);
    let_minutes_pass(59);
    cr_expect_eq(passed_on(15), 1);
}

Test(serial, keeps_divisor_and_data_apart)
{
    char got[2];

    out8(LCR, 0x83);
    out8(DATA, 0x01);
    out8(IER, 0x02);
    cr_expect_eq(in8(DATA), 1);
    cr_expect_eq(in8(IER), 2);
    out8(LCR, 0x03);
    cr_expect_eq(in8(IER), 0);
    cr_expect_eq(read(out[0], got, 2), -1, "nothing was sent");
}

Test(serial, remembers_scratch_and_modem_control)
{
    for (unsigned v = 0; v < 256; v++) {
        out8(SCR, (uint8_t)v);
        cr_expect_eq(in8(SCR), v);
    }
    out8(MCR, 0xff);
    cr_expect_eq(in8(MCR), 0x1f);
    out8(LSR, 0);
    out8(MSR, 0);
    cr_expect_eq(in8(LSR), 0x60, "read-only");
}

Test(serial, answers_a_driver_s_loopback_test)
{
    out8(MCR, 0x10 | 0x0a);
    cr_expect_eq(in8(MSR) & 0xf0, 0x90);
    out8(MCR, 0x10 | 0x05);
    cr_expect_eq(in8(MSR) & 0xf0, 0x60);
    out8(DATA, 'l');
    cr_expect_eq(in8(DATA), 'l');
    out8(MCR, 0);
    cr_expect_eq(in8(MSR), 0xb0);
}

Test(serial, shows_its_fifo_when_that_is_on)
{
    cr_expect_eq(in8(IIR), 0x01);
    out8(IIR, 0x01);
    cr_expect_eq(in8(IIR), 0xc1);
    out8(IIR, 0x00);
    cr_expect_eq(in8(IIR), 0x01);
}

Test(serial, interrupts_when_the_transmitter_is_empty)
{
    out8(DATA, 'a');
    cr_expect_eq(edges(), 0, "not enabled");
    out8(IER, 0x02);
    cr_expect_eq(edges(), 1, "it is empty now");
    cr_expect_eq(in8(IIR), 0x02);
    cr_expect_eq(in8(IIR), 0x01, "reading acknowledged it");
    out8(DATA, 'b');
    cr_expect_eq(edges(), 1);
    out8(DATA, 'c');
    cr_expect_eq(edges(), 0, "still pending");
}

Test(serial, raises_what_was_pending_when_it_is_restored)
{
    struct serial_state saved = { .ier = 0x02, .scr = 0x77 };

    serial_restore(&s, &saved);
    cr_expect_eq(edges(), 0, "nothing was");
    saved.thr_empty_pending = true;
    serial_restore(&s, &saved);
    cr_expect_eq(edges(), 1);
    cr_expect_eq(in8(IIR), 0x02);
    saved.ier = 0;
    serial_restore(&s, &saved);
    cr_expect_eq(edges(), 0, "it is masked");
    cr_expect_eq(in8(7), 0x77);
}

Test(serial, ignores_accesses_of_other_widths)
{
    uint8_t bytes[4] = { 1, 2, 3, 4 };
    char got[4];

    s.bus.ops->write(&s.bus, DATA, bytes, 4);
    s.bus.ops->write(&s.bus, DATA, bytes, 2);
    cr_expect_eq(read(out[0], got, 4), -1);
    s.bus.ops->read(&s.bus, DATA, bytes, 4);
    cr_expect_eq(bytes[0], 1);
}

/* Serves the loop until nothing is ready. */
static void serve(void)
{
    struct epoll_event ev;

    while (epoll_wait(loop.epoll_fd, &ev, 1, 0) == 1) {
        struct loop_source *src = ev.data.ptr;

        src->on_ready(src, ev.events);
    }
}

static void attach(void)
{
    struct error e;

    cr_assert_eq(pipe2(in, O_NONBLOCK), 0);
    cr_assert_eq(dup2(in[0], STDIN_FILENO), STDIN_FILENO);
    cr_assert_eq(loop_init(&loop, &e), 0);
    cr_assert_eq(serial_attach_input(&s, &loop, &e), 0, "%s", e.msg);
}

Test(serial_input, interrupts_and_is_read_in_order)
{
    attach();
    out8(IER, 0x01);
    cr_assert_eq(write(in[1], "hi", 2), 2);
    serve();
    cr_expect_eq(edges(), 1);
    cr_expect_eq(in8(IIR), 0x04);
    cr_expect_eq(in8(LSR), 0x61);
    cr_expect_eq(in8(DATA), 'h');
    cr_expect_eq(in8(DATA), 'i');
    cr_expect_eq(in8(LSR), 0x60);
    cr_expect_eq(in8(IIR), 0x01);
    cr_expect_eq(in8(DATA), 0, "empty");
}

Test(serial_input, that_is_not_there_reads_as_zero_and_stays_so)
{
    attach();
    for (unsigned i = 0; i < 3; i++) {
        cr_expect_eq(in8(DATA), 0);
        cr_expect_eq(in8(LSR), 0x60);
    }
    cr_assert_eq(write(in[1], "a", 1), 1);
    serve();
    cr_expect_eq(in8(DATA), 'a');
    cr_expect_eq(in8(LSR), 0x60);
}

Test(serial_input, stays_where_the_fifo_is_not_cleared)
{
    attach();
    cr_assert_eq(write(in[1], "hi", 2), 2);
    serve();
    for (unsigned fcr = 0; fcr < 0x100; fcr++)
        if (!(fcr & 0x02))
            out8(IIR, (uint8_t)fcr);
    cr_expect_eq(in8(DATA), 'h');
    cr_expect_eq(in8(DATA), 'i');
}

Test(serial_input, goes_on_when_a_full_fifo_is_cleared)
{
    uint8_t sent[100];

    attach();
    for (unsigned i = 0; i < sizeof(sent); i++)
        sent[i] = (uint8_t)i;
    cr_assert_eq(write(in[1], sent, sizeof(sent)), sizeof(sent));
    serve();
    out8(IIR, 0x03);
    cr_expect_eq(in8(LSR), 0x60);
    serve();
    cr_expect_eq(in8(DATA), SERIAL_FIFO_BYTES, "what was in the FIFO is gone");
}

Test(serial_input, waits_in_the_pipe_while_the_fifo_is_full)
{
    uint8_t sent[200];

    attach();
    for (unsigned i = 0; i < sizeof(sent); i++)
        sent[i] = (uint8_t)i;
    cr_assert_eq(write(in[1], sent, sizeof(sent)), sizeof(sent));
    serve();
    cr_expect_eq(s.state.fifo_count, 64);
    for (unsigned i = 0; i < sizeof(sent); i++) {
        cr_expect_eq(in8(DATA), i);
        serve();
    }
    cr_expect_eq(s.state.fifo_count, 0);
}

Test(serial_input, stays_in_the_pipe_while_paused)
{
    attach();
    serial_pause(&s);
    cr_assert_eq(write(in[1], "x", 1), 1);
    serve();
    cr_expect_eq(s.state.fifo_count, 0);
    serial_resume(&s);
    serve();
    cr_expect_eq(s.state.fifo_count, 1);
}

Test(serial_input, does_not_spin_over_a_closed_pipe_while_it_waits)
{
    uint8_t sent[100] = { 0 };
    struct epoll_event ev;

    attach();
    cr_assert_eq(write(in[1], sent, sizeof(sent)), sizeof(sent));
    close(in[1]);
    serve();
    cr_expect_eq(epoll_wait(loop.epoll_fd, &ev, 1, 0), 0, "the FIFO is full");
    serial_pause(&s);
    for (unsigned i = 0; i < 64; i++)
        in8(DATA);
    serve();
    cr_expect_eq(s.state.fifo_count, 0, "paused: nothing is taken, space or not");
    serial_resume(&s);
    serve();
    cr_expect_eq(s.state.fifo_count, 36);
}

Test(serial_input, ends_quietly)
{
    attach();
    cr_assert_eq(write(in[1], "z", 1), 1);
    close(in[1]);
    serve();
    cr_expect_not(s.has_input);
    cr_expect_not(s.is_watching, "a closed pipe would wake the loop for ever");
    cr_expect_eq(in8(DATA), 'z');
}

Test(serial_input, that_cannot_be_watched_leaves_nothing)
{
    int file = open("/tmp", O_TMPFILE | O_RDWR, 0600), before, after;
    struct error e;

    cr_assert_eq(dup2(file, STDIN_FILENO), STDIN_FILENO); /* which no epoll takes */
    cr_assert_eq(loop_init(&loop, &e), 0);
    before = dup(irq);
    close(before);
    cr_expect_eq(serial_attach_input(&s, &loop, &e), -1);
    cr_expect_str_eq(e.msg, "The guest's console has no input: Operation not permitted (os error "
                            "1)");
    after = dup(irq);
    cr_expect_eq(after, before, "no descriptor stays open");
    serial_pause(&s);
    serial_resume(&s);
    out8(DATA, 'x');
    cr_expect_not(loop_turn(&loop, 0));
}

static void read_a_byte(void)
{
    in8(DATA);
}

static void write_a_byte(void)
{
    out8(DATA, 'x');
}

/* vCPUs, and the event loop. */
Test(serial_input, comes_to_one_thread_at_a_time)
{
    attach();
    cr_assert_eq(write(in[1], "z", 1), 1);
    cr_expect(waits_for(&s.lock, serve));
    cr_expect_eq(s.state.fifo_count, 1);
    cr_expect(waits_for(&s.lock, read_a_byte));
    cr_expect(waits_for(&s.lock, write_a_byte));
}
