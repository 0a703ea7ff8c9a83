/*
 * CRC-32C (RFC 3720): whether bytes are those that were written. Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(const uint8_t *bytes, size_t n);

/* Its two ways, for its test: by a table, and by the processor (SSE 4.2). They take and return what
 * is inverted at the begin and the end. */
uint32_t crc32c_by_table_(uint32_t crc, const uint8_t *bytes, size_t n);
uint32_t crc32c_by_processor_(uint32_t crc, const uint8_t *bytes, size_t n);
