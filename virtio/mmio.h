/*
 * The virtio-mmio transport, version 2 (virtio 1.2, section 4.2), with a strict status machine.
 *
 * What the guest reads lies in a page, which KVM can map into the guest: then a read is a plain
 * load, without an exit, which is most of what an interrupt costs. No register has side effects
 * when it is read. Writes come from vCPU threads; notifications arrive on the event loop through an
 * ioeventfd a queue; interrupts are edges of a line. One mutex guards registers and device; the
 * interrupt status is atomic beside it, so that an interrupt handler in the guest never waits for
 * disk I/O.
 *
 * A device that has try_serve() has no ioeventfd: a notification is a write like others, and the
 * vCPU's thread gives it a turn there, without waking the loop. Whoever holds the mutex has the
 * queue, and a turn leaves nothing but what the next one finds in the device; so it makes no
 * difference who gives it. A vCPU that finds the mutex taken tells the loop and goes on.
 */
#pragma once

#include <pthread.h>
#include <time.h>

#include "virtio/device.h"
#include "vmm/base/log.h"
#include "vmm/base/loop.h"
#include "vmm/kvm/bus.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/layout.h"

struct virtio_mmio_registers {
    uint32_t status;
    uint32_t device_features_sel, driver_features_sel;
    uint64_t driver_features; /* taken with FEATURES_OK, and fixed from there on */
    uint32_t queue_sel;
    uint32_t config_generation;
    bool is_activated; /* the device has its queues, until it is reset */
};

/* All that a guest can observe of a transport and has told it, in one plain piece. While the VM
 * runs, the interrupt status is in the page and the queues' states are in the queues. */
struct virtio_mmio_state {
    struct virtio_mmio_registers registers;
    uint32_t interrupt_status;
    struct virtq_state queues[VIRTIO_QUEUES_MAX];
};

struct virtio_mmio {
    struct bus_device bus;
    struct virtio_device *device;
    uint32_t *page; /* all that the guest can read here: registers, then configuration space */
    const struct guest_mem *mem;
    struct loop *loop;
    pthread_mutex_t lock;
    unsigned waiting; /* for that; atomic */
    struct virtio_mmio_registers registers;
    bool is_paused;
    struct kvm_line line;
    void (*pulse)(const struct kvm_line *line); /* kvm_pulse(), or a test's */
    struct virtio_notifier {
        struct loop_source source; /* an eventfd that KVM or a vCPU writes; and we, for more */
        struct virtio_mmio *transport;
        unsigned queue;
        bool is_own; /* we have written it since it was last ready; loop thread only */
    } notifiers[VIRTIO_QUEUES_MAX];
    struct log_limit complaints;
};

/* Makes registers at `base` for a device, with a loop source for each queue. `page` is zeroed, of
 * LAYOUT_VIRTIO_STEP bytes, and may be what the guest reads there. Borrows all arguments. On
 * failure the caller drops the half-made transport with virtio_mmio_fini(). */
must_check int virtio_mmio_init(struct virtio_mmio *t, struct virtio_device *d, gpa_t base,
                                void *page, const struct guest_mem *m, struct loop *loop,
                                struct error *e);

/* Connects it to a VM: interrupts to the GSI, notifications of each queue to its loop source. */
must_check int virtio_mmio_connect(struct virtio_mmio *t, const struct kvm *k, uint32_t gsi,
                                   struct error *e);

/* Leaves the loop and closes the descriptors; only for a VM whose vCPUs never ran. Works on a
 * zeroed object. */
void virtio_mmio_fini(struct virtio_mmio *t);

/* Drains the device and stops serving it; resumes, serving what came in between. Loop thread. */
void virtio_mmio_pause(struct virtio_mmio *t);
void virtio_mmio_resume(struct virtio_mmio *t);

/* The state of one that is paused, while no vCPU runs: the device is drained, so that what it has
 * not answered is in the rings. */
void virtio_mmio_get_state(const struct virtio_mmio *t, struct virtio_mmio_state *s);

/* Makes one that was just made, for the same kind of device over the same guest memory, what
 * another was; it is paused then. A state is judged as a guest's word: -EINVAL where no guest could
 * have led a device there, and the caller drops the half-made transport. An activated device is
 * activated. */
must_check int virtio_mmio_set_state(struct virtio_mmio *t, const struct virtio_mmio_state *s);
