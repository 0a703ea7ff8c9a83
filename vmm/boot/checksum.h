/*
 * The checksum of firmware tables (ACPI 6.4, section 5.2.5; MP specification 1.4, section 4.1): all
 * bytes of a table add up to zero.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* What a zeroed checksum byte among these n bytes must become. */
static inline uint8_t negated_sum(const void *bytes, size_t n)
{
    const uint8_t *b = bytes;
    uint8_t sum = 0;

    while (n--)
        sum = (uint8_t)(sum - *b++);
    return sum;
}
