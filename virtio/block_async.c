#include "virtio/block_async.h"

#include <errno.h>
#include <liburing.h>

/* The places of the disk's files in the ring's table of registered files, which spares each
 * operation the look-up of a descriptor, are those of struct block_extent. */
#define FILES_MAX (BLOCK_LAYERS_MAX + 2)

struct block_async {
    struct io_uring ring;
};

static int block_async_refuse(struct error *e, int os_errno)
{
    return fail(e, ERR_HOST,
                "Virtio backend error: The Async io_engine needs io_uring, which this host does "
                "not provide: %s (os error %d). Use Sync",
                os_error_text(os_errno), os_errno);
}

/* What goes through a ring passes by the seccomp filters. So the ring is left with what a disk
 * needs, on the files that it knows. */
static int restrict_and_enable(struct io_uring *ring)
{
    struct io_uring_restriction allowed[] = {
        { .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ },
        { .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READV },
        { .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITE },
        { .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITEV },
        { .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_FSYNC },
        { .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_FALLOCATE },
        { .opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED, .sqe_flags = IOSQE_FIXED_FILE },
        { .opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_FILES_UPDATE },
    };
    int ret = io_uring_register_restrictions(ring, allowed, sizeof(allowed) / sizeof(*allowed));

    return ret < 0 ? ret : io_uring_enable_rings(ring);
}

/* The table for a disk, in which places are free only for an overlay's layers to come: how many
 * there are. */
static unsigned list_files(const struct block_file *f, int fds[FILES_MAX])
{
    const unsigned layers = f->overlay ? block_overlay_files(f->overlay) : 0;

    fds[0] = f->fd;
    for (unsigned i = 1; i < FILES_MAX; i++)
        fds[i] = i <= layers ? block_overlay_file(f->overlay, i) : -1;
    return f->overlay ? FILES_MAX : 1;
}

int block_async_new(struct block_async **out, const struct block_file *f, struct error *e)
{
    struct block_async *a = calloc(1, sizeof(*a));
    int ret, fds[FILES_MAX];
    const unsigned count = list_files(f, fds);

    BUG_ON(!a);
    /* Completions wait for our next system call instead of interrupting this thread (since 5.19).
     * The kernel opens the ring close-on-exec. */
    ret = io_uring_queue_init(VIRTQ_SIZE_MAX, &a->ring,
                              IORING_SETUP_COOP_TASKRUN | IORING_SETUP_R_DISABLED);
    if (ret == -EINVAL)
        ret = io_uring_queue_init(VIRTQ_SIZE_MAX, &a->ring, IORING_SETUP_R_DISABLED);
    if (ret < 0) {
        free(a);
        return block_async_refuse(e, -ret);
    }
    ret = io_uring_register_files(&a->ring, fds, count);
    if (ret == 0)
        ret = restrict_and_enable(&a->ring);
    if (ret < 0) {
        block_async_free(a);
        return block_async_refuse(e, -ret);
    }
    *out = a;
    return 0;
}

void block_async_free(struct block_async *a)
{
    if (!a)
        return;
    io_uring_queue_exit(&a->ring);
    free(a);
}

int block_async_set_file(struct block_async *a, const struct block_file *f)
{
    int fds[FILES_MAX];
    const unsigned count = list_files(f, fds);
    const int ret = io_uring_register_files_update(&a->ring, 0, fds, count);

    return ret < 0 ? ret : 0;
}

int block_async_fd(const struct block_async *a)
{
    return a->ring.ring_fd;
}

static struct io_uring_sqe *next_entry(struct block_async *a)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&a->ring);

    BUG_ON(!sqe); /* as many entries as there may be operations */
    return sqe;
}

static void complete_entry(struct io_uring_sqe *sqe, void *tag)
{
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, tag);
}

/* One buffer needs no list, which the kernel would copy when the operation is submitted (since 5.5)
 * and again where it has to wait. */
static void transfer(struct block_async *a, struct chain *c, bool is_read,
                     const struct block_extent *x, void *tag)
{
    struct io_uring_sqe *sqe = next_entry(a);
    const int file = (int)x->file;
    unsigned count;
    const struct iovec *iov = chain_lend_(c, is_read, x->bytes, &count);

    if (count == 1)
        io_uring_prep_rw(is_read ? IORING_OP_READ : IORING_OP_WRITE, sqe, file, iov->iov_base,
                         (unsigned)iov->iov_len, x->offset);
    else
        io_uring_prep_rw(is_read ? IORING_OP_READV : IORING_OP_WRITEV, sqe, file, iov, count,
                         x->offset);
    complete_entry(sqe, tag);
}

void block_async_read(struct block_async *a, struct chain *c, const struct block_extent *x,
                      void *tag)
{
    transfer(a, c, true, x, tag);
}

void block_async_write(struct block_async *a, struct chain *c, const struct block_extent *x,
                       void *tag)
{
    transfer(a, c, false, x, tag);
}

/* No ordering flag: a write with a result is in the page cache, which is all that fdatasync needs,
 * and the guest is promised nothing about writes that were still under way. */
void block_async_sync(struct block_async *a, const struct block_file *f, void *tag)
{
    struct io_uring_sqe *sqe = next_entry(a);
    const unsigned file = f->overlay ? block_overlay_files(f->overlay) : 0;

    io_uring_prep_fsync(sqe, (int)file, IORING_FSYNC_DATASYNC);
    complete_entry(sqe, tag);
}

void block_async_fallocate(struct block_async *a, int mode, const struct block_extent *x, void *tag)
{
    struct io_uring_sqe *sqe = next_entry(a);

    io_uring_prep_fallocate(sqe, (int)x->file, mode, (off_t)x->offset, (off_t)x->bytes);
    complete_entry(sqe, tag);
}

static bool is_transient(int ret)
{
    return ret == -EAGAIN || ret == -EBUSY || ret == -EINTR || ret == -ENOMEM;
}

bool block_async_submit(struct block_async *a)
{
    while (io_uring_sq_ready(&a->ring) > 0) {
        int ret = io_uring_submit(&a->ring);

        BUG_ON(ret < 0 && !is_transient(ret));
        if (ret <= 0 && ret != -EINTR)
            return false;
    }
    return true;
}

bool block_async_take(struct block_async *a, void **tag, int *result)
{
    struct io_uring_cqe *cqe;

    if (io_uring_peek_cqe(&a->ring, &cqe) < 0)
        return false;
    *tag = io_uring_cqe_get_data(cqe);
    *result = cqe->res;
    io_uring_cqe_seen(&a->ring, cqe);
    return true;
}

void block_async_wait(struct block_async *a)
{
    int ret = io_uring_submit_and_wait(&a->ring, 1);

    BUG_ON(ret < 0 && !is_transient(ret));
}
