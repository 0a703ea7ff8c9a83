#include "mmds/service.h"

#include <stdio.h>
#include <string.h>

#include "mmds/frame.h"
#include "mmds/http.h"
#include "vmm/base/metrics.h"

/* Of an answer; the only piece of it whose length a guest has a say in is the name of a header
 * that we know. */
#define HEAD_MAX 256u

struct head {
    unsigned status;
    bool is_http10, is_last, is_json;
    const char *allow;    /* NULL: not said */
    struct mmds_text ttl; /* the name of the header; of no length: not said */
    uint32_t ttl_s;
};

/* What one answer is made of, in one place. */
struct work {
    struct mmds_service *service;
    const struct mmds_request *request;
    uint64_t now_ns;
    struct mmds_budget *budget;
    struct mmds_answer *out;
    struct head head;
};

/* Makes room for a body of at most n bytes; NULL where the budget has none. */
static char *open_body(struct work *w, size_t n)
{
    struct mmds_answer *a = w->out;

    *a = (struct mmds_answer){ .allocated = HEAD_MAX + n };
    a->memory = mmds_budget_take(w->budget, a->allocated);
    return a->memory ? a->memory + HEAD_MAX : NULL;
}

/* Puts the head before a body of n bytes. */
static bool close_body(struct work *w, size_t n)
{
    const struct head *h = &w->head;
    char text[HEAD_MAX], ttl[80] = "";
    int bytes;

    if (h->ttl.n)
        (void)snprintf(ttl, sizeof(ttl), "%.*s: %u\r\n", (int)h->ttl.n, h->ttl.at, h->ttl_s);
    bytes =
        snprintf(text, sizeof(text),
                 "HTTP/1.%c %u \r\nServer: Firecracker API\r\nConnection: %s\r\n%s%s"
                 "Content-Type: %s\r\nContent-Length: %zu\r\n\r\n",
                 h->is_http10 ? '0' : '1', h->status, h->is_last ? "close" : "keep-alive",
                 h->allow ? h->allow : "", ttl, h->is_json ? "application/json" : "text/plain", n);
    BUG_ON(bytes < 0 || (size_t)bytes >= sizeof(text));
    w->out->begin = HEAD_MAX - (size_t)bytes;
    w->out->bytes = (size_t)bytes + n;
    w->out->is_last = h->is_last;
    memcpy(w->out->memory + w->out->begin, text, (size_t)bytes);
    return true;
}

static bool answer_texts(struct work *w, unsigned status, const struct mmds_text *texts,
                         unsigned count)
{
    size_t n = 0;
    char *body;

    for (unsigned i = 0; i < count; i++)
        n += texts[i].n;
    body = open_body(w, n);
    if (!body)
        return false;
    for (unsigned i = 0; i < count; body += texts[i++].n)
        if (texts[i].n)
            memcpy(body, texts[i].at, texts[i].n);
    w->head.status = status;
    return close_body(w, n);
}

static bool answer_text(struct work *w, unsigned status, const char *text)
{
    const struct mmds_text t = mmds_text(text);

    return answer_texts(w, status, &t, 1);
}

static bool answer_not_found(struct work *w)
{
    const struct mmds_text texts[] = { mmds_text("Resource not found: "), w->request->path,
                                       mmds_text(".") };

    return answer_texts(w, 404, texts, 3);
}

/* As many bytes as the list of an object's keys may take. */
static size_t bound_keys(struct mmds_value object)
{
    struct mmds_member m = { 0 };
    size_t n = 0;

    while (mmds_next_member(object, &m))
        n += m.key.length; /* its quotes stand for what is added */
    return n;
}

/* The keys of an object, one a line, those of objects with a slash. Returns the bytes. */
static size_t list_keys(struct mmds_value object, char *out)
{
    struct mmds_member m = { 0 };
    size_t n = 0;

    while (mmds_next_member(object, &m)) {
        if (m.key.at > object.at + 1)
            out[n++] = '\n';
        n += mmds_unescape(m.key, out + n);
        if (mmds_type(m.value) == MMDS_OBJECT)
            out[n++] = '/';
    }
    return n;
}

static bool answer_value(struct work *w, struct mmds_value v)
{
    const enum mmds_type type = mmds_type(v);
    const bool is_json = w->request->accepts_json && !w->service->imds_compat;
    size_t n = is_json || type != MMDS_OBJECT ? v.length : bound_keys(v);
    char *body;

    if (!is_json && type != MMDS_STRING && type != MMDS_OBJECT)
        return answer_text(w, 501, "Cannot retrieve value. The value has an unsupported type.");
    body = open_body(w, n);
    if (!body)
        return false;
    if (is_json)
        memcpy(body, v.at, n);
    else
        n = type == MMDS_STRING ? mmds_unescape(v, body) : list_keys(v, body);
    w->head.status = 200;
    w->head.is_json = is_json;
    return close_body(w, n);
}

/* The path with runs of slashes as one; its bytes. */
static size_t collapse(struct mmds_text path, char out[MMDS_WINDOW])
{
    size_t n = 0;

    for (size_t i = 0; i < path.n; i++)
        if (path.at[i] != '/' || n == 0 || out[n - 1] != '/')
            out[n++] = path.at[i];
    return n;
}

/* Counted in both versions, so that one can see who would be left behind by V2. */
static const char *judge_token(struct work *w)
{
    const struct mmds_header *token = &w->request->token;

    if (!token->name.n) {
        metric_inc(&metrics.mmds.rx_no_token);
        return "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` "
               "header to specify the session token.";
    }
    if (!mmds_token_is_good(&w->service->tokens, w->now_ns, token->value.at, token->value.n)) {
        metric_inc(&metrics.mmds.rx_invalid_token);
        return "MMDS token not valid.";
    }
    return NULL;
}

static bool answer_get(struct work *w)
{
    const char *fault = judge_token(w);
    char path[MMDS_WINDOW];
    struct mmds_value value;
    size_t n;

    if (fault && w->service->needs_token)
        return answer_text(w, 401, fault);
    n = collapse(w->request->path, path);
    n -= path[n - 1] == '/';
    if (!mmds_find(mmds_store_root(w->service->store), path, n, &value))
        return answer_not_found(w);
    return answer_value(w, value);
}

static bool answer_token(struct work *w)
{
    const struct mmds_header *ttl = &w->request->ttl;
    const struct mmds_text no_number[] = { mmds_text("Invalid header. Reason: Invalid value. Key:"),
                                           ttl->name, mmds_text("; Value:"), ttl->value };
    char text[128], token[MMDS_TOKEN_CHARS];
    const struct mmds_text body = { token, sizeof(token) };
    uint32_t ttl_s;

    if (!ttl->name.n)
        return answer_text(
            w, 400,
            "Token time to live value not found. Use `X-metadata-token-ttl-seconds` "
            "or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's "
            "lifetime.");
    if (!mmds_http_number(ttl->value, &ttl_s))
        return answer_texts(w, 400, no_number, 4);
    if (ttl_s < MMDS_TTL_MIN_S || ttl_s > MMDS_TTL_MAX_S) {
        (void)snprintf(text, sizeof(text),
                       "Invalid time to live value provided for token: %u. Please provide a value "
                       "between %u and %u.",
                       ttl_s, MMDS_TTL_MIN_S, MMDS_TTL_MAX_S);
        return answer_text(w, 400, text);
    }
    mmds_token_make(&w->service->tokens, w->now_ns, ttl_s, token);
    w->head.ttl = ttl->name;
    w->head.ttl_s = ttl_s;
    return answer_texts(w, 200, &body, 1);
}

/* A request that came through a proxy gets no token. */
static bool answer_put(struct work *w)
{
    static const char token_path[] = "/latest/api/token";
    const struct mmds_text forwarded[] = {
        mmds_text("Invalid header. Reason: Unsupported header name. Key: "),
        w->request->forwarded.name,
    };
    char path[MMDS_WINDOW];

    if (w->request->forwarded.name.n)
        return answer_texts(w, 400, forwarded, 2);
    if (collapse(w->request->path, path) != strlen(token_path) ||
        memcmp(path, token_path, strlen(token_path)) != 0)
        return answer_not_found(w);
    return answer_token(w);
}

/* Only a request that can be read is answered in its version. */
bool mmds_service_answer(struct mmds_service *s, const char *request, size_t n, uint64_t now_ns,
                         struct mmds_budget *budget, struct mmds_answer *out)
{
    struct mmds_request r;
    struct mmds_refusal why;
    struct work w = { s, &r, now_ns, budget, out, { 0 } };

    if (!mmds_http_parse(request, n, &r, &why)) {
        w.head.is_json = true; /* it is not, but Firecracker says so */
        w.head.is_last = r.is_last;
        return answer_texts(&w, why.status, why.texts, sizeof(why.texts) / sizeof(*why.texts));
    }
    w.head.is_http10 = r.is_http10;
    w.head.is_last = r.is_last;
    if (r.path.n == 0)
        return answer_text(&w, 400, "Invalid URI.");
    switch (r.method) {
    case MMDS_GET: return answer_get(&w);
    case MMDS_PUT: return answer_put(&w);
    default:
        w.head.allow = "Allow: GET, PUT\r\n";
        return answer_text(&w, 405, "Not allowed HTTP method.");
    }
}

bool mmds_service_refuse_length(struct mmds_budget *budget, struct mmds_answer *out)
{
    struct work w = { .budget = budget, .out = out, .head = { .is_last = true } };

    return answer_text(&w, 431, "The request is longer than 2500 bytes.");
}

void mmds_answer_free(struct mmds_answer *a, struct mmds_budget *budget)
{
    mmds_budget_give_back(budget, a->memory, a->allocated);
    *a = (struct mmds_answer){ 0 };
}
