/*
 * What KVM keeps of a machine, as plain values: to go into a file or over a wire, and into another
 * machine.
 *
 * All is for the main thread and for vCPUs that stand (vcpus_hold(), or no thread yet). Restoring
 * has an order: memory, interrupt controllers and vCPUs are created, then each vCPU is set from the
 * first on, then the VM. That the values come from where they should is the caller's matter; here
 * each count need only fit its array. KVM takes registers with which a guest crashes at once.
 */
#pragma once

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/msrs.h"
#include "vmm/kvm/vcpu.h"

/* With AMX's tiles it is 11008 bytes; the rest of what there is, is in the first 4096. */
#define STATE_XSAVE_BYTES 12288u

struct vcpu_state {
    struct cpuid cpuid;
    struct kvm_mp_state mp_state;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    /* As struct kvm_xsave, which may be longer than its declaration. */
    uint32_t xsave[STATE_XSAVE_BYTES / sizeof(uint32_t)];
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    uint32_t tsc_khz;
    bool has_tsc_offset; /* Linux 5.16 */
    uint64_t tsc, tsc_offset, tsc_deadline;
    uint32_t msr_count;
    struct kvm_msr_entry msrs[MSRS_MAX];
    struct kvm_vcpu_events events;
};

/* Fails where KVM can't say all. */
must_check int vcpu_get_state(struct vcpu *c, struct vcpu_state *s, struct error *e);

/* Whether the host's processor has what a guest has seen of another; -1 says what it lacks. For a
 * vCPU that has no state yet. */
must_check int vcpu_check_processor(const struct vcpu *c, const struct vcpu_state *s,
                                    struct error *e);

/* For a vCPU that has never run; the first of a VM comes first. On failure it can only be dropped.
 */
must_check int vcpu_set_state(struct vcpu *c, const struct vcpu_state *s, struct error *e);

/* Interrupt controllers, interval timer, and kvmclock: it goes on from the saved time. */
struct kvm_state {
    struct kvm_pit_state2 pit;
    struct kvm_clock_data clock;
    struct kvm_irqchip chips[3]; /* both PICs, IOAPIC */
};

must_check int kvm_get_state(const struct kvm *k, struct kvm_state *s, struct error *e);

/* For a VM that has its interrupt controllers and vCPUs, none of which has run. On failure it can
 * only be dropped. */
must_check int kvm_set_state(const struct kvm *k, const struct kvm_state *s, struct error *e);
