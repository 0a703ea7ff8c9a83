/*
 * A 16550A UART at 0x3f8: the guest's console, on the process's stdin and stdout or on a file.
 *
 * Registers are touched by vCPU threads, input arrives on the event loop; one mutex guards the
 * state. Output that its file does not take at once is dropped and counted; input waits in the pipe
 * or the terminal while the 64-byte receive FIFO is full. Register rules: National Semiconductor
 * PC16550D data sheet, section 8.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/bucket.h"
#include "vmm/base/log.h"
#include "vmm/base/loop.h"
#include "vmm/kvm/bus.h"
#include "vmm/kvm/kvm.h"

#define SERIAL_PORT       0x3f8u
#define SERIAL_FIFO_BYTES 64u

struct serial_state { /* what the guest can observe */
    uint8_t ier, lcr, mcr, scr, dll, dlh;
    bool fifo_on;
    bool thr_empty_pending; /* the transmit-empty interrupt was not yet read from IIR */
    uint8_t fifo[SERIAL_FIFO_BYTES];
    unsigned fifo_head, fifo_count;
};

struct serial {
    struct bus_device bus;
    pthread_mutex_t lock;
    struct serial_state state;
    struct kvm_line line;
    void (*pulse)(const struct kvm_line *line); /* kvm_pulse(), or a test's */
    int out_fd;
    struct log_limit trouble; /* with that */
    struct bucket limit;      /* of output, in bytes */
    uint64_t counted_ns;      /* the clock when it was last refilled */
    struct loop *loop;
    bool has_input, is_watching, is_paused;
    struct loop_source input;      /* stdin, while has_input */
    struct loop_source fifo_space; /* an eventfd: a vCPU emptied a full FIFO */
};

/* Borrows out_fd. */
void serial_init(struct serial *s, struct kvm_line line, int out_fd);

/* Output beyond the limit is dropped. Before the guest runs. */
void serial_limit(struct serial *s, const struct token_bucket *limit);

/* Makes a port that was just made what another was. An interrupt that was pending is raised again:
 * a driver waits for it, and one too many does no harm. */
void serial_restore(struct serial *s, const struct serial_state *state);

/* Feeds stdin to the guest from now on. On failure the console has no input, and goes on. */
must_check int serial_attach_input(struct serial *s, struct loop *loop, struct error *e);

/* Stops and resumes reading input while the VM is paused. Loop thread. */
void serial_pause(struct serial *s);
void serial_resume(struct serial *s);
