/*
 * The file that a machine's state is saved in, beside one of its memory. This text is the format's
 * specification.
 *
 * Numbers are little-endian and of a fixed width; nothing is aligned. A file is a header of 64
 * bytes, the same in all versions, and a payload:
 *
 *    0   8  "MAYFLYS", NUL
 *    8   2  format, major: a reader refuses a newer one
 *   10   2  format, minor: only adds to older ones, and a reader takes any
 *   12   2  processor: ELF's number of it; 62 is x86-64
 *   14   2  zero
 *   16  12  version of the mayfly that wrote it: text, filled up with NULs
 *   28   4  bytes of the payload: all that follows the header
 *   32  16  UUID of the snapshot: its memory file is marked with it
 *   48   8  bytes of guest memory: what the memory file has at least
 *   56   4  CRC-32C (RFC 3720) of the payload
 *   60   4  CRC-32C of the header before it
 *
 * The payload is sections, in any order, each kind once:
 *
 *    0   4  tag: four characters
 *    4   2  version of that section: a newer one has only more at its end
 *    6   2  flags; 1: a reader that does not know the tag must refuse the file, else skip it
 *    8   4  bytes of data, which follow
 *
 * In data, a flag is a byte, 0 or 1; text is its length in four bytes (all ones: none) and so many
 * bytes of UTF-8 without a NUL; bytes whose rest is zero are the number of those before in four
 * bytes, and these; a list is the number of its items in four bytes, and these. KVM's structures
 * are as KVM has them, for they are an ABI. What each section holds, is in vmm/machine/saved.c:
 * one function a section, which both writes and reads it.
 *
 * A file of each version of the format is kept in tests/unit/kept and read by tests.
 *
 * A file is not trusted: what is read has been judged for its size and number here; what it means
 * is the caller's to judge.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/base/uuid.h"

#define SNAPSHOT_MAJOR        1u
#define SNAPSHOT_MINOR        1u
#define SNAPSHOT_MACHINE      62u
#define SNAPSHOT_HEADER_BYTES 64u
#define SNAPSHOT_TEXT_MAX     4096u
#define SNAPSHOT_WRITER_BYTES 12u

struct snapshot_header {
    uint16_t major, minor, machine;
    char writer[SNAPSHOT_WRITER_BYTES + 1];
    uint32_t payload_bytes;
    struct uuid name;
    uint64_t memory_bytes;
    uint32_t payload_crc;
};

/* Reads the header that the n bytes of a file begin with, of whatever version. -1: it has none. */
must_check int snapshot_header_read(struct snapshot_header *h, const uint8_t *bytes, size_t n,
                                    struct error *e);

/* Goes through data, writing it or reading it; the functions below say how. After trouble they do
 * nothing, but that what is read becomes zero. */
struct snapshot_coder {
    bool is_reading;
    uint8_t *bytes;      /* writing: a heap block that grows */
    size_t at, end;      /* end: of what may be read; writing: of the block */
    uint16_t version;    /* of the section */
    const char *trouble; /* the first; NULL: none */
};

/* A kind of section: `code` goes through its data, which is all in *object. */
struct snapshot_section {
    char tag[4];
    uint16_t version, flags;
    uint16_t
        since; /* the minor version from which on each file has it; or SNAPSHOT_OPTIONAL: a file
                  has it only where there are data, and the object has what it means if not */
    void (*code)(struct snapshot_coder *c, void *object);
};
#define SNAPSHOT_MUST_UNDERSTAND 1u
#define SNAPSHOT_SECTIONS_MAX    32u
#define SNAPSHOT_OPTIONAL        UINT16_MAX

/* Writes a file of the sections for *object: a heap block of *bytes, the caller's to free. Fills in
 * what of the header follows from that; name and memory_bytes are given. -1: it can't be read
 * again. */
must_check int snapshot_encode(uint8_t **file, size_t *bytes, struct snapshot_header *h,
                               const struct snapshot_section *sections, unsigned count,
                               void *object, struct error *e);

/* Reads one into *object, of which a section owns what it allocates: to be freed whatever is
 * returned. */
must_check int snapshot_decode(const uint8_t *file, size_t bytes, struct snapshot_header *h,
                               const struct snapshot_section *sections, unsigned count,
                               void *object, struct error *e);

/* Each writes *value, or reads it. */
void snapshot_bytes(struct snapshot_coder *c, void *value, size_t n);
void snapshot_u8(struct snapshot_coder *c, uint8_t *value);
void snapshot_u16(struct snapshot_coder *c, uint16_t *value);
void snapshot_u32(struct snapshot_coder *c, uint32_t *value);
void snapshot_u64(struct snapshot_coder *c, uint64_t *value);
void snapshot_bool(struct snapshot_coder *c, bool *value);

/* A number of which there are fewer than `end`. */
void snapshot_enum(struct snapshot_coder *c, unsigned *value, unsigned end);

/* n bytes whose rest may be zero. */
void snapshot_padded(struct snapshot_coder *c, void *value, size_t n);

/* Text that may be NULL; what is read is a heap block. */
void snapshot_text(struct snapshot_coder *c, char **text);

/* The number of a list's items, at most `max`. */
void snapshot_count(struct snapshot_coder *c, size_t *count, size_t max);

/* The same, and its items: they are read into a heap block, zeroed first. */
void *snapshot_list(struct snapshot_coder *c, void *items, size_t *count, size_t max, size_t size);

/* What is read makes no sense, in a few words; a constant. */
void snapshot_refuse(struct snapshot_coder *c, const char *why);
