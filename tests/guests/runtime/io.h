/* One instruction each: ports, MMIO, model-specific registers, CPUID. */
#pragma once

#include <stdint.h>

#define DEFINE_PORT(type, suffix)                                                                  \
    static inline type in##suffix(uint16_t port)                                                   \
    {                                                                                              \
        type value;                                                                                \
        __asm__ volatile("in" #suffix " %1, %0" : "=a"(value) : "Nd"(port) : "memory");            \
        return value;                                                                              \
    }                                                                                              \
    static inline void out##suffix(uint16_t port, type value)                                      \
    {                                                                                              \
        __asm__ volatile("out" #suffix " %0, %1" : : "a"(value), "Nd"(port) : "memory");           \
    }
DEFINE_PORT(uint8_t, b)
DEFINE_PORT(uint16_t, w)
DEFINE_PORT(uint32_t, l)

#define DEFINE_MMIO(bits, suffix, constraint)                                                      \
    static inline uint##bits##_t mmio_read##bits(uint64_t addr)                                    \
    {                                                                                              \
        uint##bits##_t value;                                                                      \
        __asm__ volatile("mov" suffix " (%1), %0" : "=" constraint(value) : "r"(addr) : "memory"); \
        return value;                                                                              \
    }                                                                                              \
    static inline void mmio_write##bits(uint64_t addr, uint##bits##_t value)                       \
    {                                                                                              \
        __asm__ volatile("mov" suffix " %0, (%1)" : : constraint(value), "r"(addr) : "memory");    \
    }
DEFINE_MMIO(8, "b", "q")
DEFINE_MMIO(16, "w", "r")
DEFINE_MMIO(32, "l", "r")
DEFINE_MMIO(64, "q", "r")

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr"
                     :
                     : "a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(msr)
                     : "memory");
}

static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r;
    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(subleaf));
    return r;
}
