#include "vmm/base/instance_id.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static char why[INSTANCE_ID_ERROR_BYTES];

Test(instance_id_check, takes_letters_digits_and_hyphens)
{
    cr_expect(instance_id_check("a", why));
    cr_expect(instance_id_check("-Az09-", why));
    cr_expect(instance_id_check("\xc3\xa9", why), "beyond ASCII all counts as a letter");
}

Test(instance_id_check, counts_bytes)
{
    char id[66];

    memset(id, 'x', sizeof(id));
    id[64] = '\0';
    cr_expect(instance_id_check(id, why));
    id[64] = 'x';
    id[65] = '\0';
    cr_expect_not(instance_id_check(id, why));
    cr_expect_str_eq(why, "Invalid instance ID: Invalid len (65);  the length must be between 1 "
                          "and 64");
    cr_expect_not(instance_id_check("", why));
}

Test(instance_id_check, names_what_is_wrong_and_where)
{
    for (const char *bad = "_./ \n"; *bad; bad++) {
        const char id[] = { 'o', 'k', *bad, '\0' };
        char expected[64];

        snprintf(expected, sizeof(expected), "Invalid char (%c) at position 2", *bad);
        cr_expect_not(instance_id_check(id, why), "%s", id);
        cr_expect(strstr(why, expected), "%s", why);
    }
}
