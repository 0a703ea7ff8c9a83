/*
 * The CPUID that guests see: what KVM supports, with topology, caches and identification made to
 * fit the microVM rather than the host. Rules: Intel SDM volume 2A "CPUID", AMD APM volume 3
 * appendix E.
 */
#pragma once

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/base/error.h"

#define CPUID_ENTRIES_MAX 128

/* The states of AMX's tiles, by their number in XCR0. */
#define CPUID_XTILE_CFG  17
#define CPUID_XTILE_DATA 18

/* struct kvm_cpuid2 with room for its entries, as the KVM ioctls take it. */
struct cpuid {
    uint32_t nent, padding;
    struct kvm_cpuid_entry2 entries[CPUID_ENTRIES_MAX];
};
_Static_assert(offsetof(struct cpuid, entries) == sizeof(struct kvm_cpuid2), "same layout");

struct cpu_topology {
    unsigned vcpu_count;
    bool smt; /* two hardware threads a core */
};

/* Who made a processor and which it is: CPUID leaf 0, ebx, and leaf 1, eax. */
struct processor {
    uint32_t vendor_ebx, signature;
};

/* The one that this runs on. */
struct processor cpuid_processor(void);

/* What KVM can offer on this host. */
must_check int cpuid_supported(struct cpuid *c, int kvm_fd, struct error *e);

/* The entry of a leaf (index: its subleaf, 0 where it has none), or NULL. */
struct kvm_cpuid_entry2 *cpuid_leaf(struct cpuid *c, uint32_t function, uint32_t index);

/* The host's processor itself: what tells one model from another. To ask KVM costs a hundred times
 * as much. */
#define CPUID_HOST_WORDS 12
void cpuid_host(uint32_t words[CPUID_HOST_WORDS]);

/* Whether a processor that offers `supported` can stand in for the one that a guest has seen. -1:
 * it is another maker's, or lacks what the text names: as /proc/cpuinfo does, where that has a
 * name. */
must_check int cpuid_covers(struct cpuid *supported, struct cpuid *seen, struct error *e);

/* Makes it the CPUID of all vCPUs of a microVM; pure. */
void cpuid_normalise(struct cpuid *c, const struct cpu_topology *t);

/* Writes the members that differ between vCPUs (the APIC id) into a normalised one; pure. */
void cpuid_set_vcpu(struct cpuid *c, unsigned vcpu, const struct cpu_topology *t);
