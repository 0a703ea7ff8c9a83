#include "vmm/base/instance_id.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static struct error e;

static bool check(const char *text)
{
    const char *id = NULL;

    return instance_id_parse("id", text, &id, &e) == 0 && id == text;
}

Test(instance_id_parse, takes_letters_digits_and_hyphens)
{
    cr_expect(check("a"));
    cr_expect(check("-Az09-"));
    cr_expect(check("\xc3\xa9"), "beyond ASCII all counts as a letter");
}

Test(instance_id_parse, counts_bytes)
{
    char id[66];

    memset(id, 'x', sizeof(id));
    id[64] = '\0';
    cr_expect(check(id));
    id[64] = 'x';
    id[65] = '\0';
    cr_expect_not(check(id));
    cr_expect_str_eq(e.msg, "Invalid instance ID: Invalid len (65);  the length must be between 1 "
                            "and 64");
    cr_expect_not(check(""));
}

Test(instance_id_parse, names_what_is_wrong_and_where)
{
    for (const char *bad = "_./ \n"; *bad; bad++) {
        const char id[] = { 'o', 'k', *bad, '\0' };
        char expected[64];

        snprintf(expected, sizeof(expected), "Invalid char (%c) at position 2", *bad);
        cr_expect_not(check(id), "%s", id);
        cr_expect(strstr(e.msg, expected), "%s", e.msg);
    }
}
