#include "vmm/kvm/vcpu.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

#include "vmm/boot/registers.h"

static struct kvm k;
static struct guest_mem m;
static struct vcpus v;
static struct guest_end end;
static struct bus pio, mmio;
static struct error e;

static void make(unsigned count)
{
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    cr_assert_eq(kvm_open(&k, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_init(&m, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(&k, &m, false, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_create_irqchip(&k, &e), 0, "%s", e.msg);
    cr_assert_eq(
        vcpus_init(&v, &k, &(struct cpu_topology){ count, false }, NULL, &pio, &mmio, &end, &e), 0,
        "%s", e.msg);
}

static uint64_t msr(unsigned vcpu, uint32_t index)
{
    struct {
        uint32_t nmsrs, padding;
        struct kvm_msr_entry entry;
    } msrs = { .nmsrs = 1, .entry.index = index };

    cr_assert_eq(ioctl(v.each[vcpu].fd, KVM_GET_MSRS, &msrs), 1, "MSR 0x%x", index);
    return msrs.entry.data;
}

Test(vcpus_init, leaves_each_processor_as_the_boot_protocols_want_it)
{
    static const uint32_t zero[] = {
        0x174,      0x175,      0x176,                  /* SYSENTER_CS, _ESP, _EIP */
        0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, /* STAR, LSTAR, CSTAR, SFMASK */
        0xc0000102,                                     /* KERNEL_GS_BASE */
    };

    make(2);
    for (unsigned i = 0; i < 2; i++) {
        struct kvm_xsave xsave; /* in FXSAVE form at its beginning */
        struct kvm_lapic_state lapic;
        uint32_t lvt[2];

        for (unsigned n = 0; n < sizeof(zero) / sizeof(*zero); n++)
            cr_expect_eq(msr(i, zero[n]), 0, "vCPU %u, MSR 0x%x", i, zero[n]);
        cr_expect_eq(msr(i, 0x1a0) & 1, 1, "fast strings");
        cr_expect_eq(msr(i, 0x2ff), 0x806, "memory is write-back by default");
        cr_assert_eq(ioctl(v.each[i].fd, KVM_GET_XSAVE, &xsave), 0);
        cr_expect_eq(xsave.region[0] & 0xffff, 0x37f, "x87 control word");
        cr_expect_eq(xsave.region[6], 0x1f80, "MXCSR");
        cr_assert_eq(ioctl(v.each[i].fd, KVM_GET_LAPIC, &lapic), 0);
        memcpy(&lvt[0], lapic.regs + 0x350, 4);
        memcpy(&lvt[1], lapic.regs + 0x360, 4);
        cr_expect_eq(lvt[0] & 0x700, 0x700, "LINT0 is ExtINT");
        cr_expect_eq(lvt[1] & 0x700, 0x400, "LINT1 is NMI");
    }
}

Test(vcpus_init, lets_only_the_first_processor_run)
{
    struct kvm_mp_state state;

    make(3);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(ioctl(v.each[i].fd, KVM_GET_MP_STATE, &state), 0);
        cr_expect_eq(state.mp_state, i ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE);
    }
}

Test(boot_registers_set, enters_long_mode_or_flat_32_bit_mode)
{
    const struct kernel_image kernels[] = {
        { .protocol = BOOT_LINUX64, .entry = { 0x1000000 } },
        { .protocol = BOOT_PVH, .entry = { 0x2000000 } },
    };
    struct kvm_sregs s;
    struct kvm_regs r;

    make(1);
    cr_assert_eq(boot_registers_set(&v.each[0], &kernels[0], &e), 0, "%s", e.msg);
    ioctl(v.each[0].fd, KVM_GET_SREGS, &s);
    ioctl(v.each[0].fd, KVM_GET_REGS, &r);
    cr_expect_eq(r.rip, 0x1000000);
    cr_expect_eq(r.rsi, 0x7000);
    cr_expect_eq(r.rsp, 0x8ff0);
    cr_expect_eq(r.rbp, 0x8ff0);
    cr_expect_eq(s.cr3, 0x9000);
    cr_expect_eq(s.cs.l, 1);
    cr_expect(s.cr0 & 0x80000000u);
    cr_expect_eq(s.efer & 0x500, 0x500);
    vcpus_fini(&v, &k);
    kvm_close(&k);
    gmem_fini(&m);
    make(1);
    cr_assert_eq(boot_registers_set(&v.each[0], &kernels[1], &e), 0, "%s", e.msg);
    ioctl(v.each[0].fd, KVM_GET_SREGS, &s);
    ioctl(v.each[0].fd, KVM_GET_REGS, &r);
    cr_expect_eq(r.rip, 0x2000000);
    cr_expect_eq(r.rbx, 0x6000);
    cr_expect_eq(s.cs.l, 0);
    cr_expect_eq(s.cs.db, 1);
    cr_expect_eq(s.cs.limit, 0xffffffff);
    cr_expect_eq(s.cr0 & 0x80000001u, 1);
    cr_expect_eq(s.efer, 0);
}

Test(vcpus_pause, returns_when_every_vcpu_stands_still)
{
    static const uint8_t loop_for_ever[] = { 0xeb, 0xfe };
    const struct kernel_image kernel = { .protocol = BOOT_PVH, .entry = { 0x8000 } };

    make(4);
    cr_assert_eq(gmem_put(&m, gpa(0x8000), &loop_for_ever), 0);
    cr_assert_eq(boot_registers_set(&v.each[0], &kernel, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpus_start(&v, NULL, &e), 0, "%s", e.msg);
    vcpus_resume(&v);
    for (unsigned i = 0; i < 200; i++) {
        vcpus_pause(&v);
        cr_assert_eq(v.paused, 4);
        vcpus_pause(&v);
        vcpus_resume(&v);
    }
}

/* A private /dev, so that nothing else on the host notices. */
static void hide_dev(void)
{
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", "/dev", "tmpfs", 0, NULL) < 0)
        cr_skip_test("no permission to mount");
}

Test(kvm_open, says_that_the_device_is_missing)
{
    hide_dev();
    cr_expect_eq(kvm_open(&k, NULL, &e), -1);
    cr_expect_str_eq(e.msg, "cannot open /dev/kvm (no KVM module is loaded on this host): No such "
                            "file or directory (os error 2)");
}

Test(kvm_open, says_that_the_device_is_forbidden)
{
    hide_dev();
    close(creat("/dev/kvm", 0));
    cr_assert_eq(setresuid(65534, 65534, 65534), 0);
    cr_expect_eq(kvm_open(&k, NULL, &e), -1);
    cr_expect_str_eq(e.msg, "cannot open /dev/kvm (the user needs read and write permission): "
                            "Permission denied (os error 13)");
}

Test(kvm_open, says_that_the_device_is_something_else)
{
    hide_dev();
    close(creat("/dev/kvm", 0600));
    cr_expect_eq(kvm_open(&k, NULL, &e), -1);
    cr_expect_str_eq(e.msg,
                     "/dev/kvm is not a KVM device: Inappropriate ioctl for device (os error "
                     "25)");
    cr_expect_eq(k.kvm_fd, -1);
}
