#include "mmds/service.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "mmds/frame.h"
#include "mmds/http.h"

#define NOW    UINT64_C(7000000000)
#define BUDGET (1u << 20)

static struct mmds_store store;
static struct mmds_service service;
static struct mmds_budget budget;
static struct mmds_answer answer;
static char text[70000];

static void init(void)
{
    store.text =
        strdup("{\"a\":\"x\\u0001\\n\",\"e\":{},\"k\\n\":1,\"list\":[\"one\",{\"y\":null}],"
               "\"n\":-1.5,\"s\":\"\"}");
    service = (struct mmds_service){ .store = &store };
    mmds_tokens_init(&service.tokens);
    budget.left = BUDGET;
}

static void done(void)
{
    mmds_store_fini(&store);
    cr_expect_eq(budget.left, BUDGET, "all memory came back");
}

TestSuite(mmds_service, .init = init, .fini = done);

/* The answer to a request at that time, as a string. */
static const char *ask_at(const char *request, uint64_t now_ns)
{
    cr_assert_eq(mmds_http_request_bytes(request, strlen(request)), strlen(request), "%s", request);
    cr_assert(mmds_service_answer(&service, request, strlen(request), now_ns, &budget, &answer));
    snprintf(text, sizeof(text), "%.*s", (int)answer.bytes, answer.memory + answer.begin);
    mmds_answer_free(&answer, &budget);
    return text;
}

static const char *ask(const char *request)
{
    return ask_at(request, NOW);
}

static const char *body_of(const char *what)
{
    const char *end = strstr(what, "\r\n\r\n");

    cr_assert(end);
    return end + 4;
}

static bool says(const char *what, const char *status, const char *body)
{
    return strncmp(what + strlen("HTTP/1.1 "), status, 3) == 0 && strcmp(body_of(what), body) == 0;
}

static bool is_kept(const char *what)
{
    cr_assert_neq(!strstr(what, "\r\nConnection: close\r\n"),
                  !strstr(what, "\r\nConnection: keep-alive\r\n"));
    return strstr(what, "\r\nConnection: keep-alive\r\n");
}

Test(mmds_service, a_head_is_firecracker_s)
{
    cr_expect_str_eq(ask("GET /a HTTP/1.1\r\n\r\n"),
                     "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                     "Content-Type: text/plain\r\nContent-Length: 3\r\n\r\nx\x01\n");
    cr_expect_str_eq(ask("GET /e HTTP/1.1\r\nAccept: application/json\r\n\r\n"),
                     "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                     "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
    cr_expect_str_eq(ask("DELETE /a HTTP/1.1\r\n\r\n"),
                     "HTTP/1.1 405 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                     "Allow: GET, PUT\r\nContent-Type: text/plain\r\nContent-Length: 24\r\n\r\n"
                     "Not allowed HTTP method.");
}

Test(mmds_service, a_list_has_the_keys_as_they_are)
{
    cr_expect(says(ask("GET / HTTP/1.1\r\n\r\n"), "200", "a\ne/\nk\n\nlist\nn\ns"));
    cr_expect(says(ask("GET /e HTTP/1.1\r\n\r\n"), "200", ""));
    cr_expect(says(ask("GET /list/1/ HTTP/1.1\r\n\r\n"), "200", "y"));
}

Test(mmds_service, imds_compat_has_text_and_says_so)
{
    static const char json[] = "GET /list/0 HTTP/1.1\r\nAccept: application/json\r\n\r\n";

    cr_expect(says(ask(json), "200", "\"one\""));
    cr_expect(strstr(text, "application/json"));
    service.imds_compat = true;
    cr_expect(says(ask(json), "200", "one"));
    cr_expect(strstr(text, "text/plain"));
}

Test(mmds_service, a_store_that_was_never_put_is_null)
{
    mmds_store_fini(&store);
    cr_expect(says(ask("GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n"), "200", "null"));
    cr_expect(says(ask("GET / HTTP/1.1\r\n\r\n"), "501",
                   "Cannot retrieve value. The value has an unsupported type."));
    cr_expect(says(ask("GET /a HTTP/1.1\r\n\r\n"), "404", "Resource not found: /a."));
}

Test(mmds_service, a_token_opens_v2_for_its_time)
{
    char request[200];

    service.needs_token = true;
    ask("PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 2\r\n\r\n");
    cr_assert(strstr(text, "\r\nX-metadata-token-ttl-seconds: 2\r\n"));
    snprintf(request, sizeof(request), "GET /s HTTP/1.1\r\nx-AWS-ec2-metadata-token:%s\r\n\r\n",
             body_of(text));
    cr_expect(says(ask_at(request, NOW + 1999999999), "200", ""));
    cr_expect(says(ask_at(request, NOW + 2000000000), "401", "MMDS token not valid."));
    mmds_tokens_init(&service.tokens); /* as after a snapshot was loaded */
    cr_expect(says(ask(request), "401", "MMDS token not valid."));
}

Test(mmds_service, of_two_names_the_shorter_counts_and_of_two_values_the_last)
{
    ask("PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 2\r\n"
        "X-aws-ec2-metadata-token-ttl-seconds: 3\r\n\r\n");
    cr_expect(strstr(text, "\r\nX-metadata-token-ttl-seconds: 2\r\n"));
    ask("PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 3\r\n"
        "X-metadata-token-ttl-seconds: 2\r\n\r\n");
    cr_expect(strstr(text, "\r\nX-metadata-token-ttl-seconds: 2\r\n"));
    ask("PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 3\r\n"
        "X-aws-ec2-metadata-token-ttl-seconds: 4\r\n\r\n");
    cr_expect(strstr(text, "\r\nX-aws-ec2-metadata-token-ttl-seconds: 4\r\n"));
}

Test(mmds_service, the_end_of_a_connection_is_the_client_s_wish_or_a_body_s)
{
    cr_expect(is_kept(ask("GET /s HTTP/1.1\r\n\r\n")));
    cr_expect_not(is_kept(ask("GET /s HTTP/1.1\r\nConnection: close\r\n\r\n")));
    cr_expect_not(is_kept(ask("GET /s HTTP/1.1\r\nconnection: TE,  Close \r\n\r\n")));
    cr_expect(is_kept(ask("GET /s HTTP/1.1\r\nConnection: closed\r\n\r\n")));
    cr_expect_not(is_kept(ask("GET /s HTTP/1.0\r\n\r\n")));
    cr_expect(is_kept(ask("GET /s HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")));
    cr_expect_not(is_kept(ask("GET /nothing HTTP/1.0\r\n\r\n")));
    cr_expect_not(is_kept(ask("PUT /latest/api/token HTTP/1.1\r\nContent-Length: 1\r\n\r\n")));
    cr_expect(says(text, "400", "Invalid request."));
    cr_expect(is_kept(ask("GET /s HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: +0\r\n\r\n")));
}

/* Beyond those of tests/integration/mmds_requests.txt. */
Test(mmds_service, what_can_t_be_read_is_said)
{
    static const struct {
        const char *request, *status, *body;
    } cases[] = {
        { "\r\n\r\n", "400", "Invalid request." },
        { "GET  HTTP/1.1\r\n\r\n", "400", "Invalid request." },
        { "DELETE  HTTP/1.1\r\n\r\n", "400", "Empty URI not allowed." },
        { "GET /\xff HTTP/1.1\r\n\r\n", "400", "Cannot parse URI as UTF-8." },
        { "GET /s HTTP/1.1 \r\n\r\n", "501", "Unsupported HTTP version." },
        { "GET /s  HTTP/1.1\r\n\r\n", "501", "Unsupported HTTP version." },
        { "GET /s HTTP/1.1\r\nA: b\n\r\n", "400", "Invalid request." },
        { "GET http:// HTTP/1.1\r\n\r\n", "400", "Invalid URI." },
        { "PUT * HTTP/1.1\r\n\r\n", "400", "Invalid URI." },
        { "PATCH * HTTP/1.1\r\n\r\n", "400", "Invalid URI." },
        { "GET / HTTP/1.1\r\nContent-Length: 4294967296\r\n\r\n", "400",
          "Invalid value. Key:Content-Length; Value: 4294967296" },
        { "GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", "400",
          "Invalid value. Key:Content-Length; Value:" },
        { "GET / HTTP/1.1\r\nAccept-Encoding: *;q=0\r\n\r\n", "400",
          "Invalid value. Key:Accept-Encoding; Value:*;q=0" },
        { "GET /s HTTP/1.1\r\nAccept-Encoding: *;q=0, identity\r\n\r\n", "200", "" },
        { "GET /s HTTP/1.1\r\nAccept-Encoding: \r\n\r\n", "400", "Invalid request." },
        { "GET /list/2 HTTP/1.1\r\n\r\n", "404", "Resource not found: /list/2." },
        { "GET /list/18446744073709551616 HTTP/1.1\r\n\r\n", "404",
          "Resource not found: /list/18446744073709551616." },
        { "PUT http://x//latest/api///token HTTP/1.1\r\nX-metadata-token-ttl-seconds: +\r\n\r\n",
          "400",
          "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:+" },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        cr_expect(says(ask(cases[i].request), cases[i].status, cases[i].body), "%s: %s",
                  cases[i].request, text);
}

Test(mmds_service, a_request_ends_with_its_first_empty_line)
{
    static const struct {
        const char *text;
        size_t bytes;
    } cases[] = {
        { "", 0 },           { "\r\n", 0 },       { "\n", 0 },          { "a\r\nb\r\n", 0 },
        { "\n\n", 2 },       { "a\n\nb\n\n", 3 }, { "\r\n\r\n", 4 },    { "\n\r\nx", 3 },
        { "a\r\n\r\nb", 5 }, { "a\r\n\rb", 0 },   { "a\r\r\n\r\n", 6 }, { "a\n\r", 0 },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        cr_expect_eq(mmds_http_request_bytes(cases[i].text, strlen(cases[i].text)), cases[i].bytes,
                     "case %u", i);
}

Test(mmds_service, what_the_budget_does_not_have_is_not_answered)
{
    static const char request[] = "GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n";
    size_t least = BUDGET;

    for (size_t left = 0; left < 1000; left++) {
        budget.left = left;
        if (mmds_service_answer(&service, request, strlen(request), NOW, &budget, &answer)) {
            least = left < least ? left : least;
            mmds_answer_free(&answer, &budget);
        } else {
            cr_expect_eq(least, BUDGET, "what is enough stays enough");
        }
        cr_expect_eq(budget.left, left);
    }
    cr_expect(least > strlen(store.text) && least < strlen(store.text) + 400, "%zu", least);
    budget.left = BUDGET;
}

Test(mmds_service, the_longest_of_each_is_answered)
{
    char request[MMDS_WINDOW + 1];

    memset(request, 'y', sizeof(request));
    memcpy(request, "GET /", 5);
    strcpy(request + MMDS_WINDOW - 13, " HTTP/1.1\r\n\r\n");
    ask(request);
    cr_expect(strncmp(body_of(text), "Resource not found: /yyy", 24) == 0);
    memset(request, 'y', sizeof(request));
    memcpy(request, "GET / HTTP/1.1\r\n", 16);
    strcpy(request + MMDS_WINDOW - 4, "\r\n\r\n");
    ask(request);
    cr_expect(strncmp(body_of(text), "Header is incorrectly formatted. Key: yyy", 41) == 0);
    memset(request, '/', sizeof(request));
    memcpy(request, "GET ", 4);
    strcpy(request + MMDS_WINDOW - 13, " HTTP/1.1\r\n\r\n");
    cr_expect(says(ask(request), "200", "a\ne/\nk\n\nlist\nn\ns"));
}
