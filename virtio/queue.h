/*
 * Split virtqueues (virtio 1.2, section 2.7): the only code that reads or writes a ring.
 *
 * The rings are shared with a hostile guest. Each word is read once into host memory, judged there
 * and used from there. A popped request is a "chain": the host-side copy of its descriptors, as
 * a cursor over the device-readable bytes and another over the device-writable bytes. Devices see
 * neither descriptors nor host addresses, and can't read a byte twice.
 *
 * A guest's memory is written in five places, each of which tells gmem_wrote_():
 *
 *   put_used_word(), store()    here, by ourselves
 *   chain_return()              by the kernel, on behalf of a chain
 *   the reads of rx_buffers.h   by the kernel, into a list of chains
 *   gmem_write_()               what lies in no queue
 *
 * No locking here: the transport calls a device, and so its queues, under one mutex.
 */
#pragma once

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "vmm/kvm/guest_mem.h"

#define VIRTQ_SIZE_MAX 256u

/* What a device looks at in one turn, so that others get theirs however the guest lays its chains
 * out. The chain that passes the bound is still taken, and is the turn's last. */
#define VIRTQ_TURN_DESCRIPTORS 4096u

struct virtq_state { /* what the guest set, and how far the device came */
    uint16_t size;
    bool ready;
    gpa_t desc, avail, used;
    uint16_t next_avail, next_used;
    uint16_t signalled_used; /* next_used when the guest was last interrupted or asked */
};

struct virtq {
    struct virtq_state state;
    bool event_idx, takes_indirect; /* negotiated */
    const struct guest_mem *mem;    /* NULL while stopped: then nothing below is valid */
    const struct vring_desc *desc;
    const uint16_t *avail; /* flags, idx, ring[size], used_event */
    uint16_t *used;        /* flags, idx, then elements at an offset of 4 bytes, then avail_event */
};

struct chain {
    uint16_t head;                     /* names the chain to virtq_push */
    unsigned descriptors;              /* it has, those of empty buffers and of a table counted */
    uint32_t readable, writable;       /* bytes left */
    uint32_t written;                  /* bytes the guest is told of */
    unsigned read_at, write_at, count; /* iov[read_at..) readable, iov[write_at..count) writable */
    struct iovec *clipped;             /* the last buffer that was lent, NULL: none was */
    size_t clipped_bytes;              /* by how much it is shorter meanwhile */
    const struct guest_mem *mem;
    struct iovec iov[VIRTQ_SIZE_MAX];
};

enum pop { POP_EMPTY, POP_OK, POP_BROKEN };

/* Checks what the guest configured (size, alignment, all of each ring within RAM) and makes the
 * queue usable, as the features (those the driver took) say. 0 or -EINVAL. Borrows mem until
 * virtq_stop(). */
must_check int virtq_start(struct virtq *q, const struct guest_mem *m, uint64_t features);

/* Forgets memory and state. */
void virtq_stop(struct virtq *q);

/* Takes the next available chain. POP_BROKEN: the ring violates the specification (index or
 * address out of range, a loop, wrong order, more bytes than 32 bits count); it can't be trusted
 * any more and the device needs a reset. */
must_check enum pop virtq_pop(struct virtq *q, struct chain *c);

/* The same in a turn that may look at so many more descriptors: those of the chain are taken from
 * them, or one where there is none, since to look in vain counts, too. */
must_check enum pop virtq_pop_in_turn(struct virtq *q, struct chain *c, unsigned *descriptors);

/* How many chains are available beyond those popped; a guess where the guest breaks the rules. */
uint16_t virtq_waiting(const struct virtq *q);

/* Undoes the last virtq_pop(), which was POP_OK: the chain is popped again, and judged anew. Called
 * again, it undoes the one before, as long as none of them was pushed. */
void virtq_unpop(struct virtq *q);

/* Gives a chain back with its `written` count. Each popped chain is pushed exactly once. */
void virtq_push(struct virtq *q, const struct chain *c);
/* The same where only the chain's head and count were kept. */
void virtq_push_head(struct virtq *q, uint16_t head, uint32_t written);

/* The same in two steps, for chains that the guest must see come back together: each is used, then
 * all are published. */
void virtq_use(struct virtq *q, uint16_t head, uint32_t written);
void virtq_publish(struct virtq *q);

/* Asks to be notified of the next chain. True: one came meanwhile, so pop again. */
must_check bool virtq_rearm(struct virtq *q);

/* Asks to be notified of the next chain that is not there yet, whatever was popped: the number of
 * all that the guest has ever made available, to be compared with what virtq_offered() says then.
 */
uint16_t virtq_await(struct virtq *q);
uint16_t virtq_offered(const struct virtq *q);

/* True where the guest wants an interrupt for what was pushed since the last call. */
must_check bool virtq_wants_interrupt(struct virtq *q);

/* Copies the next n readable bytes out, or fails with -EBADMSG when fewer are left. */
must_check int chain_read_(struct chain *c, void *dst, size_t n);
#define chain_get(c, obj) chain_read_((c), (obj), sizeof(*(obj)))

/* Copies n readable bytes out that lie `at` bytes ahead, and does not move on: for what is looked
 * at before it goes to a file as a whole. The guest may change them in between, so that nothing may
 * depend on them. -EBADMSG when there are not so many. */
must_check int chain_peek_(const struct chain *c, size_t at, void *dst, size_t n);
#define chain_peek(c, at, obj) chain_peek_((c), (at), (obj), sizeof(*(obj)))

/* Copies n bytes into the next writable bytes, or fails with -EBADMSG when fewer are left. */
must_check int chain_write_(struct chain *c, const void *src, size_t n);
#define chain_put(c, obj) chain_write_((c), (obj), sizeof(*(obj)))

/* Copies a byte into the last writable one, or fails with -EBADMSG when none is left. What lies
 * before it is not counted as written, and nothing more can be. */
must_check int chain_put_last(struct chain *c, uint8_t byte);

/* Moves up to n bytes between a file at `offset` and the next writable (chain_pread) or readable
 * (chain_pwrite) guest bytes, without a copy. n is at most what is left. The bytes moved, 0 at the
 * end of the file, or -errno. */
must_check ssize_t chain_pread(struct chain *c, int fd, uint64_t offset, uint32_t n);
must_check ssize_t chain_pwrite(struct chain *c, int fd, uint64_t offset, uint32_t n);

/* The same by preadv2(2) and pwritev2(2), whose flags may keep them from waiting. */
must_check ssize_t chain_try_pread(struct chain *c, int fd, uint64_t offset, uint32_t n, int flags);
must_check ssize_t chain_try_pwrite(struct chain *c, int fd, uint64_t offset, uint32_t n,
                                    int flags);

/* Writes up to n of the next readable bytes to a socket or tap that does not block, without a copy.
 * n is at most what is left. The bytes it took, or -errno; -EPIPE comes with a SIGPIPE. */
must_check ssize_t chain_send(struct chain *c, int fd, uint32_t n);

/*
 * For an I/O engine that makes the kernel move payload, and for no device: lends it the buffers of
 * the next n writable (or readable) bytes, n at most what is left, until chain_return() says how
 * many of them were moved. The chain must not be used in between.
 */
must_check const struct iovec *chain_lend_(struct chain *c, bool is_writable, uint32_t n,
                                           unsigned *count);
void chain_return(struct chain *c, bool is_writable, uint32_t moved);

/* For virtio/rx_buffers.c alone. Moves the next n writable bytes, at most those left, to a list of
 * buffers; how many buffers. */
unsigned chain_take_(struct chain *c, uint32_t n, struct iovec *list);

/* Writes n bytes into buffers from offset `at` on; they have so many. */
void iov_write_(const struct guest_mem *m, const struct iovec *v, size_t at, const void *src,
                size_t n);
