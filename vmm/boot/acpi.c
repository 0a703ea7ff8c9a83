/* Section numbers are those of the ACPI Specification, version 6.5. */
#include "vmm/boot/acpi.h"

#include <stdio.h>
#include <string.h>

#include "vmm/boot/aml.h"
#include "vmm/boot/checksum.h"

#define OEM_ID                   "FIRECK"
#define CREATOR_ID               "FCAT"
#define CREATOR_REVISION         0x20240119u
#define FADT_BYTES               276
#define FADT_NO_VGA              (1u << 2) /* of the boot flags */
#define FADT_BUTTONS_ARE_DEVICES (3u << 4) /* or not there; of the flags, like the next */
#define FADT_HW_REDUCED          (1u << 20)
#define SPACE_SYSTEM_IO          1
#define ACCESS_BYTE              1
#define MADT_LAPIC               0
#define MADT_IOAPIC              1
#define MADT_LAPIC_ENABLED       1u
#define NOTIFY_STATUS_CHANGE     0x80 /* of a button: it was pressed */

/* 5.2.6 */
struct header {
    char signature[4];
    uint32_t bytes;
    uint8_t revision;
    uint8_t checksum;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __attribute__((packed));
_Static_assert(sizeof(struct header) == 36, "5.2.6");

/* 5.2.5.3 */
struct rsdp {
    char signature[8];
    uint8_t checksum; /* of the first 20 bytes */
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t bytes;
    uint64_t xsdt;
    uint8_t extended_checksum;
    uint8_t reserved[3];
} __attribute__((packed));
_Static_assert(sizeof(struct rsdp) == LAYOUT_RSDP_END - LAYOUT_RSDP, "5.2.5.3");

/* 5.2.8 */
struct xsdt {
    struct header header;
    uint64_t tables[3];
} __attribute__((packed));

/* 5.2.3.2 */
struct generic_address {
    uint8_t space, bits, first_bit, access;
    uint64_t address;
} __attribute__((packed));
_Static_assert(sizeof(struct generic_address) == 12, "5.2.3.2");

/* 5.2.9: a hardware-reduced platform has few of the fields. */
struct fadt {
    struct header header;
    uint8_t hardware[73];
    uint16_t boot_flags;
    uint8_t reserved;
    uint32_t flags;
    uint8_t reset[15];
    uint8_t minor_revision;
    uint64_t facs;
    uint64_t dsdt;
    uint8_t registers[96];
    struct generic_address sleep_control, sleep_status;
    char hypervisor_id[8];
} __attribute__((packed));
_Static_assert(offsetof(struct fadt, boot_flags) == 109, "5.2.9");
_Static_assert(offsetof(struct fadt, flags) == 112, "5.2.9");
_Static_assert(offsetof(struct fadt, minor_revision) == 131, "5.2.9");
_Static_assert(offsetof(struct fadt, dsdt) == 140, "5.2.9");
_Static_assert(offsetof(struct fadt, sleep_control) == 244, "5.2.9");
_Static_assert(sizeof(struct fadt) == FADT_BYTES, "5.2.9");

/* 5.2.12 */
struct madt {
    struct header header;
    uint32_t lapic_address;
    uint32_t flags;
    struct {
        uint8_t type, bytes, id, reserved;
        uint32_t address, first_gsi;
    } __attribute__((packed)) ioapic;
    struct {
        uint8_t type, bytes, processor_uid, apic_id;
        uint32_t flags;
    } __attribute__((packed)) lapics[PLATFORM_VCPUS_MAX];
} __attribute__((packed));
_Static_assert(offsetof(struct madt, lapics) == 56, "5.2.12");

/* PCI Firmware Specification 3.3, section 4.1.2: it reserves the window, there is no PCI behind. */
struct mcfg {
    struct header header;
    uint8_t reserved[8];
    uint64_t base;
    uint16_t segment;
    uint8_t first_bus, last_bus;
    uint8_t reserved_2[4];
} __attribute__((packed));
_Static_assert(sizeof(struct mcfg) == 60, "4.1.2");

/* Where the next table goes. */
struct placer {
    struct guest_mem *m;
    uint64_t at;
};

static struct header new_header(const char *signature, uint8_t revision, const char *oem_table_id)
{
    struct header h = {
        .revision = revision,
        .creator_revision = CREATOR_REVISION,
    };

    memcpy(h.signature, signature, sizeof(h.signature));
    memcpy(h.oem_id, OEM_ID, sizeof(h.oem_id));
    memcpy(h.oem_table_id, oem_table_id, sizeof(h.oem_table_id));
    memcpy(h.creator_id, CREATOR_ID, sizeof(h.creator_id));
    return h;
}

/* Seals the table of n bytes, which begins with its header, and writes it at *address. */
static int place(struct placer *p, struct header *table, size_t n, uint64_t *address,
                 struct error *e)
{
    table->bytes = (uint32_t)n;
    table->checksum = 0;
    table->checksum = negated_sum(table, n);
    if (p->at > LAYOUT_VMCLOCK || n > LAYOUT_VMCLOCK - p->at ||
        gmem_write_(p->m, gpa(p->at), table, n) < 0)
        return fail(e, ERR_INVALID, "no room in guest memory for the ACPI table %.4s of %zu bytes",
                    table->signature, n);
    *address = p->at;
    p->at += n;
    return 0;
}

static void describe_virtio(struct aml *a, const struct platform *p)
{
    for (unsigned i = 0; i < p->virtio_count; i++) {
        size_t device, crs;
        char name[5];

        snprintf(name, sizeof(name), "V%03u", i % 1000);
        device = aml_device_open(a, name);
        aml_name_string(a, "_HID", "LNRO0005");
        aml_name_u32(a, "_UID", i);
        aml_name_one(a, "_CCA"); /* coherent DMA */
        crs = aml_crs_open(a);
        aml_resource_memory32(a, (uint32_t)p->virtio[i].base.v, LAYOUT_VIRTIO_STEP);
        aml_resource_irq(a, p->virtio[i].gsi);
        aml_crs_close(a, crs);
        aml_close(a, device);
    }
}

/* VMGenID, VMClock, and the Generic Event Device that tells their drivers of a change, and the
 * power button's of a press: Firecracker's guests don't have that, but a device of its own would
 * cost a boot more. */
static void describe_events(struct aml *a, const struct platform *p)
{
    size_t device, inner;

    device = aml_device_open(a, "_SB_.VGEN");
    aml_name_string(a, "_HID", "VMGENCTR");
    aml_name_string(a, "_CID", "VM_Gen_Counter");
    aml_name_string(a, "_DDN", "VM_Gen_Counter");
    aml_name_u32s(a, "ADDR", (const uint32_t[]){ LAYOUT_VMGENID, 0 }, 2);
    aml_close(a, device);

    device = aml_device_open(a, "_SB_.VCLK");
    aml_name_string(a, "_HID", "AMZNC10C");
    aml_name_string(a, "_CID", "VMCLOCK");
    aml_name_string(a, "_DDN", "VMCLOCK");
    aml_method_returning(a, "_STA", 0x0f);
    inner = aml_crs_open(a);
    aml_resource_read_only64(a, LAYOUT_VMCLOCK, GMEM_PAGE_BYTES);
    aml_crs_close(a, inner);
    aml_close(a, device);

    device = aml_device_open(a, "_SB_.GED_");
    aml_name_string(a, "_HID", "ACPI0013");
    inner = aml_crs_open(a);
    aml_resource_irq(a, p->vmgenid_gsi);
    aml_resource_irq(a, p->vmclock_gsi);
    aml_resource_irq(a, GSI_POWER_BUTTON);
    aml_crs_close(a, inner);
    inner = aml_method_open(a, "_EVT", 1, true);
    aml_notify_if_arg0(a, (uint8_t)p->vmgenid_gsi, "\\_SB_.VGEN", NOTIFY_STATUS_CHANGE);
    aml_notify_if_arg0(a, (uint8_t)p->vmclock_gsi, "\\_SB_.VCLK", NOTIFY_STATUS_CHANGE);
    aml_notify_if_arg0(a, GSI_POWER_BUTTON, "\\_SB_.PWRB", NOTIFY_STATUS_CHANGE);
    aml_close(a, inner);
    aml_close(a, device);
}

static void describe_legacy(struct aml *a)
{
    size_t device, crs;

    device = aml_device_open(a, "_SB_.COM1");
    aml_name_eisa_id(a, "_HID", "PNP0501");
    aml_name_u8(a, "_UID", 0);
    aml_name_string(a, "_DDN", "COM1");
    crs = aml_crs_open(a);
    aml_resource_irq(a, GSI_SERIAL);
    aml_resource_io(a, 0x3f8, 8);
    aml_crs_close(a, crs);
    aml_close(a, device);

    device = aml_device_open(a, "_SB_.PS2_");
    aml_name_eisa_id(a, "_HID", "PNP0303");
    aml_method_returning(a, "_STA", 0x0f);
    crs = aml_crs_open(a);
    aml_resource_io(a, 0x60, 1);
    aml_resource_io(a, 0x64, 1);
    aml_resource_irq(a, GSI_I8042);
    aml_crs_close(a, crs);
    aml_close(a, device);
}

/* What Firecracker's guests don't have, behind what they do: soft off (7.4.2.6) and the button. */
static void describe_power(struct aml *a)
{
    size_t device;

    aml_name_u32s(a, "_S5_", (const uint32_t[]){ SLEEP_TYPE_S5, 0, 0, 0 }, 4);
    device = aml_device_open(a, "_SB_.PWRB");
    aml_name_eisa_id(a, "_HID", "PNP0C0C");
    aml_close(a, device);
}

static int place_dsdt(struct placer *to, const struct platform *p, uint64_t *address,
                      struct error *e)
{
    struct {
        struct header header;
        uint8_t code[AML_BYTES_MAX];
    } __attribute__((packed)) dsdt = { .header = new_header("DSDT", 2, "FCVMDSDT") };
    struct aml a = { 0 };

    describe_virtio(&a, p);
    describe_events(&a, p);
    describe_legacy(&a);
    describe_power(&a);
    memcpy(dsdt.code, a.code, a.bytes);
    return place(to, &dsdt.header, sizeof(dsdt.header) + a.bytes, address, e);
}

static struct generic_address port(uint16_t at)
{
    return (struct generic_address){ SPACE_SYSTEM_IO, 8, 0, ACCESS_BYTE, at };
}

static int place_fadt(struct placer *to, uint64_t dsdt, uint64_t *address, struct error *e)
{
    struct fadt fadt = {
        .header = new_header("FACP", 6, "FCVMFADT"),
        .boot_flags = FADT_NO_VGA,
        .flags = FADT_BUTTONS_ARE_DEVICES | FADT_HW_REDUCED,
        .minor_revision = 5,
        .dsdt = dsdt,
        .sleep_control = port(LAYOUT_SLEEP_CONTROL),
        .sleep_status = port(LAYOUT_SLEEP_STATUS),
        .hypervisor_id = { 'F', 'I', 'R', 'E', 'C', 'K', 'V', 'M' },
    };

    return place(to, &fadt.header, sizeof(fadt), address, e);
}

static int place_madt(struct placer *to, unsigned vcpu_count, uint64_t *address, struct error *e)
{
    struct madt madt = {
        .header = new_header("APIC", 6, "FCVMMADT"),
        .lapic_address = LAYOUT_LAPIC,
        .ioapic = { .type = MADT_IOAPIC, .bytes = sizeof(madt.ioapic), .address = LAYOUT_IOAPIC },
    };

    for (unsigned i = 0; i < vcpu_count; i++) {
        madt.lapics[i].type = MADT_LAPIC;
        madt.lapics[i].bytes = sizeof(madt.lapics[i]);
        madt.lapics[i].processor_uid = madt.lapics[i].apic_id = (uint8_t)i;
        madt.lapics[i].flags = MADT_LAPIC_ENABLED;
    }
    return place(to, &madt.header,
                 offsetof(struct madt, lapics) + vcpu_count * sizeof(madt.lapics[0]), address, e);
}

static int place_mcfg(struct placer *to, uint64_t *address, struct error *e)
{
    struct mcfg mcfg = { .header = new_header("MCFG", 1, "FCMVMCFG"), .base = LAYOUT_ECAM };

    return place(to, &mcfg.header, sizeof(mcfg), address, e);
}

static int write_rsdp(struct guest_mem *m, uint64_t xsdt, struct error *e)
{
    struct rsdp rsdp = {
        .signature = { 'R', 'S', 'D', ' ', 'P', 'T', 'R', ' ' },
        .oem_id = { 'F', 'I', 'R', 'E', 'C', 'K' },
        .revision = 2,
        .bytes = sizeof(rsdp),
        .xsdt = xsdt,
    };

    rsdp.checksum = negated_sum(&rsdp, offsetof(struct rsdp, bytes));
    rsdp.extended_checksum = negated_sum(&rsdp, sizeof(rsdp));
    if (gmem_put(m, gpa(LAYOUT_RSDP), &rsdp) < 0)
        return fail(e, ERR_INVALID, "no room in guest memory for the ACPI root pointer");
    return 0;
}

int acpi_write(struct guest_mem *m, const struct platform *p, gpa_t first_free, struct error *e)
{
    struct xsdt xsdt = { .header = new_header("XSDT", 1, "FCMVXSDT") };
    struct placer to = { .m = m, .at = first_free.v };
    uint64_t dsdt = 0, fadt = 0, madt = 0, mcfg = 0, root = 0;

    BUG_ON(p->vcpu_count < 1 || p->vcpu_count > PLATFORM_VCPUS_MAX);
    BUG_ON(p->virtio_count > PLATFORM_VIRTIO_MAX);
    if (place_dsdt(&to, p, &dsdt, e) < 0 || place_fadt(&to, dsdt, &fadt, e) < 0 ||
        place_madt(&to, p->vcpu_count, &madt, e) < 0 || place_mcfg(&to, &mcfg, e) < 0)
        return -1;
    xsdt.tables[0] = fadt;
    xsdt.tables[1] = madt;
    xsdt.tables[2] = mcfg;
    if (place(&to, &xsdt.header, sizeof(xsdt), &root, e) < 0)
        return -1;
    return write_rsdp(m, root, e);
}
