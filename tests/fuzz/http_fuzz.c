/*
 * HTTP framing: the input is what a client sends, behind four bytes that say where it is cut.
 * However the bytes of a connection are cut, the requests in them are the same.
 */
#include "api/wire/http.h"

#include "tests/fuzz/support/input.h"

#define PAYLOAD_MAX 300u

struct digest { /* of the requests of a connection */
    uint64_t value;
    bool has_refusal;
};

static void add(struct digest *d, const void *bytes, size_t n)
{
    const uint8_t *b = bytes;

    for (size_t i = 0; i < n; i++)
        d->value = (d->value ^ b[i]) * UINT64_C(0x100000001b3);
}

static void take_request(const struct http_reader *r, struct digest *d)
{
    MUST(r->verb < HTTP_VERBS && r->body_length <= PAYLOAD_MAX);
    MUST(!r->body || r->body[r->body_length] == '\0');
    add(d, &r->verb, sizeof(r->verb));
    add(d, &r->body_length, sizeof(r->body_length));
    add(d, r->path, strnlen(r->path, sizeof(r->path)));
    add(d, r->body, r->body_length);
}

static void take_events(struct http_reader *r, struct digest *d)
{
    for (;;) {
        switch (http_reader_next(r)) {
        case HTTP_NEED_MORE: return;
        case HTTP_HAVE_REQUEST: take_request(r, d); break;
        case HTTP_WANTS_CONTINUE: break;
        case HTTP_REFUSED:
            MUST(strnlen(r->refusal, sizeof(r->refusal)) < sizeof(r->refusal));
            d->has_refusal = true;
        }
    }
}

/* cuts: the sizes of the pieces less one, over and over; none: as much as fits. */
static struct digest feed(const uint8_t *data, size_t size, const uint8_t *cuts, size_t cut_count)
{
    struct http_reader *r = malloc(sizeof(*r));
    struct digest d = { 0 };

    MUST(r);
    http_reader_init(r, PAYLOAD_MAX);
    for (size_t i = 0; size > 0; i++) {
        char *at;
        size_t room = http_reader_space(r, &at), n = size;

        MUST(room > 0);
        if (cut_count > 0 && n > cuts[i % cut_count] + 1u)
            n = cuts[i % cut_count] + 1u;
        n = n < room ? n : room;
        memcpy(at, data, n);
        http_reader_fed(r, n);
        take_events(r, &d);
        MUST(!http_reader_has_more(r));
        data += n;
        size -= n;
    }
    http_reader_fini(r);
    free(r);
    return d;
}

/* The rest of the bytes that came with a refused request is dropped, so only where nothing is
 * refused do the cuts not matter. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct digest cut, whole;

    if (size < 4)
        return 0;
    cut = feed(data + 4, size - 4, data, 4);
    whole = feed(data + 4, size - 4, NULL, 0);
    if (!cut.has_refusal && !whole.has_refusal)
        MUST(cut.value == whole.value);
    return 0;
}
