/*
 * Where things are in the guest's physical memory, and the platform that ACPI and the MPTable
 * describe. The addresses are a contract with guests and with Firecracker's snapshots of the same
 * layout: constants, never options.
 */
#pragma once

#include <stdint.h>

/* A guest-physical address: a type of its own, so that it is never added to a pointer by accident.
 */
typedef struct {
    uint64_t v;
} gpa_t;

static inline gpa_t gpa(uint64_t v)
{
    return (gpa_t){ v };
}

#define LAYOUT_GDT          0x500u /* boot GDT, 64-bit protocol */
#define LAYOUT_IDT          0x520u
#define LAYOUT_PVH_START    0x6000u /* hvm_start_info; its module list 0x40 further */
#define LAYOUT_PVH_MODULES  0x6040u
#define LAYOUT_PVH_MEMMAP   0x7000u
#define LAYOUT_ZERO_PAGE    0x7000u /* boot_params, 64-bit protocol */
#define LAYOUT_BOOT_STACK   0x8ff0u /* grows down to 0x8000 */
#define LAYOUT_PML4         0x9000u
#define LAYOUT_PDPT         0xa000u
#define LAYOUT_PD           0xb000u
#define LAYOUT_IDENTITY_MAP 0x40000000u /* 1 GiB: what the boot page tables map */
#define LAYOUT_CMDLINE      0x20000u
#define LAYOUT_CMDLINE_MAX  2048u    /* with the NUL */
#define LAYOUT_SYSTEM       0x9fc00u /* MPTable, then ACPI tables; reserved in e820 to its end */
#define LAYOUT_VMCLOCK      0xde000u /* one page; the ACPI tables end below it */
#define LAYOUT_VMGENID      0xdfff0u /* 16 bytes */
#define LAYOUT_SYSTEM_END   0xe0000u
#define LAYOUT_RSDP         0xe0000u /* to LAYOUT_RSDP_END */
#define LAYOUT_RSDP_END     0xe0024u
#define LAYOUT_SMBIOS       0xf0000u /* to LAYOUT_SMBIOS_END, where it was asked for */
#define LAYOUT_SMBIOS_END   0xf0200u
#define LAYOUT_HIGH_RAM     0x100000u   /* kernels are loaded from here up */
#define LAYOUT_MMIO_GAP     0xc0000000u /* 1 GiB without RAM below 4 GiB */
#define LAYOUT_BOOT_TIMER   0xc0000000u
#define LAYOUT_VIRTIO       0xc0001000u /* first device; one page each */
#define LAYOUT_VIRTIO_STEP  0x1000u
#define LAYOUT_ECAM         0xeec00000u /* reserved in e820 and MCFG */
#define LAYOUT_ECAM_BYTES   0x10000000u
#define LAYOUT_IOAPIC       0xfec00000u
#define LAYOUT_LAPIC        0xfee00000u
#define LAYOUT_KVM_TSS      0xfffbd000u
#define LAYOUT_ABOVE_4G     0x100000000u
#define LAYOUT_GAP2_START   0x4000000000u /* 256 GiB */
#define LAYOUT_GAP2_END     0x8000000000u /* 512 GiB */

/* Ports of two registers, a byte each, and what the first is told for "soft off". */
#define LAYOUT_SLEEP_CONTROL 0x600u
#define LAYOUT_SLEEP_STATUS  0x601u
#define SLEEP_TYPE_S5        5u

#define GSI_I8042        1u
#define GSI_POWER_BUTTON 3u
#define GSI_SERIAL       4u
#define GSI_FIRST        5u /* virtio devices in attach order, then VMGenID, then VMClock */
#define GSI_LAST         23u

struct virtio_slot {
    gpa_t base; /* of LAYOUT_VIRTIO_STEP bytes */
    uint32_t gsi;
};

#define PLATFORM_VIRTIO_MAX (GSI_LAST - GSI_FIRST + 1 - 2)
#define PLATFORM_VCPUS_MAX  32u

/* What the firmware tables tell the guest. */
struct platform {
    unsigned vcpu_count;
    unsigned virtio_count;
    struct virtio_slot virtio[PLATFORM_VIRTIO_MAX];
    uint32_t vmgenid_gsi, vmclock_gsi;
};
