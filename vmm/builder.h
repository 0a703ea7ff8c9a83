/*
 * From a configuration to a running machine, in one readable order.
 */
#pragma once

#include "virtio/block.h"
#include "virtio/mmio.h"
#include "virtio/net.h"
#include "virtio/vsock.h"
#include "vmm/boot_timer.h"
#include "vmm/config.h"
#include "vmm/i8042.h"
#include "vmm/serial.h"
#include "vmm/vcpu.h"

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
    unsigned drive_count;
    struct drive {
        struct drive_config config;
        struct block_file file;
        struct block_async *async; /* NULL: the Sync engine */
    } * drives;                    /* in attach order */
    unsigned interface_count;
    struct interface {
        struct net_config config;
        uint8_t mac[NET_MAC_BYTES]; /* of config.guest_mac */
        struct net_tap tap;
    } * interfaces;                   /* in attach order, behind the drives */
    const struct vsock_config *vsock; /* NULL: none; else borrowed, as its listener, for good */
    int vsock_listener;
};

struct machine {
    struct loop *loop;
    struct guest_mem mem;
    struct kvm kvm;
    struct bus pio, mmio;
    struct guest_end end;
    int serial_irq_fd, i8042_irq_fd;
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

/* Takes apart a machine that never ran. (One that ran goes with its process: closing it would wait
 * for the kernel.) */
void machine_free(struct machine *m);
