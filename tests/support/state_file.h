/* A snapshot's state file that somebody changed, with sums that say that it was not. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vmm/snapshot/format.h"

/* By the processor: a loop over bits is most of what an execution of a fuzzer costs. */
__attribute__((target("sse4.2"))) static inline uint32_t crc32c_of(const uint8_t *bytes, size_t n)
{
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < n; i++)
        crc = __builtin_ia32_crc32qi(crc, bytes[i]);
    return ~crc;
}

/* Both sums, and the length. */
static inline void mend_state(uint8_t *file, size_t n)
{
    const uint32_t payload = (uint32_t)(n - SNAPSHOT_HEADER_BYTES);
    uint32_t crc;

    memcpy(file + 28, &payload, 4);
    crc = crc32c_of(file + SNAPSHOT_HEADER_BYTES, payload);
    memcpy(file + 56, &crc, 4);
    crc = crc32c_of(file, 60);
    memcpy(file + 60, &crc, 4);
}
