/* Walks the tables as a guest does (DSP0134 3.3). */
#include "vmm/boot/smbios.h"

#include <criterion/criterion.h>
#include <string.h>

static char uuid_text[] = "ec2e1916-9099-7caf-fd21-012345abcdef";

static struct guest_mem mem;
static struct error error;
static uint8_t segment[0x10000]; /* from LAYOUT_SMBIOS on */

static void set_up(void)
{
    cr_assert_eq(gmem_init(&mem, 1, HUGE_PAGES_NONE, &error), 0);
}

static void drop_memory(void)
{
    gmem_fini(&mem);
}

TestSuite(smbios, .init = set_up, .fini = drop_memory);

static void write_tables(const char *serial)
{
    const struct smbios_config config = { .uuid = uuid_text, .serial = (char *)serial };

    cr_assert_eq(smbios_write(&mem, &config, &error), 0, "%s", error.msg);
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_SMBIOS), &segment), 0);
}

/* The table that the entry point names; its length. */
static const uint8_t *find_table(uint32_t *bytes)
{
    uint64_t at;
    uint8_t sum = 0;

    cr_assert_eq(memcmp(segment, "_SM3_", 5), 0);
    cr_assert_eq(segment[6], 24);
    for (unsigned i = 0; i < segment[6]; i++)
        sum += segment[i];
    cr_assert_eq(sum, 0);
    cr_assert_eq(segment[7], 3);
    memcpy(bytes, segment + 12, sizeof(*bytes));
    memcpy(&at, segment + 16, sizeof(at));
    cr_assert(at >= LAYOUT_SMBIOS + 24 && at + *bytes <= LAYOUT_SMBIOS_END);
    return segment + (at - LAYOUT_SMBIOS);
}

/* The structure of that type; checks that all of them fill the table. */
static const uint8_t *structure(uint8_t type)
{
    uint32_t bytes;
    const uint8_t *at = find_table(&bytes), *end = at + bytes, *found = NULL;

    while (at < end) {
        const uint8_t *next = memmem(at + at[1], (size_t)(end - at - at[1]), "\0", 2);

        if (at[0] == type)
            found = at;
        cr_assert(next);
        if (at[0] == 127)
            cr_assert_eq(next + 2, end, "the last one ends the table");
        at = next + 2;
    }
    cr_assert_eq(at, end);
    cr_assert(found);
    return found;
}

/* A string of a structure by its number. */
static const char *string(const uint8_t *s, uint8_t number)
{
    const char *text = (const char *)s + s[1];

    if (number == 0)
        return NULL;
    while (--number)
        text += strlen(text) + 1;
    return text;
}

Test(smbios, has_the_identity_of_the_system)
{
    static const uint8_t uuid[16] = { 0x16, 0x19, 0x2e, 0xec, 0x99, 0x90, 0xaf, 0x7c,
                                      0xfd, 0x21, 0x01, 0x23, 0x45, 0xab, 0xcd, 0xef };
    const uint8_t *system;

    write_tables("ds=nocloud;s=http://169.254.169.254/");
    system = structure(1);
    cr_assert_eq(system[1], 0x1b);
    cr_assert_eq(memcmp(system + 8, uuid, sizeof(uuid)), 0);
    cr_assert_str_eq(string(system, system[4]), "mayfly");
    cr_assert_str_eq(string(system, system[5]), "microVM");
    cr_assert_eq(string(system, system[6]), NULL);
    cr_assert_str_eq(string(system, system[7]), "ds=nocloud;s=http://169.254.169.254/");
}

Test(smbios, says_that_the_firmware_is_a_virtual_machines)
{
    const uint8_t *bios;

    write_tables("1");
    bios = structure(0);
    cr_assert_eq(bios[1], 0x18);
    cr_assert_str_eq(string(bios, bios[4]), "mayfly");
    cr_assert_str_eq(string(bios, bios[8]), "01/01/2026");
    cr_assert_eq(bios[0x13], 0x10);
}

Test(smbios, does_without_a_serial_number)
{
    const uint8_t *system;

    write_tables(NULL);
    system = structure(1);
    cr_assert_eq(system[7], 0);
    cr_assert_eq(structure(127)[1], 4);
}

Test(smbios, has_room_for_the_longest_serial_number)
{
    char serial[SMBIOS_SERIAL_MAX + 1] = "";
    const uint8_t *system;

    memset(serial, 'x', SMBIOS_SERIAL_MAX);
    write_tables(serial);
    system = structure(1);
    cr_assert_str_eq(string(system, system[7]), serial);
}

Test(smbios, fails_without_memory_there)
{
    const struct smbios_config config = { .uuid = uuid_text };
    struct guest_mem none = { 0 };

    cr_assert_eq(smbios_write(&none, &config, &error), -1);
    cr_assert(strstr(error.msg, "SMBIOS"));
}
