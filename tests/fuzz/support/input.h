/*
 * A fuzzer's bytes as a stream of decisions. What is taken behind their end is zero, so that every
 * sequence of bytes is a whole input.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What each fuzzer defines: tries one input; returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *at;
    size_t left;
};

/* An invariant that no input may break; the sanitizers report the abort with its stack. */
#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #cond);                     \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static inline void take_bytes(struct input *in, void *dst, size_t n)
{
    size_t there = n < in->left ? n : in->left;

    memset(dst, 0, n);
    if (there > 0)
        memcpy(dst, in->at, there);
    in->at += there;
    in->left -= there;
}

static inline uint8_t take8(struct input *in)
{
    uint8_t v;

    take_bytes(in, &v, sizeof(v));
    return v;
}

static inline uint16_t take16(struct input *in)
{
    uint16_t v;

    take_bytes(in, &v, sizeof(v));
    return v;
}

static inline uint32_t take32(struct input *in)
{
    uint32_t v;

    take_bytes(in, &v, sizeof(v));
    return v;
}

static inline uint64_t take64(struct input *in)
{
    uint64_t v;

    take_bytes(in, &v, sizeof(v));
    return v;
}

/* The rest as a heap block of exactly that size with a NUL behind it; the caller frees it. */
static inline char *take_text(struct input *in, size_t *length)
{
    char *text = malloc(in->left + 1);

    MUST(text);
    *length = in->left;
    take_bytes(in, text, in->left);
    text[*length] = '\0';
    return text;
}
