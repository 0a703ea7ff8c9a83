#include "mmds/store.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "mmds/merge.h"

static struct mmds_store store = { .limit_bytes = 1000 };
static struct error error;

static void cleanup(void)
{
    mmds_store_fini(&store);
}

TestSuite(mmds_store, .fini = cleanup);

/* What a pointer leads to, as text; "" where it leads nowhere. */
static const char *at(const char *text, const char *pointer)
{
    static char found[1000];
    struct mmds_value v = { "", 0 };

    mmds_find(mmds_value(text), pointer, strlen(pointer), &v);
    snprintf(found, sizeof(found), "%.*s", (int)v.length, v.at);
    return found;
}

Test(mmds_store, a_pointer_leads_to_a_value)
{
    static const char text[] =
        "{\"\":{\"\":1},\"\\u0001\":2,\"/\":3,\"a\":[10,[\"x]\",{\"b\":{}}],{},true],"
        "\"a\\\"b\":\"}\",\"k~\":null,\"m~1n\":4,\"o\\\\\":[]}";
    static const struct {
        const char *pointer, *value;
    } cases[] = {
        { "", text },
        { "/", "{\"\":1}" },
        { "//", "1" },
        { "/\001", "2" },
        { "/~1", "3" },
        { "/a/0", "10" },
        { "/a/1/0", "\"x]\"" },
        { "/a/1/1/b", "{}" },
        { "/a/2", "{}" },
        { "/a/3", "true" },
        { "/a\"b", "\"}\"" },
        { "/k~", "null" },
        { "/k~0", "null" },
        { "/m~01n", "4" },
        { "/o\\", "[]" },
        /* and to none */
        { "a", "" },
        { "/b", "" },
        { "/a/4", "" },
        { "/a/-", "" },
        { "/a/00", "" },
        { "/a/01", "" },
        { "/a/+1", "" },
        { "/a/", "" },
        { "/a/18446744073709551616", "" },
        { "/a/18446744073709551615", "" },
        { "/a/0/x", "" },
        { "/a/", "" },
        { "/m~1n", "" },
        { "/%2f", "" },
        { "/o/0", "" },
        { "/a\"", "" },
        { "/a\"b ", "" },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        cr_expect_str_eq(at(text, cases[i].pointer), cases[i].value, "%s", cases[i].pointer);
    cr_expect_str_eq(at("7", ""), "7");
    cr_expect_str_eq(at("7", "/"), "");
}

Test(mmds_store, a_pointer_needs_no_NUL_behind_it)
{
    struct mmds_value v;

    cr_expect(mmds_find(mmds_value("{\"a\":5}"), "/abc", 2, &v));
    cr_expect(v.length == 1 && *v.at == '5');
}

Test(mmds_store, a_value_has_a_type)
{
    static const char *const texts[] = {
        [MMDS_NULL] = "null",       [MMDS_BOOL] = "false", [MMDS_NUMBER] = "-1",
        [MMDS_STRING] = "\"null\"", [MMDS_ARRAY] = "[{}]", [MMDS_OBJECT] = "{\"a\":[]}",
    };

    for (unsigned type = MMDS_NULL; type <= MMDS_OBJECT; type++)
        cr_expect_eq(mmds_type(mmds_value(texts[type])), type);
    cr_expect_eq(mmds_type(mmds_value("true")), MMDS_BOOL);
}

Test(mmds_store, members_come_in_order)
{
    struct mmds_value object = mmds_value("{\"a\":1,\"b\":{\"x\":2},\"c\":\"\"},\"d\":0");
    struct mmds_member m = { 0 };
    char seen[100] = "";

    while (mmds_next_member(object, &m)) {
        strncat(seen, m.key.at, m.key.length);
        strncat(seen, m.value.at, m.value.length);
    }
    cr_expect_str_eq(seen, "\"a\"1\"b\"{\"x\":2}\"c\"\"\"");
    m = (struct mmds_member){ 0 };
    cr_expect_not(mmds_next_member(mmds_value("{}"), &m));
}

Test(mmds_store, a_string_is_unescaped)
{
    static const char text[] = "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f\\u000a/\xc3\xa9\"";
    static const char bytes[] = "a\"\\\b\f\n\r\t\0\x1f\n/\xc3\xa9";
    char out[sizeof(text)];

    cr_expect_eq(mmds_unescape(mmds_value(text), out), sizeof(bytes) - 1);
    cr_expect_arr_eq(out, bytes, sizeof(bytes) - 1);
}

Test(mmds_store, a_patch_is_merged)
{
    static const char *const cases[][3] = {
        /* RFC 7396, appendix A, what is no object merged by its rules */
        { "{\"a\":\"b\"}", "{\"a\":\"c\"}", "{\"a\":\"c\"}" },
        { "{\"a\":\"b\"}", "{\"b\":\"c\"}", "{\"a\":\"b\",\"b\":\"c\"}" },
        { "{\"a\":\"b\"}", "{\"a\":null}", "{}" },
        { "{\"a\":\"b\",\"b\":\"c\"}", "{\"a\":null}", "{\"b\":\"c\"}" },
        { "{\"a\":[\"b\"]}", "{\"a\":\"c\"}", "{\"a\":\"c\"}" },
        { "{\"a\":\"c\"}", "{\"a\":[\"b\"]}", "{\"a\":[\"b\"]}" },
        { "{\"a\":{\"b\":\"c\"}}", "{\"a\":{\"b\":\"d\",\"c\":null}}", "{\"a\":{\"b\":\"d\"}}" },
        { "{\"a\":[{\"b\":\"c\"}]}", "{\"a\":[1]}", "{\"a\":[1]}" },
        { "[\"a\",\"b\"]", "[\"c\",\"d\"]", "[\"c\",\"d\"]" },
        { "{\"a\":\"b\"}", "[\"c\"]", "[\"c\"]" },
        { "{\"a\":\"foo\"}", "null", "null" },
        { "{\"a\":\"foo\"}", "\"bar\"", "\"bar\"" },
        { "{\"e\":null}", "{\"a\":1}", "{\"a\":1,\"e\":null}" },
        { "[1,2]", "{\"a\":\"b\",\"c\":null}", "{\"a\":\"b\"}" },
        { "{}", "{\"a\":{\"bb\":{\"ccc\":null}}}", "{\"a\":{\"bb\":{}}}" },
        /* and more */
        { "{}", "{}", "{}" },
        { "null", "{\"a\":[null]}", "{\"a\":[null]}" },
        { "{\"b\":1,\"d\":2}", "{\"a\":3,\"c\":4,\"e\":5}",
          "{\"a\":3,\"b\":1,\"c\":4,\"d\":2,\"e\":5}" },
        { "{\"a\":1}", "{\"\\u0001\":2}", "{\"\\u0001\":2,\"a\":1}" },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        autofree char *text = mmds_merge(cases[i][0], cases[i][1]);

        cr_expect_str_eq(text, cases[i][2]);
    }
}

Test(mmds_store, what_was_never_put_is_null_and_takes_no_patch)
{
    cr_expect_eq(mmds_type(mmds_store_root(&store)), MMDS_NULL);
    cr_expect_eq(mmds_store_patch(&store, "{}", &error), -1);
    cr_expect_eq(error.kind, ERR_INVALID);
    cr_expect_str_eq(error.msg, "The MMDS data store is not initialized.");
    cr_assert_eq(mmds_store_put(&store, "null", &error), 0);
    cr_expect_eq(mmds_store_patch(&store, "{}", &error), 0);
}

Test(mmds_store, a_text_of_the_limit_fits_and_a_longer_one_changes_nothing)
{
    store.limit_bytes = 7;
    cr_assert_eq(mmds_store_put(&store, "{\"a\":1}", &error), 0);
    cr_expect_eq(mmds_store_put(&store, "{\"a\":12}", &error), -1);
    cr_expect_eq(error.kind, ERR_TOO_LARGE);
    cr_expect_eq(mmds_store_patch(&store, "{\"b\":1}", &error), -1);
    cr_expect_eq(error.kind, ERR_TOO_LARGE);
    cr_expect_str_eq(error.msg, "The MMDS patch request doesn't fit.");
    cr_expect_str_eq(mmds_store_root(&store).at, "{\"a\":1}");
    cr_expect_eq(mmds_store_patch(&store, "{\"a\":2}", &error), 0);
    cr_expect_str_eq(mmds_store_root(&store).at, "{\"a\":2}");
}
