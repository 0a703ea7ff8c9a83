/*
 * The VMM's own threads: those of vCPUs, and those that wait for pages of guest memory.
 */
#pragma once

#include <pthread.h>

#include "vmm/base/error.h"

#define THREAD_NAME_BYTES 16 /* of the kernel's, with its end */

/* Starts a thread of that name, cut at what the kernel takes. Its stack is small, 64 KiB: a line of
 * the log is the largest on it. The caller's name is the thread's for a moment; in turn, a client
 * that looks for the thread after this finds it, also in a jail, where there is no /proc through
 * which another thread could be named. 0 or an errno. */
must_check int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *arg);
