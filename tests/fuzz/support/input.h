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

#define DEFINE_TAKE(bits)                                                                          \
    static inline uint##bits##_t take##bits(struct input *in)                                      \
    {                                                                                              \
        uint##bits##_t v;                                                                          \
                                                                                                   \
        take_bytes(in, &v, sizeof(v));                                                             \
        return v;                                                                                  \
    }
DEFINE_TAKE(8)
DEFINE_TAKE(16)
DEFINE_TAKE(32)
DEFINE_TAKE(64)

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
