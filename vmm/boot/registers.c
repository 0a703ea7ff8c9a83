#include "vmm/boot/registers.h"

#include "vmm/boot/boot_info.h"

#define CR0_PE   0x1u
#define CR0_ET   0x10u
#define CR0_PG   0x80000000u
#define CR4_PAE  0x20u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u

/* Flat segments as the GDT that boot_info_write() leaves in memory has them. The 64-bit protocol
 * (Linux Documentation/arch/x86/boot.rst, "64-bit boot protocol") wants long mode with an identity
 * map; PVH (Xen docs/misc/pvh.pandoc) 32-bit protected mode without paging. */
static void set_mode(struct kvm_sregs *s, enum boot_protocol protocol)
{
    bool is_long = protocol == BOOT_LINUX64;
    const struct kvm_segment flat = { .limit = UINT32_MAX, .present = 1, .s = 1, .g = 1 };

    s->cs = flat;
    s->cs.selector = 0x08;
    s->cs.type = 11; /* code, readable, accessed */
    s->cs.l = is_long;
    s->cs.db = !is_long;
    s->ds = flat;
    s->ds.selector = 0x10;
    s->ds.type = 3; /* data, writable, accessed */
    s->ds.db = 1;
    s->es = s->fs = s->gs = s->ss = s->ds;
    s->tr = (struct kvm_segment){ .selector = 0x18, .type = 11, .present = 1, .limit = 0x67 };
    s->gdt.base = LAYOUT_GDT;
    s->gdt.limit = BOOT_GDT_LIMIT;
    s->idt.base = LAYOUT_IDT;
    s->idt.limit = BOOT_IDT_LIMIT;
    s->cr0 = CR0_PE | CR0_ET; /* without the reset value's CD and NW: PVH wants the rest clear */
    s->cr4 = 0;
    if (!is_long)
        return;
    s->cr0 |= CR0_PG;
    s->cr3 = LAYOUT_PML4;
    s->cr4 = CR4_PAE;
    s->efer |= EFER_LME | EFER_LMA;
}

int boot_registers_set(const struct vcpu *c, const struct kernel_image *kernel, struct error *e)
{
    /* PVH promises no stack; Nanos calls before it has one of its own. */
    struct kvm_regs regs = {
        .rip = kernel->entry.v,
        .rsp = LAYOUT_BOOT_STACK,
        .rbp = LAYOUT_BOOT_STACK,
        .rflags = 2,
    };
    struct kvm_sregs sregs;

    if (kernel->protocol == BOOT_PVH)
        regs.rbx = LAYOUT_PVH_START;
    else
        regs.rsi = LAYOUT_ZERO_PAGE;
    if (vcpu_get_sregs(c, &sregs, e) < 0)
        return -1;
    set_mode(&sregs, kernel->protocol);
    return vcpu_set_registers(c, &regs, &sregs, e);
}
