/*
 * Token buckets: what bucket_wait() says is exact, and over any time no more passes than the bucket
 * held, its burst, what was refilled, and one request larger than that.
 */
#include "vmm/base/bucket.h"

#include "tests/fuzz/support/input.h"

typedef unsigned __int128 u128;

struct account {
    u128 taken, refilled, largest; /* tokens times refill_ns */
    struct bucket begin;
};

static uint64_t take_amount(struct input *in)
{
    uint8_t how = take8(in);

    return how < 0x80 ? how : how < 0xe0 ? take32(in) : take64(in);
}

#define COUNTABLE ((u128)1 << 124) /* larger sums are not counted any more */

static void add(u128 *sum, u128 n)
{
    *sum = n < COUNTABLE && *sum < COUNTABLE ? *sum + n : COUNTABLE;
}

static void refill(struct bucket *b, struct account *a, uint64_t ns)
{
    bucket_refill(b, ns);
    add(&a->refilled, (u128)ns * a->begin.size);
}

static void spend(struct bucket *b, struct account *a, uint64_t n)
{
    u128 cost = (u128)n * a->begin.refill_ns;
    uint64_t wait = bucket_wait(b, n);
    struct bucket early = *b;

    MUST(wait <= INT64_MAX);
    if (wait == INT64_MAX) /* as long as a timer can be set to */
        return;
    if (wait > 0) {
        bucket_refill(&early, wait - 1);
        MUST(bucket_wait(&early, n) > 0);
    }
    refill(b, a, wait);
    MUST(bucket_wait(b, n) == 0);
    bucket_spend(b, n);
    add(&a->taken, cost);
    a->largest = cost > a->largest ? cost : a->largest;
}

/* An input that goes further ends there. */
static bool is_countable(const struct account *a)
{
    return a->taken < COUNTABLE && a->refilled < COUNTABLE;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct token_bucket config = { take_amount(&in), take_amount(&in), take_amount(&in) };
    struct account a = { 0 };
    struct bucket b;

    bucket_init(&b, &config);
    a.begin = b;
    while (in.left > 0 && is_countable(&a)) {
        u128 held = ((u128)a.begin.size + a.begin.burst) * a.begin.refill_ns;
        uint64_t n = take_amount(&in);

        if (take8(&in) & 1)
            refill(&b, &a, n);
        else
            spend(&b, &a, n);
        if (b.size > 0 && is_countable(&a) && held < COUNTABLE)
            MUST(a.taken <= a.refilled + held + a.largest);
    }
    return 0;
}
