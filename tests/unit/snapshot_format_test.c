/* The file of a snapshot: header and sections, and what becomes of files that are wrong. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/state_file.h"
#include "vmm/snapshot/files.h"
#include "vmm/snapshot/format.h"

struct thing {
    uint32_t number;
    bool flag;
    char *text, *none;
    uint8_t padded[64];
    struct {
        uint16_t *items;
        size_t count;
    } list;
    uint32_t other, version;
};

static void code_first(struct snapshot_coder *c, void *object)
{
    struct thing *t = object;

    snapshot_u32(c, &t->number);
    snapshot_bool(c, &t->flag);
    snapshot_text(c, &t->text);
    snapshot_text(c, &t->none);
    snapshot_padded(c, t->padded, sizeof(t->padded));
    t->list.items = snapshot_list(c, t->list.items, &t->list.count, 5, sizeof(*t->list.items));
    for (size_t i = 0; i < t->list.count; i++)
        snapshot_u16(c, &t->list.items[i]);
    t->version = c->version;
}

static void code_second(struct snapshot_coder *c, void *object)
{
    struct thing *t = object;

    snapshot_u32(c, &t->other);
}

static void code_more(struct snapshot_coder *c, void *object)
{
    uint64_t more = 77;

    code_second(c, object);
    snapshot_u64(c, &more);
}

#define TABLE(...) ((const struct snapshot_section[]){ __VA_ARGS__ })
#define FIRST                                                                                      \
    {                                                                                              \
        "FRST", 1, SNAPSHOT_MUST_UNDERSTAND, 0, code_first                                         \
    }
#define SECOND                                                                                     \
    {                                                                                              \
        "SCND", 1, SNAPSHOT_MUST_UNDERSTAND, 0, code_second                                        \
    }

static struct file {
    uint8_t *bytes;
    size_t n;
} write_thing(const struct snapshot_section *sections, unsigned count)
{
    uint16_t items[] = { 5, 6, 7 };
    struct thing t = { .number = 0x12345678,
                       .flag = true,
                       .text = (char *)"grüße",
                       .padded = { 1, 0, 3 },
                       .list = { items, 3 },
                       .other = 9 };
    struct snapshot_header h = { .name = { { 1, 2, 3 } }, .memory_bytes = 4096 };
    struct file f;
    struct error e;

    cr_assert_eq(snapshot_encode(&f.bytes, &f.n, &h, sections, count, &t, &e), 0, "%s", e.msg);
    return f;
}

static void free_thing(struct thing *t)
{
    free(t->text);
    free(t->none);
    free(t->list.items);
    *t = (struct thing){ 0 };
}

static int read_thing(const struct file *f, const struct snapshot_section *sections, unsigned count,
                      struct thing *t, struct error *e)
{
    struct snapshot_header h;
    uint8_t *exact = malloc(f->n ? f->n : 1); /* so that a sanitizer sees a byte beyond */
    int ret;

    memcpy(exact, f->bytes, f->n);
    *t = (struct thing){ 0 };
    e->msg[0] = '\0';
    ret = snapshot_decode(exact, f->n, &h, sections, count, t, e);
    free(exact);
    return ret;
}

static void expect_refused(struct file *f, const char *why)
{
    struct thing t;
    struct error e;

    cr_expect_eq(read_thing(f, TABLE(FIRST, SECOND), 2, &t, &e), -1, "%s", why);
    cr_expect(strstr(e.msg, why), "\"%s\" is not in \"%s\"", why, e.msg);
    free_thing(&t);
}

Test(snapshot_format, reads_what_it_wrote)
{
    struct file f = write_thing(TABLE(FIRST, SECOND), 2);
    struct thing t;
    struct error e;

    cr_assert_eq(read_thing(&f, TABLE(SECOND, FIRST), 2, &t, &e), 0, "%s", e.msg);
    cr_expect_eq(t.number, 0x12345678);
    cr_expect(t.flag);
    cr_expect_str_eq(t.text, "grüße");
    cr_expect_null(t.none);
    cr_expect(t.padded[0] == 1 && t.padded[1] == 0 && t.padded[2] == 3 && t.padded[63] == 0);
    cr_expect(t.list.count == 3 && t.list.items[2] == 7);
    cr_expect_eq(t.other, 9);
    free_thing(&t);
    free(f.bytes);
}

Test(snapshot_format, is_laid_out_as_it_is_specified)
{
    struct file f = write_thing(TABLE(SECOND), 1);
    static const uint8_t section[] = { 'S', 'C', 'N', 'D', 1, 0, 1, 0, 4, 0, 0, 0, 9, 0, 0, 0 };
    static const uint8_t start[] = {
        'M', 'A', 'Y', 'F', 'L', 'Y', 'S', 0, 1, 0, 1, 0, 62, 0, 0, 0
    };
    struct file mended = { malloc(f.n), f.n };
    struct snapshot_header h;
    struct error e;

    cr_assert_eq(f.n, SNAPSHOT_HEADER_BYTES + sizeof(section));
    cr_expect_arr_eq(f.bytes, start, sizeof(start));
    cr_expect_arr_eq(f.bytes + SNAPSHOT_HEADER_BYTES, section, sizeof(section));
    memcpy(mended.bytes, f.bytes, f.n);
    mend_state(mended.bytes, mended.n);
    cr_expect_arr_eq(f.bytes, mended.bytes, f.n, "length and checksums are those of RFC 3720");
    cr_assert_eq(snapshot_header_read(&h, f.bytes, SNAPSHOT_HEADER_BYTES, &e), 0);
    cr_expect(h.memory_bytes == 4096 && h.name.bytes[2] == 3 && h.payload_bytes == sizeof(section));
    free(mended.bytes);
    free(f.bytes);
}

/* What a header says of newer versions can be read, what follows can't. */
Test(snapshot_format, names_both_versions_of_a_newer_format)
{
    struct file f = write_thing(TABLE(FIRST, SECOND), 2);
    struct snapshot_header h;
    struct error e;

    f.bytes[8] = 2;
    memcpy(f.bytes + 16, "9.8.7-rc", 9);
    mend_state(f.bytes, f.n);
    cr_expect_eq(snapshot_header_read(&h, f.bytes, f.n, &e), 0);
    cr_expect_eq(h.major, 2);
    expect_refused(&f, "has version 2.1 (mayfly 9.8.7-rc wrote it)");
    expect_refused(&f, "which reads 1.1 and older");
    free(f.bytes);
}

Test(snapshot_format, takes_a_newer_minor)
{
    struct file f = write_thing(
        TABLE(FIRST, { "SCND", 2, 1, 0, code_more }, { "NEWS", 1, 0, 1, code_more }), 3);
    struct thing t;
    struct error e;

    f.bytes[10] = 2;
    mend_state(f.bytes, f.n);
    cr_assert_eq(read_thing(&f, TABLE(FIRST, SECOND), 2, &t, &e), 0, "%s", e.msg);
    cr_expect_eq(t.other, 9);
    free_thing(&t);
    free(f.bytes);
}

Test(snapshot_format, takes_an_older_minor)
{
    struct file f = write_thing(TABLE(FIRST), 1);
    struct thing t;
    struct error e;

    f.bytes[10] = 0;
    mend_state(f.bytes, f.n);
    cr_expect_eq(read_thing(&f, TABLE(FIRST, { "SCND", 1, 1, 1, code_second }), 2, &t, &e), 0);
    free_thing(&t);
    expect_refused(&f, "Its section SCND is wrong: there is none");
    free(f.bytes);
}

static void code_nothing(struct snapshot_coder *c, void *object)
{
    (void)c;
    (void)object;
}

Test(snapshot_format, has_an_optional_section_only_where_there_are_data)
{
    struct file with =
        write_thing(TABLE(FIRST, { "SCND", 1, 1, SNAPSHOT_OPTIONAL, code_second }), 2);
    struct file without =
        write_thing(TABLE(FIRST, { "SCND", 1, 1, SNAPSHOT_OPTIONAL, code_nothing }), 2);
    struct file first = write_thing(TABLE(FIRST), 1);
    struct thing t;
    struct error e;

    cr_expect_eq(with.n - without.n, 16);
    cr_expect_eq(without.n, first.n);
    cr_expect_eq(read_thing(&without,
                            TABLE(FIRST, { "SCND", 1, 1, SNAPSHOT_OPTIONAL, code_second }), 2, &t,
                            &e),
                 0, "%s", e.msg);
    free_thing(&t);
    free(with.bytes);
    free(without.bytes);
    free(first.bytes);
}

Test(snapshot_format, refuses_an_unknown_section_that_must_be_understood)
{
    struct file f = write_thing(TABLE(FIRST, SECOND, { "NE\x1bS", 1, 1, 0, code_more }), 3);

    expect_refused(&f, "Its section NE?S (format 1.1, mayfly ");
    free(f.bytes);
}

Test(snapshot_format, refuses_what_is_no_snapshot)
{
    uint8_t firecracker[80] = { 0x00, 0x00, 0x64, 0x86, 0x84, 0x19, 0x10, 0x07, 11 };
    struct file none = { (uint8_t *)"not a kernel\n", 13 }, tiny = { (uint8_t *)"MAYFLYS", 7 };
    struct file theirs = { firecracker, sizeof(firecracker) };
    struct file large = { calloc(1, SNAPSHOT_STATE_BYTES + 1), SNAPSHOT_STATE_BYTES + 1 };

    expect_refused(&none, "It is no snapshot");
    expect_refused(&tiny, "IO Error: File too short to contain CRC");
    expect_refused(&theirs, "It is a snapshot of Firecracker's");
    expect_refused(&large, "Snapshot size exceeds limit of 10000000 bytes");
    free(large.bytes);
}

Test(snapshot_format, refuses_each_shorter_file)
{
    struct file f = write_thing(TABLE(FIRST, SECOND), 2);

    for (size_t n = 0; n < f.n; n++) {
        struct file cut = { f.bytes, n };

        expect_refused(&cut, n < 8                       ? "too short to contain CRC"
                             : n < SNAPSHOT_HEADER_BYTES ? "It is cut off"
                                                         : "bytes, and says that it has");
    }
    free(f.bytes);
}

/* As if it had been written so. */
Test(snapshot_format, refuses_each_shorter_payload)
{
    struct file f = write_thing(TABLE(FIRST, SECOND), 2);

    for (size_t n = SNAPSHOT_HEADER_BYTES; n < f.n; n++) {
        struct file cut = { malloc(n), n };

        memcpy(cut.bytes, f.bytes, n);
        mend_state(cut.bytes, cut.n);
        expect_refused(&cut, "Its section ");
        free(cut.bytes);
    }
    free(f.bytes);
}

Test(snapshot_format, finds_each_changed_byte)
{
    struct file f = write_thing(TABLE(FIRST, SECOND), 2);

    for (size_t i = 8; i < f.n; i++) {
        f.bytes[i] ^= 0x40;
        expect_refused(&f, "CRC64 validation failed");
        f.bytes[i] ^= 0x40;
    }
    free(f.bytes);
}

/* Whatever the bytes are, reading ends, and what it leaves can be freed. */
Test(snapshot_format, survives_each_changed_byte)
{
    struct file f = write_thing(TABLE(FIRST, SECOND), 2);
    struct thing t;
    struct error e;

    for (size_t i = 0; i < f.n; i++)
        for (unsigned v = 0; v < 256; v++) {
            struct file changed = { malloc(f.n), f.n };

            memcpy(changed.bytes, f.bytes, f.n);
            changed.bytes[i] = (uint8_t)v;
            mend_state(changed.bytes, changed.n);
            if (read_thing(&changed, TABLE(FIRST, SECOND), 2, &t, &e) < 0)
                cr_expect(e.msg[0]);
            cr_expect_leq(t.list.count, 5);
            free_thing(&t);
            free(changed.bytes);
        }
    free(f.bytes);
}

static void expect_refused_with(size_t at, const char *bytes, size_t n, const char *why)
{
    struct file f = write_thing(TABLE(FIRST, SECOND), 2);

    memcpy(f.bytes + SNAPSHOT_HEADER_BYTES + at, bytes, n);
    mend_state(f.bytes, f.n);
    expect_refused(&f, why);
    free(f.bytes);
}

/* FRST: 12 bytes of header, number at 12, flag at 16, text at 17 (7 bytes from 21 on), none at 28,
 * padded at 32 (3 bytes from 36 on), list at 39, items from 43 on; SCND at 49. */
Test(snapshot_format, judges_values)
{
    expect_refused_with(16, "\2", 1, "FRST is wrong: a flag is neither 0 nor 1");
    expect_refused_with(17, "\1\x10\0\0", 4, "a text is longer than 4096 bytes");
    expect_refused_with(17, "\0\x10\0\0", 4, "it ends too early");
    expect_refused_with(21, "\xff", 1, "a text is not UTF-8, or has a NUL in it");
    expect_refused_with(21, "\0", 1, "a text is not UTF-8, or has a NUL in it");
    expect_refused_with(32, "\x41\0\0\0", 4, "it has more bytes than there are places");
    expect_refused_with(39, "\6\0\0\0", 4, "a list is longer than it can be");
    expect_refused_with(39, "\2\0\0\0", 4, "it is too long");
    expect_refused_with(4, "\0\0", 2, "it has version 0, which there is not");
    expect_refused_with(49, "FRST", 4, "FRST is wrong: it is there twice");
    expect_refused_with(57, "\5\0\0\0", 4, "SCND is wrong: it ends too early");
}
