/* Section numbers are those of the MultiProcessor Specification, version 1.4. */
#include "vmm/boot/mptable.h"

#include <string.h>

#include "vmm/boot/checksum.h"

#define SPEC_1_4      4
#define APIC_VERSION  0x14
#define ISA_BUS       0
#define IRQ_COUNT     24
#define ALL_APICS     0xff
#define ENTRY_LAST    (PLATFORM_VCPUS_MAX + 2 + IRQ_COUNT + 2)
#define FLAG_ENABLED  0x01 /* of a processor or an I/O APIC */
#define FLAG_BOOT_CPU 0x02
#define CPU_SIGNATURE 0x600 /* family 6 */
#define CPU_FPU_APIC  0x201 /* CPUID feature bits 0 and 9 */

enum { TYPE_PROCESSOR, TYPE_BUS, TYPE_IOAPIC, TYPE_INTERRUPT, TYPE_LOCAL_INTERRUPT };
enum { INTERRUPT_VECTORED = 0, INTERRUPT_NMI = 1, INTERRUPT_EXTINT = 3 };

/* 4.1: what the guest scans for, in the last KiB below the top of base memory. */
struct floating_pointer {
    char signature[4];
    uint32_t table;
    uint8_t paragraphs; /* its own length in units of 16 bytes */
    uint8_t spec_revision;
    uint8_t checksum;
    uint8_t features[5]; /* zero: there is a table, and virtual wire mode */
} __attribute__((packed));
_Static_assert(sizeof(struct floating_pointer) == 16, "MP 1.4, figure 4-2");

/* 4.2 */
struct table_header {
    char signature[4];
    uint16_t bytes;
    uint8_t spec_revision;
    uint8_t checksum;
    char oem_id[8];
    char product_id[12];
    uint32_t oem_table;
    uint16_t oem_table_bytes;
    uint16_t entry_count;
    uint32_t local_apic;
    uint16_t extended_bytes;
    uint8_t extended_checksum;
    uint8_t reserved;
} __attribute__((packed));
_Static_assert(sizeof(struct table_header) == 44, "MP 1.4, figure 4-3");

/* 4.3.1 */
struct processor {
    uint8_t type;
    uint8_t apic_id;
    uint8_t apic_version;
    uint8_t flags;
    uint32_t signature;
    uint32_t features;
    uint32_t reserved[2];
} __attribute__((packed));
_Static_assert(sizeof(struct processor) == 20, "MP 1.4, figure 4-4");

/* 4.3.2 */
struct bus {
    uint8_t type;
    uint8_t id;
    char name[6];
} __attribute__((packed));
_Static_assert(sizeof(struct bus) == 8, "MP 1.4, figure 4-5");

/* 4.3.3 */
struct ioapic {
    uint8_t type;
    uint8_t id;
    uint8_t version;
    uint8_t flags;
    uint32_t address;
} __attribute__((packed));
_Static_assert(sizeof(struct ioapic) == 8, "MP 1.4, figure 4-6");

/* 4.3.4 and 4.3.5: the wire from a bus's interrupt to an APIC's pin, or to LINT0 and LINT1. */
struct interrupt {
    uint8_t type;
    uint8_t kind;
    uint16_t flags; /* zero: polarity and trigger mode as the bus defines them */
    uint8_t source_bus;
    uint8_t source_irq;
    uint8_t apic_id;
    uint8_t apic_pin;
} __attribute__((packed));
_Static_assert(sizeof(struct interrupt) == 8, "MP 1.4, figures 4-7 and 4-8");

/* The table while it is put together. */
struct builder {
    size_t bytes;
    unsigned entries;
    uint8_t table[sizeof(struct floating_pointer) + sizeof(struct table_header) +
                  ENTRY_LAST * sizeof(struct processor)];
};

static void add_entry(struct builder *b, const void *entry, size_t n)
{
    BUG_ON(n > sizeof(b->table) - b->bytes);
    memcpy(b->table + b->bytes, entry, n);
    b->bytes += n;
    b->entries++;
}

static void add_processors(struct builder *b, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct processor p = {
            .type = TYPE_PROCESSOR,
            .apic_id = (uint8_t)i,
            .apic_version = APIC_VERSION,
            .flags = i == 0 ? FLAG_ENABLED | FLAG_BOOT_CPU : FLAG_ENABLED,
            .signature = CPU_SIGNATURE,
            .features = CPU_FPU_APIC,
        };

        add_entry(b, &p, sizeof(p));
    }
}

/* ISA interrupt n is pin n, as KVM routes them when nobody tells it otherwise. */
static void add_interrupts(struct builder *b, uint8_t ioapic_id)
{
    const struct interrupt extint = {
        .type = TYPE_LOCAL_INTERRUPT,
        .kind = INTERRUPT_EXTINT,
        .source_bus = ISA_BUS,
    };
    const struct interrupt nmi = {
        .type = TYPE_LOCAL_INTERRUPT,
        .kind = INTERRUPT_NMI,
        .source_bus = ISA_BUS,
        .apic_id = ALL_APICS,
        .apic_pin = 1,
    };

    for (uint8_t i = 0; i < IRQ_COUNT; i++) {
        struct interrupt line = {
            .type = TYPE_INTERRUPT,
            .kind = INTERRUPT_VECTORED,
            .source_bus = ISA_BUS,
            .source_irq = i,
            .apic_id = ioapic_id,
            .apic_pin = i,
        };

        add_entry(b, &line, sizeof(line));
    }
    add_entry(b, &extint, sizeof(extint));
    add_entry(b, &nmi, sizeof(nmi));
}

/* Puts the two headers before the entries. */
static void seal(struct builder *b)
{
    struct floating_pointer pointer = {
        .signature = { '_', 'M', 'P', '_' },
        .table = LAYOUT_SYSTEM + sizeof(pointer),
        .paragraphs = sizeof(pointer) / 16,
        .spec_revision = SPEC_1_4,
    };
    struct table_header header = {
        .signature = { 'P', 'C', 'M', 'P' },
        .bytes = (uint16_t)(b->bytes - sizeof(pointer)),
        .spec_revision = SPEC_1_4,
        .oem_id = { 'F', 'C', ' ', ' ', ' ', ' ', ' ', ' ' },
        .product_id = { '0', '0', '0', '0', '0', '0', '0', '0', '0', '0', '0', '0' },
        .entry_count = (uint16_t)b->entries,
        .local_apic = LAYOUT_LAPIC,
    };
    uint8_t *table = b->table + sizeof(pointer);

    pointer.checksum = negated_sum(&pointer, sizeof(pointer));
    memcpy(b->table, &pointer, sizeof(pointer));
    memcpy(table, &header, sizeof(header));
    header.checksum = negated_sum(table, header.bytes);
    memcpy(table, &header, sizeof(header));
}

int mptable_write(struct guest_mem *m, unsigned vcpu_count, gpa_t *end, struct error *e)
{
    struct builder b = { .bytes = sizeof(struct floating_pointer) + sizeof(struct table_header) };
    const struct bus isa = { .type = TYPE_BUS, .id = ISA_BUS, .name = "ISA   " };
    const struct ioapic ioapic = {
        .type = TYPE_IOAPIC,
        .id = (uint8_t)(vcpu_count + 1),
        .version = APIC_VERSION,
        .flags = FLAG_ENABLED,
        .address = LAYOUT_IOAPIC,
    };

    BUG_ON(vcpu_count < 1 || vcpu_count > PLATFORM_VCPUS_MAX);
    add_processors(&b, vcpu_count);
    add_entry(&b, &isa, sizeof(isa));
    add_entry(&b, &ioapic, sizeof(ioapic));
    add_interrupts(&b, ioapic.id);
    seal(&b);
    if (gmem_write_(m, gpa(LAYOUT_SYSTEM), b.table, b.bytes) < 0)
        return fail(e, ERR_INVALID, "guest memory is too small for the MPTable");
    *end = gpa(LAYOUT_SYSTEM + b.bytes);
    return 0;
}
