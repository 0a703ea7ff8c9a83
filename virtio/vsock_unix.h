/*
 * The host's side of vsock: the listening socket, the command with which a host program says what
 * port of the guest it wants, and the sockets that the guest's connections lead to. All of them are
 * as Firecracker's docs/vsock.md has them. No socket here blocks.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmm/base/error.h"

struct vsock_listener {
    int fd; /* -1: none */
    dev_t device;
    ino_t inode; /* of the file that was bound: not given to another as long as fd is open */
};

/* Binds a stream socket to a new file and listens. 0, or -1 with a text and nothing made. */
must_check int vsock_unix_listen(struct vsock_listener *l, const char *path, struct error *e);

/* Whether the file at the path is the one that was bound: it may have been removed, and another may
 * lie there. */
bool vsock_unix_is_at(const struct vsock_listener *l, const char *path);

/* Stops listening; removes the file, if it is still that one. Harmless where there is none. */
void vsock_unix_close(struct vsock_listener *l, const char *path);

/* Accepts the next connection: a descriptor, or -errno. */
must_check int vsock_unix_accept(int listener);

/* Bounds what the kernel holds of what was written and not yet read: about 9 KiB, or 230 KiB for a
 * wide one. */
void vsock_unix_set_room(int fd, bool is_wide);

#define VSOCK_COMMAND_BYTES_MAX 32u

struct vsock_command { /* as far as it has come; zeroed at first */
    unsigned bytes;
    char text[VSOCK_COMMAND_BYTES_MAX + 1];
};

/* Reads `CONNECT <port>` and a line feed, and nothing behind that. 0; -EAGAIN where the line has
 * not ended yet; -EINVAL for any other line, one that is longer than VSOCK_COMMAND_BYTES_MAX, and
 * none at all. */
must_check int vsock_unix_read_command(int fd, struct vsock_command *c, uint32_t *port);

/* Connects to the socket that serves a port of the host, `<path>_<port>`: a descriptor, or -errno.
 * One whose backlog is full refuses. */
must_check int vsock_unix_connect(const char *path, uint32_t port);
