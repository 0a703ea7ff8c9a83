#include "mmds/http.h"

#include <string.h>
#include <strings.h>

#include "vmm/base/utf8.h"

/* "GET / HTTP/1.1" */
#define REQUEST_LINE_MIN 14u

size_t mmds_http_request_bytes(const char *at, size_t n)
{
    const char *const end = at + n;

    for (const char *lf = at; (lf = memchr(lf, '\n', (size_t)(end - lf))); lf++) {
        if (end - lf > 1 && lf[1] == '\n')
            return (size_t)(lf + 2 - at);
        if (end - lf > 2 && lf[1] == '\r' && lf[2] == '\n')
            return (size_t)(lf + 3 - at);
    }
    return 0;
}

static bool text_is(struct mmds_text t, const char *s)
{
    return t.n == strlen(s) && memcmp(t.at, s, t.n) == 0;
}

static bool is_word(struct mmds_text t, const char *s)
{
    return t.n == strlen(s) && strncasecmp(t.at, s, t.n) == 0;
}

static bool begins_with(struct mmds_text t, const char *s)
{
    return t.n >= strlen(s) && memcmp(t.at, s, strlen(s)) == 0;
}

static struct mmds_text text_behind(struct mmds_text t, size_t n)
{
    return (struct mmds_text){ t.at + n, t.n - n };
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct mmds_text trim_spaces(struct mmds_text t)
{
    while (t.n > 0 && is_space(*t.at))
        t = text_behind(t, 1);
    while (t.n > 0 && is_space(t.at[t.n - 1]))
        t.n--;
    return t;
}

/* Takes what is before the next separator, or all that is left, off *t. False: there is none. */
static bool cut(struct mmds_text *t, const char *separator, struct mmds_text *out)
{
    const size_t n = strlen(separator);
    const char *at = memmem(t->at, t->n, separator, n);

    *out = *t;
    if (!at) {
        *t = text_behind(*t, t->n);
        return false;
    }
    out->n = (size_t)(at - t->at);
    *t = text_behind(*t, out->n + n);
    return true;
}

static bool refuse(struct mmds_refusal *why, unsigned status, const char *text)
{
    *why = (struct mmds_refusal){ status, { mmds_text(text) } };
    return false;
}

static bool refuse_value(struct mmds_refusal *why, struct mmds_text name, struct mmds_text value)
{
    *why = (struct mmds_refusal){
        400, { mmds_text("Invalid value. Key:"), name, mmds_text("; Value:"), value }
    };
    return false;
}

bool mmds_http_number(struct mmds_text t, uint32_t *out)
{
    uint64_t value = 0;

    if (t.n > 1 && *t.at == '+')
        t = text_behind(t, 1);
    if (t.n == 0)
        return false;
    for (; t.n > 0; t = text_behind(t, 1)) {
        if (*t.at < '0' || *t.at > '9')
            return false;
        value = value * 10 + (uint64_t)(*t.at - '0');
        if (value > UINT32_MAX)
            return false;
    }
    *out = (uint32_t)value;
    return true;
}

/* The path of an absolute URI, or of one that is only a path. */
static struct mmds_text path_in(struct mmds_text uri)
{
    static const char scheme[] = "http://";
    const char *slash;

    if (begins_with(uri, "/"))
        return uri;
    if (!begins_with(uri, scheme))
        return (struct mmds_text){ 0 };
    uri = text_behind(uri, strlen(scheme));
    slash = memchr(uri.at, '/', uri.n);
    return slash ? text_behind(uri, (size_t)(slash - uri.at)) : (struct mmds_text){ 0 };
}

static bool parse_method(struct mmds_text t, enum mmds_method *out)
{
    static const char *const names[] = {
        [MMDS_GET] = "GET", [MMDS_PUT] = "PUT", [MMDS_PATCH] = "PATCH", [MMDS_DELETE] = "DELETE"
    };

    for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++) {
        if (text_is(t, names[i])) {
            *out = (enum mmds_method)i;
            return true;
        }
    }
    return false;
}

static bool take_request_line(struct mmds_text line, struct mmds_request *r,
                              struct mmds_refusal *why)
{
    const bool is_long_enough = line.n >= REQUEST_LINE_MIN;
    struct mmds_text method, uri;

    if (!is_long_enough || !cut(&line, " ", &method) || !cut(&line, " ", &uri))
        return refuse(why, 400, "Invalid request.");
    if (!parse_method(method, &r->method))
        return refuse(why, 501, "Unsupported HTTP method.");
    if (uri.n == 0)
        return refuse(why, 400, "Empty URI not allowed.");
    if (!utf8_is_all(uri.at, uri.n))
        return refuse(why, 400, "Cannot parse URI as UTF-8.");
    r->path = path_in(uri);
    r->is_http10 = text_is(line, "HTTP/1.0");
    r->is_last = r->is_http10;
    if (!r->is_http10 && !text_is(line, "HTTP/1.1"))
        return refuse(why, 501, "Unsupported HTTP version.");
    return true;
}

static void take_connection(struct mmds_request *r, struct mmds_text value)
{
    while (value.n > 0) {
        struct mmds_text word;

        (void)cut(&value, ",", &word);
        word = trim_spaces(word);
        if (is_word(word, "close"))
            r->is_last = true;
        else if (is_word(word, "keep-alive"))
            r->is_last = false;
    }
}

/* What we send is encoded in no way. */
static bool takes_identity(struct mmds_text value, struct mmds_refusal *why)
{
    const bool names_identity = memmem(value.at, value.n, "identity", strlen("identity"));

    if (value.n == 0)
        return refuse(why, 400, "Invalid request.");
    while (value.n > 0) {
        struct mmds_text encoding;

        (void)cut(&value, ",", &encoding);
        if (text_is(trim_spaces(encoding), "identity;q=0") ||
            (text_is(trim_spaces(encoding), "*;q=0") && !names_identity))
            return refuse_value(why, mmds_text("Accept-Encoding"), encoding);
    }
    return true;
}

/* Of several names for one thing the preferred one counts, of several values the last. */
static void take_custom(struct mmds_request *r, const struct mmds_header *h)
{
    const struct {
        const char *name;
        struct mmds_header *to;
        bool is_preferred;
    } known[] = {
        { "X-metadata-token", &r->token, true },
        { "X-aws-ec2-metadata-token", &r->token, false },
        { "X-metadata-token-ttl-seconds", &r->ttl, true },
        { "X-aws-ec2-metadata-token-ttl-seconds", &r->ttl, false },
        { "X-Forwarded-For", &r->forwarded, true },
    };

    for (unsigned i = 0; i < sizeof(known) / sizeof(*known); i++)
        if (is_word(h->name, known[i].name) && (known[i].is_preferred || !known[i].to->name.n ||
                                                is_word(known[i].to->name, known[i].name)))
            *known[i].to = *h;
}

static bool take_header_line(struct mmds_text line, struct mmds_request *r, bool *has_body,
                             struct mmds_refusal *why)
{
    struct mmds_header h;
    struct mmds_text name, value;
    uint32_t length;

    if (!cut(&line, ":", &h.name)) {
        *why = (struct mmds_refusal){
            400, { mmds_text("Header is incorrectly formatted. Key: "), h.name }
        };
        return false;
    }
    h.value = value = trim_spaces(line);
    name = trim_spaces(h.name);
    if (is_word(name, "Content-Length")) {
        if (!mmds_http_number(value, &length))
            return refuse_value(why, h.name, line);
        *has_body = length > 0;
    } else if (is_word(name, "Accept-Encoding")) {
        return takes_identity(value, why);
    } else if (is_word(name, "Accept")) {
        if (text_is(value, "application/json") || text_is(value, "text/plain"))
            r->accepts_json = *value.at == 'a';
    } else if (is_word(name, "Connection")) {
        take_connection(r, value);
    } else {
        take_custom(r, &h);
    }
    return true;
}

bool mmds_http_parse(const char *at, size_t n, struct mmds_request *r, struct mmds_refusal *why)
{
    struct mmds_text rest = { at, n }, line;
    bool has_body = false;

    *r = (struct mmds_request){ 0 };
    if (!cut(&rest, "\r\n", &line))
        return refuse(why, 400, "Invalid request.");
    if (!take_request_line(line, r, why))
        return false;
    if (memcmp(at + n - 4, "\r\n\r\n", 4) != 0 || !utf8_is_all(rest.at, rest.n))
        return refuse(why, 400, "Invalid request.");
    while (cut(&rest, "\r\n", &line) && line.n > 0)
        if (!take_header_line(line, r, &has_body, why))
            return false;
    if (!has_body)
        return true;
    /* What follows is no request, whatever it looks like. */
    r->is_last = true;
    return refuse(why, 400, "Invalid request.");
}
