/* The kernel command line: the client's arguments, then what the VMM adds for its devices. */
#pragma once

#include "vmm/boot/layout.h"
#include "vmm/error.h"

struct cmdline {
    char text[LAYOUT_CMDLINE_MAX];
};

/* boot_args NULL: the default arguments. Fails where they don't fit. */
must_check int cmdline_init(struct cmdline *c, const char *boot_args, struct error *e);

/* Adds one argument behind a blank, before the " -- " that begins the arguments for init. */
must_check int cmdline_add(struct cmdline *c, struct error *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
