#include "vmm/kvm/msrs.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/kvm/kvm.h"

#define LEAF_1_MTRR    (1u << 12)
#define LEAF_1_MCA     (1u << 14)
#define LEAF_D1_XSAVES (1u << 3)
#define MCG_CAP        0x179u

static struct error e;
static struct kvm kvm;
static int vcpu = -1;

static void open_vcpu(void)
{
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    cr_assert_eq(kvm_open(&kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_create_irqchip(&kvm, &e), 0, "%s", e.msg);
    vcpu = ioctl(kvm.vm_fd, KVM_CREATE_VCPU, 0);
    cr_assert_geq(vcpu, 0);
}

static void close_vcpu(void)
{
    close(vcpu);
    kvm_close(&kvm);
}

TestSuite(msr_list, .init = open_vcpu, .fini = close_vcpu);

/* Of a vCPU whose CPUID has these bits and no other. */
static struct msr_list list_of(uint32_t leaf_1_edx, uint32_t leaf_d1_eax)
{
    struct cpuid cpuid = { .nent = 2,
                           .entries = { { .function = 1, .edx = leaf_1_edx },
                                        { .function = 0xd, .index = 1, .eax = leaf_d1_eax } } };
    struct msr_list l = { 0 };

    cr_assert_eq(msr_list_complete(&l, kvm.kvm_fd, vcpu, &cpuid, &e), 0, "%s", e.msg);
    cr_assert(l.is_complete);
    return l;
}

static bool has(const struct msr_list *l, uint32_t index)
{
    for (unsigned i = 0; i < l->count; i++)
        if (l->index[i] == index)
            return true;
    return false;
}

/* That all of [first, last] is there, and what is beside it is as it was without. */
static void expect_row(const struct msr_list *l, const struct msr_list *without, uint32_t first,
                       uint32_t last)
{
    for (uint32_t index = first; index <= last; index++)
        cr_expect(has(l, index), "MSR 0x%x is missing", index);
    cr_expect_eq(has(l, first - 1), has(without, first - 1), "MSR 0x%x", first - 1);
    cr_expect_eq(has(l, last + 1), has(without, last + 1), "MSR 0x%x", last + 1);
}

Test(msr_list, has_the_memory_types_where_the_cpuid_has_them)
{
    struct msr_list without = list_of(~LEAF_1_MTRR & ~LEAF_1_MCA, ~LEAF_D1_XSAVES);
    struct msr_list l = list_of(LEAF_1_MTRR, 0);

    expect_row(&l, &without, 0x200, 0x20f);
    expect_row(&l, &without, 0x250, 0x250);
    expect_row(&l, &without, 0x258, 0x259);
    expect_row(&l, &without, 0x268, 0x26f);
    expect_row(&l, &without, 0x2ff, 0x2ff);
    cr_expect_not(has(&without, 0x200) || has(&l, 0x400));
}

Test(msr_list, has_the_machine_check_banks_that_kvm_names)
{
    struct msr_list without = list_of(~LEAF_1_MCA, ~LEAF_D1_XSAVES);
    struct kvm_msr_entry capability = { .index = MCG_CAP };
    struct msr_list l = list_of(LEAF_1_MCA, 0);
    uint32_t banks;

    cr_assert_eq(msrs_read(vcpu, &capability, 1, &e), 0, "%s", e.msg);
    banks = capability.data & 0xff;
    cr_assert_gt(banks, 0);
    expect_row(&l, &without, 0x400, 0x400 + 4 * banks - 1);
    cr_expect_not(has(&without, 0x400) || has(&l, 0x200));
}

Test(msr_list, has_the_mask_of_supervisor_states_where_the_cpuid_has_them)
{
    struct msr_list l = list_of(0, LEAF_D1_XSAVES);

    cr_expect(has(&l, 0xda0));
}

/* What CPUID hides and what is kept elsewhere. */
static const struct {
    uint32_t first, last;
    const char *what;
} hidden[] = {
    { 0x10, 0x10, "the TSC" },
    { 0x6e0, 0x6e0, "its deadline" },
    { 0xc1, 0xc8, "counters" },
    { 0x186, 0x18d, "their events" },
    { 0x309, 0x30c, "fixed counters" },
    { 0x329, 0x329, "performance metrics" },
    { 0x345, 0x345, "performance capabilities" },
    { 0x38d, 0x390, "the counters' control" },
    { 0x3f1, 0x3f2, "PEBS" },
    { 0x4c1, 0x4c8, "full-width counters" },
    { 0x600, 0x600, "debug store" },
    { 0xc0000300, 0xc0000303, "AMD's counter control" },
    { 0xc0010000, 0xc0010007, "AMD's counters" },
    { 0xc0010200, 0xc001020b, "AMD's core counters" },
    { 0x480, 0x493, "VMX" },
    { 0x560, 0x58f, "processor trace" },
    { 0x40000000, 0x400001ff, "Hyper-V" },
};
#define HIDDEN (sizeof(hidden) / sizeof(*hidden))

static bool is_hidden(uint32_t index)
{
    for (unsigned i = 0; i < HIDDEN; i++)
        if (index >= hidden[i].first && index <= hidden[i].last)
            return true;
    return false;
}

#define ALL_KINDS (-2) /* a /dev/kvm that lists what is at each edge of the rows above */

static void list_edges(struct kvm_msr_list *l)
{
    l->nmsrs = 0;
    for (unsigned i = 0; i < HIDDEN; i++) {
        l->indices[l->nmsrs++] = hidden[i].first - 1;
        l->indices[l->nmsrs++] = hidden[i].first;
        l->indices[l->nmsrs++] = hidden[i].last;
        l->indices[l->nmsrs++] = hidden[i].last + 1;
    }
}

/* In the place of libc's. */
int ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    void *arg;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    if (fd != ALL_KINDS)
        return (int)syscall(SYS_ioctl, fd, request, arg);
    list_edges(arg);
    return 0;
}

Test(msr_list, has_what_kvm_lists_where_cpuid_does_not_hide_it)
{
    struct cpuid cpuid = { .nent = 0 };
    struct msr_list l = { 0 };

    cr_assert_eq(msr_list_complete(&l, ALL_KINDS, vcpu, &cpuid, &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < HIDDEN; i++) {
        cr_expect_not(has(&l, hidden[i].first), "MSR 0x%x", hidden[i].first);
        cr_expect_not(has(&l, hidden[i].last), "MSR 0x%x", hidden[i].last);
        cr_expect_eq(has(&l, hidden[i].first - 1), !is_hidden(hidden[i].first - 1), "below %s",
                     hidden[i].what);
        cr_expect_eq(has(&l, hidden[i].last + 1), !is_hidden(hidden[i].last + 1), "above %s",
                     hidden[i].what);
    }
}

Test(msr_list, takes_a_register_once)
{
    struct msr_list l = { 0 };

    for (unsigned i = 0; i < 2; i++)
        for (uint32_t index = 0; index < MSRS_MAX + 1; index++)
            msr_list_add(&l, index);
    cr_expect_eq(l.count, MSRS_MAX);
    cr_expect(has(&l, MSRS_MAX - 1) && !has(&l, MSRS_MAX));
}

Test(msr_list, is_of_no_use_when_it_is_full)
{
    struct cpuid cpuid = { .nent = 0 };
    struct msr_list l = { 0 };

    for (uint32_t index = 0; index < MSRS_MAX; index++)
        msr_list_add(&l, 0x10000000 + index);
    cr_expect_eq(msr_list_complete(&l, kvm.kvm_fd, vcpu, &cpuid, &e), -1);
    cr_expect_str_eq(e.msg, "a vCPU has 512 MSRs or more");
    cr_expect_not(l.is_complete);
}

/* More than go to KVM at once, across chunks of 64. */
Test(msr_list, reads_as_many_as_are_asked_for)
{
    static struct kvm_msr_entry entries[130];

    for (unsigned i = 0; i < 130; i++)
        entries[i].index = i % 2 ? 0x277 : 0xc0000081;
    cr_assert_eq(msrs_write(vcpu, &(struct kvm_msr_entry){ .index = 0x277, .data = 7 }, 1, &e), 0);
    cr_assert_eq(msrs_read(vcpu, entries, 130, &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < 130; i++)
        cr_expect_eq(entries[i].data, i % 2 ? 7 : 0, "entry %u", i);
}

Test(msr_list, names_the_register_that_kvm_refuses)
{
    struct kvm_msr_entry entries[66] = { 0 };

    for (unsigned i = 0; i < 66; i++)
        entries[i].index = 0x277;
    entries[64].index = 0x12345678;
    cr_expect_eq(msrs_read(vcpu, entries, 66, &e), -1);
    cr_expect_str_eq(e.msg, "KVM refuses to read MSR 0x12345678");
    cr_expect_eq(msrs_write(vcpu, entries, 66, &e), -1);
    cr_expect_str_eq(e.msg, "KVM refuses to set MSR 0x12345678");
}
