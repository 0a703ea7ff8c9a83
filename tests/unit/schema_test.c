#include "api/wire/schema.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/support/files.h"
#include "vmm/base/log.h"

enum colour { RED, GREEN, BLUE };

struct inner {
    uint64_t big;
};

struct sample {
    char *name;
    uint8_t small;
    bool yes, has_inner;
    enum colour colour;
    struct inner inner;
    struct schema_list list; /* of struct inner */
    char *map;
};

static const struct schema_variant colours[] = {
    { "Red", RED },
    { "Green", GREEN },
    { "Blue", BLUE },
    { 0 },
};

static const struct schema_field inner_fields[] = {
    SCHEMA_FIELD("big", U64, SCHEMA_REQUIRED, offsetof(struct inner, big)),
};

static const struct schema inner_schema = { .name = "Inner",
                                            .size = sizeof(struct inner),
                                            .fields = inner_fields,
                                            .count = 1,
                                            .takes_unknown = true };

#define AT(m) offsetof(struct sample, m)

static const struct schema_field fields[] = {
    SCHEMA_FIELD("name", STRING, SCHEMA_REQUIRED, AT(name)),
    SCHEMA_FIELD("small", U8, SCHEMA_DEFAULT, AT(small)),
    SCHEMA_FIELD("yes", BOOL, SCHEMA_DEFAULT | SCHEMA_NULLABLE, AT(yes)),
    SCHEMA_FIELD("colour", ENUM, SCHEMA_DEFAULT, AT(colour), .variants = colours),
    SCHEMA_FIELD("inner", OBJECT, SCHEMA_DEFAULT | SCHEMA_NULLABLE, AT(inner),
                 .has_at = SCHEMA_HAS(struct sample, has_inner), .object = &inner_schema),
    SCHEMA_FIELD("list", LIST, SCHEMA_DEFAULT, AT(list), .object = &inner_schema),
    SCHEMA_FIELD("later", ABSENT, SCHEMA_DEFAULT | SCHEMA_NULLABLE, 0),
    SCHEMA_FIELD("map", TEXT, SCHEMA_DEFAULT | SCHEMA_NULLABLE | SCHEMA_MAP | SCHEMA_UNSHOWN,
                 AT(map)),
};

static const struct schema schema = {
    .name = "Sample",
    .size = sizeof(struct sample),
    .fields = fields,
    .count = sizeof(fields) / sizeof(*fields),
};

static struct sample sample;
static uint32_t given;
static struct error error;

static int decode_n(const char *text, size_t n)
{
    free(sample.name);
    free(sample.list.items);
    free(sample.map);
    sample = (struct sample){ 0 };
    error = (struct error){ 0 };
    return schema_decode(&schema, &sample, text, n, &given, &error);
}

static int decode(const char *text)
{
    return decode_n(text, strlen(text));
}

Test(schema_decode, fills_members_of_every_type)
{
    cr_assert_eq(decode(" { \"name\" : \"\\u00fc x\\n\", \"small\":255, \"yes\":true,"
                        "\"colour\": \"Blue\", \"inner\": {\"big\": 18446744073709551615},"
                        "\"list\": [{\"big\":1},{\"big\":2}], \"later\": null }\r\n\t"),
                 0, "%s", error.msg);
    cr_expect_str_eq(sample.name, "\xc3\xbc x\n");
    cr_expect_eq(sample.small, 255);
    cr_expect(sample.yes);
    cr_expect_eq(sample.colour, BLUE);
    cr_expect(sample.has_inner);
    cr_expect_eq(sample.inner.big, UINT64_MAX);
    cr_assert_eq(sample.list.count, 2);
    cr_expect_eq(((struct inner *)sample.list.items)[1].big, 2);
    cr_expect_eq(given, 0x3f, "all but the null");
}

Test(schema_decode, leaves_what_is_not_given_as_it_was)
{
    struct sample s = { .small = 7, .colour = GREEN };

    cr_assert_eq(schema_decode(&schema, &s, "{\"name\":\"\"}", 11, &given, &error), 0);
    cr_expect_eq(s.small, 7);
    cr_expect_eq(s.colour, GREEN);
    cr_expect_eq(given, 1);
    free(s.name);
}

Test(schema_decode, takes_null_for_left_out_where_it_may)
{
    cr_assert_eq(decode("{\"name\":\"\",\"yes\":null,\"inner\":null}"), 0);
    cr_expect_eq(given, 1);
    cr_expect(!sample.has_inner);
}

Test(schema_decode, takes_an_array_in_the_order_of_the_table)
{
    cr_assert_eq(decode("[\"n\", 3, null, \"Red\", [9]]"), 0, "%s", error.msg);
    cr_expect_str_eq(sample.name, "n");
    cr_expect_eq(sample.small, 3);
    cr_expect_eq(sample.inner.big, 9);
}

Test(schema_decode, takes_a_variant_as_an_object_with_null)
{
    cr_assert_eq(decode("{\"name\":\"\",\"colour\":{\"Green\":null}}"), 0, "%s", error.msg);
    cr_expect_eq(sample.colour, GREEN);
}

Test(schema_decode, skips_unknown_members_where_it_may)
{
    cr_expect_eq(
        decode("{\"name\":\"\",\"inner\":{\"x\":[{\"y\":[1,\"]\"]},2],\"big\":1,\"z\":\"}\"}}"), 0,
        "%s", error.msg);
    cr_expect_eq(sample.inner.big, 1);
}

Test(schema_decode, tells_of_each_member_that_it_ignores)
{
    char path[] = NEW_FILE, text[512];

    close(new_file(path));
    cr_assert_eq(log_open(path, &error), 0);
    cr_assert_eq(decode("{\"name\":\"\",\"inner\":{\"bigg\":1,\"big\":1,\"a\\nb\":{\"c\":2}}}"), 0);
    read_text(path, text, sizeof(text));
    unlink(path);
    cr_expect(strstr(text, "] Inner: unknown field \"bigg\" is ignored, expected `big`\n"), "%s",
              text);
    cr_expect(strstr(text, "] Inner: unknown field \"a\\nb\" is ignored, expected `big`\n"), "%s",
              text);
    cr_expect_null(strstr(text, "`c`"), "%s", text);
}

Test(schema_decode, keeps_the_text_of_an_object_of_strings)
{
    cr_assert_eq(decode("{\"name\":\"\",\"map\": { \"a\" : \"\\n\",\n\"b\":\"\"} }"), 0, "%s",
                 error.msg);
    cr_expect_str_eq(sample.map, "{ \"a\" : \"\\n\", \"b\":\"\"}");
    cr_assert_eq(decode("{\"name\":\"\",\"map\":{}}"), 0, "%s", error.msg);
    cr_expect_str_eq(sample.map, "{}");
    cr_assert_eq(decode("{\"name\":\"\",\"map\":null}"), 0, "%s", error.msg);
    cr_expect_null(sample.map);
}

struct failure {
    char text[64];
    char message[176];
};

#define NAMES "one of `name`, `small`, `yes`, `colour`, `inner`, `list`, `later`, `map`"

/* Firecracker's own words, position included. */
ParameterizedTestParameters(schema_decode, says_what_is_wrong_and_where)
{
    static struct failure failures[] = {
        { "", "EOF while parsing a value at line 1 column 0" },
        { " ", "EOF while parsing a value at line 1 column 1" },
        { "null", "invalid type: null, expected struct Sample at line 1 column 4" },
        { "nil", "expected ident at line 1 column 2" },
        { "nu", "EOF while parsing a value at line 1 column 2" },
        { "\"x\"", "invalid type: string \"x\", expected struct Sample at line 1 column 3" },
        { "\"\\u00fc\\\"\\u0000\\u0001\"",
          "invalid type: string \"\xc3\xbc\\\"\\0\\u{1}\", expected struct Sample at line 1 column "
          "22" },
        { "\"\x7f~\"",
          "invalid type: string \"\\u{7f}~\", expected struct Sample at line 1 column 4" },
        { "17", "invalid type: integer `17`, expected struct Sample at line 1 column 2" },
        { "}", "expected value at line 1 column 1" },
        { "NaN", "expected value at line 1 column 1" },
        { "//\n{}", "expected value at line 1 column 1" },
        { "{", "EOF while parsing an object at line 1 column 1" },
        { "{}", "missing field `name` at line 1 column 2" },
        { "{\n\n }", "missing field `name` at line 3 column 2" },
        { "{}x", "missing field `name` at line 1 column 2" },
        { "{,}", "key must be a string at line 1 column 2" },
        { "{1:2}", "key must be a string at line 1 column 2" },
        { "{\"na", "EOF while parsing a string at line 1 column 4" },
        { "{\"name\"", "EOF while parsing an object at line 1 column 7" },
        { "{\"name\" 1", "expected `:` at line 1 column 9" },
        { "{\"name\":", "EOF while parsing a value at line 1 column 8" },
        { "{\"name\":}", "expected value at line 1 column 9" },
        { "{\"name\":\"\"", "EOF while parsing an object at line 1 column 10" },
        { "{\"name\":\"\",", "EOF while parsing a value at line 1 column 11" },
        { "{\"name\":\"\",}", "trailing comma at line 1 column 12" },
        { "{\"name\":\"\" \"", "expected `,` or `}` at line 1 column 12" },
        { "{\"name\":\"\"} x", "trailing characters at line 1 column 13" },
        { "{\"name\":null}", "invalid type: null, expected a string at line 1 column 12" },
        { "{\"name\":[]}", "invalid type: sequence, expected a string at line 1 column 8" },
        { "{\"name\": {}}", "invalid type: map, expected a string at line 1 column 9" },
        { "{\"name\":\"\\x\"}", "invalid escape at line 1 column 11" },
        { "{\"name\":\"a\nb\"}",
          "control character (\\u0000-\\u001F) found while parsing a string at line 2 column 0" },
        { "{\"name\":\"\xff\"}", "invalid unicode code point at line 1 column 11" },
        { "{\"name\":\"\\ud800\"}", "lone leading surrogate in hex escape at line 1 column 16" },
        { "{\"name\":\"a\\u0000b\"}",
          "invalid value: a NUL character in `name` at line 1 column 18" },
        { "{\"x\":1}", "unknown field `x`, expected " NAMES " at line 1 column 4" },
        { "{\"x\" }", "unknown field `x`, expected " NAMES " at line 1 column 6" },
        { "{\"a\\u0000\"", "unknown field `a\xc0\x80`, expected " NAMES " at line 1 column 10" },
        { "{\"yes\":true,\"yes\":true}", "duplicate field `yes` at line 1 column 17" },
        { "{\"small\":256}", "invalid value: integer `256`, expected u8 at line 1 column 12" },
        { "{\"small\":-1}", "invalid value: integer `-1`, expected u8 at line 1 column 11" },
        { "{\"small\":-0}",
          "invalid type: floating point `-0.0`, expected u8 at line 1 column 11" },
        { "{\"small\":1.0}",
          "invalid type: floating point `1.0`, expected u8 at line 1 column 12" },
        { "{\"small\":0.1}",
          "invalid type: floating point `0.1`, expected u8 at line 1 column 12" },
        { "{\"small\":1e2}",
          "invalid type: floating point `100.0`, expected u8 at line 1 column 12" },
        { "{\"small\":1e-9}",
          "invalid type: floating point `1e-9`, expected u8 at line 1 column 13" },
        { "{\"small\":1e-10}",
          "invalid type: floating point `1e-10`, expected u8 at line 1 column 14" },
        { "{\"small\":18446744073709551616}",
          "invalid type: floating point `1.8446744073709552e+19`, expected u8 at line 1 column "
          "29" },
        { "{\"small\":01}", "invalid number at line 1 column 11" },
        { "{\"small\":1.}", "invalid number at line 1 column 12" },
        { "{\"small\":1e}", "invalid number at line 1 column 12" },
        { "{\"small\":-}", "invalid number at line 1 column 11" },
        { "{\"small\":-Infinity}", "invalid number at line 1 column 11" },
        { "{\"small\":1.", "EOF while parsing a value at line 1 column 11" },
        { "{\"small\":true}", "invalid type: boolean `true`, expected u8 at line 1 column 13" },
        { "{\"yes\":1}", "invalid type: integer `1`, expected a boolean at line 1 column 8" },
        { "{\"yes\":nil}", "expected ident at line 1 column 9" },
        { "{\"yes\":True}", "expected value at line 1 column 8" },
        { "{\"colour\":1}", "expected value at line 1 column 11" },
        { "{\"colour\":null}", "expected value at line 1 column 11" },
        { "{\"colour\":{}}", "expected value at line 1 column 12" },
        { "{\"colour\":\"red\"}",
          "unknown variant `red`, expected one of `Red`, `Green`, `Blue` at line 1 column 15" },
        { "{\"colour\":{\"x\":1}}",
          "unknown variant `x`, expected one of `Red`, `Green`, `Blue` at line 1 column 14" },
        { "{\"colour\":{\"Red\":1}}",
          "invalid type: integer `1`, expected unit at line 1 column 18" },
        { "{\"colour\":{\"Red\":null", "EOF while parsing an object at line 1 column 21" },
        { "{\"inner\":[]}",
          "invalid length 0, expected struct Inner with 1 element at line 1 column 11" },
        { "{\"inner\":[1,2]}", "trailing characters at line 1 column 12" },
        { "{\"inner\":[1,]}", "trailing characters at line 1 column 12" },
        { "{\"inner\":{\"x\":[1,}", "expected value at line 1 column 18" },
        { "{\"inner\":{\"x\":[NaN]}}", "expected value at line 1 column 16" },
        { "{\"inner\":{\"x\":[Infinity]}}", "expected value at line 1 column 16" },
        { "{\"inner\":{\"x\":[/**/1]}}", "expected value at line 1 column 16" },
        { "{\"inner\":{\"x\":['a']}}", "expected value at line 1 column 16" },
        { "{\"inner\":{\"x\":{'a':1}}}", "key must be a string at line 1 column 16" },
        { "{\"inner\":{\"x\":[True]}}", "expected value at line 1 column 16" },
        { "{\"inner\":{\"x\":[01]}}", "invalid number at line 1 column 17" },
        { "{\"inner\":{\"x\":[1 2]}}", "expected `,` or `]` at line 1 column 18" },
        { "{\"inner\":{\"x\":[{\"a\":1,}]}}", "trailing comma at line 1 column 23" },
        { "{\"inner\":{\"x\":[{\"a\":1]}}", "expected `,` or `}` at line 1 column 22" },
        { "{\"map\":[]}", "invalid type: sequence, expected a map at line 1 column 7" },
        { "{\"map\":{\"a\":1}}",
          "invalid type: integer `1`, expected a string at line 1 column 13" },
        { "{\"map\":{\"a\":null}}", "invalid type: null, expected a string at line 1 column 16" },
        { "{\"map\":{\"a\":\"\",\"b\":{}}}",
          "invalid type: map, expected a string at line 1 column 19" },
        { "{\"map\":{\"a\":\"\"", "EOF while parsing an object at line 1 column 14" },
        { "{\"map\":{\"a\" \"\"", "expected `:` at line 1 column 13" },
        { "{\"map\":{1:\"\"}}", "key must be a string at line 1 column 9" },
        { "{\"list\":{}}", "invalid type: map, expected a sequence at line 1 column 8" },
        { "{\"list\":[", "EOF while parsing a list at line 1 column 9" },
        { "{\"list\":[[1]", "EOF while parsing a list at line 1 column 12" },
        { "{\"list\":[[1],]}", "trailing comma at line 1 column 14" },
        { "{\"list\":[[1]x]}", "expected `,` or `]` at line 1 column 13" },
        { "{\"list\":[1]}",
          "invalid type: integer `1`, expected struct Inner at line 1 column 10" },
        { "{\"later\":1}", "`later` is not supported by this version at line 1 column 9" },
        { "{\"later\":[1]}", "`later` is not supported by this version at line 1 column 10" },
        { "[]", "invalid length 0, expected struct Sample with 8 elements at line 1 column 2" },
        { "[1", "invalid type: integer `1`, expected a string at line 1 column 2" },
        { "[\"\"", "EOF while parsing a list at line 1 column 3" },
    };

    return cr_make_param_array(struct failure, failures, sizeof(failures) / sizeof(*failures));
}

ParameterizedTest(struct failure *f, schema_decode, says_what_is_wrong_and_where)
{
    cr_assert_eq(decode(f->text), -1, "%s is accepted", f->text);
    cr_expect_str_eq(error.msg, f->message, "%s\nsays %s\nnot  %s", f->text, error.msg, f->message);
}

Test(schema_decode, refuses_a_nul_between_values)
{
    cr_expect_eq(decode_n("{\"name\":\"\"\0}", 12), -1);
    cr_expect_eq(decode_n("{\"name\":\"\"}\0", 12), -1);
    cr_expect_str_eq(error.msg, "trailing characters at line 1 column 12");
    cr_expect_eq(decode_n("{\0}", 3), -1);
    cr_expect_str_eq(error.msg, "key must be a string at line 1 column 2");
    cr_expect_eq(decode_n("{\"name\":\"\",\0}", 13), -1);
    cr_expect_str_eq(error.msg, "key must be a string at line 1 column 12");
    cr_expect_eq(decode_n("{\"list\":[[1]\0]}", 15), -1);
    cr_expect_str_eq(error.msg, "expected `,` or `]` at line 1 column 13");
}

Test(schema_decode, accepts_an_empty_array_for_what_is_not_supported)
{
    cr_expect_eq(decode("{\"name\":\"\",\"later\":[]}"), 0, "%s", error.msg);
}

Test(schema_decode, bounds_the_depth_of_what_it_skips)
{
    static char text[4000];
    int n = snprintf(text, sizeof(text), "{\"name\":\"\",\"inner\":{\"x\":");

    memset(text + n, '[', sizeof(text) - (size_t)n - 1);
    cr_expect_eq(decode(text), -1);
    cr_expect(strstr(error.msg, "recursion limit exceeded"), "%s", error.msg);
}

Test(schema_decode, keeps_the_end_of_a_message_about_a_long_string)
{
    static char text[30000];

    memset(text, 'x', sizeof(text) - 1);
    memcpy(text, "{\"small\":\"", 10);
    memcpy(text + sizeof(text) - 3, "\"}", 2);
    cr_expect_eq(decode(text), -1);
    cr_expect(strstr(error.msg, "x\", expected u8 at line 1 column 29998"), "%s", error.msg);
}

/* Whatever is cut off a valid document or changed in it: never a crash, never a success that
 * means something else than JSON's grammar says. */
Test(schema_decode, refuses_every_prefix_of_a_document)
{
    static const char whole[] = "{\"name\":\"\\u00fc\\\\\",\"small\":12,\"yes\":false,"
                                "\"colour\":\"Red\",\"inner\":{\"big\":1e0,\"x\":[{},null]}}";
    static const char good[] = "{\"name\":\"\\u00fc\\\\\",\"small\":12,\"yes\":false,"
                               "\"colour\":\"Red\",\"inner\":{\"big\":10,\"x\":[{},null]}}";

    cr_expect_eq(decode(whole), -1);
    cr_expect_eq(decode(good), 0, "%s", error.msg);
    for (size_t n = 0; n < sizeof(good) - 1; n++) {
        char *part = strndup(good, n);

        cr_expect_eq(decode(part), -1, "%s", part);
        free(part);
    }
}

Test(schema_decode, survives_any_byte_anywhere)
{
    char text[] = "{\"name\":\"a\\n\",\"small\":1,\"yes\":true,\"inner\":{\"big\":1,\"x\":[1]}}";

    log_set_options((struct log_options){ .level = LOG_OFF });
    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        char kept = text[i];

        for (unsigned c = 0; c < 256; c++) {
            text[i] = (char)c;
            if (decode_n(text, sizeof(text) - 1) < 0)
                cr_assert(strstr(error.msg, " at line "), "%s", error.msg);
        }
        text[i] = kept;
    }
}

Test(schema_deprecated, names_the_first_deprecated_member_that_was_given)
{
    static const struct schema_field old_and_new[] = {
        SCHEMA_FIELD("a", U8, SCHEMA_DEPRECATED, 0),
        SCHEMA_FIELD("b", U8, 0, 1),
        SCHEMA_FIELD("c", U8, SCHEMA_DEPRECATED, 2),
    };
    static const struct schema s = { .name = "S", .size = 3, .fields = old_and_new, .count = 3 };

    static const char *const first[8] = { NULL, "a", NULL, "a", "c", "a", "c", "a" };

    for (uint32_t members = 0; members < 8; members++) {
        const char *name = schema_deprecated(&s, "abc", members);

        cr_expect(first[members] ? name && strcmp(name, first[members]) == 0 : !name, "%u",
                  members);
    }
}

Test(schema_deprecated, takes_no_offence_at_a_bool_that_is_false)
{
    static const struct schema_field old[] = { SCHEMA_FIELD("a", BOOL, SCHEMA_DEPRECATED, 0) };
    static const struct schema s = { .name = "S", .size = 1, .fields = old, .count = 1 };
    bool is_given = false;

    cr_expect_null(schema_deprecated(&s, &is_given, 1));
    is_given = true;
    cr_expect_str_eq(schema_deprecated(&s, &is_given, 1), "a");
}

Test(schema_encode, writes_what_it_would_read)
{
    struct json_writer w = { 0 };
    char *text;

    cr_assert_eq(
        decode("{\"name\":\"a\\\"\\\\\\n\\u0001\\u00fc/\",\"small\":3,\"colour\":\"Green\","
               "\"inner\":{\"big\":4},\"list\":[{\"big\":5},{\"big\":6}]}"),
        0);
    schema_encode(&schema, &sample, &w);
    cr_expect_str_eq(w.text, "{\"name\":\"a\\\"\\\\\\n\\u0001\xc3\xbc/\",\"small\":3,\"yes\":false,"
                             "\"colour\":\"Green\",\"inner\":{\"big\":4},"
                             "\"list\":[{\"big\":5},{\"big\":6}],\"later\":null,\"map\":null}");
    text = strdup(w.text);
    cr_assert_eq(decode(text), 0, "%s", error.msg);
    json_writer_fini(&w);
    schema_encode(&schema, &sample, &w);
    cr_expect_str_eq(w.text, text);
    json_writer_fini(&w);
    free(text);
}

Test(schema_encode, writes_null_for_what_is_not_there)
{
    struct json_writer w = { 0 };

    sample = (struct sample){ 0 };
    schema_encode(&schema, &sample, &w);
    cr_expect_str_eq(w.text, "{\"name\":\"\",\"small\":0,\"yes\":false,\"colour\":\"Red\","
                             "\"inner\":null,\"list\":[],\"later\":null,\"map\":null}");
    json_writer_fini(&w);
}

Test(json_put_string, never_writes_bytes_that_are_no_utf8)
{
    struct json_writer w = { 0 };

    json_put_string(&w, "\xff\xe2\x82\xed\xa0\x80|\xf4\x90\x80\x80|\xc0\x80|\xc1\xbf");
    cr_expect_str_eq(w.text, "\"\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd|\ufffd\ufffd\ufffd\ufffd|"
                             "\\u0000|\ufffd\ufffd\"");
    json_writer_fini(&w);
    json_put_string(&w, "\xc0\x80");
    cr_expect_str_eq(w.text, "\"\\u0000\"");
    json_writer_fini(&w);
}

/* A member that was added after the answers were recorded. */
struct grown {
    bool has_new, is_new;
    uint8_t first, last;
};

#define GROWN(m) offsetof(struct grown, m)

static const struct schema_field grown_fields[] = {
    SCHEMA_FIELD("first", U8, SCHEMA_REQUIRED, GROWN(first)),
    SCHEMA_FIELD("new", BOOL, SCHEMA_NULLABLE | SCHEMA_HIDDEN | SCHEMA_NEW, GROWN(is_new),
                 .has_at = SCHEMA_HAS(struct grown, has_new)),
    SCHEMA_FIELD("last", U8, SCHEMA_REQUIRED, GROWN(last)),
};

static const struct schema grown_schema = {
    .name = "Grown",
    .size = sizeof(struct grown),
    .fields = grown_fields,
    .count = sizeof(grown_fields) / sizeof(*grown_fields),
};

static struct grown grown;

static int decode_grown(const char *text)
{
    grown = (struct grown){ 0 };
    return schema_decode(&grown_schema, &grown, text, strlen(text), &given, &error);
}

static void expect_shown(const char *text)
{
    struct json_writer w = { 0 };

    schema_encode(&grown_schema, &grown, &w);
    cr_expect_str_eq(w.text, text);
    json_writer_fini(&w);
}

Test(schema_new, is_taken_and_shown_when_it_was_given)
{
    cr_expect_eq(decode_grown("{\"first\":1,\"last\":2}"), 0, "%s", error.msg);
    expect_shown("{\"first\":1,\"last\":2}");
    cr_expect_eq(decode_grown("{\"first\":1,\"new\":null,\"last\":2}"), 0, "%s", error.msg);
    expect_shown("{\"first\":1,\"last\":2}");
    cr_expect_eq(decode_grown("{\"first\":1,\"last\":2,\"new\":false}"), 0, "%s", error.msg);
    expect_shown("{\"first\":1,\"new\":false,\"last\":2}");
    cr_expect_eq(decode_grown("{\"new\":true,\"first\":1,\"last\":2}"), 0, "%s", error.msg);
    expect_shown("{\"first\":1,\"new\":true,\"last\":2}");
}

Test(schema_new, is_listed_nowhere_and_no_element_of_an_array)
{
    cr_expect_eq(decode_grown("{\"other\":1}"), -1);
    cr_expect(strstr(error.msg, "unknown field `other`, expected `first` or `last` at"), "%s",
              error.msg);
    cr_expect_eq(decode_grown("[1,2]"), 0, "%s", error.msg);
    cr_expect_eq(grown.first, 1);
    cr_expect_eq(grown.last, 2);
    cr_expect_not(grown.has_new);
    cr_expect_eq(decode_grown("[1]"), -1);
    cr_expect(strstr(error.msg, "invalid length 1, expected struct Grown with 2 elements"), "%s",
              error.msg);
}
