#include "mmds/token.h"

#include <criterion/criterion.h>
#include <sodium/crypto_shorthash_siphash24.h>
#include <string.h>

#define NOW    UINT64_C(5000000000)
#define SECOND UINT64_C(1000000000)

static struct mmds_tokens tokens;
static char token[MMDS_TOKEN_CHARS];

static void init(void)
{
    mmds_tokens_init(&tokens);
    mmds_token_make(&tokens, NOW, 1, token);
}

TestSuite(mmds_token, .init = init);

Test(mmds_token, is_good_until_its_time_is_over)
{
    cr_expect(mmds_token_is_good(&tokens, NOW, token, sizeof(token)));
    cr_expect(mmds_token_is_good(&tokens, NOW + SECOND - 1, token, sizeof(token)));
    cr_expect_not(mmds_token_is_good(&tokens, NOW + SECOND, token, sizeof(token)));
    mmds_token_make(&tokens, NOW, MMDS_TTL_MAX_S, token);
    cr_expect(mmds_token_is_good(&tokens, NOW + 21599 * SECOND, token, sizeof(token)));
    cr_expect_not(mmds_token_is_good(&tokens, NOW + 21600 * SECOND, token, sizeof(token)));
}

Test(mmds_token, is_none_when_any_letter_is_another)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_ ";

    for (unsigned i = 0; i < sizeof(token); i++) {
        const char kept = token[i];

        for (unsigned k = 0; k < sizeof(letters); k++) { /* with its NUL */
            token[i] = letters[k];
            cr_expect_eq(mmds_token_is_good(&tokens, NOW, token, sizeof(token)), letters[k] == kept,
                         "letter %u as %u", i, k);
        }
        token[i] = kept;
    }
}

Test(mmds_token, is_none_of_another_length)
{
    char longer[72];

    memcpy(longer, token, sizeof(token));
    memset(longer + sizeof(token), 'A', sizeof(longer) - sizeof(token));
    for (size_t n = 0; n <= sizeof(longer); n++)
        cr_expect_eq(mmds_token_is_good(&tokens, NOW, longer, n), n == sizeof(token), "%zu", n);
}

Test(mmds_token, is_good_for_one_key_only)
{
    struct mmds_tokens others;

    mmds_tokens_init(&others);
    cr_expect_not(mmds_token_is_good(&others, NOW, token, sizeof(token)));
}

Test(mmds_token, is_another_each_time)
{
    char second[MMDS_TOKEN_CHARS];

    mmds_token_make(&tokens, NOW, 1, second);
    cr_expect(memcmp(token, second, sizeof(token)) != 0);
    cr_expect(mmds_token_is_good(&tokens, NOW, second, sizeof(second)));
    cr_expect(mmds_token_is_good(&tokens, NOW, token, sizeof(token)));
}

/* The vectors of SipHash's authors (vectors_sip128): key and message count up from 0. */
Test(mmds_token, is_signed_by_siphash_2_4_of_128_bits)
{
    static const uint8_t expected[][16] = {
        { 0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02,
          0x93 },
        { 0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc,
          0x45 },
        { 0x81, 0x77, 0x22, 0x8d, 0xa4, 0xa4, 0x5d, 0xc7, 0xfc, 0xa3, 0x8b, 0xde, 0xf6, 0x0a, 0xff,
          0xe4 },
    };
    uint8_t key[16], message[2] = { 0, 1 }, got[16];

    for (unsigned i = 0; i < 16; i++)
        key[i] = (uint8_t)i;
    for (unsigned n = 0; n < 3; n++) {
        crypto_shorthash_siphashx24(got, message, n, key);
        cr_expect_arr_eq(got, expected[n], sizeof(got), "%u bytes", n);
    }
}
