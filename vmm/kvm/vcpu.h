/*
 * A virtual CPU and the thread that runs it.
 *
 * vcpus_init() and vcpus_start() are for the main thread, in that order. The thread
 * ("fc_vcpu N") runs the guest, answers its port and memory-mapped I/O on the buses, and touches
 * nothing else. It stops for vcpus_pause() and for the guest's end.
 */
#pragma once

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>

#include "vmm/base/metrics.h"
#include "vmm/kvm/bus.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/guest_end.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/layout.h"

struct sock_fprog;

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
    const struct bus *pio, *mmio;
    struct guest_end *end;
    const struct sock_fprog *filter; /* for the threads' system calls; NULL: none */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool pause;      /* asked for */
    unsigned paused; /* threads that have complied */
    unsigned ready;  /* threads that are confined */
};

/* Creates the vCPUs, without running them, with the CPUID of a VM of that topology, changed by a
 * CPU template (NULL: none), and LAPICs in virtual wire mode. Borrows the buses and end. On failure
 * the caller drops all with vcpus_fini(). */
must_check int vcpus_init(struct vcpus *v, const struct kvm *k, const struct cpu_topology *topology,
                          const struct cpu_config *template, const struct bus *pio,
                          const struct bus *mmio, struct guest_end *end, struct error *e);

/* Closes vCPUs that were never started. Works on a zeroed object. */
void vcpus_fini(struct vcpus *v, const struct kvm *k);

/* Special registers of a vCPU that does not run, and with them the general ones: for the first
 * vCPU's entry into a kernel. The others wait for the guest to start them. */
must_check int vcpu_get_sregs(const struct vcpu *c, struct kvm_sregs *s, struct error *e);
must_check int vcpu_set_registers(const struct vcpu *c, const struct kvm_regs *r,
                                  const struct kvm_sregs *s, struct error *e);

/* Starts the threads, each confined to a seccomp filter (NULL: not confined; borrowed). They stand
 * still, as after vcpus_pause(); after vcpus_resume() the guest is set off once all are confined.
 */
must_check int vcpus_start(struct vcpus *v, const struct sock_fprog *filter, struct error *e);

/* Returns once every vCPU thread that was started has left the guest and stands still; harmless to
 * repeat. */
void vcpus_pause(struct vcpus *v);
void vcpus_resume(struct vcpus *v);
