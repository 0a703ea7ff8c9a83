/*
 * From a configuration to a running machine, in one readable order.
 */
#pragma once

#include "mmds/stack.h"
#include "virtio/mmio.h"
#include "virtio/vsock.h"
#include "virtio/vsock_unix.h"
#include "vmm/base/config.h"
#include "vmm/boot/copy_ahead.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/legacy/boot_timer.h"
#include "vmm/legacy/i8042.h"
#include "vmm/legacy/power.h"
#include "vmm/legacy/serial.h"
#include "vmm/machine/drives.h"
#include "vmm/machine/fold.h"
#include "vmm/machine/interfaces.h"
#include "vmm/snapshot/memory.h"
#include "vmm/snapshot/recorder.h"
#include "vmm/snapshot/uffd.h"

/* What is open for a configuration since it was given. (The console's file is opened at the start,
 * as in Firecracker.) */
struct opened {
    int kernel_fd, initrd_fd; /* -1: none */
    struct drive *drives;     /* whose files PATCH may replace */
    struct interface *interfaces;
    struct vsock_listener vsock;
    const struct mmds_store *metadata; /* that guests may ask for */
    struct kvm kvm; /* a VM made ahead, while nobody waited for it; vm_fd -1: none */
};

struct machine {
    struct loop *loop;
    struct opened *opened;
    struct guest_mem mem;
    struct uffd *uffd;            /* who serves it; NULL: nobody */
    struct recorder *recorder;    /* the same, in this process */
    struct snapshot_memory pages; /* what is known of them */
    struct copy_ahead copy_ahead;
    struct kvm kvm;
    struct bus pio, mmio;
    struct guest_end end;
    int serial_out_fd; /* -1: stdout */
    struct serial serial;
    struct i8042 i8042;
    struct power power;
    struct boot_timer boot_timer;
    struct platform platform;
    uint8_t *registers; /* a page a transport, which the guest reads */
    struct virtio_mmio transports[PLATFORM_VIRTIO_MAX];
    unsigned attached; /* the first so many are in use */
    struct block blocks[PLATFORM_VIRTIO_MAX];
    struct fold fold; /* of their layers */
    struct net nets[PLATFORM_VIRTIO_MAX];
    struct mmds_service mmds; /* of those interfaces that have a stack */
    struct vsock vsock;
    struct vcpus vcpus;
    unsigned holds;
};

/* Whether there can be such a machine. */
must_check int machine_check(const struct machine_config *c, struct error *e);

/* Builds a machine whose vCPUs stand at the kernel's entry; vcpus_start() sets them off. Borrows
 * the configuration until it returns, what is open and the path of the vsock for good. On failure
 * nothing is left behind. Heap; freed by machine_free(). */
must_check int machine_build(struct machine **out, const struct vm_config *config,
                             struct opened *opened, bool boot_timer, struct loop *loop,
                             struct error *e);

/*
 * The steps of that which another way to make a machine shares (vmm/machine/restore.h), in this
 * order: an empty machine; each device's addresses and interrupt line, by which the guest's view of
 * them is fixed; with m->mem laid out, KVM's VM with memory, interrupt controllers and vCPUs; the
 * devices. machine_free() whatever fails.
 */
struct snapshot_origin { /* of guest memory */
    enum snapshot_source source;
    struct snapshot_chain *files; /* SNAPSHOT_SOURCE_FILE: are taken, and none are left in it */
    const struct uuid *name;      /* NULL: none */
    struct uffd *uffd;            /* SNAPSHOT_SOURCE_UFFD; is taken */
    struct recorder *recorder;    /* NULL: none; is taken */
};

struct machine *machine_new(struct opened *opened, bool boot_timer, struct loop *loop);
must_check int machine_plan(struct platform *p, const struct vm_config *config, struct error *e);
must_check int machine_make_vm(struct machine *m, const struct machine_config *config,
                               const struct cpu_config *template,
                               const struct snapshot_origin *origin, struct error *e);
must_check int machine_add_devices(struct machine *m, const struct vm_config *config,
                                   struct error *e);

/* Holds all of the machine, from the one that asks to the one that answers: the vCPUs stand, then
 * the devices are drained, then console and metrics rest. Returns when nothing of it changes guest
 * memory or its own state any more. Holds are counted; the machine goes on, in the reverse order,
 * when the last is released. False, and nothing is held: a vCPU does not come to stand. For a
 * machine after vcpus_start(), also where that failed. Main thread. */
bool machine_hold(struct machine *m);
void machine_release(struct machine *m);

/* Says that a vCPU does not come to stand, and what it may wait for. Returns -1. */
int machine_fail_standing(const struct machine *m, struct error *e);

/* Closes what belongs to KVM, in the order in which the kernel has the least to wait for: a process
 * that just ends gives up its memory first and the VM last, and waits for several grace periods
 * more (each is 10 ms and more on Linux 6.1). For a machine whose vCPUs have been stopped for good.
 */
void machine_close_kvm(struct machine *m);

/* Takes apart a machine that never ran. (The rest of one that ran goes with its process.) */
void machine_free(struct machine *m);
