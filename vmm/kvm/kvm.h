/*
 * One KVM virtual machine: the capability check and the ioctls on the VM's descriptor.
 *
 * The order in which a VM is put together is the caller's and it matters: memory slots first, then
 * the interrupt controllers, then vCPUs and ioeventfds. On kernels since 6.17 a memory slot that
 * comes after a device on KVM's I/O bus waits several milliseconds for an SRCU grace period.
 * Rules: Linux Documentation/virt/kvm/api.rst.
 */
#pragma once

#include <stdint.h>

#include "vmm/base/config.h"
#include "vmm/base/error.h"
#include "vmm/kvm/guest_mem.h"

struct kvm {
    int kvm_fd; /* /dev/kvm */
    int vm_fd;
    size_t run_bytes; /* of each vCPU's shared struct kvm_run */
};

/* None is open. */
#define KVM_NONE ((struct kvm){ .kvm_fd = -1, .vm_fd = -1 })

/* Opens /dev/kvm, checks its version and every capability needed (naming the first that lacks),
 * and creates a VM. A CPU template (NULL: none) adds to what is needed, or takes from it. On
 * failure nothing stays open. */
must_check int kvm_open(struct kvm *k, const struct cpu_config *template, struct error *e);

/* Closes the descriptors; the VM goes once its vCPUs are closed too. */
void kvm_close(struct kvm *k);

/* Gives the guest its RAM, one slot a region. track_dirty: KVM keeps a log of the pages that the
 * guest writes, which it maps as small ones. */
must_check int kvm_add_memory(const struct kvm *k, const struct guest_mem *m, bool track_dirty,
                              struct error *e);

/* Turns the log on, which is empty then, or off; the guest may run. */
must_check int kvm_track_dirty(const struct kvm *k, const struct guest_mem *m, bool on,
                               struct error *e);

/* Reads the log: one bit a page, in gmem_page_of()'s order, each region's a whole number of words.
 * Nothing is forgotten by that. */
must_check int kvm_get_dirty(const struct kvm *k, const struct guest_mem *m, uint64_t *words,
                             struct error *e);

/* Forgets those pages, until they are written again. The guest may run. */
must_check int kvm_clear_dirty(const struct kvm *k, const struct guest_mem *m,
                               const uint64_t *words, struct error *e);

/* Lets the guest read so many bytes (whole pages) at `at` from host memory without an exit; writes
 * still exit as MMIO. Does nothing on a host that can't: then reads exit as well. A memory slot: as
 * early as kvm_add_memory(). */
must_check int kvm_add_readable(const struct kvm *k, gpa_t at, const void *host, size_t bytes,
                                struct error *e);

/* PIC, IOAPIC and a LAPIC for each vCPU to come, all in the kernel and with its default routing
 * (GSIs 0 to 15 reach both PIC and IOAPIC), and the PIT. */
must_check int kvm_create_irqchip(const struct kvm *k, struct error *e);

/* An interrupt line of the guest. */
struct kvm_line {
    int vm_fd;
    uint32_t gsi;
};

/* Makes one edge on the line before it returns; any thread. There are no irqfds: each would take a
 * worker thread of the kernel for an interrupt, and two switches to and from that, since KVM
 * injects what goes through an interrupt controller from process context only; and a VM that has
 * one waits for an RCU grace period more when it is closed. */
void kvm_pulse(const struct kvm_line *line);

/* Makes a 32-bit guest write of `value` at `at` (MMIO) count in the eventfd, without an exit. */
must_check int kvm_add_ioeventfd(const struct kvm *k, int fd, gpa_t at, uint32_t value,
                                 struct error *e);
