/*
 * The kernel command line: the client's boot arguments, what the VMM adds for its devices, and
 * behind " -- " the client's arguments for init.
 */
#pragma once

#include "vmm/base/error.h"
#include "vmm/kvm/layout.h"

struct cmdline {
    char text[LAYOUT_CMDLINE_MAX];
    size_t boot_bytes; /* of text: what comes before the arguments for init */
};

/* boot_args NULL: the default arguments. The first " -- " outside double quotes begins the
 * arguments for init; blanks around either part are dropped. Fails where they don't fit. */
must_check int cmdline_init(struct cmdline *c, const char *boot_args, struct error *e);

/* Adds one argument behind a blank, before the arguments for init. Fails, changing nothing, where
 * it doesn't fit or isn't printable ASCII. */
must_check int cmdline_add(struct cmdline *c, struct error *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
