#include "vmm/boot/aml.h"

#include <string.h>

enum {
    OP_ONE = 0x01,
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_METHOD = 0x14,
    OP_DUAL_NAME = 0x2e,
    OP_EXTENDED = 0x5b,
    OP_ROOT = 0x5c,
    OP_ARG0 = 0x68,
    OP_EXTENDED_DEVICE = 0x82,
    OP_NOTIFY = 0x86,
    OP_EQUAL = 0x93,
    OP_IF = 0xa0,
    OP_RETURN = 0xa4,
};

enum {
    RESOURCE_IO = 0x47,
    RESOURCE_END = 0x79,
    RESOURCE_MEMORY32_FIXED = 0x86,
    RESOURCE_IRQ = 0x89,
    RESOURCE_QWORD = 0x8a,
};

#define METHOD_SERIALIZED 0x08

static void put(struct aml *a, const void *bytes, size_t n)
{
    BUG_ON(n > sizeof(a->code) - a->bytes);
    memcpy(a->code + a->bytes, bytes, n);
    a->bytes += n;
}

static void put_u8(struct aml *a, uint8_t v)
{
    put(a, &v, sizeof(v));
}

static void put_u16(struct aml *a, uint16_t v)
{
    put(a, &v, sizeof(v));
}

static void put_u32(struct aml *a, uint32_t v)
{
    put(a, &v, sizeof(v));
}

static void put_u64(struct aml *a, uint64_t v)
{
    put(a, &v, sizeof(v));
}

static void put_path(struct aml *a, const char *path)
{
    const char *dot;

    if (*path == '\\') {
        put_u8(a, OP_ROOT);
        path++;
    }
    dot = strchr(path, '.');
    BUG_ON(strlen(path) != (dot ? 9 : 4) || (dot && dot != path + 4));
    if (dot)
        put_u8(a, OP_DUAL_NAME);
    put(a, path, 4);
    if (dot)
        put(a, dot + 1, 4);
}

static void put_name(struct aml *a, const char *name)
{
    put_u8(a, OP_NAME);
    put_path(a, name);
}

/* Makes room for n bytes at the mark. */
static void insert(struct aml *a, size_t mark, const uint8_t *bytes, size_t n)
{
    size_t after = a->bytes - mark;

    put(a, bytes, n); /* for the room */
    memmove(a->code + mark + n, a->code + mark, after);
    memcpy(a->code + mark, bytes, n);
}

/* PkgLength, section 20.2.4, counts itself: in one byte up to 63, else here in two, with the low
 * four bits in the first. */
void aml_close(struct aml *a, size_t mark)
{
    size_t n = a->bytes - mark + 1;
    uint8_t length[2] = { (uint8_t)n };

    if (n <= 0x3f) {
        insert(a, mark, length, 1);
        return;
    }
    n++;
    BUG_ON(n > 0xfff);
    length[0] = (uint8_t)(0x40 | (n & 0xf));
    length[1] = (uint8_t)(n >> 4);
    insert(a, mark, length, 2);
}

size_t aml_device_open(struct aml *a, const char *path)
{
    size_t mark;

    put_u8(a, OP_EXTENDED);
    put_u8(a, OP_EXTENDED_DEVICE);
    mark = a->bytes;
    put_path(a, path);
    return mark;
}

size_t aml_method_open(struct aml *a, const char *name, unsigned args, bool serialized)
{
    size_t mark;

    put_u8(a, OP_METHOD);
    mark = a->bytes;
    put_path(a, name);
    put_u8(a, (uint8_t)(args | (serialized ? METHOD_SERIALIZED : 0)));
    return mark;
}

void aml_name_string(struct aml *a, const char *name, const char *value)
{
    put_name(a, name);
    put_u8(a, OP_STRING);
    put(a, value, strlen(value) + 1);
}

static uint8_t hex_digit(char c)
{
    return (uint8_t)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Section 19.3.4: three letters of five bits and four hexadecimal digits, most significant first.
 */
void aml_name_eisa_id(struct aml *a, const char *name, const char *id)
{
    unsigned letters =
        (unsigned)(id[0] & 0x1f) << 10 | (unsigned)(id[1] & 0x1f) << 5 | (unsigned)(id[2] & 0x1f);
    uint8_t packed[4] = {
        (uint8_t)(letters >> 8),
        (uint8_t)letters,
        (uint8_t)(hex_digit(id[3]) << 4 | hex_digit(id[4])),
        (uint8_t)(hex_digit(id[5]) << 4 | hex_digit(id[6])),
    };

    put_name(a, name);
    put_u8(a, OP_DWORD);
    put(a, packed, sizeof(packed));
}

void aml_name_one(struct aml *a, const char *name)
{
    put_name(a, name);
    put_u8(a, OP_ONE);
}

void aml_name_u8(struct aml *a, const char *name, uint8_t value)
{
    put_name(a, name);
    put_u8(a, OP_BYTE);
    put_u8(a, value);
}

void aml_name_u32(struct aml *a, const char *name, uint32_t value)
{
    put_name(a, name);
    put_u8(a, OP_DWORD);
    put_u32(a, value);
}

void aml_name_u32s(struct aml *a, const char *name, const uint32_t *values, uint8_t n)
{
    size_t mark;

    put_name(a, name);
    put_u8(a, OP_PACKAGE);
    mark = a->bytes;
    put_u8(a, n);
    for (unsigned i = 0; i < n; i++) {
        put_u8(a, OP_DWORD);
        put_u32(a, values[i]);
    }
    aml_close(a, mark);
}

void aml_method_returning(struct aml *a, const char *name, uint8_t value)
{
    size_t mark = aml_method_open(a, name, 0, false);

    put_u8(a, OP_RETURN);
    put_u8(a, OP_BYTE);
    put_u8(a, value);
    aml_close(a, mark);
}

void aml_notify_if_arg0(struct aml *a, uint8_t value, const char *path, uint8_t code)
{
    size_t mark;

    put_u8(a, OP_IF);
    mark = a->bytes;
    put_u8(a, OP_EQUAL);
    put_u8(a, OP_ARG0);
    put_u8(a, OP_BYTE);
    put_u8(a, value);
    put_u8(a, OP_NOTIFY);
    put_path(a, path);
    put_u8(a, OP_BYTE);
    put_u8(a, code);
    aml_close(a, mark);
}

size_t aml_crs_open(struct aml *a)
{
    put_name(a, "_CRS");
    put_u8(a, OP_BUFFER);
    return a->bytes;
}

void aml_crs_close(struct aml *a, size_t mark)
{
    uint8_t size[2] = { OP_BYTE };

    put_u8(a, RESOURCE_END);
    put_u8(a, 0); /* a checksum that is not checked */
    BUG_ON(a->bytes - mark > UINT8_MAX);
    size[1] = (uint8_t)(a->bytes - mark);
    insert(a, mark, size, sizeof(size));
    aml_close(a, mark);
}

void aml_resource_memory32(struct aml *a, uint32_t start, uint32_t bytes)
{
    put_u8(a, RESOURCE_MEMORY32_FIXED);
    put_u16(a, 9);
    put_u8(a, 1); /* writable */
    put_u32(a, start);
    put_u32(a, bytes);
}

void aml_resource_read_only64(struct aml *a, uint64_t start, uint64_t bytes)
{
    put_u8(a, RESOURCE_QWORD);
    put_u16(a, 43);
    put_u8(a, 0);    /* memory */
    put_u8(a, 0x0c); /* the lowest and the highest address are fixed */
    put_u8(a, 0x02); /* cacheable, read-only */
    put_u64(a, 0);   /* granularity */
    put_u64(a, start);
    put_u64(a, start + bytes - 1);
    put_u64(a, 0); /* translation */
    put_u64(a, bytes);
}

void aml_resource_irq(struct aml *a, uint32_t gsi)
{
    put_u8(a, RESOURCE_IRQ);
    put_u16(a, 6);
    put_u8(a, 0x03); /* consumer, edge */
    put_u8(a, 1);    /* one interrupt follows */
    put_u32(a, gsi);
}

void aml_resource_io(struct aml *a, uint16_t port, uint8_t bytes)
{
    put_u8(a, RESOURCE_IO);
    put_u8(a, 1); /* 16-bit decode */
    put_u16(a, port);
    put_u16(a, port);
    put_u8(a, 1); /* alignment */
    put_u8(a, bytes);
}
