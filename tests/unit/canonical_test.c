#include "api/canonical.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "mmds/value.h"

static struct error error;

/* The canonical text, or the error's. */
static const char *canonical(const char *text)
{
    static char *last;

    free(last);
    last = canonical_json(text, strlen(text), &error);
    if (!last)
        last = strdup(error.msg);
    return last;
}

struct pair {
    const char *text, *canonical;
};

#define EXPECT_ALL(pairs)                                                                          \
    for (size_t i = 0; i < sizeof(pairs) / sizeof(*(pairs)); i++)                                  \
    cr_expect_str_eq(canonical((pairs)[i].text), (pairs)[i].canonical)

Test(canonical, objects_are_sorted_by_bytes_and_compact)
{
    static const struct pair pairs[] = {
        { " { } ", "{}" },
        { "[ ]", "[]" },
        { " [ 1 , [ ] , { } , \"\" ] ", "[1,[],{},\"\"]" },
        { "{\"b\" : 1 ,\n\"a\" : 2}", "{\"a\":2,\"b\":1}" },
        { "{\"b\":1,\"B\":2,\"\":3,\"ba\":4,\"\xc3\xa9\":5,\"a\":{\"z\":{},\"y\":[]}}",
          "{\"\":3,\"B\":2,\"a\":{\"y\":[],\"z\":{}},\"b\":1,\"ba\":4,\"\xc3\xa9\":5}" },
        /* by what is meant, not by how it is written */
        { "{\"a\":1,\"\\n\":2,\"!\":3,\"\\\"\":4,\"#\":5,\"\\u0000\":6,\"\\u001f\":7}",
          "{\"\\u0000\":6,\"\\n\":2,\"\\u001f\":7,\"!\":3,\"\\\"\":4,\"#\":5,\"a\":1}" },
        { "[{\"b\":1,\"a\":2},{\"d\":{\"f\":0,\"e\":0},\"c\":4}]",
          "[{\"a\":2,\"b\":1},{\"c\":4,\"d\":{\"e\":0,\"f\":0}}]" },
    };

    EXPECT_ALL(pairs);
}

Test(canonical, the_last_of_a_key_counts)
{
    static const struct pair pairs[] = {
        { "{\"a\":1,\"a\":2}", "{\"a\":2}" },
        { "{\"a\":{\"b\":1},\"a\":{\"c\":2}}", "{\"a\":{\"c\":2}}" },
        { "{\"a\":{\"c\":2,\"c\":3},\"b\":4,\"a\":5,\"b\":6,\"a\":[{}]}", "{\"a\":[{}],\"b\":6}" },
        { "{\"a\":1,\"\\u0061\":2,\"\\u000a\":3,\"\\n\":4}", "{\"\\n\":4,\"a\":2}" },
    };

    EXPECT_ALL(pairs);
}

Test(canonical, numbers_are_64_bits_or_doubles_in_their_shortest_form)
{
    static const struct pair pairs[] = {
        { "0", "0" },
        { "-1", "-1" },
        { "18446744073709551615", "18446744073709551615" },
        { "-9223372036854775808", "-9223372036854775808" },
        { "18446744073709551616", "1.8446744073709552e+19" },
        { "-9223372036854775809", "-9.223372036854776e+18" },
        { "-0", "-0.0" },
        { "0.0", "0.0" },
        { "1.0", "1.0" },
        { "1.50", "1.5" },
        { "1e2", "100.0" },
        { "1E+2", "100.0" },
        { "0e400", "0.0" },
        { "1e-400", "0.0" },
        { "0.1", "0.1" },
        { "0.30000000000000004", "0.30000000000000004" },
        { "1e15", "1000000000000000.0" },
        { "1e16", "1e+16" },
        { "1e-5", "0.00001" },
        { "1e-6", "1e-6" },
        { "123456789.125e-20", "1.23456789125e-12" },
        { "5e-324", "5e-324" },
        { "1.7976931348623157e308", "1.7976931348623157e+308" },
        /* and none */
        { "1E400", "number out of range at line 1 column 5" },
        { "[-1e309]", "number out of range at line 1 column 7" },
        { "01", "invalid number at line 1 column 2" },
        { "1.", "EOF while parsing a value at line 1 column 2" },
        { "NaN", "expected value at line 1 column 1" },
    };

    EXPECT_ALL(pairs);
}

Test(canonical, strings_are_escaped_no_more_than_needed)
{
    static const struct pair pairs[] = {
        { "\"\\u00e9\\/\\u007f\"", "\"\xc3\xa9/\x7f\"" },
        { "\"\\ud83d\\ude00\"", "\"\xf0\x9f\x98\x80\"" },
        { "\"\\u0008\\u0009\\u000A\\u000C\\u000D\\u0022\\u005C\"", "\"\\b\\t\\n\\f\\r\\\"\\\\\"" },
        { "\"\\u0000\\u0001\\u001F\\u0000\"", "\"\\u0000\\u0001\\u001f\\u0000\"" },
        { "true", "true" },
        { "[false,null]", "[false,null]" },
    };

    EXPECT_ALL(pairs);
}

Test(canonical, what_is_no_json_is_refused)
{
    static const struct pair pairs[] = {
        { " ", "EOF while parsing a value at line 1 column 1" },
        { "{", "EOF while parsing an object at line 1 column 1" },
        { "[1", "EOF while parsing a list at line 1 column 2" },
        { "{\"a\"", "EOF while parsing an object at line 1 column 4" },
        { "{\"a\":{\"b\":\"c\"}}x", "trailing characters at line 1 column 16" },
        { "{\"a\":1,}", "trailing comma at line 1 column 8" },
        { "{'a':1}", "key must be a string at line 1 column 2" },
        { "{\"a\":1 \"b\":2}", "expected `,` or `}` at line 1 column 8" },
        { "[1 2]", "expected `,` or `]` at line 1 column 4" },
        { "// c\n{}", "expected value at line 1 column 1" },
        { "\xef\xbb\xbf{}", "expected value at line 1 column 1" },
    };

    EXPECT_ALL(pairs);
    cr_expect_null(canonical_json("\"\\ud800\"", 8, &error));
    cr_expect_null(canonical_json("\"\xff\"", 3, &error));
    cr_expect_null(canonical_json("{}\0", 3, &error));
}

/* `depth` arrays or objects in one another. */
static void nest(char *out, const char *opener, const char *inner, const char *closer,
                 unsigned depth)
{
    *out = '\0';
    for (unsigned i = 0; i < depth; i++)
        out = stpcpy(out, opener);
    out = stpcpy(out, inner);
    for (unsigned i = 0; i < depth; i++)
        out = stpcpy(out, closer);
}

Test(canonical, depth_is_bounded)
{
    char text[2000];

    nest(text, "[", "", "]", MMDS_DEPTH_MAX);
    cr_expect_str_eq(canonical(text), text);
    nest(text, "{\"a\":", "1", "}", MMDS_DEPTH_MAX);
    cr_expect_str_eq(canonical(text), text);
    nest(text, "[", "", "", MMDS_DEPTH_MAX + 1);
    cr_expect_str_eq(canonical(text), "recursion limit exceeded at line 1 column 128");
    nest(text, "{\"a\":", "1", "", MMDS_DEPTH_MAX + 1);
    cr_expect_str_eq(canonical(text), "recursion limit exceeded at line 1 column 636");
}

/* More members than any sort has by heart, in three orders; the second half are the first's keys.
 */
Test(canonical, many_members_are_sorted)
{
    enum { MEMBERS = 1000 };
    static char text[MEMBERS * 20], sorted[MEMBERS * 20];
    static const unsigned strides[] = { 1, 7, MEMBERS - 1 };

    for (unsigned s = 0; s < 3; s++) {
        char *out = text, *expected = sorted;

        for (unsigned i = 0; i < 2 * MEMBERS; i++) {
            unsigned key = (i + 1) * strides[s] % MEMBERS;

            out += sprintf(out, "%s\"%03u\":%u", i ? "," : "{", key, i / MEMBERS);
        }
        for (unsigned i = 0; i < MEMBERS; i++)
            expected += sprintf(expected, "%s\"%03u\":1", i ? "," : "{", i);
        stpcpy(out, "}");
        stpcpy(expected, "}");
        cr_expect_str_eq(canonical(text), sorted);
    }
}

Test(canonical, a_canonical_text_is_its_own)
{
    static const char *const texts[] = {
        "{\"\":{\"\\u0000\":[1,2.5,1e+16,-0.0]},\"a\":\"\\\"\\\\\",\"b\":[{},[],null,true]}",
        "\"x\"",
        "18446744073709551615",
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        cr_expect_str_eq(canonical(texts[i]), texts[i]);
}
