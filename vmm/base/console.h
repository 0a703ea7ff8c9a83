/*
 * The process's stdin and stdout as the guest's console: terminal settings and descriptors that
 * never block. The log shares the output. What is changed of a terminal or of an open file that
 * others share is put back before SIGTERM, SIGINT or SIGQUIT ends the process, too. console_out()
 * may be called from any thread once the main thread has called it; the rest is for the main
 * thread.
 */
#pragma once

#include <stdbool.h>

#include "vmm/base/error.h"

/* A descriptor for writing to stdout that fails with EAGAIN where stdout would block. The flags of
 * the caller's own stdout stay as they are where the host allows it (else they are put back by
 * console_restore()). */
int console_out(void);

/* Opens a file, FIFO or terminal for what is written without a thought of who reads it: at its end,
 * created when absent (for whom the umask says), without waiting for a reader or becoming its
 * terminal's. A descriptor, or -1 and errno. */
must_check int console_open_lines(const char *path);

/* True where stdin is a FIFO, or a terminal that is not somebody else's just now (this process runs
 * in the background of a shell): only these are given to the guest. */
bool console_has_input(void);

/* Puts a terminal on stdin into raw mode: each key goes to the guest, Ctrl-C included. */
void console_raw(void);

/* Undoes console_raw(); a terminal that is somebody else's by now is left alone. Async-signal-safe,
 * harmless to repeat. */
void console_cooked(void);

/* Undoes all that this module changed: from now on console_out() may block. Async-signal-safe,
 * harmless to repeat. */
void console_restore(void);
