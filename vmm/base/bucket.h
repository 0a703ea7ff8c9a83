/*
 * A token bucket: `size` tokens, filled from empty to full in a refill time, steadily. It starts
 * full, with a one-time burst beside it that is spent first and never comes back. What is larger
 * than the bucket passes when the bucket is full, and leaves a debt that is paid off at the same
 * pace. The arithmetic is exact: over any time no token is lost or won by rounding. Pure; the owner
 * brings the time and the lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/config.h"

struct bucket {
    uint64_t size;      /* tokens; 0: unlimited */
    uint64_t refill_ns; /* from empty to full */
    uint64_t burst;     /* what is left of it */
    /* How far from full: tokens times refill_ns. A nanosecond makes it smaller by `size`. More than
     * size * refill_ns is a debt. */
    unsigned __int128 missing;
};

/* A new bucket, full; unlimited where the configuration limits nothing. */
void bucket_init(struct bucket *b, const struct token_bucket *config);

/* False for one that was neither made nor used by these functions, and that they can't work on. */
bool bucket_is_possible(const struct bucket *b);

/* So many nanoseconds have gone by. */
void bucket_refill(struct bucket *b, uint64_t ns);

/* Nanoseconds until n tokens may be taken: 0, or rounded up. */
uint64_t bucket_wait(const struct bucket *b, uint64_t n);

/* Takes n tokens, for which bucket_wait() was 0. */
void bucket_spend(struct bucket *b, uint64_t n);

/* Gives n tokens back that were taken; what a full bucket can't hold is lost. */
void bucket_refund(struct bucket *b, uint64_t n);
