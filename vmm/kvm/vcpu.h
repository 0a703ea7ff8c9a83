/*
 * A virtual CPU and the thread that runs it.
 *
 * All functions are for the main thread, in this order: vcpus_create(), a state (vcpus_reset() and
 * the registers of a boot, or a saved one: state.h), vcpus_start(). The thread ("fc_vcpu N") runs
 * the guest, answers its port and memory-mapped I/O on the buses, and touches nothing else. It
 * stands still for vcpus_hold() and at the guest's end.
 */
#pragma once

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>

#include "vmm/base/metrics.h"
#include "vmm/kvm/bus.h"
#include "vmm/kvm/guest_end.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/layout.h"
#include "vmm/kvm/msrs.h"

struct sock_fprog;

/* How long a thread may take to come to stand. Only one that waits inside of KVM for a page of
 * guest memory takes it: from a handler, or from a file whose disk is gone. */
#define VCPUS_PATIENCE_S 10

/* What the vCPUs of one VM share. */
struct vcpus {
    unsigned count;
    unsigned started; /* the first so many have a thread */
    struct vcpu {
        struct vcpus *all;
        unsigned index;
        int fd;
        struct kvm_run *run; /* shared with the kernel */
        pthread_t thread;
        struct vcpu_metrics metrics;
    } each[PLATFORM_VCPUS_MAX];
    const struct kvm *kvm;
    const struct bus *pio, *mmio;
    struct guest_end *end;
    struct msr_list msrs; /* of a state; until it is complete, those that KVM may not list */
    uint64_t tsc_shift;   /* by which a restored state's TSC offsets were moved */
    const struct sock_fprog *filter; /* for the threads' system calls; NULL: none */
    uint64_t patience_ns;            /* of VCPUS_PATIENCE_S */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    unsigned holds;    /* while there are any, threads stand */
    unsigned standing; /* threads that do */
    unsigned ready;    /* threads that are confined */
};

/* Creates the vCPUs, without running them, as KVM makes them. Borrows all. On failure the caller
 * drops them with vcpus_fini(). */
must_check int vcpus_create(struct vcpus *v, const struct kvm *k, unsigned count,
                            const struct bus *pio, const struct bus *mmio, struct guest_end *end,
                            struct error *e);

/* Makes them what a VM starts with: the CPUID of that many vCPUs, changed by a CPU template (NULL:
 * none), and LAPICs in virtual wire mode. */
must_check int vcpus_reset(struct vcpus *v, bool smt, const struct cpu_config *template,
                           struct error *e);

/* Closes vCPUs that have no threads, or whose threads stand for good. Works on a zeroed object. */
void vcpus_fini(struct vcpus *v);

/* Special registers of a vCPU that does not run, and with them the general ones: for the first
 * vCPU's entry into a kernel. The others wait for the guest to start them. */
must_check int vcpu_get_sregs(const struct vcpu *c, struct kvm_sregs *s, struct error *e);
must_check int vcpu_set_registers(const struct vcpu *c, const struct kvm_regs *r,
                                  const struct kvm_sregs *s, struct error *e);

/* Starts the threads, each confined to a seccomp filter (NULL: not confined; borrowed). They stand,
 * held once: after vcpus_release() the guest is set off when all are confined. */
must_check int vcpus_start(struct vcpus *v, const struct sock_fprog *filter, struct error *e);

/* Returns true once every thread that was started stands between two instructions of the guest: the
 * device accesses that it had begun are done, and its registers say so. Holds are counted; the
 * threads go on when the last is released. False: one has not come to stand in its time, and this
 * hold does not count. */
bool vcpus_hold(struct vcpus *v);
void vcpus_release(struct vcpus *v);
