#include "vmm/base/crc32c.h"

#include <nmmintrin.h>
#include <string.h>
#include <sys/platform/x86.h>

/* A nibble at a time: the polynomial 0x1edc6f41, reflected. */
uint32_t crc32c_by_table_(uint32_t crc, const uint8_t *bytes, size_t n)
{
    static const uint32_t table[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
        0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
        0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };

    for (size_t i = 0; i < n; i++) {
        crc ^= bytes[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return crc;
}

__attribute__((target("sse4.2"))) uint32_t crc32c_by_processor_(uint32_t crc, const uint8_t *bytes,
                                                                size_t n)
{
    uint64_t wide = crc, word;

    for (; n >= sizeof(word); bytes += sizeof(word), n -= sizeof(word)) {
        memcpy(&word, bytes, sizeof(word));
        wide = _mm_crc32_u64(wide, word);
    }
    for (crc = (uint32_t)wide; n > 0; bytes++, n--)
        crc = _mm_crc32_u8(crc, *bytes);
    return crc;
}

uint32_t crc32c(const uint8_t *bytes, size_t n)
{
    /* What the C library found at its start: to ask the processor itself may leave a VM. */
    return ~(CPU_FEATURE_ACTIVE(SSE4_2) ? crc32c_by_processor_(UINT32_MAX, bytes, n)
                                        : crc32c_by_table_(UINT32_MAX, bytes, n));
}
