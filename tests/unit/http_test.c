#include "api/wire/http.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

#define MAX_PAYLOAD 100

static struct http_reader reader;

static void set_up(void)
{
    http_reader_init(&reader, MAX_PAYLOAD);
}

static void tear_down(void)
{
    http_reader_fini(&reader);
}

/* Feeds as much of s as fits at once; returns how much that was. */
static size_t feed(const char *s, size_t n)
{
    char *at;
    size_t room = http_reader_space(&reader, &at);

    cr_assert_gt(room, 0);
    if (n > room)
        n = room;
    memcpy(at, s, n);
    http_reader_fed(&reader, n);
    return n;
}

/* Feeds s in steps of `step` bytes until an event comes, or none is left to feed. */
static enum http_event feed_in_steps(const char *s, size_t n, size_t step, size_t *fed)
{
    enum http_event event = HTTP_NEED_MORE;

    for (*fed = 0; *fed < n && event == HTTP_NEED_MORE;) {
        *fed += feed(s + *fed, n - *fed < step ? n - *fed : step);
        event = http_reader_next(&reader);
    }
    return event;
}

static enum http_event next_of(const char *s)
{
    size_t fed;

    return feed_in_steps(s, strlen(s), HTTP_LINE_MAX, &fed);
}

TestSuite(http_request, .init = set_up, .fini = tear_down);
TestSuite(http_refusal, .init = set_up, .fini = tear_down);
TestSuite(http_connection, .init = set_up, .fini = tear_down);

/* The first request of each; then whether its answer is the last. */
Test(http_connection, ends_with_what_asks_for_it)
{
    static const struct {
        const char *request;
        bool closes;
    } cases[] = {
        { "GET / HTTP/1.1\r\n\r\n", false },
        { "GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", false },
        { "GET / HTTP/1.1\r\nConnection: Upgrade\r\n\r\n", false },
        { "GET / HTTP/1.1\r\nconnection: TE, Close\r\n\r\n", true },
        { "PUT / HTTP/1.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", true },
        { "GET / HTTP/1.0\r\n\r\n", true },
        { "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false },
        { "GET / HTTP/1.1\r\nX-Connection: close\r\n\r\n", false },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        cr_assert_eq(next_of(cases[i].request), HTTP_HAVE_REQUEST, "%s", cases[i].request);
        cr_expect_eq(reader.closes, cases[i].closes, "%s", cases[i].request);
    }
}

Test(http_connection, ends_with_a_refusal_only_where_it_must)
{
    static const struct {
        const char *request;
        bool closes;
    } cases[] = {
        { "POST / HTTP/1.0\r\n\r\n", false },
        { "GET / HTTP/1.1\r\nnonsense\r\n", false },
        { "GET / HTTP/1.0\r\nnonsense\r\n", true },
        { "GET / HTTP/1.1\r\nConnection: close\r\nnonsense\r\n", true },
        { "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", true },
        { "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n", false },
        { "PUT / HTTP/1.1\r\nContent-Length: 101\r\n\r\n", false },
        { "PUT / HTTP/1.1\r\nConnection: close\r\nContent-Length: 101\r\n\r\n", true },
        { "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 101\r\n\r\n", true },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        http_reader_init(&reader, MAX_PAYLOAD);
        cr_assert_eq(next_of(cases[i].request), HTTP_REFUSED, "%s", cases[i].request);
        cr_expect_eq(reader.closes, cases[i].closes, "%s", cases[i].request);
    }
}

struct target {
    char line[64];
    char path[32];
};

ParameterizedTestParameters(http_request, takes_the_path_from_the_target)
{
    static struct target targets[] = {
        { "GET / HTTP/1.1", "/" },
        { "GET /version HTTP/1.0", "/version" },
        { "GET http://host/version HTTP/1.1", "/version" },
        { "GET http://host HTTP/1.1", "" },
        { "GET * HTTP/1.1", "" },
        { "GET version HTTP/1.1", "" },
        { "GET x:80 HTTP/1.1", "" },
        { "GET /a?b=c#d HTTP/1.1", "/a?b=c#d" },
        { "GET /drives/\xc3\xbc HTTP/1.1", "/drives/\xc3\xbc" },
    };

    return cr_make_param_array(struct target, targets, sizeof(targets) / sizeof(*targets));
}

ParameterizedTest(struct target *t, http_request, takes_the_path_from_the_target, .init = set_up,
                  .fini = tear_down)
{
    char request[128];

    snprintf(request, sizeof(request), "%s\r\n\r\n", t->line);
    cr_assert_eq(next_of(request), HTTP_HAVE_REQUEST, "%s", reader.refusal);
    cr_expect_str_eq(reader.path, t->path);
    cr_expect_eq(reader.verb, HTTP_VERB_GET);
    cr_expect_null(reader.body);
}

Test(http_request, knows_the_four_methods)
{
    static const char *const requests[HTTP_VERBS] = {
        "GET / HTTP/1.1\r\n\r\n",
        "PUT / HTTP/1.1\r\n\r\n",
        "PATCH / HTTP/1.1\r\n\r\n",
        "DELETE / HTTP/1.1\r\n\r\n",
    };

    for (unsigned i = 0; i < HTTP_VERBS; i++) {
        cr_assert_eq(next_of(requests[i]), HTTP_HAVE_REQUEST);
        cr_expect_eq(reader.verb, i);
    }
}

Test(http_request, has_the_body_its_length_says)
{
    cr_assert_eq(next_of("PUT /x HTTP/1.1\r\ncOnTeNt-LeNgTh:5\r\n\r\n{\"a\":1}"),
                 HTTP_HAVE_REQUEST);
    cr_expect_eq(reader.body_length, 5);
    cr_expect_str_eq(reader.body, "{\"a\":");
}

Test(http_request, without_a_body_has_none)
{
    cr_assert_eq(next_of("PUT /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), HTTP_HAVE_REQUEST);
    cr_expect_null(reader.body);
}

Test(http_request, may_accept_other_encodings_beside_none)
{
    static const char *const values[] = { "gzip", "gzip, *", "identity;q=0.5", "*;q=0.1", "" };

    for (unsigned i = 0; i < sizeof(values) / sizeof(*values); i++) {
        char request[96];

        snprintf(request, sizeof(request), "GET / HTTP/1.1\r\nAccept-Encoding: %s\r\n\r\n",
                 values[i]);
        cr_expect_eq(next_of(request), HTTP_HAVE_REQUEST, "%s: %s", values[i], reader.refusal);
    }
}

Test(http_request, keeps_a_nul_in_its_body)
{
    static const char request[] = "PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\na\0b";
    size_t fed;

    cr_assert_eq(feed_in_steps(request, sizeof(request) - 1, 1000, &fed), HTTP_HAVE_REQUEST);
    cr_expect_arr_eq(reader.body, "a\0b", 4);
}

Test(http_request, reads_the_same_in_steps_of_any_size)
{
    static const char request[] = "PUT /drives/d HTTP/1.1\r\n"
                                  "Host: localhost\r\n"
                                  "Content-Length: 10\r\n\r\n0123456789";
    size_t fed;

    for (size_t step = 1; step < sizeof(request); step++) {
        cr_assert_eq(feed_in_steps(request, sizeof(request) - 1, step, &fed), HTTP_HAVE_REQUEST);
        cr_expect_eq(fed, sizeof(request) - 1);
        cr_expect_str_eq(reader.path, "/drives/d");
        cr_expect_str_eq(reader.body, "0123456789");
    }
}

Test(http_request, takes_a_body_of_the_limit)
{
    char request[256];
    int head = snprintf(request, sizeof(request), "PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n",
                        MAX_PAYLOAD);
    size_t fed;

    memset(request + head, 'x', MAX_PAYLOAD);
    cr_expect_eq(feed_in_steps(request, (size_t)head + MAX_PAYLOAD, 7, &fed), HTTP_HAVE_REQUEST);
    cr_expect_eq(reader.body_length, MAX_PAYLOAD);
}

Test(http_request, asks_for_a_100_before_the_body_where_the_client_waits_for_it)
{
    cr_assert_eq(next_of("PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
                 HTTP_WANTS_CONTINUE);
    cr_expect(!http_reader_has_more(&reader));
    cr_assert_eq(next_of("{}"), HTTP_HAVE_REQUEST);
    cr_expect_str_eq(reader.body, "{}");
}

Test(http_request, goes_on_with_a_body_that_did_not_wait_for_the_100)
{
    cr_assert_eq(next_of("PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"),
                 HTTP_WANTS_CONTINUE);
    cr_expect(http_reader_has_more(&reader));
    cr_expect_eq(http_reader_next(&reader), HTTP_HAVE_REQUEST);
}

Test(http_request, does_not_hand_an_expectation_on_to_the_next)
{
    cr_assert_eq(next_of("PUT / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n"), HTTP_HAVE_REQUEST);
    cr_expect_eq(next_of("PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"), HTTP_HAVE_REQUEST);
}

Test(http_connection, gives_pipelined_requests_one_by_one)
{
    static const char three[] = "GET /1 HTTP/1.1\r\n\r\n"
                                "PUT /2 HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"
                                "GET /3 HTTP/1.1\r\n\r\n";

    cr_assert_eq(next_of(three), HTTP_HAVE_REQUEST);
    cr_expect_str_eq(reader.path, "/1");
    cr_assert(http_reader_has_more(&reader));
    cr_assert_eq(http_reader_next(&reader), HTTP_HAVE_REQUEST);
    cr_expect_str_eq(reader.path, "/2");
    cr_expect_str_eq(reader.body, "x");
    cr_assert_eq(http_reader_next(&reader), HTTP_HAVE_REQUEST);
    cr_expect_str_eq(reader.path, "/3");
    cr_expect_null(reader.body);
    cr_expect(!http_reader_has_more(&reader));
    cr_expect_eq(http_reader_next(&reader), HTTP_NEED_MORE);
}

Test(http_connection, waits_for_bytes_when_a_line_is_half_there)
{
    cr_expect_eq(next_of("GET /version HT"), HTTP_NEED_MORE);
    cr_expect(!http_reader_has_more(&reader), "else its owner would turn in circles");
    cr_expect_eq(next_of("TP/1.1\r\n\r\n"), HTTP_HAVE_REQUEST);
}

Test(http_connection, goes_on_after_a_refusal)
{
    cr_assert_eq(next_of("POST / HTTP/1.1\r\nHost: x\r\n\r\n"), HTTP_REFUSED);
    cr_expect_eq(next_of("GET /after HTTP/1.1\r\n\r\n"), HTTP_HAVE_REQUEST);
    cr_expect_str_eq(reader.path, "/after");
}

Test(http_connection, skips_a_body_that_was_too_large_and_goes_on)
{
    static const char head[] = "PUT / HTTP/1.1\r\nContent-Length: 3000\r\n\r\n";
    static char body[3001];
    size_t fed;

    memset(body, ' ', 3000);
    memcpy(body + 100, "\r\n\r\nGET /in-the-body HTTP/1.1\r\n\r\n", 34);
    memcpy(body + 2000, "\r\n\r\nGET /in-the-body HTTP/1.1\r\n\r\n", 34);
    for (size_t step = 1; step < 3000; step += 7) {
        cr_assert_eq(next_of(head), HTTP_REFUSED);
        cr_expect_eq(feed_in_steps(body, 3000, step, &fed), HTTP_NEED_MORE);
        cr_expect(!http_reader_has_more(&reader));
        cr_expect_eq(next_of("GET /after HTTP/1.1\r\n\r\n"), HTTP_HAVE_REQUEST);
        cr_expect_str_eq(reader.path, "/after");
    }
}

Test(http_connection, leaves_what_comes_with_the_end_of_a_body_that_it_skips)
{
    static const char head[] = "PUT / HTTP/1.1\r\nContent-Length: 3000\r\n\r\n";
    static const char after[] = "GET /after HTTP/1.1\r\n\r\n";
    static char text[3000 + sizeof(after)];
    size_t fed;

    memset(text, ' ', 3000);
    memcpy(text + 3000, after, sizeof(after));
    for (size_t step = 1; step < 3000; step += 97) {
        cr_assert_eq(next_of(head), HTTP_REFUSED);
        cr_assert_eq(feed_in_steps(text, strlen(text), step, &fed), HTTP_HAVE_REQUEST);
        cr_expect_str_eq(reader.path, "/after");
    }
}

Test(http_connection, counts_what_of_a_refused_body_came_with_its_head)
{
    static const char head[] = "PUT / HTTP/1.1\r\nContent-Length: 101\r\n\r\n";
    char request[256];

    for (int n = 0; n <= 101; n++) {
        snprintf(request, sizeof(request), "%s%*s", head, n, "");
        cr_assert_eq(next_of(request), HTTP_REFUSED);
        snprintf(request, sizeof(request), "%*sGET /after HTTP/1.1\r\n\r\n", 101 - n, "");
        cr_assert_eq(next_of(request), HTTP_HAVE_REQUEST, "%d bytes", n);
        cr_expect_str_eq(reader.path, "/after");
    }
}

Test(http_connection, goes_on_with_a_header_that_was_too_long)
{
    static char request[HTTP_LINE_MAX + 64];
    size_t length, fed;

    memset(request, 'a', sizeof(request));
    memcpy(request, "GET /x HTTP/1.1\r\nX: ", 20);
    length = 17 + HTTP_LINE_MAX + 9;
    memcpy(request + length - 4, "\r\n\r\n", 4);
    cr_assert_eq(feed_in_steps(request, length, HTTP_LINE_MAX, &fed), HTTP_REFUSED);
    cr_expect(strstr(reader.refusal, "Invalid content length. Header: X: aaa"));
    cr_expect_eq(feed_in_steps(request + fed, length - fed, HTTP_LINE_MAX, &fed),
                 HTTP_HAVE_REQUEST);
}

#define NOT_ENCODED "Invalid request. Transfer-Encoding is not supported: send Content-Length."

struct refusal {
    char request[96];
    char text[112];
};

/* What is compared is the text within the frame that all refusals have. */
ParameterizedTestParameters(http_refusal, says_what_was_wrong)
{
    static struct refusal refusals[] = {
        { "\r\n", "Invalid request." },
        { "GET\r\n", "Invalid request." },
        { "GET /\r\n", "Invalid request." },
        { "GET /xyz\r\nX: a b\r\n", "Invalid request." },
        { "GET http://a<b/ HTTP/1.1\r\n", "Invalid URI: Cannot parse URI." },
        { "GET\t/\tHTTP/1.1\r\n", "Invalid request." },
        { "GET /\nX HTTP/1.1\r\n", "Invalid request." },
        { "GET /\rX HTTP/1.1\r\n", "Invalid request." },
        { "GET  HTTP/1.1\r\n", "Invalid URI: Empty URI not allowed." },
        { "GET  / HTTP/1.1\r\n", "Invalid URI: Empty URI not allowed." },
        { "GET /\xff HTTP/1.1\r\n", "Invalid URI: Cannot parse URI as UTF-8." },
        { "get / HTTP/1.1\r\n", "Invalid HTTP Method: Unsupported HTTP method." },
        { "POST / HTTP/1.1\r\n", "Invalid HTTP Method: Unsupported HTTP method." },
        { "HEAD / HTTP/1.1\r\n", "Invalid HTTP Method: Unsupported HTTP method." },
        { "OPTIONS * HTTP/1.1\r\n", "Invalid HTTP Method: Unsupported HTTP method." },
        { "CONNECT x:1 HTTP/1.1\r\n", "Invalid HTTP Method: Unsupported HTTP method." },
        { "GET / HTTP/2.0\r\n", "Invalid HTTP Version: Unsupported HTTP version." },
        { "GET / HTTP/1.2\r\n", "Invalid HTTP Version: Unsupported HTTP version." },
        { "GET / HTTP/0.9\r\n", "Invalid HTTP Version: Unsupported HTTP version." },
        { "GET / x HTTP/1.1\r\n", "Invalid HTTP Version: Unsupported HTTP version." },
        { "GET / HTTP/1.1\r\nnonsense\r\n",
          "Invalid header. Reason: Header is incorrectly formatted. Key: nonsense" },
        { "GET / HTTP/1.1\r\n\tX: a\r\n",
          "Invalid header. Reason: Header is incorrectly formatted. Key: \tX: a" },
        { "GET / HTTP/1.1\r\nX: a\nY: b\r\n",
          "Invalid header. Reason: Header is incorrectly formatted. Key: X: a\nY: b" },
        { "GET / HTTP/1.1\r\nX: a\rY: b\r\n",
          "Invalid header. Reason: Header is incorrectly formatted. Key: X: a\rY: b" },
        { "GET / HTTP/1.1\r\nX: a\r\n b\r\n",
          "Invalid header. Reason: Header is incorrectly formatted. Key:  b" },
        { "GET / HTTP/1.1\r\nHost : x\r\n",
          "Invalid header. Reason: Header is incorrectly formatted. Key: Host " },
        { "GET / HTTP/1.1\r\n: x\r\n",
          "Invalid header. Reason: Header is incorrectly formatted. Key: " },
        { "GET / HTTP/1.1\r\nX: \xff\r\n",
          "Invalid header. Reason: Header contains invalid characters." },
        { "PUT / HTTP/1.1\r\nContent-Length: -1\r\n",
          "Invalid header. Reason: Invalid value. Key:Content-Length; Value: -1" },
        { "PUT / HTTP/1.1\r\nContent-Length: x\r\n",
          "Invalid header. Reason: Invalid value. Key:Content-Length; Value: x" },
        { "PUT / HTTP/1.1\r\nContent-Length: 1 2\r\n",
          "Invalid header. Reason: Invalid value. Key:Content-Length; Value: 1 2" },
        { "PUT / HTTP/1.1\r\nContent-Length: 4294967296\r\n",
          "Invalid header. Reason: Invalid value. Key:Content-Length; Value: 4294967296" },
        { "PUT / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 1\r\n", "Invalid request." },
        { "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", NOT_ENCODED },
        { "PUT / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
          NOT_ENCODED },
        { "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
          NOT_ENCODED },
        { "PUT / HTTP/1.1\r\nTransfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n", NOT_ENCODED },
        { "PUT / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", NOT_ENCODED },
        { "GET / HTTP/1.1\r\nAccept-Encoding: gzip, identity;q=0\r\n",
          "Invalid header. Reason: Invalid value. Key:Accept-Encoding; Value: gzip, identity;q=0" },
        { "GET / HTTP/1.1\r\nAccept-Encoding: IDENTITY ;\tq=0\r\n",
          "Invalid header. Reason: Invalid value. Key:Accept-Encoding; Value: IDENTITY ;\tq=0" },
        { "GET / HTTP/1.1\r\nAccept-Encoding: *;q=0\r\n",
          "Invalid header. Reason: Invalid value. Key:Accept-Encoding; Value: *;q=0" },
        { "PUT / HTTP/1.1\r\nContent-Length: 101\r\n\r\n",
          "Request payload with size 101 is larger than the limit of 100 allowed by server." },
    };

    return cr_make_param_array(struct refusal, refusals, sizeof(refusals) / sizeof(*refusals));
}

ParameterizedTest(struct refusal *r, http_refusal, says_what_was_wrong, .init = set_up,
                  .fini = tear_down)
{
    char expected[256];

    snprintf(expected, sizeof(expected),
             "{ \"error\": \"%s\nAll previous unanswered requests will be dropped.\" }", r->text);
    cr_assert_eq(next_of(r->request), HTTP_REFUSED, "%s", r->request);
    cr_expect_str_eq(reader.refusal, expected);
}

Test(http_refusal, of_an_empty_length_does_not_wait_for_a_body)
{
    cr_expect_eq(next_of("PUT / HTTP/1.1\r\nContent-Length: \r\n\r\n"), HTTP_REFUSED);
}

Test(http_refusal, meets_a_nul_in_a_header)
{
    static const char request[] = "GET / HTTP/1.1\r\nX: a\0b\r\n\r\n";
    size_t fed;

    cr_expect_eq(feed_in_steps(request, sizeof(request) - 1, 1000, &fed), HTTP_REFUSED);
}

Test(http_refusal, meets_a_request_line_of_more_than_its_limit)
{
    static char line[HTTP_LINE_MAX + 2];
    size_t fed;

    memset(line, 'a', sizeof(line));
    memcpy(line, "GET /", 5);
    memcpy(line + sizeof(line) - 11, " HTTP/1.1\r\n", 11);
    cr_expect_eq(feed_in_steps(line, sizeof(line), HTTP_LINE_MAX, &fed), HTTP_REFUSED);
}

Test(http_request, may_have_a_line_of_the_limit)
{
    static char line[HTTP_LINE_MAX + 2];
    size_t fed;

    memset(line, 'a', sizeof(line));
    memcpy(line, "GET /", 5);
    memcpy(line + HTTP_LINE_MAX - 11, " HTTP/1.1\r\n\r\n", 13);
    cr_expect_eq(feed_in_steps(line, sizeof(line), HTTP_LINE_MAX, &fed), HTTP_HAVE_REQUEST);
    cr_expect_eq(strlen(reader.path), HTTP_LINE_MAX - 11 - 4);
}

Test(http_refusal, bounds_the_headers_of_a_request)
{
    enum http_event event = next_of("GET / HTTP/1.1\r\n");
    unsigned headers = 0;

    while (event == HTTP_NEED_MORE && headers++ < 100000)
        event = next_of("X: y\r\n");
    cr_expect_eq(event, HTTP_REFUSED);
}

/* No input may crash the reader or leave it without room: all pairs of bytes after a prefix that
 * leads into each state. */
Test(http_connection, survives_any_two_bytes_in_any_state)
{
    static const char *const prefixes[] = {
        "",
        "GET",
        "GET ",
        "GET /x ",
        "GET /x HTTP/1.1\r\n",
        "GET /x HTTP/1.1\r\nContent-Length: ",
        "PUT /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        "PUT /x HTTP/1.1\r\nContent-Length: 103\r\n\r\n",
        "GET /x HTTP/1.1\r\nX",
    };

    for (size_t p = 0; p < sizeof(prefixes) / sizeof(*prefixes); p++)
        for (unsigned pair = 0; pair < 65536; pair++) {
            const char bytes[] = { (char)(pair & 0xff), (char)(pair >> 8), '\r', '\n' };
            size_t fed;

            http_reader_fini(&reader);
            http_reader_init(&reader, MAX_PAYLOAD);
            next_of(prefixes[p]);
            feed_in_steps(bytes, sizeof(bytes), sizeof(bytes), &fed);
            while (http_reader_has_more(&reader))
                http_reader_next(&reader);
        }
}

Test(http_answer, without_a_body_has_no_length)
{
    char head[HTTP_HEAD_MAX];
    size_t n = http_answer_head(head, &(struct http_answer){ .status = 204 });

    cr_expect_eq(n, strlen(head));
    cr_expect_str_eq(head, "HTTP/1.1 204 \r\nServer: Firecracker API\r\n"
                           "Connection: keep-alive\r\n\r\n");
}

Test(http_answer, has_its_headers_in_firecrackers_order)
{
    char head[HTTP_HEAD_MAX];
    const struct http_answer a = { 400, true, false, NULL, "{}", 2 };

    http_answer_head(head, &a);
    cr_expect_str_eq(head, "HTTP/1.1 400 \r\nServer: Firecracker API\r\n"
                           "Connection: keep-alive\r\nDeprecation: true\r\n"
                           "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n");
}

Test(http_answer, says_that_it_is_the_last)
{
    char head[HTTP_HEAD_MAX];

    http_answer_head(head, &(struct http_answer){ .status = 204, .closes = true });
    cr_expect_str_eq(head, "HTTP/1.1 204 \r\nServer: Firecracker API\r\n"
                           "Connection: close\r\n\r\n");
}

Test(http_answer, fits_its_buffer_at_its_longest)
{
    char head[HTTP_HEAD_MAX];
    const struct http_answer a = { 400,  true,    false, "text/plain; version=0.0.4; charset=utf-8",
                                   "{}", SIZE_MAX };

    cr_expect_lt(http_answer_head(head, &a), sizeof(head));
}
