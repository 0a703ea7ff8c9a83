#include "vmm/kvm/msrs.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#define CHUNK 255u /* KVM takes 256 at most, and not these */

struct msr_chunk { /* struct kvm_msrs with its entries */
    uint32_t nmsrs, padding;
    struct kvm_msr_entry entries[CHUNK];
};

/* What KVM has done of a request: it stops at the first register that it refuses. */
static int check_done(int done, const struct msr_chunk *chunk, const char *verb, struct error *e)
{
    if (done < 0)
        return fail_os(e, errno, "KVM cannot %s MSRs", verb);
    if ((uint32_t)done < chunk->nmsrs)
        return fail(e, ERR_HOST, "KVM refuses to %s MSR 0x%x", verb, chunk->entries[done].index);
    return 0;
}

int msrs_read(int vcpu_fd, struct kvm_msr_entry *entries, unsigned count, struct error *e)
{
    struct msr_chunk chunk = { 0 };

    for (; count > 0; entries += chunk.nmsrs, count -= chunk.nmsrs) {
        chunk.nmsrs = count < CHUNK ? count : CHUNK;
        memcpy(chunk.entries, entries, chunk.nmsrs * sizeof(*entries));
        if (check_done(ioctl(vcpu_fd, KVM_GET_MSRS, &chunk), &chunk, "read", e) < 0)
            return -1;
        memcpy(entries, chunk.entries, chunk.nmsrs * sizeof(*entries));
    }
    return 0;
}

int msrs_write(int vcpu_fd, const struct kvm_msr_entry *entries, unsigned count, struct error *e)
{
    struct msr_chunk chunk = { 0 };

    for (; count > 0; entries += chunk.nmsrs, count -= chunk.nmsrs) {
        chunk.nmsrs = count < CHUNK ? count : CHUNK;
        memcpy(chunk.entries, entries, chunk.nmsrs * sizeof(*entries));
        if (check_done(ioctl(vcpu_fd, KVM_SET_MSRS, &chunk), &chunk, "set", e) < 0)
            return -1;
    }
    return 0;
}

void msr_list_add(struct msr_list *l, uint32_t index)
{
    for (unsigned i = 0; i < l->count; i++)
        if (l->index[i] == index)
            return;
    if (l->count < MSRS_MAX)
        l->index[l->count++] = index;
}

static void add_row(struct msr_list *l, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        msr_list_add(l, first + i);
}

/* Not state, although KVM lists it: what a guest of ours does not have (its CPUID says so), and
 * what goes another way. */
static bool is_left_out(uint32_t index)
{
    static const struct {
        uint32_t first, last;
    } rows[] = {
        { MSR_IA32_TSC, MSR_IA32_TSC },
        { MSR_IA32_TSC_DEADLINE, MSR_IA32_TSC_DEADLINE },
        /* Performance monitoring, Intel's and AMD's. */
        { 0xc1, 0xc8 },
        { 0x186, 0x18d },
        { 0x309, 0x30c },
        { 0x329, 0x329 },
        { 0x345, 0x345 },
        { 0x38d, 0x390 },
        { 0x3f1, 0x3f2 },
        { 0x4c1, 0x4c8 },
        { 0x600, 0x600 },
        { 0xc0000300, 0xc0000303 },
        { 0xc0010000, 0xc0010007 },
        { 0xc0010200, 0xc001020b },
        { 0x480, 0x493 },           /* VMX */
        { 0x560, 0x58f },           /* processor trace */
        { 0x40000000, 0x400001ff }, /* Hyper-V's */
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        if (index >= rows[i].first && index <= rows[i].last)
            return true;
    return false;
}

static int add_listed(struct msr_list *l, int kvm_fd, struct error *e)
{
    struct { /* struct kvm_msr_list with its indices */
        uint32_t nmsrs;
        uint32_t indices[MSRS_MAX];
    } listed = { .nmsrs = MSRS_MAX };

    if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &listed) < 0)
        return fail_os(e, errno, "KVM_GET_MSR_INDEX_LIST");
    for (uint32_t i = 0; i < listed.nmsrs; i++)
        if (!is_left_out(listed.indices[i]))
            msr_list_add(l, listed.indices[i]);
    return 0;
}

/* What KVM keeps but does not list. Intel SDM volume 4, table 2-2. */
static int add_implied(struct msr_list *l, int vcpu_fd, struct cpuid *cpuid, struct error *e)
{
    enum { MTRR = 1 << 12, MCA = 1 << 14, XSAVES = 1 << 3 };
    const struct kvm_cpuid_entry2 *features = cpuid_leaf(cpuid, 1, 0);
    const struct kvm_cpuid_entry2 *xsave = cpuid_leaf(cpuid, 0xd, 1);

    if (features && features->edx & MTRR) {
        add_row(l, 0x200, 16); /* variable ranges */
        add_row(l, 0x250, 1);  /* fixed ones: 64 KiB, 16 KiB, 4 KiB */
        add_row(l, 0x258, 2);
        add_row(l, 0x268, 8);
        add_row(l, 0x2ff, 1);
    }
    if (features && features->edx & MCA) {
        struct kvm_msr_entry capability = { .index = 0x179 };

        if (msrs_read(vcpu_fd, &capability, 1, e) < 0)
            return -1;
        add_row(l, 0x400, 4 * (uint32_t)(capability.data & 0xff)); /* banks */
    }
    if (xsave && xsave->eax & XSAVES)
        add_row(l, 0xda0, 1); /* IA32_XSS */
    return 0;
}

int msr_list_complete(struct msr_list *l, int kvm_fd, int vcpu_fd, struct cpuid *cpuid,
                      struct error *e)
{
    if (add_listed(l, kvm_fd, e) < 0 || add_implied(l, vcpu_fd, cpuid, e) < 0)
        return -1;
    if (l->count == MSRS_MAX)
        return fail(e, ERR_HOST, "a vCPU has %u MSRs or more", MSRS_MAX);
    l->is_complete = true;
    return 0;
}
