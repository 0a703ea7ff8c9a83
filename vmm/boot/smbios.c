/* Section numbers are those of DSP0134, version 3.3. */
#include "vmm/boot/smbios.h"

#include <string.h>

#include "vmm/base/uuid.h"
#include "vmm/boot/checksum.h"

#define CHARACTERISTICS_UNKNOWN (1u << 3)
#define IS_VIRTUAL              (1u << 4) /* of the second extension byte */
#define BIOS_STRINGS            "mayfly\0001\00001/01/2026\0"
#define SYSTEM_STRINGS          "mayfly\0microVM"  /* the serial number follows */
#define END_OF_TABLE            "\x7f\x04\x02\0\0" /* type 127, handle 2, no strings */

/* All before the serial number. A member for a string has its number among those that follow the
 * structure, 0 for none; an empty string ends them (6.1.3). */
struct smbios_tables {
    struct { /* 5.2.2 */
        char anchor[5];
        uint8_t checksum, bytes, major, minor, docrev, revision, reserved;
        uint32_t table_bytes;
        uint64_t table;
    } __attribute__((packed)) entry;
    uint8_t pad[8];
    struct { /* 7.1 */
        uint8_t type, bytes;
        uint16_t handle;
        uint8_t vendor, version, segment[2], date, rom_size;
        uint64_t characteristics;
        uint8_t extensions[2], release[2], controller_release[2];
        char strings[sizeof(BIOS_STRINGS)];
    } __attribute__((packed)) bios;
    struct { /* 7.2 */
        uint8_t type, bytes;
        uint16_t handle;
        uint8_t manufacturer, product, version, serial;
        uint8_t uuid[16];
        uint8_t wake_up, sku, family;
        char strings[sizeof(SYSTEM_STRINGS)];
    } __attribute__((packed)) system;
} __attribute__((packed));
_Static_assert(offsetof(struct smbios_tables, bios) == 32, "entry points begin each 16 bytes");
_Static_assert(sizeof(((struct smbios_tables *)0)->bios) == 0x18 + sizeof(BIOS_STRINGS), "7.1");
_Static_assert(sizeof(((struct smbios_tables *)0)->system) == 0x1b + sizeof(SYSTEM_STRINGS), "7.2");

_Static_assert(sizeof(struct smbios_tables) + SMBIOS_SERIAL_MAX + 2 + sizeof(END_OF_TABLE) <=
                   LAYOUT_SMBIOS_END - LAYOUT_SMBIOS,
               "all of it fits");

/* The first three fields are little-endian (7.2.1). */
static void encode_uuid(uint8_t *out, const char *text)
{
    static const uint8_t place[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

    struct uuid uuid;

    BUG_ON(!uuid_parse(&uuid, text));
    for (unsigned i = 0; i < 16; i++)
        out[place[i]] = uuid.bytes[i];
}

int smbios_write(struct guest_mem *m, const struct smbios_config *config, struct error *e)
{
    const char *serial = config->serial ? config->serial : "";
    const size_t n = strlen(serial) + (config->serial ? 1 : 0);
    struct smbios_tables t = {
        .entry = { .anchor = { '_', 'S', 'M', '3', '_' },
                   .bytes = sizeof(t.entry),
                   .major = 3,
                   .minor = 3,
                   .revision = 1,
                   .table = LAYOUT_SMBIOS + offsetof(struct smbios_tables, bios) },
        .bios = { 0, 0x18, 0, .vendor = 1, .version = 2, .date = 3,
                  .characteristics = CHARACTERISTICS_UNKNOWN, .extensions = { 0, IS_VIRTUAL },
                  .controller_release = { 0xff, 0xff } /* none */, .strings = BIOS_STRINGS },
        .system = { 1, 0x1b, 1, .manufacturer = 1, .product = 2, .serial = config->serial ? 3 : 0,
                    .wake_up = 6 /* by the power switch */, .strings = SYSTEM_STRINGS },
    };
    char tail[SMBIOS_SERIAL_MAX + 1 + 1 + sizeof(END_OF_TABLE)] = "";

    BUG_ON(n > SMBIOS_SERIAL_MAX + 1);
    encode_uuid(t.system.uuid, config->uuid);
    memcpy(tail, serial, n);
    memcpy(tail + n + 1, END_OF_TABLE, sizeof(END_OF_TABLE));
    t.entry.table_bytes =
        (uint32_t)(sizeof(t) - offsetof(struct smbios_tables, bios) + n + 1 + sizeof(END_OF_TABLE));
    t.entry.checksum = negated_sum(&t.entry, sizeof(t.entry));
    if (gmem_put(m, gpa(LAYOUT_SMBIOS), &t) < 0 ||
        gmem_write_(m, gpa(LAYOUT_SMBIOS + sizeof(t)), tail, n + 1 + sizeof(END_OF_TABLE)) < 0)
        return fail(e, ERR_INVALID, "no room in guest memory for the SMBIOS tables");
    return 0;
}
