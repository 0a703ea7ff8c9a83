/*
 * Session tokens of the metadata service. A token says when it ends and is signed by a key that
 * nobody else has, so that nothing has to be kept of those that were given out: a guest may ask for
 * any number. Nobody but this process reads one. A new key makes all of them worthless.
 *
 * The MAC is SipHash-2-4 of 128 bits, by libsodium.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MMDS_TOKEN_CHARS 48u
#define MMDS_TTL_MIN_S   1u
#define MMDS_TTL_MAX_S   21600u
#define MMDS_TOKEN_KEY   16u

struct mmds_tokens {
    uint8_t key[MMDS_TOKEN_KEY];
    uint64_t count; /* given out: no two are the same */
};

/* Draws a key. */
void mmds_tokens_init(struct mmds_tokens *t);

/* Writes a token that is good for so long from now_ns on (of the monotonic clock); no NUL. */
void mmds_token_make(struct mmds_tokens *t, uint64_t now_ns, uint32_t ttl_s,
                     char out[MMDS_TOKEN_CHARS]);

/* Whether these n bytes are a token that has not expired. How long
 * that takes says nothing of what would be one. */
bool mmds_token_is_good(const struct mmds_tokens *t, uint64_t now_ns, const char *token, size_t n);
