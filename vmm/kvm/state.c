#include "vmm/kvm/state.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

/* Two clocks that differ by less are one (KVM's own default tolerance). */
#define TSC_TOLERANCE_PPM 250u

/* About an hour of any processor. */
#define TSC_FAR_AWAY (UINT64_C(1) << 44)

static int get_part(int fd, unsigned long request, void *to, const char *name, struct error *e)
{
    return ioctl(fd, request, to) < 0 ? fail_os(e, errno, "KVM_GET_%s", name) : 0;
}

static int set_part(int fd, unsigned long request, const void *from, const char *name,
                    struct error *e)
{
    return ioctl(fd, request, from) < 0 ? fail_os(e, errno, "KVM_SET_%s", name) : 0;
}

#define GET(fd, what, to, e)   get_part((fd), KVM_GET_##what, (to), #what, (e))
#define SET(fd, what, from, e) set_part((fd), KVM_SET_##what, (from), #what, (e))

static int get_xsave(const struct vcpu *c, struct vcpu_state *s, struct error *e)
{
    int bytes = ioctl(c->all->kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

    if (bytes <= 0)
        return GET(c->fd, XSAVE, s->xsave, e);
    if ((size_t)bytes > sizeof(s->xsave))
        return fail(e, ERR_HOST, "the XSAVE area of a vCPU has %d bytes, more than %zu", bytes,
                    sizeof(s->xsave));
    return GET(c->fd, XSAVE2, s->xsave, e);
}

// NOLINTNEXTLINE(readability-non-const-parameter): with KVM_GET_DEVICE_ATTR the kernel writes it
static bool access_tsc_offset(int fd, unsigned long request, uint64_t *offset)
{
    const struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)offset,
    };

    return ioctl(fd, request, &attr) == 0;
}

static int get_msr(int fd, uint32_t index, uint64_t *value, struct error *e)
{
    struct kvm_msr_entry entry = { .index = index };

    if (msrs_read(fd, &entry, 1, e) < 0)
        return -1;
    *value = entry.data;
    return 0;
}

static int set_msr(int fd, uint32_t index, uint64_t value, struct error *e)
{
    return msrs_write(fd, &(struct kvm_msr_entry){ .index = index, .data = value }, 1, e);
}

static int get_tsc(const struct vcpu *c, struct vcpu_state *s, struct error *e)
{
    int khz = ioctl(c->fd, KVM_GET_TSC_KHZ, 0);

    s->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
    s->has_tsc_offset = access_tsc_offset(c->fd, KVM_GET_DEVICE_ATTR, &s->tsc_offset);
    return get_msr(c->fd, MSR_IA32_TSC, &s->tsc, e);
}

static int get_msrs(struct vcpu *c, struct vcpu_state *s, struct error *e)
{
    struct msr_list *l = &c->all->msrs;

    if (!l->is_complete && msr_list_complete(l, c->all->kvm->kvm_fd, c->fd, &s->cpuid, e) < 0)
        return -1;
    s->msr_count = l->count;
    for (unsigned i = 0; i < l->count; i++)
        s->msrs[i].index = l->index[i];
    return msrs_read(c->fd, s->msrs, s->msr_count, e);
}

int vcpu_get_state(struct vcpu *c, struct vcpu_state *s, struct error *e)
{
    *s = (struct vcpu_state){ .cpuid.nent = CPUID_ENTRIES_MAX };
    /* MP_STATE is first: KVM then carries out an INIT or SIPI that has arrived. The deadline comes
     * before the LAPIC: when the timer fires meanwhile, the guest has a tick too many, else it
     * would lose the last that it armed. */
    if (GET(c->fd, MP_STATE, &s->mp_state, e) < 0 || GET(c->fd, REGS, &s->regs, e) < 0 ||
        GET(c->fd, SREGS, &s->sregs, e) < 0 || get_xsave(c, s, e) < 0 ||
        GET(c->fd, XCRS, &s->xcrs, e) < 0 || GET(c->fd, DEBUGREGS, &s->debugregs, e) < 0 ||
        get_msr(c->fd, MSR_IA32_TSC_DEADLINE, &s->tsc_deadline, e) < 0 ||
        GET(c->fd, LAPIC, &s->lapic, e) < 0 || get_tsc(c, s, e) < 0 ||
        GET(c->fd, CPUID2, &s->cpuid, e) < 0 || get_msrs(c, s, e) < 0)
        return -1;
    return GET(c->fd, VCPU_EVENTS, &s->events, e);
}

/* What a vCPU has when it is given all there is. To ask KVM what it supports is not enough: a KVM
 * that can't hide the processor says less than its guests see. */
int vcpu_check_processor(const struct vcpu *c, const struct vcpu_state *s, struct error *e)
{
    struct cpuid all, seen = s->cpuid;

    if (cpuid_supported(&all, c->all->kvm->kvm_fd, e) < 0 || SET(c->fd, CPUID2, &all, e) < 0)
        return -1;
    all.nent = CPUID_ENTRIES_MAX;
    if (GET(c->fd, CPUID2, &all, e) < 0)
        return -1;
    return cpuid_covers(&all, &seen, e);
}

static int set_tsc_khz(int fd, uint32_t khz, struct error *e)
{
    int own = ioctl(fd, KVM_GET_TSC_KHZ, 0);
    int64_t difference = (int64_t)own - khz;

    if (own <= 0 || khz == 0 || llabs(difference) * 1000000 <= (int64_t)own * TSC_TOLERANCE_PPM)
        return 0;
    if (ioctl(fd, KVM_SET_TSC_KHZ, khz) < 0)
        return fail_os(e, errno, "this host's TSC runs at %d kHz and can't be made to run at %u",
                       own, khz);
    return 0;
}

/* The first vCPU's TSC goes on from the saved value. Those of the others are moved by as much: were
 * each set to its own value, they would drift apart by the time that lies between.
 * A host that knows no offsets is told the value. One that is near to what it expects, it takes for
 * an attempt to bring vCPUs together: right for all but the first, which is moved far away before,
 * or a young guest's would be what a new VM's is. */
static int set_tsc(struct vcpu *c, const struct vcpu_state *s, struct error *e)
{
    uint64_t now, offset;

    if (!s->has_tsc_offset || !access_tsc_offset(c->fd, KVM_GET_DEVICE_ATTR, &offset)) {
        if (c->index == 0 && set_msr(c->fd, MSR_IA32_TSC, s->tsc + TSC_FAR_AWAY, e) < 0)
            return -1;
        return set_msr(c->fd, MSR_IA32_TSC, s->tsc, e);
    }
    if (get_msr(c->fd, MSR_IA32_TSC, &now, e) < 0)
        return -1;
    if (c->index == 0)
        c->all->tsc_shift = s->tsc - s->tsc_offset - (now - offset);
    offset = s->tsc_offset + c->all->tsc_shift;
    if (!access_tsc_offset(c->fd, KVM_SET_DEVICE_ATTR, &offset))
        return fail_os(e, errno, "KVM_VCPU_TSC_OFFSET");
    return 0;
}

static int set_msrs(struct vcpu *c, const struct vcpu_state *s, struct error *e)
{
    /* A state of this VM has them again, although KVM may not list them. */
    for (unsigned i = 0; i < s->msr_count; i++)
        msr_list_add(&c->all->msrs, s->msrs[i].index);
    return msrs_write(c->fd, s->msrs, s->msr_count, e);
}

int vcpu_set_state(struct vcpu *c, const struct vcpu_state *s, struct error *e)
{
    /* The deadline needs the LAPIC's timer in its mode and the TSC that it is for. */
    if (set_tsc_khz(c->fd, s->tsc_khz, e) < 0 || SET(c->fd, CPUID2, &s->cpuid, e) < 0 ||
        SET(c->fd, MP_STATE, &s->mp_state, e) < 0 || SET(c->fd, REGS, &s->regs, e) < 0 ||
        SET(c->fd, SREGS, &s->sregs, e) < 0 || SET(c->fd, XSAVE, s->xsave, e) < 0 ||
        SET(c->fd, XCRS, &s->xcrs, e) < 0 || SET(c->fd, DEBUGREGS, &s->debugregs, e) < 0 ||
        SET(c->fd, LAPIC, &s->lapic, e) < 0 || set_msrs(c, s, e) < 0 || set_tsc(c, s, e) < 0 ||
        set_msr(c->fd, MSR_IA32_TSC_DEADLINE, s->tsc_deadline, e) < 0)
        return -1;
    return SET(c->fd, VCPU_EVENTS, &s->events, e);
}

#define CHIPS (sizeof(((struct kvm_state *)0)->chips) / sizeof(struct kvm_irqchip))

int kvm_get_state(const struct kvm *k, struct kvm_state *s, struct error *e)
{
    *s = (struct kvm_state){ 0 };
    if (GET(k->vm_fd, PIT2, &s->pit, e) < 0 || GET(k->vm_fd, CLOCK, &s->clock, e) < 0)
        return -1;
    /* Without the wall time beside it: with that, KVM would add what has passed since. */
    s->clock = (struct kvm_clock_data){ .clock = s->clock.clock };
    for (unsigned i = 0; i < CHIPS; i++) {
        s->chips[i].chip_id = i;
        if (GET(k->vm_fd, IRQCHIP, &s->chips[i], e) < 0)
            return -1;
    }
    return 0;
}

int kvm_set_state(const struct kvm *k, const struct kvm_state *s, struct error *e)
{
    if (SET(k->vm_fd, PIT2, &s->pit, e) < 0 || SET(k->vm_fd, CLOCK, &s->clock, e) < 0)
        return -1;
    for (unsigned i = 0; i < CHIPS; i++)
        if (SET(k->vm_fd, IRQCHIP, &s->chips[i], e) < 0)
            return -1;
    return 0;
}
