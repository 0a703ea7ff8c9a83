/*
 * The API's socket: at most API_CONNECTIONS_MAX clients on a UNIX stream socket, served by the main
 * thread's loop. A turn of the loop carries out one request at most. What a client can make us hold
 * is bounded: a line, a body of max_payload bytes, and one answer; while a client leaves its answer
 * unread, nothing more is read from it.
 */
#pragma once

#include <stddef.h>

#include "vmm/base/error.h"
#include "vmm/base/loop.h"
#include "vmm/machine/vm.h"

#define API_CONNECTIONS_MAX 10

struct api;

/* Listens at path, which must not exist and is never removed: clients do that. max_payload is the
 * largest body in bytes. Borrows the loop and the VM. NULL on failure. */
must_check struct api *api_open(struct loop *loop, struct vm *vm, const char *path,
                                size_t max_payload, struct error *e);

/* Closes the socket and its connections. Not from within the loop's callbacks. */
void api_close(struct api *api);
