/*
 * All of a machine but its memory, as plain values, and as the state file of a snapshot
 * (vmm/snapshot/format.h). Addresses and interrupt lines are not in it: they follow from what is
 * configured. Pure but for the heap.
 */
#pragma once

#include "virtio/mmio.h"
#include "virtio/rate_limiter.h"
#include "virtio/vsock_table.h"
#include "vmm/base/config.h"
#include "vmm/kvm/state.h"
#include "vmm/legacy/i8042.h"
#include "vmm/legacy/serial.h"
#include "vmm/snapshot/format.h"

struct saved {
    struct uuid name;
    uint64_t wall_ns;                     /* CLOCK_REALTIME when it was saved */
    uint32_t processor[CPUID_HOST_WORDS]; /* of cpuid_host() */
    /* What is built again: without log, metrics and console, and of a CPU template only what it
     * asks of KVM. */
    struct vm_config config;
    struct saved_block {
        struct virtio_mmio_state transport;
        struct rate_limiter_state limiter; /* sizes and times follow from the configuration */
        bool is_thin;                      /* discards were offered, or would have been */
    } blocks[PLATFORM_VIRTIO_MAX];         /* as config.drives */
    struct saved_net {
        struct virtio_mmio_state transport;
        struct rate_limiter_state rx_limiter, tx_limiter;
    } nets[PLATFORM_VIRTIO_MAX]; /* as config.interfaces */
    struct virtio_mmio_state vsock_transport;
    struct vsock_state vsock;
    struct vcpu_state *vcpus; /* a heap block */
    size_t vcpu_count;        /* as config.machine says */
    struct kvm_state kvm;
    struct serial_state serial;
    struct i8042_state i8042;
};

/* A zeroed one. Heap. */
struct saved *saved_new(void);

/* Frees it, with its vCPUs. What the configuration owns stays, unless it is freed, too. */
void saved_free(struct saved *s);

/* Makes a state file of it: a heap block. */
must_check int saved_encode(struct saved *s, uint8_t **file, size_t *bytes, struct error *e);

/* Reads one into a saved_new(), whose config owns what was read, whatever is returned. Judged as
 * a client's word is here; as a guest's where the devices take their states (machine_restore()).
 */
must_check int saved_decode(struct saved *s, const uint8_t *file, size_t bytes, struct error *e);
