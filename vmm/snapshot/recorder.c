#include "vmm/snapshot/recorder.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/base/capabilities.h"
#include "vmm/base/log.h"
#include "vmm/base/thread.h"
#include "vmm/seccomp/seccomp.h"
#include "vmm/snapshot/half.h"
#include "vmm/snapshot/uffd.h"
#include "vmm/snapshot/working_set.h"

struct recorder {
    int fd;
    struct guest_mem mem, source; /* mem: where it was laid out; who owns it may move */
    const struct sock_fprog *filter;
    struct uuid name;
    char *path, *temporary;
    int file_fd;             /* of the temporary; -1: it was written */
    struct page_set touched; /* by the thread */
};

/* EEXIST: two threads have asked for it, and the first answer woke both. ENOENT and ESRCH: nobody
 * wants it any more. To read the page ends the process by SIGBUS where its file was cut off, as it
 * would where memory is mapped from that. */
static void serve(struct recorder *r, uint64_t address)
{
    const uint64_t page = gmem_page_of_(&r->mem, address);
    uint64_t behind;
    const volatile uint8_t *from = gmem_page_host_(&r->source, page, &behind);
    struct uffdio_copy copy = {
        .dst = address & ~(uint64_t)(GMEM_PAGE_BYTES - 1),
        .src = (uintptr_t)from,
        .len = GMEM_PAGE_BYTES,
    };

    __atomic_fetch_or(&r->touched.words[page / 64], UINT64_C(1) << page % 64, __ATOMIC_RELAXED);
    while (ioctl(r->fd, UFFDIO_COPY, &copy) < 0 && errno != EEXIST && errno != ENOENT &&
           errno != ESRCH)
        (void)*from;
}

static void *pager_thread(void *arg)
{
    struct recorder *r = arg;
    struct uffd_msg message;

    BUG_ON(capabilities_give_up() < 0);
    BUG_ON(r->filter && seccomp_install(r->filter) < 0);
    for (;;)
        if (read(r->fd, &message, sizeof(message)) == sizeof(message) &&
            message.event == UFFD_EVENT_PAGEFAULT)
            serve(r, message.arg.pagefault.address);
    return NULL;
}

static int start_pager(struct recorder *r, struct error *e)
{
    pthread_t thread;
    int ret;

    if (fcntl(r->fd, F_SETFL, 0) < 0)
        return fail_os(e, errno, "fcntl");
    ret = thread_start(&thread, "fc_pager", pager_thread, r);
    return ret ? fail_os(e, ret, "cannot start the thread that serves pages") : 0;
}

/* Only a record, or an empty file, is replaced by one: no device, no link, and not the memory. */
static int check_replaced(const char *path, struct error *e)
{
    autofd int fd = -1;
    struct stat st;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : fail_os(e, errno, "%s can't be written", path);
    if (S_ISREG(st.st_mode))
        fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (S_ISREG(st.st_mode) && fd < 0)
        return fail_os(e, errno, "%s can't be looked at", path);
    if (fd < 0 || (st.st_size > 0 && !working_set_is_in(fd)))
        return fail(e, ERR_INVALID, "%s is there, and no working set", path);
    return 0;
}

static int open_record(struct recorder *r, const char *path, struct error *e)
{
    struct stat st;

    r->path = strdup(path);
    BUG_ON(!r->path || asprintf(&r->temporary, "%s" SNAPSHOT_TEMPORARY, path) < 0);
    if (check_replaced(path, e) < 0)
        return -1;
    r->file_fd = half_open_temporary(r->temporary, NULL);
    if (r->file_fd < 0)
        return fail_os(e, -r->file_fd, "%s can't be %s", r->temporary,
                       r->file_fd == -EAGAIN ? "locked" : "written");
    if (fstat(r->file_fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close_fdp(&r->file_fd); /* not ours to be removed */
        r->file_fd = -1;
        return fail(e, ERR_INVALID, "%s is no regular file", r->temporary);
    }
    return ftruncate(r->file_fd, 0) < 0 ? fail_os(e, errno, "%s can't be written", r->temporary)
                                        : 0;
}

static void close_record(struct recorder *r)
{
    if (r->file_fd >= 0)
        unlink(r->temporary);
    close_fdp(&r->file_fd);
    r->file_fd = -1;
}

struct recorder *recorder_open(const struct guest_mem *mem, struct guest_mem *source,
                               const struct uuid *name, const char *path,
                               const struct sock_fprog *filter, struct error *e)
{
    struct recorder *r = calloc(1, sizeof(*r));

    BUG_ON(!r);
    *r = (struct recorder){ .fd = -1, .mem = *mem, .source = *source, .filter = filter };
    r->file_fd = -1;
    r->name = *name;
    r->touched.pages = gmem_pages(mem);
    r->touched.words = calloc(r->touched.pages / 64, sizeof(*r->touched.words));
    BUG_ON(!r->touched.words);
    if (open_record(r, path, e) == 0 && uffd_register(&r->fd, mem, 0, e) == 0 &&
        start_pager(r, e) == 0) {
        *source = (struct guest_mem){ 0 };
        return r;
    }
    close_record(r);
    close_fdp(&r->fd);
    free(r->touched.words);
    free(r->temporary);
    free(r->path);
    free(r);
    fail_within(e, "the working set can't be recorded");
    return NULL;
}

static int commit_record(struct recorder *r, struct error *e)
{
    if (fsync(r->file_fd) < 0)
        return fail_os(e, errno, "cannot be synced");
    if (rename(r->temporary, r->path) < 0)
        return fail_os(e, errno, "cannot be renamed");
    close_fdp(&r->file_fd);
    r->file_fd = -1;
    return 0;
}

static int write_record(struct recorder *r, const struct snapshot_memory *m, uint64_t *pages,
                        struct error *e)
{
    struct working_set w = { 0 };
    struct page_set written;
    int ret = snapshot_memory_pages(m, SNAPSHOT_FULL, &written, e);

    if (ret == 0)
        ret = working_set_make(&w, &r->touched, &written, e);
    if (ret == 0)
        ret = working_set_write(&w, r->file_fd, &r->name, &r->source, e);
    if (ret == 0)
        ret = commit_record(r, e);
    *pages = working_set_pages(&w);
    working_set_fini(&w);
    free(written.words);
    return ret;
}

void recorder_write(struct recorder *r, const struct snapshot_memory *m)
{
    struct error e;
    uint64_t pages;

    if (r->file_fd < 0)
        return;
    if (write_record(r, m, &pages, &e) == 0)
        log_info("The working set is in %s: %llu pages", r->path, (unsigned long long)pages);
    else
        log_error("The working set %s is not written: %s", r->path, e.msg);
    close_record(r);
}

void recorder_close(struct recorder *r)
{
    close_record(r);
    uffd_unregister(r->fd, &r->mem);
}
