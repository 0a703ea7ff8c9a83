#include "vmm/base/bucket.h"

#define NS_PER_MS 1000000u

void bucket_init(struct bucket *b, const struct token_bucket *config)
{
    *b = (struct bucket){ 0 };
    if (token_bucket_limits(config))
        *b = (struct bucket){
            .size = config->size,
            .refill_ns = config->refill_time_ms * NS_PER_MS, /* token_bucket_limits(): fits */
            .burst = config->one_time_burst,
        };
}

bool bucket_is_possible(const struct bucket *b)
{
    return b->size > 0 || b->refill_ns == 0;
}

static void gain(struct bucket *b, unsigned __int128 gained)
{
    b->missing -= gained < b->missing ? gained : b->missing;
}

void bucket_refill(struct bucket *b, uint64_t ns)
{
    gain(b, (unsigned __int128)ns * b->size);
}

void bucket_refund(struct bucket *b, uint64_t n)
{
    gain(b, (unsigned __int128)n * b->refill_ns);
}

/* Tokens to be taken from the bucket itself for n. */
static uint64_t beyond_burst(const struct bucket *b, uint64_t n)
{
    return n > b->burst ? n - b->burst : 0;
}

/* No product wraps: each is of two 64-bit numbers. */
uint64_t bucket_wait(const struct bucket *b, uint64_t n)
{
    unsigned __int128 capacity = (unsigned __int128)b->size * b->refill_ns;
    unsigned __int128 cost = (unsigned __int128)beyond_burst(b, n) * b->refill_ns;
    unsigned __int128 may_miss = cost < capacity ? capacity - cost : 0;
    unsigned __int128 wait;

    if (cost == 0 || b->missing <= may_miss)
        return 0;
    wait = (b->missing - may_miss - 1) / b->size + 1;
    return wait > INT64_MAX ? INT64_MAX : (uint64_t)wait;
}

/* After bucket_wait() said 0, `missing` can't wrap: it is at most the larger of capacity and cost.
 */
void bucket_spend(struct bucket *b, uint64_t n)
{
    uint64_t tokens = beyond_burst(b, n);

    b->burst -= n - tokens;
    b->missing += (unsigned __int128)tokens * b->refill_ns;
}
