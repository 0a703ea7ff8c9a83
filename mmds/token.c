#include "mmds/token.h"

#include <sodium/crypto_shorthash_siphash24.h>
#include <sodium/crypto_verify_16.h>
#include <stddef.h>
#include <string.h>

#include "vmm/base/bug.h"
#include "vmm/base/clock.h"
#include "vmm/base/random.h"

#define MAC_BYTES crypto_shorthash_siphashx24_BYTES

struct token {
    uint8_t nonce[12];
    uint64_t expiry_ns;
    uint8_t mac[MAC_BYTES];
} __attribute__((packed));

_Static_assert(sizeof(struct token) * 4 == MMDS_TOKEN_CHARS * 3, "base64 without padding");
_Static_assert(MMDS_TOKEN_KEY == crypto_shorthash_siphashx24_KEYBYTES, "a whole key");

static const char token_letters[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void sign(const struct mmds_tokens *t, const struct token *token, uint8_t *mac)
{
    const int ret = crypto_shorthash_siphashx24(mac, (const uint8_t *)token,
                                                offsetof(struct token, mac), t->key);

    BUG_ON(ret != 0);
}

void mmds_tokens_init(struct mmds_tokens *t)
{
    const int ret = random_fill(t->key, sizeof(t->key));

    BUG_ON(ret < 0);
    t->count = 0;
}

void mmds_token_make(struct mmds_tokens *t, uint64_t now_ns, uint32_t ttl_s,
                     char out[MMDS_TOKEN_CHARS])
{
    struct token token = { .expiry_ns = now_ns + ttl_s * NS_PER_S };
    const uint8_t *from = (const uint8_t *)&token;

    t->count++;
    memcpy(token.nonce, &t->count, sizeof(t->count));
    sign(t, &token, token.mac);
    for (unsigned i = 0; i < MMDS_TOKEN_CHARS; i += 4, from += 3) {
        const uint32_t group = (uint32_t)(from[0] << 16 | from[1] << 8 | from[2]);

        for (unsigned k = 0; k < 4; k++)
            out[i + k] = token_letters[group >> (18 - 6 * k) & 63];
    }
}

static bool read_token(struct token *token, const char *text)
{
    uint8_t *to = (uint8_t *)token;

    for (unsigned i = 0; i < MMDS_TOKEN_CHARS; i += 4, to += 3) {
        uint32_t group = 0;

        for (unsigned k = 0; k < 4; k++) {
            const char *letter = memchr(token_letters, text[i + k], sizeof(token_letters) - 1);

            if (!letter)
                return false;
            group = group << 6 | (uint32_t)(letter - token_letters);
        }
        to[0] = (uint8_t)(group >> 16);
        to[1] = (uint8_t)(group >> 8);
        to[2] = (uint8_t)group;
    }
    return true;
}

bool mmds_token_is_good(const struct mmds_tokens *t, uint64_t now_ns, const char *token, size_t n)
{
    struct token given;
    uint8_t mac[MAC_BYTES];

    if (n != MMDS_TOKEN_CHARS || !read_token(&given, token))
        return false;
    sign(t, &given, mac);
    return crypto_verify_16(mac, given.mac) == 0 && given.expiry_ns > now_ns;
}
