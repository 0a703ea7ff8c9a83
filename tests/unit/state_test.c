#include "vmm/kvm/state.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "vmm/boot/registers.h"

#define VCPUS 2
#define CODE  0x8000u
#define PORT  0x600u

/* A VM: a state is saved from one and restored into another. */
struct vm {
    struct kvm kvm;
    struct guest_mem mem;
    struct bus pio, mmio;
    struct guest_end end;
    struct vcpus vcpus;
};

static struct error e;

static struct vm *make_vm(void)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    cr_assert_eq(kvm_open(&vm->kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_init(&vm->mem, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(&vm->kvm, &vm->mem, false, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_create_irqchip(&vm->kvm, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpus_create(&vm->vcpus, &vm->kvm, VCPUS, &vm->pio, &vm->mmio, &vm->end, &e), 0,
                 "%s", e.msg);
    return vm;
}

static struct vm *start_vm(const struct cpu_config *template)
{
    struct vm *vm = make_vm();

    cr_assert_eq(vcpus_reset(&vm->vcpus, false, template, &e), 0, "%s", e.msg);
    return vm;
}

static void drop_vm(struct vm *vm)
{
    vcpus_fini(&vm->vcpus);
    kvm_close(&vm->kvm);
    gmem_fini(&vm->mem);
    free(vm);
}

struct states {
    struct vcpu_state each[VCPUS];
};

static struct states *save(struct vm *vm)
{
    struct states *s = malloc(sizeof(*s));

    for (unsigned i = 0; i < VCPUS; i++)
        cr_assert_eq(vcpu_get_state(&vm->vcpus.each[i], &s->each[i], &e), 0, "%s", e.msg);
    return s;
}

static struct vm *restore(const struct states *s)
{
    struct vm *vm = make_vm();

    for (unsigned i = 0; i < VCPUS; i++)
        cr_assert_eq(vcpu_set_state(&vm->vcpus.each[i], &s->each[i], &e), 0, "%s", e.msg);
    return vm;
}

#define EXPECT_SAME(what)                                                                          \
    cr_expect_eq(memcmp(&a->what, &b->what, sizeof(a->what)), 0, "vCPU %u: " #what, i)

/* The last that a vCPU can have seen: all stood before the first of them was saved. */
static uint64_t last_tsc(const struct states *s, unsigned i)
{
    const struct vcpu_state *first = &s->each[0], *c = &s->each[i];

    return c->has_tsc_offset ? first->tsc + (c->tsc_offset - first->tsc_offset) : c->tsc;
}

/* All but the TSC, which runs on. */
static void expect_same(const struct states *before, const struct states *after)
{
    for (unsigned i = 0; i < VCPUS; i++) {
        const struct vcpu_state *a = &before->each[i], *b = &after->each[i];

        EXPECT_SAME(cpuid);
        EXPECT_SAME(mp_state);
        EXPECT_SAME(regs);
        EXPECT_SAME(sregs);
        EXPECT_SAME(xsave);
        EXPECT_SAME(xcrs);
        EXPECT_SAME(debugregs);
        EXPECT_SAME(lapic);
        EXPECT_SAME(tsc_khz);
        EXPECT_SAME(tsc_deadline);
        EXPECT_SAME(msr_count);
        EXPECT_SAME(events);
        cr_expect_geq(b->tsc, last_tsc(before, i), "vCPU %u: its TSC goes back by %llu", i,
                      (unsigned long long)(last_tsc(before, i) - b->tsc));
        for (unsigned n = 0; n < a->msr_count; n++) {
            const struct kvm_msr_entry *was = &a->msrs[n];
            unsigned at = 0;

            while (at < b->msr_count && b->msrs[at].index != was->index)
                at++;
            cr_assert_lt(at, b->msr_count, "vCPU %u: MSR 0x%x is gone", i, was->index);
            cr_expect_eq(b->msrs[at].data, was->data, "vCPU %u: MSR 0x%x is 0x%llx, was 0x%llx", i,
                         was->index, b->msrs[at].data, was->data);
        }
    }
}

static void set_msr(struct vcpu *c, uint32_t index, uint64_t value)
{
    cr_assert_eq(msrs_write(c->fd, &(struct kvm_msr_entry){ .index = index, .data = value }, 1, &e),
                 0, "%s", e.msg);
}

/* Those that KVM keeps without listing them can be missing from both states. */
static void expect_msr(struct vcpu *c, uint32_t index, uint64_t value)
{
    struct kvm_msr_entry msr = { .index = index };

    cr_assert_eq(msrs_read(c->fd, &msr, 1, &e), 0, "%s", e.msg);
    cr_expect_eq(msr.data, value, "MSR 0x%x is 0x%llx", index, msr.data);
}

static void set_lapic_register(struct vcpu *c, unsigned reg, uint32_t value)
{
    struct kvm_lapic_state lapic;

    cr_assert_eq(ioctl(c->fd, KVM_GET_LAPIC, &lapic), 0);
    memcpy(lapic.regs + reg, &value, sizeof(value));
    cr_assert_eq(ioctl(c->fd, KVM_SET_LAPIC, &lapic), 0);
}

/* What a guest could have left, and nothing that a reset does. */
static void disturb_registers(struct vcpu *c)
{
    struct kvm_regs regs = { .rflags = 0x246 };
    struct kvm_sregs sregs;

    for (unsigned i = 0; i < 17; i++) /* all but rflags */
        (&regs.rax)[i] = 0x0101010101010101 * i + c->index;
    cr_assert_eq(vcpu_get_sregs(c, &sregs, &e), 0, "%s", e.msg);
    sregs.cr2 = 0x5000 + c->index;
    sregs.cr8 = 3;
    sregs.gdt.base = 0x500;
    sregs.idt = (struct kvm_dtable){ .base = 0x600, .limit = 0x77 };
    sregs.fs.base = 0x123000;
    sregs.gs.selector = 0x28;
    cr_assert_eq(vcpu_set_registers(c, &regs, &sregs, &e), 0, "%s", e.msg);
}

static void disturb_vcpu(struct vcpu *c)
{
    struct kvm_debugregs debugregs = { .db = { 1, 2, 3, 4 }, .dr6 = 0xffff0ff1, .dr7 = 0x455 };
    struct kvm_mp_state halted = { c->index ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE };
    struct kvm_vcpu_events events;
    struct kvm_xsave xsave;

    disturb_registers(c);
    cr_assert_eq(ioctl(c->fd, KVM_SET_DEBUGREGS, &debugregs), 0);
    cr_assert_eq(ioctl(c->fd, KVM_SET_MP_STATE, &halted), 0);
    cr_assert_eq(ioctl(c->fd, KVM_GET_XSAVE, &xsave), 0);
    memset(&xsave.region[40], 0x5a, 64); /* XMM0 to XMM3 */
    xsave.region[128] |= 3;              /* XSTATE_BV: x87 and SSE */
    cr_assert_eq(ioctl(c->fd, KVM_SET_XSAVE, &xsave), 0);
    set_lapic_register(c, 0xf0, 0x1ff);                /* on */
    set_lapic_register(c, 0x320, 2u << 17 | 0x41);     /* the timer: deadline, vector 0x41 */
    set_lapic_register(c, 0x200 + 0x20, 1u << 5);      /* IRR: vector 0x45 is requested */
    set_msr(c, 0xc0000081, 0x0023001000000000);        /* STAR */
    set_msr(c, 0xc0000082, 0x7000 + c->index);         /* LSTAR */
    set_msr(c, 0xc0000102, 0x9000);                    /* KERNEL_GS_BASE */
    set_msr(c, 0x277, 0x0007010600070106);             /* PAT */
    set_msr(c, 0x200, 0x80000006);                     /* a variable MTRR */
    set_msr(c, 0x26f, 0x0606060606060606);             /* a fixed one */
    set_msr(c, 0x404, UINT64_MAX);                     /* MC1_CTL */
    set_msr(c, 0x406, 0x1234);                         /* MC1_ADDR */
    set_msr(c, MSR_IA32_TSC_DEADLINE, UINT64_MAX / 4); /* some decades away */
    cr_assert_eq(ioctl(c->fd, KVM_GET_VCPU_EVENTS, &events), 0);
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    events.nmi.pending = 1;
    events.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
    cr_assert_eq(ioctl(c->fd, KVM_SET_VCPU_EVENTS, &events), 0);
}

Test(vcpu_state, comes_back_in_a_new_vm_for_any_number_of_generations)
{
    struct vm *vm = start_vm(NULL);
    struct states *first, *last;

    for (unsigned i = 0; i < VCPUS; i++)
        disturb_vcpu(&vm->vcpus.each[i]);
    first = save(vm);
    cr_expect_eq(first->each[0].tsc_deadline, UINT64_MAX / 4);
    cr_expect_eq(first->each[1].mp_state.mp_state, KVM_MP_STATE_HALTED);
    cr_expect_eq(first->each[1].regs.rip, 0x0101010101010101 * 16 + 1);
    for (unsigned generation = 0; generation < 3; generation++) {
        drop_vm(vm);
        vm = restore(first);
        last = save(vm);
        expect_same(first, last);
        expect_msr(&vm->vcpus.each[1], 0x200, 0x80000006);
        expect_msr(&vm->vcpus.each[1], 0x26f, 0x0606060606060606);
        expect_msr(&vm->vcpus.each[1], 0x404, UINT64_MAX);
        expect_msr(&vm->vcpus.each[1], 0x406, 0x1234);
        free(first);
        first = last;
    }
    free(first);
    drop_vm(vm);
}

/* KVM doesn't list this one, and a VM that was restored has no template. */
Test(vcpu_state, has_the_msrs_of_a_template_in_each_generation)
{
    struct msr_modifier msrs[] = { { 0xc0000080, { 1, 1 } } }; /* EFER, which is in sregs too */
    const struct cpu_config template = { .msrs = msrs, .msr_count = 1 };
    struct vm *vm = start_vm(NULL);
    struct states *plain = save(vm), *with, *after;

    drop_vm(vm);
    vm = start_vm(&template);
    with = save(vm);
    cr_assert_eq(with->each[0].msr_count, plain->each[0].msr_count + 1);
    for (unsigned generation = 0; generation < 3; generation++) {
        drop_vm(vm);
        vm = restore(with);
        after = save(vm);
        cr_expect_eq(after->each[1].msr_count, with->each[1].msr_count);
        expect_same(with, after);
        free(with);
        with = after;
    }
    free(with);
    free(plain);
    drop_vm(vm);
}

Test(vcpu_state, keeps_the_tscs_of_all_vcpus_together)
{
    struct vm *vm = start_vm(NULL), *other;
    struct states *before, *after;

    before = save(vm);
    if (!before->each[0].has_tsc_offset)
        cr_skip_test("this kernel has no KVM_VCPU_TSC_OFFSET");
    cr_assert_eq(before->each[0].tsc_offset, before->each[1].tsc_offset);
    other = restore(before);
    after = save(other);
    cr_expect_eq(after->each[0].tsc_offset, after->each[1].tsc_offset);
    free(before);
    free(after);
    drop_vm(vm);
    drop_vm(other);
}

Test(vcpu_state, without_tsc_offsets_has_the_tsc_go_on_all_the_same)
{
    struct vm *vm = start_vm(NULL), *other;
    struct states *before = save(vm), *after;

    for (unsigned i = 0; i < VCPUS; i++)
        before->each[i].has_tsc_offset = false;
    other = restore(before);
    after = save(other);
    expect_same(before, after);
    free(before);
    free(after);
    drop_vm(vm);
    drop_vm(other);
}

Test(vcpu_state, names_the_msr_that_kvm_does_not_take)
{
    struct vm *vm = start_vm(NULL), *other = make_vm();
    struct states *s = save(vm);

    s->each[0].msrs[7] = (struct kvm_msr_entry){ .index = 0x12345678, .data = 1 };
    cr_expect_eq(vcpu_set_state(&other->vcpus.each[0], &s->each[0], &e), -1);
    cr_expect_str_eq(e.msg, "KVM refuses to set MSR 0x12345678");
    free(s);
    drop_vm(vm);
    drop_vm(other);
}

Test(vcpu_state, names_the_part_that_kvm_does_not_take)
{
    struct vm *vm = start_vm(NULL), *other = make_vm();
    struct states *s = save(vm);

    s->each[0].debugregs.dr7 = UINT64_MAX;
    cr_expect_eq(vcpu_set_state(&other->vcpus.each[0], &s->each[0], &e), -1);
    cr_expect_str_eq(e.msg, "KVM_SET_DEBUGREGS: Invalid argument (os error 22)");
    free(s);
    drop_vm(vm);
    drop_vm(other);
}

Test(vcpu_state, refuses_a_tsc_that_this_host_cannot_have)
{
    struct vm *vm = start_vm(NULL), *other = make_vm();
    struct states *s = save(vm);
    uint32_t khz = s->each[0].tsc_khz;

    if (ioctl(vm->kvm.kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0)
        cr_skip_test("this host can have any");
    s->each[0].tsc_khz = khz + khz / 5000; /* 200 ppm */
    cr_expect_eq(vcpu_set_state(&other->vcpus.each[0], &s->each[0], &e), 0, "%s", e.msg);
    s->each[0].tsc_khz = khz / 2;
    cr_expect_eq(vcpu_set_state(&other->vcpus.each[0], &s->each[0], &e), -1);
    cr_expect(strstr(e.msg, "can't be made to run at"), "%s", e.msg);
    free(s);
    drop_vm(vm);
    drop_vm(other);
}

/* A port that counts, and holds the guest in its first access. */
struct probe {
    struct bus_device bus;
    struct vm *to_be_held;
    unsigned reads, writes;
    int arrived; /* an eventfd */
};

static void probe_access(struct probe *p)
{
    if (!p->to_be_held) {
        loop_signal(p->arrived);
        return;
    }
    loop_signal(p->arrived);
    while (!__atomic_load_n(&p->to_be_held->vcpus.each[0].run->immediate_exit, __ATOMIC_RELAXED))
        sched_yield();
}

static void probe_read(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes)
{
    struct probe *p = owner_of(d, struct probe, bus);

    (void)offset;
    memset(data, 0x77, bytes);
    p->reads++;
    probe_access(p);
}

static void probe_write(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    struct probe *p = owner_of(d, struct probe, bus);

    (void)offset, (void)bytes;
    cr_expect_eq(*data, 0x77, "what was read before the save");
    p->writes++;
    probe_access(p);
}

static const struct bus_ops probe_ops = { probe_read, probe_write };

static void add_probe(struct vm *vm, struct probe *p)
{
    *p = (struct probe){ .bus = { &probe_ops, PORT, 1 }, .arrived = eventfd(0, EFD_CLOEXEC) };
    bus_add(&vm->pio, &p->bus);
}

static void run_until_access(struct vm *vm, struct probe *p)
{
    uint64_t count;

    cr_assert_eq(vcpus_start(&vm->vcpus, NULL, &e), 0, "%s", e.msg);
    vcpus_release(&vm->vcpus);
    cr_assert_eq(read(p->arrived, &count, sizeof(count)), sizeof(count));
    vcpus_hold(&vm->vcpus);
}

Test(vcpu_state, has_the_access_that_was_begun_behind_it)
{
    static const uint8_t in_out_halt[] = { 0xec, 0xee, 0xf4 };
    const struct kernel_image kernel = { .protocol = BOOT_PVH, .entry = { CODE } };
    struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rdx = PORT };
    struct vm *vm = start_vm(NULL), *other;
    static struct probe before, after;
    struct kvm_sregs sregs;
    struct states *s;

    add_probe(vm, &before);
    before.to_be_held = vm;
    cr_assert_eq(gmem_put(&vm->mem, gpa(CODE), &in_out_halt), 0);
    cr_assert_eq(boot_registers_set(&vm->vcpus.each[0], &kernel, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpu_get_sregs(&vm->vcpus.each[0], &sregs, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpu_set_registers(&vm->vcpus.each[0], &regs, &sregs, &e), 0, "%s", e.msg);
    run_until_access(vm, &before);
    s = save(vm);
    other = restore(s);
    free(s);
    add_probe(other, &after);
    cr_assert_eq(gmem_put(&other->mem, gpa(CODE), &in_out_halt), 0);
    run_until_access(other, &after);
    cr_expect_eq(before.reads, 1);
    cr_expect_eq(before.writes, 0);
    cr_expect_eq(after.reads, 0, "the restored guest reads again");
    cr_expect_eq(after.writes, 1);
}

static void io_line(struct vm *vm, uint32_t gsi)
{
    cr_assert_eq(
        ioctl(vm->kvm.vm_fd, KVM_IRQ_LINE, &(struct kvm_irq_level){ .irq = gsi, .level = 1 }), 0);
}

Test(kvm_state, comes_back_in_a_new_vm)
{
    struct vm *vm = start_vm(NULL), *other = make_vm();
    struct kvm_state before, after;
    struct kvm_pit_state2 pit;
    struct kvm_irqchip chip = { .chip_id = 0 };

    cr_assert_eq(ioctl(vm->kvm.vm_fd, KVM_GET_IRQCHIP, &chip), 0);
    chip.chip.pic.imr = 0x5a;
    chip.chip.pic.irq_base = 0x20;
    cr_assert_eq(ioctl(vm->kvm.vm_fd, KVM_SET_IRQCHIP, &chip), 0);
    cr_assert_eq(ioctl(vm->kvm.vm_fd, KVM_GET_PIT2, &pit), 0);
    pit.channels[0].count = 0x4321;
    pit.channels[0].mode = 2;
    cr_assert_eq(ioctl(vm->kvm.vm_fd, KVM_SET_PIT2, &pit), 0);
    io_line(vm, 9);
    cr_assert_eq(
        ioctl(vm->kvm.vm_fd, KVM_SET_CLOCK, &(struct kvm_clock_data){ .clock = 1000000000000 }), 0);
    cr_assert_eq(kvm_get_state(&vm->kvm, &before, &e), 0, "%s", e.msg);
    cr_expect_eq(before.chips[0].chip.pic.imr, 0x5a);
    cr_expect_eq(before.chips[2].chip.ioapic.irr & 0x200, 0x200);
    cr_expect_eq(before.pit.channels[0].count, 0x4321);
    cr_expect_geq(before.clock.clock, 1000000000000);
    cr_expect_eq(before.clock.flags, 0, "the wall time would be added");
    cr_assert_eq(kvm_set_state(&other->kvm, &before, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_get_state(&other->kvm, &after, &e), 0, "%s", e.msg);
    cr_expect_eq(memcmp(before.chips, after.chips, sizeof(before.chips)), 0);
    for (unsigned i = 0; i < 3; i++) /* when the count was loaded is this host's matter */
        before.pit.channels[i].count_load_time = after.pit.channels[i].count_load_time = 0;
    cr_expect_eq(memcmp(&before.pit, &after.pit, sizeof(before.pit)), 0);
    cr_expect_geq(after.clock.clock, before.clock.clock);
    drop_vm(vm);
    drop_vm(other);
}
