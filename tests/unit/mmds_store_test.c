#include "mmds/store.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "api/canonical.h"
#include "mmds/merge.h"
#include "tests/support/json_model.h"

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

/* Documents of a seed: small ones of few keys, so that patches and pointers meet something. */

static unsigned seed;

static unsigned choose(unsigned n)
{
    seed = seed * 1103515245 + 12345;
    return (seed >> 16) % n;
}

static const char *const keys[] = {
    "a", "b", "", "~", "a/b", "0", "1", "\\n", "\\\"", "z\xc3\xa9"
};
#define KEYS (sizeof(keys) / sizeof(*keys))

static char *write_value(char *out, unsigned depth)
{
    static const char *const scalars[] = { "null", "null",         "1",   "-1.50",
                                           "1e2",  "\"x\\u0041\"", "true" };
    unsigned kind = choose(depth > 0 ? 10 : 4), n = choose(5);

    if (kind < 4)
        return stpcpy(out, scalars[choose(sizeof(scalars) / sizeof(*scalars))]);
    out = stpcpy(out, kind == 4 ? "[" : "{");
    for (unsigned i = 0; i < n; i++) {
        if (i > 0)
            out = stpcpy(out, ", ");
        if (kind > 4)
            out += sprintf(out, "\"%s\": ", keys[choose(KEYS)]);
        out = write_value(out, depth - 1);
    }
    return stpcpy(out, kind == 4 ? "]" : "}");
}

/* A document, and its canonical text, which the caller frees. */
static char *make_document(char *text)
{
    char *canonical;

    write_value(text, 4);
    canonical = canonical_json(text, strlen(text), &error);
    cr_assert(canonical, "%s: %s", text, error.msg);
    return canonical;
}

static void expect_modelled(struct json_object *model, const char *text)
{
    const char *modelled = model_text(model);
    autofree char *canonical = canonical_json(modelled, strlen(modelled), &error);

    cr_expect_str_eq(canonical, text);
}

#define DOCUMENTS 2000
static char document[1 << 16], patch[1 << 16];

Test(mmds_store, patches_do_what_the_rfc_s_pseudo_code_does)
{
    for (seed = 1; seed <= DOCUMENTS; seed++) {
        unsigned at = seed;
        autofree char *target = make_document(document), *change = make_document(patch);
        autofree char *merged = mmds_merge(target, change);
        struct json_object *model_patch = model_parse(patch);
        struct json_object *model = model_merge(model_parse(document), model_patch);

        cr_expect_leq(strlen(merged), strlen(target) + strlen(change));
        expect_modelled(model, merged);
        json_object_put(model);
        json_object_put(model_patch);
        seed = at;
    }
}

static void make_pointer(char *out)
{
    *out = '\0';
    for (unsigned n = choose(4); n > 0; n--) {
        *out++ = '/';
        for (const char *key = keys[choose(KEYS)]; *key; key++)
            out = *key == '/'   ? stpcpy(out, "~1")
                  : *key == '~' ? stpcpy(out, "~0")
                                : (*out = *key, out + 1);
        *out = '\0';
    }
}

Test(mmds_store, pointers_lead_where_a_tree_s_do)
{
    unsigned found = 0;
    char pointer[100];

    for (seed = 1; seed <= DOCUMENTS; seed++) {
        unsigned at = seed;
        autofree char *text = make_document(document);
        struct json_object *model = model_parse(document), *there;
        struct mmds_value v;
        bool is_there;

        make_pointer(pointer);
        is_there = mmds_find(mmds_value(text), pointer, strlen(pointer), &v);
        cr_expect_eq(is_there, model_find(model, pointer, &there), "%s in %s", pointer, text);
        if (is_there) {
            autofree char *piece = strndup(v.at, v.length);

            expect_modelled(there, piece);
            found += *pointer != '\0';
        }
        json_object_put(model);
        seed = at;
    }
    cr_expect_gt(found, DOCUMENTS / 50, "%u", found);
}

Test(mmds_store, keys_that_no_path_can_name_are_found)
{
    static const struct {
        const char *text;
        bool has_one;
    } cases[] = {
        { "{\"\":1}", true },
        { "{\"a\":1,\"b\":[{\"\":{}}]}", true },
        { "{\"a b\":1}", true },
        { "{\"\\n\":1}", true },
        { "{\"\\u0000\":1}", true },
        { "{\"\x7f\":1}", true },
        { "\"\"", false },
        { "[\"\",\" \",\"\\\"\"]", false },
        { "{\"a\\\"\":\"{\\\"\\\":\"}", false },
        { "{\"\xc3\xa9~/?%\":\" \"}", false },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        cr_expect_eq(mmds_has_unreachable_key(cases[i].text), cases[i].has_one, "%s",
                     cases[i].text);
}
