#include "vmm/base/uuid.h"

#include <criterion/criterion.h>
#include <string.h>

#define TEXT "01234567-89ab-cdef-0123-456789abcdef"

Test(uuid, is_read_in_either_case_and_shown_in_lower)
{
    static const char upper[] = "01234567-89AB-CDEF-0123-456789abcdef and more";
    static const uint8_t bytes[] = { 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
                                     0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef };
    struct uuid uuid;
    char text[UUID_TEXT];

    cr_assert(uuid_parse(&uuid, upper));
    cr_expect_arr_eq(uuid.bytes, bytes, sizeof(bytes));
    uuid_text(&uuid, text);
    cr_expect_str_eq(text, TEXT);
}

/* With something else at any place, or nothing. */
Test(uuid, is_nothing_else)
{
    static const char others[] = "-g \xff";
    struct uuid uuid;

    for (size_t i = 0; i < sizeof(TEXT) - 1; i++)
        for (size_t n = 0; n < sizeof(others); n++) {
            char text[] = TEXT;

            if (text[i] == others[n])
                continue;
            text[i] = others[n];
            cr_expect_not(uuid_parse(&uuid, text), "%s", text);
        }
}

Test(uuid, that_is_made_is_random_and_says_so)
{
    struct uuid a, b;
    struct error e;

    cr_assert_eq(uuid_make(&a, &e), 0);
    cr_assert_eq(uuid_make(&b, &e), 0);
    cr_expect(uuid_equal(&a, &a));
    cr_expect_not(uuid_equal(&a, &b));
    cr_expect_eq(a.bytes[6] >> 4, 4);
    cr_expect_eq(a.bytes[8] >> 6, 2);
}
