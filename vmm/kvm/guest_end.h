/*
 * How the guest ends the VM: any thread says so once, the event loop hears of it through an
 * eventfd.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/loop.h"

struct guest_end {
    int event_fd;         /* readable once the guest has ended */
    atomic_int exit_code; /* of the process; meaningful once `ended` */
    atomic_bool ended;
};

/* Any thread. The first caller's exit code counts. */
static inline void guest_end_signal(struct guest_end *end, int exit_code)
{
    if (atomic_exchange(&end->ended, true))
        return;
    end->exit_code = exit_code;
    loop_signal(end->event_fd);
}
