/*
 * Model-specific registers of vCPUs: read and written by KVM as lists, and the list of those that
 * make up a vCPU's state.
 */
#pragma once

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/kvm/cpuid.h"

#define MSRS_MAX 512

#define MSR_IA32_TSC          0x10u
#define MSR_IA32_TSC_DEADLINE 0x6e0u

/* Each register once, in no order. */
struct msr_list {
    unsigned count; /* MSRS_MAX: there may be more, and the list is of no use */
    bool is_complete;
    uint32_t index[MSRS_MAX];
};

/* Reads the registers that the entries name; writes them. Fails at the first that KVM refuses,
 * naming it. */
must_check int msrs_read(int vcpu_fd, struct kvm_msr_entry *entries, unsigned count,
                         struct error *e);
must_check int msrs_write(int vcpu_fd, const struct kvm_msr_entry *entries, unsigned count,
                          struct error *e);

/* Adds a register that is not there yet. */
void msr_list_add(struct msr_list *l, uint32_t index);

/* Adds what a vCPU with that CPUID keeps in registers, but for the TSC and its deadline. */
must_check int msr_list_complete(struct msr_list *l, int kvm_fd, int vcpu_fd, struct cpuid *cpuid,
                                 struct error *e);
