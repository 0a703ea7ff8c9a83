/* A guest's request to the metadata service, behind a byte that says what the service is. */
#include "mmds/http.h"

#include "mmds/frame.h"
#include "mmds/service.h"
#include "tests/fuzz/support/input.h"

#define BUDGET 100000u

/* What is answered has the shape of an answer, and all its bytes. */
static void check_answer(const char *text, size_t n)
{
    static const char *const heads[] = { "HTTP/1.0 ", "HTTP/1.1 " };
    const char *end = memmem(text, n, "\r\n\r\n", 4), *length;
    char head[512];

    MUST(memcmp(text, heads[0], 9) == 0 || memcmp(text, heads[1], 9) == 0);
    MUST(end && (size_t)(end - text) < sizeof(head));
    memcpy(head, text, (size_t)(end - text));
    head[end - text] = '\0';
    MUST(strlen(head) == (size_t)(end - text));
    length = strstr(head, "\r\nContent-Length: ");
    MUST(length && strtoul(length + 18, NULL, 10) == n - (size_t)(end + 4 - text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char json[] =
        "{\"\":1,\"a\":{\"b\":[\"x\\u0001\",{},-1.5e+20,null,true]},\"a/b\":\"\xc3\xbc\","
        "\"a~\":\"\\\"\",\"e\":{}}";
    struct mmds_store store = { .text = json };
    struct mmds_service service = { .store = &store };
    struct mmds_budget budget = { BUDGET };
    struct mmds_answer answer;
    struct input in = { data, size };
    const uint8_t how = take8(&in);
    const size_t n = in.left < MMDS_WINDOW ? in.left : MMDS_WINDOW;
    char *request = malloc(n + 1); /* ends where its memory does */
    size_t end;

    MUST(request);
    take_bytes(&in, request + 1, n);
    service.needs_token = how & 1;
    service.imds_compat = how & 2;
    end = mmds_http_request_bytes(request + 1, n);
    MUST(end <= n);
    if (end > 0) {
        MUST(mmds_http_request_bytes(request + 1, end) == end);
        MUST(mmds_http_request_bytes(request + 1, end - 1) == 0);
        MUST(mmds_service_answer(&service, request + 1, end, 0, &budget, &answer));
        MUST(budget.left == BUDGET - answer.allocated - MMDS_ALLOCATION_BYTES);
        MUST(answer.begin + answer.bytes <= answer.allocated);
        check_answer(answer.memory + answer.begin, answer.bytes);
        mmds_answer_free(&answer, &budget);
    }
    MUST(budget.left == BUDGET);
    free(request);
    return 0;
}
