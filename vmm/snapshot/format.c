#include "vmm/snapshot/format.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/base/crc32c.h"
#include "vmm/base/utf8.h"
#include "vmm/base/version.h"
#include "vmm/snapshot/files.h"

#define MAGIC       "MAYFLYS" /* and its NUL */
#define MAGIC_BYTES sizeof(MAGIC)

/* Firecracker's magic number, 0x0710198486640000, is near the beginning of its files. */
static const uint8_t firecrackers[] = { 0x00, 0x00, 0x64, 0x86, 0x84, 0x19, 0x10, 0x07 };

#define NO_TEXT UINT32_MAX

void snapshot_refuse(struct snapshot_coder *c, const char *why)
{
    if (!c->trouble)
        c->trouble = why;
}

/* Room for n more bytes to write. */
static void grow(struct snapshot_coder *c, size_t n)
{
    if (n <= c->end - c->at)
        return;
    c->end = (c->at + n) * 2;
    c->bytes = realloc(c->bytes, c->end);
    BUG_ON(!c->bytes);
}

void snapshot_bytes(struct snapshot_coder *c, void *value, size_t n)
{
    if (c->is_reading && n > c->end - c->at)
        snapshot_refuse(c, "it ends too early");
    if (c->is_reading && c->trouble) {
        memset(value, 0, n);
    } else if (c->is_reading) {
        memcpy(value, c->bytes + c->at, n);
        c->at += n;
    } else {
        grow(c, n);
        memcpy(c->bytes + c->at, value, n);
        c->at += n;
    }
}

/* x86-64 has the file's byte order. */
void snapshot_u8(struct snapshot_coder *c, uint8_t *value)
{
    snapshot_bytes(c, value, sizeof(*value));
}

void snapshot_u16(struct snapshot_coder *c, uint16_t *value)
{
    snapshot_bytes(c, value, sizeof(*value));
}

void snapshot_u32(struct snapshot_coder *c, uint32_t *value)
{
    snapshot_bytes(c, value, sizeof(*value));
}

void snapshot_u64(struct snapshot_coder *c, uint64_t *value)
{
    snapshot_bytes(c, value, sizeof(*value));
}

void snapshot_bool(struct snapshot_coder *c, bool *value)
{
    uint8_t byte = *value;

    snapshot_u8(c, &byte);
    if (byte > 1)
        snapshot_refuse(c, "a flag is neither 0 nor 1");
    *value = byte == 1;
}

void snapshot_enum(struct snapshot_coder *c, unsigned *value, unsigned end)
{
    uint32_t number = *value;

    snapshot_u32(c, &number);
    if (number >= end) {
        snapshot_refuse(c, "a choice is none of those that there are");
        number = 0;
    }
    *value = number;
}

void snapshot_padded(struct snapshot_coder *c, void *value, size_t n)
{
    const uint8_t *bytes = value;
    uint32_t used = (uint32_t)n;

    while (!c->is_reading && used > 0 && bytes[used - 1] == 0)
        used--;
    snapshot_u32(c, &used);
    if (used > n) {
        snapshot_refuse(c, "it has more bytes than there are places");
        used = 0;
    }
    snapshot_bytes(c, value, used);
    if (c->is_reading)
        memset((uint8_t *)value + used, 0, n - used);
}

void snapshot_text(struct snapshot_coder *c, char **text)
{
    uint32_t n = *text && !c->is_reading ? (uint32_t)strlen(*text) : NO_TEXT;

    snapshot_u32(c, &n);
    if (c->is_reading)
        *text = NULL;
    if (n == NO_TEXT || c->trouble)
        return;
    if (n > SNAPSHOT_TEXT_MAX) {
        snapshot_refuse(c, "a text is longer than 4096 bytes");
        return;
    }
    if (c->is_reading) {
        *text = calloc(1, n + 1);
        BUG_ON(!*text);
    }
    snapshot_bytes(c, *text, n);
    if (!utf8_is_all(*text, n) || memchr(*text, '\0', n))
        snapshot_refuse(c, "a text is not UTF-8, or has a NUL in it");
}

void snapshot_count(struct snapshot_coder *c, size_t *count, size_t max)
{
    uint32_t n = (uint32_t)*count;

    snapshot_u32(c, &n);
    if (n > max) {
        snapshot_refuse(c, "a list is longer than it can be");
        n = 0;
    }
    *count = n;
}

void *snapshot_list(struct snapshot_coder *c, void *items, size_t *count, size_t max, size_t size)
{
    snapshot_count(c, count, max);
    if (!c->is_reading)
        return items;
    if (*count == 0)
        return NULL;
    items = calloc(*count, size);
    BUG_ON(!items);
    return items;
}

static void code_header(struct snapshot_coder *c, struct snapshot_header *h)
{
    char magic[MAGIC_BYTES] = MAGIC;
    uint16_t zero = 0;

    snapshot_bytes(c, magic, sizeof(magic));
    snapshot_u16(c, &h->major);
    snapshot_u16(c, &h->minor);
    snapshot_u16(c, &h->machine);
    snapshot_u16(c, &zero);
    snapshot_bytes(c, h->writer, SNAPSHOT_WRITER_BYTES);
    snapshot_u32(c, &h->payload_bytes);
    snapshot_bytes(c, h->name.bytes, sizeof(h->name.bytes));
    snapshot_u64(c, &h->memory_bytes);
    snapshot_u32(c, &h->payload_crc);
}

static int fail_foreign(const uint8_t *bytes, size_t n, struct error *e)
{
    if (memmem(bytes, n < SNAPSHOT_HEADER_BYTES ? n : SNAPSHOT_HEADER_BYTES, firecrackers,
               sizeof(firecrackers)))
        return fail(e, ERR_INVALID,
                    "It is a snapshot of Firecracker's, whose format only Firecracker of the same "
                    "version reads");
    return fail(e, ERR_INVALID, "It is no snapshot: it does not begin with " MAGIC);
}

/* Text that others may print. */
static bool is_version(const char *writer)
{
    return strspn(writer, "0123456789.abcdefghijklmnopqrstuvwxyz-") == strlen(writer);
}

int snapshot_header_read(struct snapshot_header *h, const uint8_t *bytes, size_t n, struct error *e)
{
    struct snapshot_coder c = { .is_reading = true, .bytes = (uint8_t *)bytes, .end = n };
    uint32_t crc;

    *h = (struct snapshot_header){ 0 };
    if (n < sizeof(uint64_t))
        return fail(e, ERR_INVALID, "IO Error: File too short to contain CRC");
    if (memcmp(bytes, MAGIC, MAGIC_BYTES) != 0)
        return fail_foreign(bytes, n, e);
    if (n < SNAPSHOT_HEADER_BYTES)
        return fail(e, ERR_INVALID, "It is cut off: it has %zu bytes, the header alone has %u", n,
                    SNAPSHOT_HEADER_BYTES);
    code_header(&c, h);
    snapshot_u32(&c, &crc);
    if (crc != crc32c(bytes, SNAPSHOT_HEADER_BYTES - sizeof(crc)))
        return fail(e, ERR_INVALID, "CRC64 validation failed: the header was damaged");
    if (!is_version(h->writer))
        return fail(e, ERR_INVALID, "Its header does not say which version wrote it");
    return 0;
}

static int judge_header(const struct snapshot_header *h, const uint8_t *file, size_t bytes,
                        struct error *e)
{
    if (h->major > SNAPSHOT_MAJOR)
        return fail(e, ERR_INVALID,
                    "Its format has version %u.%u (mayfly %s wrote it), and this is mayfly "
                    "" MAYFLY_VERSION ", which reads %u.%u and older",
                    h->major, h->minor, h->writer, SNAPSHOT_MAJOR, SNAPSHOT_MINOR);
    if (h->major < 1)
        return fail(e, ERR_INVALID, "Its format has version 0, which there is not");
    if (h->machine != SNAPSHOT_MACHINE)
        return fail(e, ERR_INVALID,
                    "It is of another kind of processor: %u, and this one is %u (x86-64)",
                    h->machine, SNAPSHOT_MACHINE);
    if (h->payload_bytes != bytes - SNAPSHOT_HEADER_BYTES)
        return fail(e, ERR_INVALID, "It has %zu bytes, and says that it has %zu", bytes,
                    (size_t)h->payload_bytes + SNAPSHOT_HEADER_BYTES);
    if (h->payload_crc != crc32c(file + SNAPSHOT_HEADER_BYTES, h->payload_bytes))
        return fail(e, ERR_INVALID, "CRC64 validation failed: what follows the header was damaged");
    return 0;
}

struct section_header {
    char tag[4];
    uint16_t version, flags;
    uint32_t bytes;
};

static void code_section_header(struct snapshot_coder *c, struct section_header *h)
{
    snapshot_bytes(c, h->tag, sizeof(h->tag));
    snapshot_u16(c, &h->version);
    snapshot_u16(c, &h->flags);
    snapshot_u32(c, &h->bytes);
}

/* As text for a person. */
static void show_tag(char out[5], const char tag[4])
{
    for (unsigned i = 0; i < 4; i++)
        out[i] = (char)(tag[i] > ' ' && tag[i] < '\x7f' ? tag[i] : '?');
    out[4] = '\0';
}

static int fail_section(const char tag[4], const char *why, struct error *e)
{
    char shown[5];

    show_tag(shown, tag);
    return fail(e, ERR_INVALID, "Its section %s is wrong: %s", shown, why);
}

static int fail_unknown_section(const struct snapshot_header *h, const struct section_header *s,
                                struct error *e)
{
    char shown[5];

    show_tag(shown, s->tag);
    return fail(e, ERR_INVALID,
                "Its section %s (format %u.%u, mayfly %s wrote it) must be understood, and mayfly "
                "" MAYFLY_VERSION " (format %u.%u) does not",
                shown, h->major, h->minor, h->writer, SNAPSHOT_MAJOR, SNAPSHOT_MINOR);
}

/* The row of a tag, or `count`. */
static unsigned find_section(const struct snapshot_section *sections, unsigned count,
                             const char tag[4])
{
    unsigned i = 0;

    while (i < count && memcmp(sections[i].tag, tag, sizeof(sections[i].tag)) != 0)
        i++;
    return i;
}

/* The data of a section, which begin where the coder is. */
static int read_section(struct snapshot_coder *c, const struct section_header *h,
                        const struct snapshot_section *s, void *object, struct error *e)
{
    const size_t file_end = c->end;

    c->end = c->at + h->bytes;
    c->version = h->version;
    s->code(c, object);
    if (h->version == 0)
        snapshot_refuse(c, "it has version 0, which there is not");
    if (c->at < c->end && h->version <= s->version)
        snapshot_refuse(c, "it is too long");
    if (c->trouble)
        return fail_section(h->tag, c->trouble, e);
    c->at = c->end;
    c->end = file_end;
    return 0;
}

static int read_sections(struct snapshot_coder *c, const struct snapshot_header *file,
                         const struct snapshot_section *sections, unsigned count, void *object,
                         struct error *e)
{
    uint32_t seen = 0;

    while (c->at < c->end) {
        struct section_header h = { .version = 0 };
        unsigned i;

        code_section_header(c, &h);
        if (c->trouble || h.bytes > c->end - c->at)
            return fail_section(h.tag, "it ends too early", e);
        i = find_section(sections, count, h.tag);
        if (i == count && h.flags & SNAPSHOT_MUST_UNDERSTAND)
            return fail_unknown_section(file, &h, e);
        if (i == count) {
            c->at += h.bytes;
            continue;
        }
        if (seen & UINT32_C(1) << i)
            return fail_section(h.tag, "it is there twice", e);
        seen |= UINT32_C(1) << i;
        if (read_section(c, &h, &sections[i], object, e) < 0)
            return -1;
    }
    for (unsigned i = 0; i < count; i++)
        if (!(seen & UINT32_C(1) << i) && sections[i].since != SNAPSHOT_OPTIONAL &&
            file->minor >= sections[i].since)
            return fail_section(sections[i].tag, "there is none", e);
    return 0;
}

int snapshot_decode(const uint8_t *file, size_t bytes, struct snapshot_header *h,
                    const struct snapshot_section *sections, unsigned count, void *object,
                    struct error *e)
{
    struct snapshot_coder c = {
        .is_reading = true,
        .bytes = (uint8_t *)file,
        .at = SNAPSHOT_HEADER_BYTES,
        .end = bytes,
    };

    BUG_ON(count > SNAPSHOT_SECTIONS_MAX);
    if (bytes > SNAPSHOT_STATE_BYTES)
        return fail(e, ERR_TOO_LARGE, "Snapshot size exceeds limit of %u bytes",
                    SNAPSHOT_STATE_BYTES);
    if (snapshot_header_read(h, file, bytes, e) < 0 || judge_header(h, file, bytes, e) < 0)
        return -1;
    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): who reads allocates nothing
    return read_sections(&c, h, sections, count, object, e);
}

static void write_section(struct snapshot_coder *c, const struct snapshot_section *s, void *object)
{
    struct section_header h = { .version = s->version, .flags = s->flags };
    size_t start = c->at, end;

    memcpy(h.tag, s->tag, sizeof(h.tag));
    code_section_header(c, &h);
    h.bytes = (uint32_t)c->at;
    c->version = s->version;
    s->code(c, object);
    end = c->at;
    h.bytes = (uint32_t)(end - h.bytes);
    c->at = start;
    if (h.bytes == 0 && s->since == SNAPSHOT_OPTIONAL)
        return;
    code_section_header(c, &h);
    c->at = end;
}

int snapshot_encode(uint8_t **file, size_t *bytes, struct snapshot_header *h,
                    const struct snapshot_section *sections, unsigned count, void *object,
                    struct error *e)
{
    struct snapshot_coder c = { .bytes = NULL };
    uint32_t crc;

    grow(&c, SNAPSHOT_HEADER_BYTES);
    c.at = SNAPSHOT_HEADER_BYTES;
    for (unsigned i = 0; i < count; i++) {
        write_section(&c, &sections[i], object);
        if (c.trouble)
            break;
    }
    *bytes = c.at;
    if (c.trouble || *bytes > SNAPSHOT_STATE_BYTES) {
        free(c.bytes);
        *file = NULL;
        return fail(e, ERR_TOO_LARGE, "Cannot serialize the microVM state: %s",
                    c.trouble ? c.trouble : "it is too large");
    }
    h->major = SNAPSHOT_MAJOR;
    h->minor = SNAPSHOT_MINOR;
    h->machine = SNAPSHOT_MACHINE;
    memset(h->writer, 0, sizeof(h->writer));
    memcpy(h->writer, MAYFLY_VERSION, strlen(MAYFLY_VERSION));
    h->payload_bytes = (uint32_t)(*bytes - SNAPSHOT_HEADER_BYTES);
    h->payload_crc = crc32c(c.bytes + SNAPSHOT_HEADER_BYTES, h->payload_bytes);
    c.at = 0;
    code_header(&c, h);
    crc = crc32c(c.bytes, c.at);
    snapshot_u32(&c, &crc);
    *file = c.bytes;
    return 0;
}
