#include "virtio/vsock_unix.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET_TYPE (SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)

/* Of hosts that connect before the guest's driver is there; the system's limit may be lower. */
#define BACKLOG 1024

#define BIND_ERROR "Error binding to the host-side Unix socket"

/* False: the path is too long. An empty one makes the system choose an abstract name (unix(7)). */
static bool make_address(struct sockaddr_un *a, socklen_t *length, const char *path)
{
    const size_t n = strlen(path);

    if (n >= sizeof(a->sun_path))
        return false;
    *a = (struct sockaddr_un){ .sun_family = AF_UNIX };
    memcpy(a->sun_path, path, n);
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (n > 0 ? n + 1 : 0));
    return true;
}

bool vsock_unix_is_at(const struct vsock_listener *l, const char *path)
{
    struct stat st;

    return l->fd >= 0 && lstat(path, &st) == 0 && st.st_dev == l->device && st.st_ino == l->inode;
}

void vsock_unix_close(struct vsock_listener *l, const char *path)
{
    if (vsock_unix_is_at(l, path))
        unlink(path);
    close_fdp(&l->fd);
    l->fd = -1;
}

int vsock_unix_listen(struct vsock_listener *l, const char *path, struct error *e)
{
    struct sockaddr_un address;
    struct stat st = { .st_ino = 0 };
    socklen_t length;
    autofd int fd = -1;

    if (!make_address(&address, &length, path))
        return fail(e, ERR_INVALID, BIND_ERROR ": path must be shorter than SUN_LEN");
    fd = socket(AF_UNIX, SOCKET_TYPE, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) < 0)
        return fail_path(e, errno, path, BIND_ERROR);
    lstat(path, &st);
    *l = (struct vsock_listener){ take_fd(&fd), st.st_dev, st.st_ino };
    if (listen(l->fd, BACKLOG) == 0)
        return 0;
    fail_path(e, errno, path, BIND_ERROR);
    vsock_unix_close(l, path); /* the file would be in the way of another try */
    return -1;
}

int vsock_unix_accept(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

/* The kernel doubles it, and lets the last packet pass the bound. The wide one is what Linux gives
 * a socket of its own accord; the other the least with two packets of a page. */
void vsock_unix_set_room(int fd, bool is_wide)
{
    const int bytes = is_wide ? 104 << 10 : 4 << 10;

    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

/* Decimal digits after blanks, up to a blank or the end. */
static bool parse_port(const char *s, uint32_t *port)
{
    uint64_t value = 0;

    s += strspn(s, " \t\r\v\f");
    s += *s == '+';
    if (!isdigit((unsigned char)*s))
        return false;
    for (; isdigit((unsigned char)*s) && value <= UINT32_MAX; s++)
        value = value * 10 + (uint64_t)(*s - '0');
    *port = (uint32_t)value;
    return value <= UINT32_MAX && (*s == '\0' || isspace((unsigned char)*s));
}

static int parse_command(const char *line, uint32_t *port)
{
    static const char word[] = "connect";
    const char *at = line + strspn(line, " \t\r\v\f");

    if (strncasecmp(at, word, sizeof(word) - 1) != 0 ||
        !isspace((unsigned char)at[sizeof(word) - 1]))
        return -EINVAL;
    return parse_port(at + sizeof(word) - 1, port) ? 0 : -EINVAL;
}

int vsock_unix_read_command(int fd, struct vsock_command *c, uint32_t *port)
{
    char *at = c->text + c->bytes;
    ssize_t there = recv(fd, at, VSOCK_COMMAND_BYTES_MAX - c->bytes, MSG_PEEK);
    char *end;
    size_t n;

    if (there <= 0)
        return there < 0 && errno == EAGAIN ? -EAGAIN : -EINVAL;
    end = memchr(at, '\n', (size_t)there);
    n = end ? (size_t)(end - at) + 1 : (size_t)there;
    if (read(fd, at, n) != (ssize_t)n)
        return -EINVAL;
    c->bytes += (unsigned)n;
    if (!end)
        return c->bytes < VSOCK_COMMAND_BYTES_MAX ? -EAGAIN : -EINVAL;
    *end = '\0';
    return strlen(c->text) + 1 == c->bytes ? parse_command(c->text, port) : -EINVAL;
}

/* With all of the address: a filter allows no other length (vmm/seccomp/policy.h). */
int vsock_unix_connect(const char *path, uint32_t port)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int n = snprintf(address.sun_path, sizeof(address.sun_path), "%s_%u", path, port);
    autofd int fd = -1;

    if (n < 0 || (size_t)n >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    fd = socket(AF_UNIX, SOCKET_TYPE, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    return take_fd(&fd);
}
