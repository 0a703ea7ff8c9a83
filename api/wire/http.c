#include "api/wire/http.h"

#include <http_parser.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "vmm/base/utf8.h"
#include "vmm/base/error.h"

_Static_assert(sizeof(http_parser) <= sizeof(((struct http_reader *)0)->parser), "parser storage");

const char *const http_verb_names[HTTP_VERBS] = { "GET", "PUT", "PATCH", "DELETE" };

const char http_busy_answer[] = "HTTP/1.1 503 \r\n"
                                "Server: Firecracker API\r\n"
                                "Connection: close\r\n"
                                "Content-Length: 40\r\n\r\n"
                                "{ \"error\": \"Too many open connections\" }";

static int on_url(http_parser *p, const char *at, size_t n);
static int on_header_field(http_parser *p, const char *at, size_t n);
static int on_header_value(http_parser *p, const char *at, size_t n);
static int on_headers_complete(http_parser *p);

static const http_parser_settings settings = {
    .on_url = on_url,
    .on_header_field = on_header_field,
    .on_header_value = on_header_value,
    .on_headers_complete = on_headers_complete,
};

static http_parser *parser_of(struct http_reader *r)
{
    return (http_parser *)(void *)r->parser;
}

void http_reader_init(struct http_reader *r, size_t max_payload)
{
    *r = (struct http_reader){ .max_payload = max_payload };
}

void http_reader_fini(struct http_reader *r)
{
    free(r->body);
    r->body = NULL;
}

size_t http_reader_space(struct http_reader *r, char **at)
{
    if (r->state == HTTP_AT_BODY) { /* straight into place: every byte at hand is in the body */
        *at = r->body + r->body_have;
        return r->body_length - r->body_have;
    }
    if (r->begin > 0) {
        memmove(r->line, r->line + r->begin, r->end - r->begin);
        r->end -= r->begin;
        r->begin = 0;
    }
    r->kept = r->end;
    *at = r->line + r->end;
    if (r->state == HTTP_SKIPPING && r->body_length - r->skipped < sizeof(r->line))
        return r->body_length - r->skipped;
    return sizeof(r->line) - r->end;
}

static void skip_body(struct http_reader *r, size_t n)
{
    r->skipped += n;
    if (r->skipped >= r->body_length)
        r->state = HTTP_AT_REQUEST_LINE;
}

void http_reader_fed(struct http_reader *r, size_t n)
{
    if (r->state == HTTP_AT_BODY)
        r->body_have += n;
    else if (r->state == HTTP_SKIPPING)
        skip_body(r, n);
    else
        r->end += n;
    r->is_waiting = false;
}

/*
 * Words a refusal as Firecracker does, newline in the string and all: clients compare these bytes.
 * What came with the last bytes is gone, as the text says. A line that is too long
 * keeps its beginning: Firecracker goes on with it, and answers it in the end.
 */
static enum http_event refuse_bytes(struct http_reader *r, enum http_state next, const char *fmt,
                                    ...) __attribute__((format(printf, 3, 4)));
static enum http_event refuse_bytes(struct http_reader *r, enum http_state next, const char *fmt,
                                    ...)
{
    char reason[HTTP_LINE_MAX + 128];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(reason, sizeof(reason), fmt, ap);
    va_end(ap);
    snprintf(r->refusal, sizeof(r->refusal),
             "{ \"error\": \"%s\nAll previous unanswered requests will be dropped.\" }", reason);
    r->end = next == HTTP_AT_HEADERS ? r->kept : 0;
    r->begin = 0;
    r->closes = r->state == HTTP_AT_HEADERS && !http_should_keep_alive(parser_of(r));
    r->state = next;
    return HTTP_REFUSED;
}

static enum http_event refuse_request(struct http_reader *r, const char *why)
{
    return refuse_bytes(r, HTTP_AT_REQUEST_LINE, "%s", why);
}

/* The part of a target that routes read: Firecracker takes anything but an absolute path or http
 * URL for one without a path. */
static const char *path_of(const char *target, size_t *length)
{
    static const char scheme[] = "http://";
    const size_t skip = sizeof(scheme) - 1;
    const char *slash;

    if (*target == '/')
        return target;
    slash = *length >= skip && strncmp(target, scheme, skip) == 0
                ? memchr(target + skip, '/', *length - skip)
                : NULL;
    *length = slash ? (size_t)(target + *length - slash) : 0;
    return slash ? slash : "";
}

static int on_url(http_parser *p, const char *at, size_t n)
{
    struct http_reader *r = p->data;
    static const struct {
        unsigned method;
        enum http_verb verb;
    } verbs[] = {
        { HTTP_GET, HTTP_VERB_GET },
        { HTTP_PUT, HTTP_VERB_PUT },
        { HTTP_PATCH, HTTP_VERB_PATCH },
        { HTTP_DELETE, HTTP_VERB_DELETE },
    };

    (void)at;
    (void)n;
    for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++)
        if (verbs[i].method == p->method) {
            r->verb = verbs[i].verb;
            return 0;
        }
    return -1;
}

/* Shows bytes to the library; false where it stops at one. */
static bool feed(struct http_reader *r, const char *line, size_t n)
{
    http_parser *p = parser_of(r);

    return http_parser_execute(p, &settings, line, n) == n && HTTP_PARSER_ERRNO(p) == HPE_OK;
}

/* A target that is no URL is shown to the library as "/": "*", "x:80" and the like are legal
 * targets elsewhere, and have no path here. */
static bool feed_request_line(struct http_reader *r, const char *line, const char *target,
                              size_t target_length, size_t n)
{
    const char *rest = target + target_length;

    if (*target == '/' || strncasecmp(target, "http://", 7) == 0)
        return feed(r, line, n);
    return feed(r, line, (size_t)(target - line)) && feed(r, "/", 1) &&
           feed(r, rest, n - (size_t)(rest - line));
}

/* The lines that the library is shown have no CR or LF inside: it would take one for two that is
 * one to everybody else. */
static enum http_event parse_request_line(struct http_reader *r, const char *line, size_t n)
{
    http_parser *p = parser_of(r);
    const char *target = memchr(line, ' ', n);
    const char *version = target ? memchr(target + 1, ' ', n - (size_t)(target + 1 - line)) : NULL;
    size_t length;

    if (!version || memchr(line, '\n', n - 2) || memchr(line, '\r', n - 2))
        return refuse_request(r, "Invalid request.");
    length = (size_t)(version - ++target);
    http_parser_init(p, HTTP_REQUEST);
    p->data = r;
    r->expects_continue = false;
    r->header = HTTP_OTHER;
    if (length > 0 && feed_request_line(r, line, target, length, n)) {
        if (!utf8_is_all(target, length))
            return refuse_request(r, "Invalid URI: Cannot parse URI as UTF-8.");
        if (p->http_major != 1 || p->http_minor > 1)
            return refuse_request(r, "Invalid HTTP Version: Unsupported HTTP version.");
        target = path_of(target, &length);
        memcpy(r->path, target, length);
        r->path[length] = '\0';
        r->state = HTTP_AT_HEADERS;
        return HTTP_NEED_MORE;
    }
    switch (HTTP_PARSER_ERRNO(p)) {
    case HPE_OK: return refuse_request(r, "Invalid URI: Empty URI not allowed.");
    case HPE_INVALID_METHOD:
    case HPE_CB_url: return refuse_request(r, "Invalid HTTP Method: Unsupported HTTP method.");
    case HPE_INVALID_URL: return refuse_request(r, "Invalid URI: Cannot parse URI.");
    default: return refuse_request(r, "Invalid HTTP Version: Unsupported HTTP version.");
    }
}

static bool name_is(const char *at, size_t n, const char *name)
{
    return n == strlen(name) && strncasecmp(at, name, n) == 0;
}

static int on_header_field(http_parser *p, const char *at, size_t n)
{
    struct http_reader *r = p->data;

    r->header = name_is(at, n, "content-length")    ? HTTP_CONTENT_LENGTH
                : name_is(at, n, "expect")          ? HTTP_EXPECT
                : name_is(at, n, "accept-encoding") ? HTTP_ACCEPT_ENCODING
                                                    : HTTP_OTHER;
    return memchr(at, ' ', n) ? -1 : 0; /* "Host : x" reads one way here and another elsewhere */
}

/* Whether an Accept-Encoding value leaves us no encoding: all our answers are "identity". */
static bool forbids_identity(const char *at, size_t n)
{
    char value[HTTP_LINE_MAX];
    char *state = NULL;
    size_t used = 0;

    for (size_t i = 0; i < n; i++)
        if (at[i] != ' ' && at[i] != '\t')
            value[used++] = at[i];
    value[used] = '\0';
    for (char *t = strtok_r(value, ",", &state); t; t = strtok_r(NULL, ",", &state))
        if (strcasecmp(t, "identity;q=0") == 0 || strcmp(t, "*;q=0") == 0)
            return true;
    return false;
}

static int on_header_value(http_parser *p, const char *at, size_t n)
{
    struct http_reader *r = p->data;

    if (r->header == HTTP_EXPECT)
        r->expects_continue = name_is(at, n, "100-continue");
    if (r->header == HTTP_ACCEPT_ENCODING && forbids_identity(at, n))
        return -1;
    /* Firecracker's type for a length. */
    if (r->header == HTTP_CONTENT_LENGTH && p->content_length > UINT32_MAX)
        return -1;
    return 0;
}

/* 1: the body is taken by length alone, not by the library. */
static int on_headers_complete(http_parser *p)
{
    return p->uses_transfer_encoding ? -1 : 1;
}

/* Where its body ends is not read, and what follows could be anything. */
static enum http_event refuse_encoding(struct http_reader *r)
{
    refuse_request(r, "Invalid request. Transfer-Encoding is not supported: send Content-Length.");
    r->closes = true;
    return HTTP_REFUSED;
}

static enum http_event refuse_header(struct http_reader *r, const char *line, size_t n)
{
    http_parser *p = parser_of(r);
    const char *colon = memchr(line, ':', n);
    int name = colon ? (int)(colon - line) : (int)n - 2;
    int value = colon ? (int)n - 2 - name - 1 : 0;

    switch (HTTP_PARSER_ERRNO(p)) {
    case HPE_INVALID_CONTENT_LENGTH:
    case HPE_CB_header_value:
        return refuse_bytes(r, HTTP_AT_REQUEST_LINE,
                            "Invalid header. Reason: Invalid value. Key:%.*s; Value:%.*s", name,
                            line, value, line + n - 2 - value);
    case HPE_INVALID_TRANSFER_ENCODING:
    case HPE_CB_headers_complete: return refuse_encoding(r);
    case HPE_UNEXPECTED_CONTENT_LENGTH:
        if (p->uses_transfer_encoding)
            return refuse_encoding(r);
        return refuse_request(r, "Invalid request.");
    case HPE_HEADER_OVERFLOW: return refuse_request(r, "Invalid request.");
    default:
        return refuse_bytes(r, HTTP_AT_REQUEST_LINE,
                            "Invalid header. Reason: Header is incorrectly formatted. Key: %.*s",
                            name, line);
    }
}

/* Not read as requests: a client that sends all of it before it looks would get so many answers
 * that both ends wait for ever. One that waits for a 100 may send it or not: nobody knows what
 * follows. */
static enum http_event refuse_body(struct http_reader *r)
{
    const size_t at_hand = r->end - r->begin;

    refuse_bytes(r, HTTP_SKIPPING,
                 "Request payload with size %zu is larger than the limit of %zu allowed by "
                 "server.",
                 r->body_length, r->max_payload);
    r->closes |= r->expects_continue;
    r->skipped = 0;
    skip_body(r, at_hand);
    return HTTP_REFUSED;
}

static enum http_event end_of_headers(struct http_reader *r)
{
    http_parser *p = parser_of(r);

    r->body_length = p->flags & F_CONTENTLENGTH ? (size_t)p->content_length : 0;
    r->body_have = 0;
    r->closes = !http_should_keep_alive(p);
    if (r->body_length > r->max_payload)
        return refuse_body(r);
    if (r->body_length == 0) {
        r->state = HTTP_AT_END;
        return HTTP_NEED_MORE;
    }
    r->body = malloc(r->body_length + 1);
    BUG_ON(!r->body);
    r->state = HTTP_AT_BODY;
    return r->expects_continue ? HTTP_WANTS_CONTINUE : HTTP_NEED_MORE;
}

static enum http_event parse_header(struct http_reader *r, const char *line, size_t n)
{
    if (n > 2 &&
        (*line == ' ' || *line == '\t' || memchr(line, '\n', n - 2) || memchr(line, '\r', n - 2)))
        return refuse_bytes(r, HTTP_AT_REQUEST_LINE,
                            "Invalid header. Reason: Header is incorrectly formatted. Key: %.*s",
                            (int)n - 2, line);
    if (!utf8_is_all(line, n))
        return refuse_bytes(r, HTTP_AT_REQUEST_LINE,
                            "Invalid header. Reason: Header contains invalid characters.");
    if (!feed(r, line, n))
        return refuse_header(r, line, n);
    return n == 2 ? end_of_headers(r) : HTTP_NEED_MORE;
}

/* Takes the next line from what is at hand; HTTP_NEED_MORE both when there is none and when there
 * is nothing to say about it. */
static enum http_event parse_line(struct http_reader *r, bool *parsed)
{
    const char *line = r->line + r->begin;
    size_t held = r->end - r->begin;
    const char *end = memmem(line, held, "\r\n", 2);
    size_t n;

    *parsed = end != NULL;
    if (!end) {
        if (held < sizeof(r->line))
            return HTTP_NEED_MORE;
        if (r->state == HTTP_AT_REQUEST_LINE)
            return refuse_request(r, "Invalid request.");
        return refuse_bytes(r, r->state,
                            "Invalid header. Reason: Invalid content length. Header: %.*s",
                            (int)held, line);
    }
    n = (size_t)(end - line) + 2;
    r->begin += n;
    return r->state == HTTP_AT_REQUEST_LINE ? parse_request_line(r, line, n)
                                            : parse_header(r, line, n);
}

static void take_payload(struct http_reader *r)
{
    size_t n = r->end - r->begin;

    if (n > r->body_length - r->body_have)
        n = r->body_length - r->body_have;
    memcpy(r->body + r->body_have, r->line + r->begin, n);
    r->body_have += n;
    r->begin += n;
    if (r->body_have == r->body_length) {
        r->body[r->body_length] = '\0';
        r->state = HTTP_AT_END;
    }
}

enum http_event http_reader_next(struct http_reader *r)
{
    enum http_event event;
    bool parsed = true;

    if (r->state == HTTP_AT_REQUEST_LINE) {
        http_reader_fini(r); /* of the request before */
        r->body_length = 0;
    }
    while (parsed && (r->state == HTTP_AT_REQUEST_LINE || r->state == HTTP_AT_HEADERS)) {
        event = parse_line(r, &parsed);
        if (event != HTTP_NEED_MORE)
            return event;
    }
    if (r->state == HTTP_AT_BODY)
        take_payload(r);
    r->is_waiting = r->state != HTTP_AT_END;
    if (r->is_waiting)
        return HTTP_NEED_MORE;
    r->state = HTTP_AT_REQUEST_LINE;
    return HTTP_HAVE_REQUEST;
}

bool http_reader_has_more(const struct http_reader *r)
{
    return r->begin < r->end && !r->is_waiting;
}

size_t http_answer_head(char buffer[HTTP_HEAD_MAX], const struct http_answer *a)
{
    int n = snprintf(buffer, HTTP_HEAD_MAX,
                     "HTTP/1.1 %u \r\n"
                     "Server: Firecracker API\r\n"
                     "Connection: %s\r\n%s",
                     a->status, a->closes ? "close" : "keep-alive",
                     a->deprecated ? "Deprecation: true\r\n" : "");

    if (a->body)
        n += snprintf(buffer + n, HTTP_HEAD_MAX - (size_t)n,
                      "Content-Type: %s\r\n"
                      "Content-Length: %zu\r\n",
                      a->type ? a->type : "application/json", a->body_length);
    n += snprintf(buffer + n, HTTP_HEAD_MAX - (size_t)n, "\r\n");
    return (size_t)n;
}
