/*
 * The PS/2 controller at 0x60 and 0x64: the guest resets the machine through it, and Ctrl-Alt-Del
 * reaches the guest through it. Behind it is a keyboard that acknowledges commands, so that a
 * driver's probe ends at once and not in a time-out; there is no mouse.
 *
 * Registers are touched by vCPU threads, keys arrive from the event loop; one mutex guards the
 * state. Rules: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
 * Controller".
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/kvm/bus.h"
#include "vmm/kvm/guest_end.h"
#include "vmm/kvm/kvm.h"

#define I8042_PORT         0x60u
#define I8042_BUFFER_BYTES 16u

struct i8042_state { /* what the guest can observe */
    uint8_t command_byte;
    uint8_t output_port;
    uint8_t pending_command;  /* waits for its parameter on the data port; 0: none */
    uint8_t keyboard_command; /* likewise, of the keyboard */
    uint8_t buffer[I8042_BUFFER_BYTES];
    unsigned head, count;
};

struct i8042 {
    struct bus_device bus;
    pthread_mutex_t lock;
    struct i8042_state state;
    struct kvm_line line;
    void (*pulse)(const struct kvm_line *line); /* kvm_pulse(), or a test's */
    struct guest_end *end;
};

/* Borrows end, to which a reset by the guest is told (exit code 0). */
void i8042_init(struct i8042 *k, struct kvm_line line, struct guest_end *end);

/* Makes a controller that was just made what another was. An interrupt for what is queued is raised
 * again. */
void i8042_restore(struct i8042 *k, const struct i8042_state *state);

/* Queues the scan codes of Ctrl, Alt and Del. Fails, queueing none, when the guest has masked the
 * keyboard's interrupt or has not read what is queued. */
must_check int i8042_ctrl_alt_del(struct i8042 *k, struct error *e);
