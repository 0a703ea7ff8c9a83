/*
 * Images as files, and the guest memory that they are loaded into.
 */
#pragma once

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/boot/kernel.h"
#include "vmm/kvm/layout.h"

#define MEM_MIB 64

static struct guest_mem mem;
static struct kernel_image loaded;
static struct error error;

static inline void init_memory(void)
{
    cr_assert_eq(gmem_init(&mem, MEM_MIB, HUGE_PAGES_NONE, &error), 0);
}

static inline void drop_memory(void)
{
    gmem_fini(&mem);
}

static inline uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 31 + i / 251 + 1);
}

/* A file with that content. */
static inline int file_of(const void *bytes, size_t n)
{
    int fd = memfd_create("kernel", MFD_CLOEXEC);

    cr_assert(fd >= 0);
    cr_assert_eq(write(fd, bytes, n), (ssize_t)n);
    return fd;
}

static inline int load_bytes(const void *bytes, size_t n)
{
    autofd int fd = file_of(bytes, n);

    return kernel_load(&mem, fd, &loaded, &error);
}

static inline void expect_file_bytes(uint64_t at, const uint8_t *want, size_t n)
{
    uint8_t *got = malloc(n);

    cr_assert_eq(gmem_read_(&mem, gpa(at), got, n), 0);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(got[i], want[i], "byte %zu of those at 0x%lx", i, (unsigned long)at);
    free(got);
}

static inline void expect_zeroes(uint64_t at, size_t n)
{
    uint8_t *zeroes = calloc(1, n);

    expect_file_bytes(at, zeroes, n);
    free(zeroes);
}

static inline void expect_part(const struct image_part *part, uint64_t at, uint64_t bytes)
{
    cr_expect_eq(part->bytes, bytes, "%llu", (unsigned long long)part->bytes);
    if (bytes)
        cr_expect_eq(part->at.v, at);
}

/* Refused, with a text that begins so and has this in it. */
static inline void expect_error(int ret, const char *beginning, const char *part)
{
    cr_assert_eq(ret, -1, "accepted");
    cr_assert_eq(strncmp(error.msg, beginning, strlen(beginning)), 0, "%s", error.msg);
    cr_assert(strstr(error.msg, part), "%s lacks %s", error.msg, part);
}
