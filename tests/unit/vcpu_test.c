#include "vmm/kvm/vcpu.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include "vmm/base/log.h"
#include "vmm/boot/registers.h"

static struct kvm k;
static struct guest_mem m;
static struct vcpus *v; /* on the heap: threads of one that is held for good go on using it */
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
    v = calloc(1, sizeof(*v));
    cr_assert_eq(vcpus_create(v, &k, count, &pio, &mmio, &end, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpus_reset(v, false, NULL, &e), 0, "%s", e.msg);
}

static uint64_t msr(unsigned vcpu, uint32_t index)
{
    struct {
        uint32_t nmsrs, padding;
        struct kvm_msr_entry entry;
    } msrs = { .nmsrs = 1, .entry.index = index };

    cr_assert_eq(ioctl(v->each[vcpu].fd, KVM_GET_MSRS, &msrs), 1, "MSR 0x%x", index);
    return msrs.entry.data;
}

Test(vcpus_reset, leaves_each_processor_as_the_boot_protocols_want_it)
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
        cr_assert_eq(ioctl(v->each[i].fd, KVM_GET_XSAVE, &xsave), 0);
        cr_expect_eq(xsave.region[0] & 0xffff, 0x37f, "x87 control word");
        cr_expect_eq(xsave.region[6], 0x1f80, "MXCSR");
        cr_assert_eq(ioctl(v->each[i].fd, KVM_GET_LAPIC, &lapic), 0);
        memcpy(&lvt[0], lapic.regs + 0x350, 4);
        memcpy(&lvt[1], lapic.regs + 0x360, 4);
        cr_expect_eq(lvt[0] & 0x700, 0x700, "LINT0 is ExtINT");
        cr_expect_eq(lvt[1] & 0x700, 0x400, "LINT1 is NMI");
    }
}

Test(vcpus_create, lets_only_the_first_processor_run)
{
    struct kvm_mp_state state;

    make(3);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(ioctl(v->each[i].fd, KVM_GET_MP_STATE, &state), 0);
        cr_expect_eq(state.mp_state, i ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE);
    }
}

/* As a GDT has it (SDM volume 3, 3.4.5). */
static uint64_t descriptor_of(const struct kvm_segment *s)
{
    const uint64_t limit = s->g ? s->limit >> 12 : s->limit;

    return (limit & 0xffff) | (s->base & 0xffffff) << 16 | (uint64_t)s->type << 40 |
           (uint64_t)s->s << 44 | (uint64_t)s->dpl << 45 | (uint64_t)s->present << 47 |
           (limit >> 16 & 0xf) << 48 | (uint64_t)s->avl << 52 | (uint64_t)s->l << 53 |
           (uint64_t)s->db << 54 | (uint64_t)s->g << 55 | (s->base >> 24 & 0xff) << 56;
}

/* Those of the GDT that boot_info_test.c expects in memory. */
static void expect_flat_segments(const struct kvm_sregs *s, uint64_t code)
{
    const struct kvm_segment *data[] = { &s->ds, &s->es, &s->fs, &s->gs, &s->ss };

    cr_expect_eq(s->cs.selector, 0x08);
    cr_expect_eq(descriptor_of(&s->cs), code, "0x%lx", descriptor_of(&s->cs));
    cr_expect_eq(s->tr.selector, 0x18);
    cr_expect_eq(descriptor_of(&s->tr), 0x00008b0000000067, "0x%lx", descriptor_of(&s->tr));
    for (unsigned i = 0; i < sizeof(data) / sizeof(*data); i++) {
        cr_expect_eq(data[i]->selector, 0x10);
        cr_expect_eq(descriptor_of(data[i]), 0x00cf93000000ffff, "0x%lx", descriptor_of(data[i]));
    }
    cr_expect_eq(s->gdt.base, 0x500);
    cr_expect_eq(s->gdt.limit, 4 * 8 - 1);
    cr_expect_eq(s->idt.base, 0x520);
    cr_expect_eq(s->idt.limit, 7);
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
    cr_assert_eq(boot_registers_set(&v->each[0], &kernels[0], &e), 0, "%s", e.msg);
    ioctl(v->each[0].fd, KVM_GET_SREGS, &s);
    ioctl(v->each[0].fd, KVM_GET_REGS, &r);
    cr_expect_eq(r.rip, 0x1000000);
    cr_expect_eq(r.rsi, 0x7000);
    cr_expect_eq(r.rsp, 0x8ff0);
    cr_expect_eq(r.rbp, 0x8ff0);
    cr_expect_eq(s.cr3, 0x9000);
    expect_flat_segments(&s, 0x00af9b000000ffff);
    cr_expect_eq(s.cr0, 0x80000011u, "0x%llx", s.cr0);
    cr_expect_eq(s.cr4, 0x20);
    cr_expect_eq(s.efer & 0x500, 0x500);
    vcpus_fini(v);
    free(v);
    kvm_close(&k);
    gmem_fini(&m);
    make(1);
    cr_assert_eq(boot_registers_set(&v->each[0], &kernels[1], &e), 0, "%s", e.msg);
    ioctl(v->each[0].fd, KVM_GET_SREGS, &s);
    ioctl(v->each[0].fd, KVM_GET_REGS, &r);
    cr_expect_eq(r.rip, 0x2000000);
    cr_expect_eq(r.rbx, 0x6000);
    cr_expect_eq(r.rsp, 0x8ff0, "a kernel may call before it has a stack of its own");
    expect_flat_segments(&s, 0x00cf9b000000ffff);
    cr_expect_eq(s.cr0, 0x11, "0x%llx", s.cr0);
    cr_expect_eq(s.cr4, 0);
    cr_expect_eq(s.efer, 0);
}

/* What a vCPU meets on the buses: one address, behind which a test stands. */
struct probe {
    struct bus_device bus;
    void (*on_access)(struct probe *p);
    atomic_uint reads, writes;
    uint8_t written[8];
    unsigned written_bytes;
};

static void probe_read(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes)
{
    struct probe *p = owner_of(d, struct probe, bus);

    (void)offset;
    memset(data, (int)(0x40 + p->reads++), bytes);
    if (p->on_access)
        p->on_access(p);
}

static void probe_write(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    struct probe *p = owner_of(d, struct probe, bus);

    (void)offset;
    p->writes++;
    memcpy(p->written, data, bytes);
    p->written_bytes = bytes;
    if (p->on_access)
        p->on_access(p);
}

static const struct bus_ops probe_ops = { probe_read, probe_write };

#define CODE      0x8000u
#define DATA      0x9000u
#define PORT      0x600u
#define DONE_PORT 0x99u
#define PAGE_A    0xc0001000u
#define PAGE_B    0xc0002000u

static struct probe port = { .bus = { &probe_ops, PORT, 1 } };
static struct probe page_a = { .bus = { &probe_ops, PAGE_A, 0x1000 } };
static struct probe page_b = { .bus = { &probe_ops, PAGE_B, 0x1000 } };
static struct probe done = { .bus = { &probe_ops, DONE_PORT, 1 } };
static int arrived; /* an eventfd: the guest is in the access that it is to be held in */

static void wait_for(int fd)
{
    uint64_t count;

    cr_assert_eq(read(fd, &count, sizeof(count)), sizeof(count));
}

/* The access doesn't return before the hold is asked for, and there is one such access. */
static void wait_for_the_hold(struct probe *p)
{
    p->on_access = NULL;
    loop_signal(arrived);
    while (!__atomic_load_n(&v->each[0].run->immediate_exit, __ATOMIC_RELAXED))
        sched_yield();
}

static void tell(struct probe *p)
{
    (void)p;
    loop_signal(arrived);
}

/* One vCPU, in flat 32-bit mode at that code; it stands. */
static void load_code(const uint8_t *code, size_t bytes, struct kvm_regs regs)
{
    const struct kernel_image kernel = { .protocol = BOOT_PVH, .entry = { CODE } };
    struct kvm_sregs sregs;

    make(1);
    end.event_fd = eventfd(0, EFD_CLOEXEC);
    arrived = eventfd(0, EFD_CLOEXEC);
    bus_add(&pio, &port.bus);
    bus_add(&pio, &done.bus);
    bus_add(&mmio, &page_a.bus);
    bus_add(&mmio, &page_b.bus);
    cr_assert_eq(gmem_write_(&m, gpa(CODE), code, bytes), 0);
    cr_assert_eq(boot_registers_set(&v->each[0], &kernel, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpu_get_sregs(&v->each[0], &sregs, &e), 0, "%s", e.msg);
    regs.rip = CODE;
    regs.rflags = 2;
    cr_assert_eq(vcpu_set_registers(&v->each[0], &regs, &sregs, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpus_start(v, NULL, &e), 0, "%s", e.msg);
}

static struct kvm_regs registers(void)
{
    struct kvm_regs r;

    cr_assert_eq(ioctl(v->each[0].fd, KVM_GET_REGS, &r), 0);
    return r;
}

/* Each case is one instruction, and then a jump to itself. */
Test(vcpus_hold, finds_the_access_that_was_begun_done_and_done_once)
{
    static const struct {
        const char *what;
        uint8_t code[2];
        unsigned bytes;
        uint32_t rsi; /* of the memory that it accesses */
        unsigned port_reads, port_writes, a_reads, a_writes, b_reads, b_writes;
        uint32_t rax; /* afterwards; it is 0x11223344 before */
    } cases[] = {
        { "in", { 0xec }, 1, 0, 1, 0, 0, 0, 0, 0, 0x11223340 },
        { "out", { 0xee }, 1, 0, 0, 1, 0, 0, 0, 0, 0x11223344 },
        { "load", { 0x8b, 0x06 }, 2, PAGE_A, 0, 0, 1, 0, 0, 0, 0x40404040 },
        { "store", { 0x89, 0x06 }, 2, PAGE_A, 0, 0, 0, 1, 0, 0, 0x11223344 },
        { "load from two pages", { 0x8b, 0x06 }, 2, PAGE_B - 2, 0, 0, 1, 0, 1, 0, 0x40404040 },
        { "store to two pages", { 0x89, 0x06 }, 2, PAGE_B - 2, 0, 0, 0, 1, 0, 1, 0x11223344 },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint8_t code[4] = { cases[i].code[0], cases[i].code[1] };

        memcpy(code + cases[i].bytes, (const uint8_t[]){ 0xeb, 0xfe }, 2);
        pio = mmio = (struct bus){ 0 };
        port.reads = port.writes = page_a.reads = page_a.writes = page_b.reads = page_b.writes = 0;
        port.on_access = page_a.on_access = wait_for_the_hold;
        load_code(code, sizeof(code),
                  (struct kvm_regs){ .rax = 0x11223344, .rdx = PORT, .rsi = cases[i].rsi });
        vcpus_release(v);
        wait_for(arrived);
        for (unsigned round = 0; round < 10; round++) {
            struct kvm_regs r;

            vcpus_hold(v);
            r = registers();
            cr_expect_eq(r.rip, CODE + cases[i].bytes, "%s: at 0x%llx", cases[i].what, r.rip);
            cr_expect_eq(r.rax, cases[i].rax, "%s: 0x%llx", cases[i].what, r.rax);
            cr_expect_eq(port.reads, cases[i].port_reads, "%s", cases[i].what);
            cr_expect_eq(port.writes, cases[i].port_writes, "%s", cases[i].what);
            cr_expect_eq(page_a.reads, cases[i].a_reads, "%s", cases[i].what);
            cr_expect_eq(page_a.writes, cases[i].a_writes, "%s", cases[i].what);
            cr_expect_eq(page_b.reads, cases[i].b_reads, "%s", cases[i].what);
            cr_expect_eq(page_b.writes, cases[i].b_writes, "%s", cases[i].what);
            vcpus_release(v);
        }
        vcpus_hold(v); /* for good: the next case has a VM of its own */
    }
}

/* A REP is held between two of its items, which the counter in rcx tells apart. */
Test(vcpus_hold, finds_a_repeated_access_as_far_as_its_counter_says)
{
    static const struct {
        const char *what;
        uint8_t code[2];
        uint32_t rsi, rdi;
    } cases[] = {
        { "rep insb", { 0xf3, 0x6c }, 0, DATA },
        { "rep outsb", { 0xf3, 0x6e }, DATA, 0 },
        { "rep movsb from a device", { 0xf3, 0xa4 }, PAGE_A, DATA },
        { "rep movsb to a device", { 0xf3, 0xa4 }, DATA, PAGE_A },
        { "rep movsb between devices", { 0xf3, 0xa4 }, PAGE_A, PAGE_B },
    };
    const unsigned count = 3000;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        /* rep ...; out DONE_PORT, al; jmp to itself */
        const uint8_t code[] = { cases[i].code[0], cases[i].code[1], 0xe6, DONE_PORT, 0xeb, 0xfe };
        struct probe *p = i < 2 ? &port : &page_a;
        unsigned seen;

        pio = mmio = (struct bus){ 0 };
        port.reads = port.writes = page_a.reads = page_a.writes = page_b.writes = 0;
        p->on_access = wait_for_the_hold;
        done.on_access = tell;
        load_code(code, sizeof(code),
                  (struct kvm_regs){
                      .rcx = count, .rdx = PORT, .rsi = cases[i].rsi, .rdi = cases[i].rdi });
        vcpus_release(v);
        wait_for(arrived);
        vcpus_hold(v);
        seen = p->reads + p->writes;
        cr_expect_gt(seen, 0);
        cr_expect_eq(registers().rcx, count - seen, "%s: %u done, %llu left", cases[i].what, seen,
                     registers().rcx);
        vcpus_release(v);
        wait_for(arrived);
        vcpus_hold(v);
        cr_expect_eq(registers().rcx, 0);
        cr_expect_eq(p->reads + p->writes, count, "%s: %u", cases[i].what, p->reads + p->writes);
        cr_expect_eq(page_b.writes, i == 4 ? count : 0);
    }
}

#define ITEMS 40u

static uint8_t seen[ITEMS];

static void note_item(struct probe *p)
{
    seen[(p->writes - 1) % ITEMS] = p->written[0];
}

/* rep outsb, rep insb; out DONE_PORT, al; jmp to itself */
Test(vcpu, takes_and_gives_the_items_of_a_string_instruction_in_their_order)
{
    static const uint8_t out[] = { 0xf3, 0x6e, 0xe6, DONE_PORT, 0xeb, 0xfe };
    static const uint8_t in[] = { 0xf3, 0x6c, 0xe6, DONE_PORT, 0xeb, 0xfe };
    uint8_t items[ITEMS];

    for (unsigned i = 0; i < ITEMS; i++)
        items[i] = (uint8_t)(i * 7 + 1);
    port.reads = port.writes = 0;
    port.on_access = note_item;
    done.on_access = tell;
    load_code(out, sizeof(out), (struct kvm_regs){ .rcx = ITEMS, .rdx = PORT, .rsi = DATA });
    cr_assert_eq(gmem_write_(&m, gpa(DATA), items, ITEMS), 0);
    vcpus_release(v);
    wait_for(arrived);
    vcpus_hold(v);
    cr_expect_eq(port.writes, ITEMS);
    cr_expect_arr_eq(seen, items, ITEMS);

    pio = mmio = (struct bus){ 0 };
    port.on_access = NULL;
    load_code(in, sizeof(in), (struct kvm_regs){ .rcx = ITEMS, .rdx = PORT, .rdi = DATA });
    vcpus_release(v);
    wait_for(arrived);
    vcpus_hold(v);
    cr_assert_eq(gmem_read_(&m, gpa(DATA), items, ITEMS), 0);
    for (unsigned i = 0; i < ITEMS; i++)
        cr_expect_eq(items[i], 0x40 + i, "item %u", i);
}

/* flds to a register of a device: KVM's emulator has no floating point. */
Test(vcpu, says_where_the_guest_is_that_kvm_cannot_go_on_with)
{
    static const uint8_t load[] = { 0x90, 0xd9, 0x05, 0x00, 0x10, 0x00, 0xc0 };
    int log = memfd_create("log", 0);
    char text[512] = { 0 }, name[32];

    snprintf(name, sizeof(name), "/proc/self/fd/%d", log);
    cr_assert_eq(log_open(name, &e), 0, "%s", e.msg);
    load_code(load, sizeof(load), (struct kvm_regs){ 0 });
    vcpus_release(v);
    wait_for(end.event_fd);
    vcpus_hold(v);
    cr_assert_gt(pread(log, text, sizeof(text) - 1, 0), 0);
    cr_expect(strstr(text, "vCPU 0: KVM internal error at RIP 0x8001, instruction bytes d9 05 00 "
                           "10 00 c0"),
              "%s", text);
}

Test(vcpus_create, says_which_vcpu_it_cannot_map)
{
    make(1);
    vcpus_fini(v);
    kvm_close(&k);
    cr_assert_eq(kvm_open(&k, NULL, &e), 0, "%s", e.msg);
    k.run_bytes = 0;
    cr_assert_eq(vcpus_create(v, &k, 2, &pio, &mmio, &end, &e), -1);
    cr_expect_str_eq(e.msg, "cannot map vCPU 0: Invalid argument (os error 22)");
    vcpus_fini(v);
    cr_expect_eq(v->count, 0);
}

Test(vcpus_hold, is_counted)
{
    static const uint8_t out_for_ever[] = { 0xee, 0xeb, 0xfd };

    load_code(out_for_ever, sizeof(out_for_ever), (struct kvm_regs){ .rdx = PORT });
    vcpus_hold(v);
    vcpus_release(v); /* the threads start held */
    cr_expect_eq(registers().rip, CODE);
    port.on_access = tell;
    vcpus_release(v);
    for (unsigned i = 0; i < 200; i++) {
        unsigned writes;

        wait_for(arrived); /* it runs */
        vcpus_hold(v);
        writes = port.writes;
        vcpus_hold(v);
        vcpus_release(v);
        cr_expect_lt(registers().rip, CODE + sizeof(out_for_ever));
        cr_expect_eq(port.writes, writes, "it ran while it was held");
        cr_assert_eq(v->standing, 1);
        vcpus_release(v);
    }
    vcpus_hold(v);
}

Test(vcpus_hold, returns_when_every_vcpu_stands)
{
    static const uint8_t loop_for_ever[] = { 0xeb, 0xfe };
    const struct kernel_image kernel = { .protocol = BOOT_PVH, .entry = { CODE } };

    make(4); /* the others wait for the first to start them, which it doesn't */
    cr_assert_eq(gmem_put(&m, gpa(CODE), &loop_for_ever), 0);
    cr_assert_eq(boot_registers_set(&v->each[0], &kernel, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpus_start(v, NULL, &e), 0, "%s", e.msg);
    vcpus_release(v);
    for (unsigned i = 0; i < 200; i++) {
        vcpus_hold(v);
        cr_assert_eq(v->standing, 4);
        vcpus_release(v);
    }
}

Test(vcpus_hold, returns_from_a_halted_vcpu)
{
    static const uint8_t out_and_halt[] = { 0xee, 0xf4, 0xeb, 0xfd };

    load_code(out_and_halt, sizeof(out_and_halt), (struct kvm_regs){ .rdx = PORT });
    port.on_access = tell;
    vcpus_release(v);
    wait_for(arrived);
    for (unsigned i = 0; i < 200; i++) {
        vcpus_hold(v);
        cr_expect_eq(port.writes, 1);
        vcpus_release(v);
    }
    vcpus_hold(v);
    cr_expect_lt(registers().rip, CODE + 3, "nothing has woken it");
}

static void end_the_guest(struct probe *p)
{
    guest_end_signal(&end, 7);
    wait_for_the_hold(p);
}

Test(vcpus_hold, returns_when_the_access_ended_the_guest)
{
    static const uint8_t out_and_out[] = { 0xee, 0xee };

    load_code(out_and_out, sizeof(out_and_out), (struct kvm_regs){ .rdx = PORT });
    port.on_access = end_the_guest;
    vcpus_release(v);
    wait_for(arrived);
    vcpus_hold(v);
    vcpus_release(v);
    vcpus_hold(v);
    cr_expect_eq(port.writes, 1, "an ended guest runs no further");
    cr_expect_eq(end.exit_code, 7);
}

Test(vcpus_hold, returns_when_the_guest_crashes_behind_the_access)
{
    static const uint8_t in_and_crash[] = { 0xec, 0x0f, 0x0b }; /* no interrupt table */

    load_code(in_and_crash, sizeof(in_and_crash), (struct kvm_regs){ .rdx = PORT });
    port.on_access = wait_for_the_hold;
    vcpus_release(v);
    wait_for(arrived);
    vcpus_hold(v);
    cr_expect_eq(registers().rip, CODE + 1);
    cr_expect_not(end.ended);
    vcpus_release(v);
    wait_for(end.event_fd);
    vcpus_hold(v);
    cr_expect_eq(end.exit_code, 1);
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
    cr_expect_str_eq(e.msg, "/dev/kvm is not a KVM device: Not a tty (os error 25)");
    cr_expect_eq(k.kvm_fd, -1);
}

/* One that waits inside of KVM for a page that does not come: its thread is this one. */
Test(vcpus_hold, gives_up_on_a_vcpu_that_does_not_come_to_stand)
{
    static struct kvm_run run;
    static struct vcpus waiting = {
        .count = 1,
        .started = 1,
        .patience_ns = 1,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
    };

    waiting.each[0] = (struct vcpu){ .all = &waiting, .run = &run, .thread = pthread_self() };
    cr_expect_not(vcpus_hold(&waiting));
    cr_expect_eq(waiting.holds, 0);
    waiting.standing = 1;
    cr_expect(vcpus_hold(&waiting));
    cr_expect_eq(waiting.holds, 1);
}
