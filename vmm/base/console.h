/*
 * The process's stdin and stdout as the guest's console: terminal settings and descriptors that
 * never block. The log shares the output. console_out() may be called from any thread once the main
 * thread has called it; the rest is for the main thread.
 */
#pragma once

#include <stdbool.h>

#include "vmm/base/error.h"

/* A descriptor for writing to stdout that fails with EAGAIN where stdout would block. The flags of
 * the caller's own stdout stay as they are where the host allows it (else they are put back by
 * console_restore()). */
int console_out(void);

/* Opens a file, FIFO or terminal for what is written without a thought of who reads it: at its end,
 * created when absent, without waiting for a reader or becoming its terminal's. A descriptor, or
 * -1 and errno. */
must_check int console_open_lines(const char *path);

/* True where stdin is a terminal or a FIFO: only these are given to the guest. */
bool console_has_input(void);

/* Puts a terminal on stdin into raw mode: each key goes to the guest, Ctrl-C included. */
void console_raw(void);

/* Undoes what this module changed. Async-signal-safe, harmless to repeat. */
void console_restore(void);
