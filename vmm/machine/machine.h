/*
 * From a configuration to a running machine, in one readable order.
 */
#pragma once

#include "virtio/mmio.h"
#include "virtio/vsock.h"
#include "vmm/base/config.h"
#include "vmm/boot/copy_ahead.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/legacy/boot_timer.h"
#include "vmm/legacy/i8042.h"
#include "vmm/legacy/serial.h"
#include "vmm/machine/drives.h"
#include "vmm/machine/interfaces.h"

/* What to build: all borrowed, and open for as long as the machine lives (drives) or until
 * machine_build() returns (the rest). */
struct machine_plan {
    const struct machine_config *config;
    int kernel_fd;
    int initrd_fd;                         /* -1: none */
    const char *boot_args;                 /* NULL: the default */
    const struct cpu_config *cpu_template; /* NULL: none */
    const struct serial_config *serial;
    bool boot_timer;
    struct drives *drives;               /* whose files PATCH may replace */
    const struct interfaces *interfaces; /* attached behind the drives */
    const struct vsock_config *vsock;    /* NULL: none; else borrowed, as its listener, for good */
    int vsock_listener;
};

struct machine {
    struct loop *loop;
    struct guest_mem mem;
    struct copy_ahead copy_ahead;
    struct kvm kvm;
    struct bus pio, mmio;
    struct guest_end end;
    int serial_out_fd; /* -1: stdout */
    struct serial serial;
    struct i8042 i8042;
    struct boot_timer boot_timer;
    struct platform platform;
    uint8_t *registers; /* a page a transport, which the guest reads */
    struct virtio_mmio transports[PLATFORM_VIRTIO_MAX];
    struct block blocks[PLATFORM_VIRTIO_MAX];
    struct net nets[PLATFORM_VIRTIO_MAX];
    struct vsock vsock;
    struct vcpus vcpus;
};

/* Builds a machine whose vCPUs stand at the kernel's entry; vcpus_start() sets them off. On failure
 * nothing is left behind. Heap; freed by machine_free(). */
must_check int machine_build(struct machine **out, const struct machine_plan *plan,
                             struct loop *loop, struct error *e);

/* Closes what belongs to KVM, in the order in which the kernel has the least to wait for: a process
 * that just ends gives up its memory first and the VM last, and waits for several grace periods
 * more (each is 10 ms and more on Linux 6.1). For a machine whose vCPUs have been stopped for good.
 */
void machine_close_kvm(struct machine *m);

/* Takes apart a machine that never ran. (The rest of one that ran goes with its process.) */
void machine_free(struct machine *m);
