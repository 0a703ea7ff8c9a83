#include "vmm/base/bucket.h"

#include <criterion/criterion.h>

#define MS 1000000u

static struct bucket made(uint64_t size, uint64_t burst, uint64_t refill_ms)
{
    const struct token_bucket config = { size, burst, refill_ms };
    struct bucket b;

    bucket_init(&b, &config);
    return b;
}

Test(bucket, starts_full_and_fills_steadily)
{
    struct bucket b = made(10, 0, 100);

    cr_expect_eq(bucket_wait(&b, 10), 0);
    bucket_spend(&b, 10);
    cr_expect_eq(bucket_wait(&b, 1), 10 * MS);
    bucket_refill(&b, 10 * MS);
    cr_expect_eq(bucket_wait(&b, 1), 0);
    cr_expect_eq(bucket_wait(&b, 2), 10 * MS);
}

Test(bucket, spends_its_burst_once)
{
    struct bucket b = made(1, 5, 100);

    bucket_spend(&b, 5);
    cr_expect_eq(bucket_wait(&b, 1), 0);
    bucket_spend(&b, 1);
    bucket_refill(&b, 1000u * MS);
    cr_expect_eq(bucket_wait(&b, 1), 0);
    bucket_spend(&b, 1);
    cr_expect_gt(bucket_wait(&b, 1), 0);
}

Test(bucket, limits_nothing_without_a_size)
{
    struct bucket b = made(0, 0, 100);

    cr_expect_eq(b.size, 0);
}

Test(bucket, takes_back_no_more_than_it_holds)
{
    struct bucket b = made(10, 0, 100);

    bucket_spend(&b, 10);
    bucket_refund(&b, 4);
    cr_expect_eq(bucket_wait(&b, 4), 0);
    cr_expect_eq(bucket_wait(&b, 5), 10 * MS);
    bucket_refund(&b, UINT64_MAX);
    cr_expect_eq(b.missing, 0);
}
