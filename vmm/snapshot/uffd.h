/*
 * Guest memory whose pages another process serves, by userfaultfd(2): the Uffd backend of a load.
 *
 * The handler listens on a UNIX stream socket. It is sent one message: the userfaultfd, and where
 * the regions of guest memory are, as JSON. From then on whoever touches a page that it has not
 * served waits for it; nothing else is ever said. userfaultfd and socket stay open here: without
 * the one, a handler's end would turn pages that are missing into zeroes; by the other the handler
 * notices ours.
 *
 * A handler may be slow, and it may be dead. So that this is no matter of the main thread's, a
 * thread of this module ("fc_uffd") touches the pages that the VMM needs itself and can be waited
 * for with a deadline. And it alone takes the signals that end the process: a thread that waits for
 * a page inside of a system call runs no handler.
 *
 * All functions are for the main thread.
 */
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include "vmm/base/error.h"
#include "vmm/kvm/guest_mem.h"

struct sock_fprog;

/* How long no page was served when a handler is given up. */
#define UFFD_PATIENCE_S 10

struct uffd {
    int fd, socket_fd;
    char *path;
    pid_t handler;        /* 0: it is in no PID namespace that we see */
    struct guest_mem mem; /* where it was laid out: who owns it may move to another place */
    const struct sock_fprog *filter;
    uint64_t patience_ns;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    gpa_t next, end; /* pages to touch */
    gpa_t touched;   /* the one that the thread waits for */
    bool is_touching;
    uint64_t served_ns; /* when there last was one, or the first was asked for */
};

/* Makes the handler that listens at path serve guest memory, of which nobody has touched a page
 * yet, and starts the thread: before all others, so that none of them takes its signals, and
 * confined to a seccomp filter (NULL: none). Borrows filter, and what is mapped for mem. NULL on
 * failure; then memory is what it was, unless a handler serves it already: so the VM is given up.
 */
must_check struct uffd *uffd_open(const struct guest_mem *mem, const char *path,
                                  const struct sock_fprog *filter, struct error *e);

/* Returns when all pages of [at, at + n) are there, which lies within one region. Fails, naming the
 * handler and the page, where none came for UFFD_PATIENCE_S; they may come later. The thread waits
 * for that page until it is there, and so does the next call. */
must_check int uffd_fetch(struct uffd *u, gpa_t at, uint64_t n, struct error *e);

/* Says who the handler is, for whoever looks for the cause of a VM that stands still. */
const char *uffd_describe(const struct uffd *u, char *text, size_t bytes);

/* Gives up the handler: what is missing is zero from now on, so for a VM that won't run. The thread
 * stays, for the process's last signals, and with it *u. False: it still waits for a page, since
 * the handler has registered memory again, and UFFD_PATIENCE_S have passed; then guest memory has
 * to stay mapped until the process ends. */
must_check bool uffd_close(struct uffd *u);

/* Of all of guest memory, in which nobody has touched a page yet, the missing pages are from now on
 * served by whoever reads *fd: a new userfaultfd with these features, which does not block. It may
 * be open on failure, too. */
must_check int uffd_register(int *fd, const struct guest_mem *mem, uint64_t features,
                             struct error *e);

/* No more: what is missing is zero, and who waits goes on. */
void uffd_unregister(int fd, const struct guest_mem *mem);
