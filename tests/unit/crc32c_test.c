/* CRC-32C: RFC 3720's examples (appendix B.4), and that both ways agree. */
#include "vmm/base/crc32c.h"

#include <criterion/criterion.h>
#include <string.h>

Test(crc32c, is_that_of_the_rfc)
{
    uint8_t bytes[32];

    memset(bytes, 0, sizeof(bytes));
    cr_assert_eq(crc32c(bytes, sizeof(bytes)), 0x8a9136aa);
    memset(bytes, 0xff, sizeof(bytes));
    cr_assert_eq(crc32c(bytes, sizeof(bytes)), 0x62a8ab43);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)i;
    cr_assert_eq(crc32c(bytes, sizeof(bytes)), 0x46dd794e);
    cr_assert_eq(crc32c(bytes, 0), 0);
}

Test(crc32c, is_the_same_by_table_and_by_the_processor)
{
    uint8_t bytes[67];

    if (!__builtin_cpu_supports("sse4.2"))
        return;
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 37 + 11);
    for (unsigned from = 0; from < 9; from++)
        for (unsigned n = 0; from + n <= sizeof(bytes); n++)
            cr_assert_eq(crc32c_by_table_(n, bytes + from, n),
                         crc32c_by_processor_(n, bytes + from, n));
}
