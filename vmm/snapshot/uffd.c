#include "vmm/snapshot/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "vmm/base/capabilities.h"
#include "vmm/base/clock.h"
#include "vmm/base/thread.h"
#include "vmm/seccomp/seccomp.h"

#define HUGE_2M_BYTES (2u << 20)

/* A region's item is at most 140 bytes. */
#define MESSAGE_BYTES (GMEM_REGIONS_MAX * 160)

/* Signals that are sent to the process, and by which it ends (signals.h, inherited.h). */
static const int ends[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGXCPU };

/* By the device, which its mode gives to somebody; or by the system call, which the host gives to
 * all or to the privileged. 0 or -errno. */
static int new_userfaultfd(int *fd)
{
    autofd int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int device_errno = errno;

    if (device >= 0)
        *fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    else
        *fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (*fd >= 0)
        return 0;
    return device < 0 && device_errno != ENOENT ? -device_errno : -errno;
}

int uffd_register(int *fd, const struct guest_mem *mem, uint64_t features, struct error *e)
{
    struct uffdio_api api = { .api = UFFD_API, .features = features };
    int ret = new_userfaultfd(fd);

    if (ret < 0)
        return fail_os(e, -ret, "Failed to UFFD object");
    if (ioctl(*fd, UFFDIO_API, &api) < 0)
        return fail_os(e, errno, "Failed to UFFD object: UFFDIO_API");
    for (unsigned i = 0; i < mem->region_count; i++) {
        struct uffdio_register range = {
            .range = { (uintptr_t)mem->regions[i].host, mem->regions[i].bytes },
            .mode = UFFDIO_REGISTER_MODE_MISSING,
        };

        if (ioctl(*fd, UFFDIO_REGISTER, &range) < 0)
            return fail_os(e, errno,
                           "Failed to register memory address range with the userfaultfd object");
    }
    return 0;
}

void uffd_unregister(int fd, const struct guest_mem *mem)
{
    for (unsigned i = 0; i < mem->region_count; i++) {
        struct uffdio_range range = { (uintptr_t)mem->regions[i].host, mem->regions[i].bytes };

        (void)!ioctl(fd, UFFDIO_UNREGISTER, &range);
    }
}

/* Waits for a place in the queue of a handler that is not there yet, but not for ever. */
static int connect_handler(struct uffd *u, struct error *e)
{
    const struct timeval timeout = { .tv_sec = UFFD_PATIENCE_S };
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct ucred peer = { .pid = 0 };
    socklen_t bytes = sizeof(peer);

    if (strlen(u->path) >= sizeof(address.sun_path))
        return fail(e, ERR_INVALID,
                    "Failed to connect to UDS Unix stream: path must be shorter than SUN_LEN");
    memcpy(address.sun_path, u->path, strlen(u->path));
    u->socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (u->socket_fd < 0 || fcntl(u->socket_fd, F_SETFL, 0) < 0 ||
        setsockopt(u->socket_fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0 ||
        connect(u->socket_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        getsockopt(u->socket_fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
        return fail_os(e, errno, "Failed to connect to UDS Unix stream");
    u->handler = peer.pid;
    return 0;
}

/* Handlers read 1024 bytes at most. page_size_kib is in bytes, as it is in Firecracker. */
static size_t write_message(const struct guest_mem *m, char text[MESSAGE_BYTES])
{
    const unsigned page_bytes = m->hugetlb ? HUGE_2M_BYTES : GMEM_PAGE_BYTES;
    uint64_t offset = 0;
    size_t n = 0;

    for (unsigned i = 0; i < m->region_count; i++) {
        const struct gmem_region *r = &m->regions[i];

        n += (size_t)snprintf(text + n, MESSAGE_BYTES - n,
                              "%c{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,"
                              "\"page_size\":%u,\"page_size_kib\":%u}%s",
                              i ? ',' : '[', (unsigned long long)(uintptr_t)r->host,
                              (unsigned long long)r->bytes, (unsigned long long)offset, page_bytes,
                              page_bytes, i + 1 == m->region_count ? "]" : "");
        offset += r->bytes;
    }
    return n;
}

static int send_message(const struct uffd *u, struct error *e)
{
    char text[MESSAGE_BYTES];
    struct iovec bytes = { text, write_message(&u->mem, text) };
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { .room = { 0 } };
    struct msghdr message = {
        .msg_iov = &bytes,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &u->fd, sizeof(int));
    return sendmsg(u->socket_fd, &message, MSG_NOSIGNAL) < 0
               ? fail_os(e, errno, "Failed to sends file descriptor")
               : 0;
}

/* Without a lock where it may wait. What is to be touched can change meanwhile: then the page that
 * came is one that somebody has given up. */
static void *fetch_thread(void *arg)
{
    struct uffd *u = arg;

    BUG_ON(capabilities_give_up() < 0);
    BUG_ON(u->filter && seccomp_install(u->filter) < 0);
    pthread_mutex_lock(&u->lock);
    for (;;) {
        gpa_t at = u->next;

        u->touched = at;
        u->is_touching = at.v != u->end.v;
        if (!u->is_touching) {
            pthread_cond_broadcast(&u->changed);
            pthread_cond_wait(&u->changed, &u->lock);
            continue;
        }
        pthread_mutex_unlock(&u->lock);
        gmem_touch(&u->mem, at);
        pthread_mutex_lock(&u->lock);
        u->served_ns = monotonic_ns();
        if (u->next.v == at.v && u->end.v != at.v)
            u->next.v += GMEM_PAGE_BYTES;
    }
    return NULL;
}

static int start_uffd_thread(struct uffd *u, struct error *e)
{
    pthread_t thread;
    sigset_t set;
    int ret;

    ret = thread_start(&thread, "fc_uffd", fetch_thread, u);
    if (ret)
        return fail_os(e, ret, "Failed to start the thread that waits for pages");
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        sigaddset(&set, ends[i]);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return 0;
}

struct uffd *uffd_open(const struct guest_mem *mem, const char *path,
                       const struct sock_fprog *filter, struct error *e)
{
    struct uffd *u = calloc(1, sizeof(*u));

    BUG_ON(!u);
    *u = (struct uffd){
        .fd = -1,
        .socket_fd = -1,
        .path = strdup(path),
        .mem = *mem,
        .filter = filter,
        .patience_ns = UFFD_PATIENCE_S * NS_PER_S,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
    };
    BUG_ON(!u->path);
    if (uffd_register(&u->fd, &u->mem, UFFD_FEATURE_EVENT_REMOVE, e) == 0 &&
        connect_handler(u, e) == 0 && send_message(u, e) == 0 && start_uffd_thread(u, e) == 0)
        return u;
    close_fdp(&u->fd);
    close_fdp(&u->socket_fd);
    free(u->path);
    free(u);
    fail_within(e, "Error creating guest memory from uffd");
    return NULL;
}

const char *uffd_describe(const struct uffd *u, char *text, size_t bytes)
{
    if (u->handler > 0)
        snprintf(text, bytes, "the page fault handler at %s (process %d)", u->path,
                 (int)u->handler);
    else
        snprintf(text, bytes, "the page fault handler at %s", u->path);
    return text;
}

static int fail_unserved(const struct uffd *u, gpa_t at, struct error *e)
{
    char who[192];

    return fail(e, ERR_HOST, "%s has served no page for %u seconds: guest memory at 0x%llx",
                uffd_describe(u, who, sizeof(who)), UFFD_PATIENCE_S, (unsigned long long)at.v);
}

/* False: none came for too long. With the lock. */
static bool wait_for_page(struct uffd *u)
{
    const struct timespec until = timespec_of(u->served_ns + u->patience_ns);

    return pthread_cond_clockwait(&u->changed, &u->lock, CLOCK_MONOTONIC, &until) != ETIMEDOUT ||
           monotonic_ns() < u->served_ns + u->patience_ns;
}

int uffd_fetch(struct uffd *u, gpa_t at, uint64_t n, struct error *e)
{
    int ret = 0;

    BUG_ON(!gmem_has(&u->mem, at, n));
    pthread_mutex_lock(&u->lock);
    u->next = gpa(at.v & ~(uint64_t)(GMEM_PAGE_BYTES - 1));
    u->end = gpa((at.v + n + GMEM_PAGE_BYTES - 1) & ~(uint64_t)(GMEM_PAGE_BYTES - 1));
    u->served_ns = monotonic_ns();
    pthread_cond_broadcast(&u->changed);
    while (u->next.v != u->end.v && wait_for_page(u))
        ;
    if (u->next.v != u->end.v) { /* the thread may still wait for what was given up before */
        ret = fail_unserved(u, u->is_touching ? u->touched : u->next, e);
        u->end = u->next;
    }
    pthread_mutex_unlock(&u->lock);
    return ret;
}

/* Whoever waits for a page of memory that is registered no more finds zeroes; but the handler, who
 * has the descriptor, too, can register it again. */
bool uffd_close(struct uffd *u)
{
    bool is_idle;

    uffd_unregister(u->fd, &u->mem);
    pthread_mutex_lock(&u->lock);
    u->next = u->end;
    u->served_ns = monotonic_ns();
    while (u->is_touching && wait_for_page(u))
        ;
    is_idle = !u->is_touching;
    pthread_mutex_unlock(&u->lock);
    close_fdp(&u->fd);
    close_fdp(&u->socket_fd);
    u->fd = u->socket_fd = -1;
    return is_idle;
}
