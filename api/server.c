#include "api/server.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/call.h"
#include "api/wire/http.h"
#include "api/wire/quote.h"
#include "vmm/base/log.h"
#include "vmm/base/timeline.h"

#define BACKLOG 32

struct connection {
    struct api *api;
    struct loop_source source;
    struct http_reader reader;
    /* the answer that is not yet sent */
    char head[HTTP_HEAD_MAX];
    struct json_writer body;
    size_t head_length, sent;
    bool waits;   /* for an answer that comes later; nothing is read meanwhile */
    bool is_last; /* the connection is over when it is sent */
    bool is_over; /* it waits for the client's end, unless another client needs the place */
};

struct api {
    struct loop *loop;
    struct vm *vm;
    size_t max_payload;
    struct loop_source listener;
    struct connection *connections[API_CONNECTIONS_MAX];
    struct api_later later;
    struct connection *waiting; /* for that; NULL: none does, or it is gone */
};

static void connection_close(struct connection *c)
{
    struct api *api = c->api;

    for (unsigned i = 0; i < API_CONNECTIONS_MAX; i++)
        if (api->connections[i] == c)
            api->connections[i] = NULL;
    if (api->waiting == c)
        api->waiting = NULL;
    loop_remove(api->loop, &c->source);
    close(c->source.fd);
    http_reader_fini(&c->reader);
    json_writer_fini(&c->body);
    free(c);
}

static size_t unsent(const struct connection *c)
{
    return c->head_length + c->body.length - c->sent;
}

/* Sends what the socket takes. -1: the client is gone. */
static int send_rest(struct connection *c)
{
    size_t head = c->sent < c->head_length ? c->sent : c->head_length;
    size_t body = c->sent - head;
    struct iovec parts[] = {
        { c->head + head, c->head_length - head },
        { c->body.text + body, c->body.length - body },
    };
    ssize_t n;

    if (unsent(c) == 0)
        return 0;
    /* A client that is gone raises SIGPIPE, which is counted (vmm/base/signals.h). The filters
     * leave us no sendmsg(), which could also hand out descriptors. */
    n = writev(c->source.fd, parts, 2);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    c->sent += (size_t)n;
    if (unsent(c) == 0) {
        json_writer_fini(&c->body);
        c->head_length = c->sent = 0;
        c->is_over = c->is_last;
        if (c->is_over)
            shutdown(c->source.fd, SHUT_WR);
    }
    return 0;
}

/* What comes after the end would, if it were left unread, take the last answer from a client that
 * is still sending when the connection is closed. -1: the client is gone. */
static int forget_bytes(struct connection *c)
{
    char bytes[4096];
    ssize_t n = read(c->source.fd, bytes, sizeof(bytes));

    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)) ? 0 : -1;
}

static void begin_answer(struct connection *c, unsigned status, bool deprecated, const char *type)
{
    struct http_answer a = {
        .status = status,
        .deprecated = deprecated,
        .closes = status != 100 && c->reader.closes,
        .type = type,
        .body = c->body.text,
        .body_length = c->body.length,
    };

    c->head_length = http_answer_head(c->head, &a);
    c->sent = 0;
    c->is_last = a.closes;
}

static void serve_request(struct connection *c)
{
    struct http_reader *r = &c->reader;
    struct api_request request = { r->verb, r->path, r->body, r->body_length };
    struct api_answer result;

    api_serve(c->api->vm, &request, &c->api->later, &result);
    c->waits = result.status == 0;
    if (c->waits) {
        c->api->waiting = c;
        return;
    }
    c->body = result.body;
    begin_answer(c, result.status, result.deprecated, result.type);
}

/* Goes on with the bytes at hand until there is something to answer. */
static void go_on(struct connection *c)
{
    char shown[256];

    switch (http_reader_next(&c->reader)) {
    case HTTP_NEED_MORE: return;
    case HTTP_HAVE_REQUEST: serve_request(c); return;
    case HTTP_WANTS_CONTINUE: begin_answer(c, 100, false, NULL); return;
    case HTTP_REFUSED:
        log_error("The API server refused a request: %s",
                  quote(shown, sizeof(shown), c->reader.refusal, strlen(c->reader.refusal)));
        json_put(&c->body, c->reader.refusal);
        begin_answer(c, 400, false, NULL);
        return;
    }
}

/* -1: the client is gone. */
static int receive_bytes(struct connection *c)
{
    char *at;
    size_t room = http_reader_space(&c->reader, &at);
    ssize_t n = read(c->source.fd, at, room);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n == 0)
        return -1;
    http_reader_fed(&c->reader, (size_t)n);
    go_on(c);
    return 0;
}

/* One turn: the rest of an answer, else one request. Nothing is read before the answer to the
 * request before has left, and no bytes while some are at hand that are not looked at. */
static int take_turn(struct connection *c)
{
    if (c->waits) /* nothing was waited for but the client's end */
        return -1;
    if (c->is_over)
        return forget_bytes(c);
    if (unsent(c) > 0)
        return send_rest(c);
    if (http_reader_has_more(&c->reader))
        go_on(c);
    if (unsent(c) == 0 && receive_bytes(c) < 0)
        return -1;
    return send_rest(c);
}

/* EPOLLOUT also brings the next turn when bytes are at hand and none may ever come. */
static void want_next(struct connection *c)
{
    const bool is_writer = !c->is_over && (unsent(c) > 0 || http_reader_has_more(&c->reader));
    const uint32_t want = c->waits ? 0 : is_writer ? EPOLLOUT : EPOLLIN;

    if (want != c->source.want)
        loop_want(c->api->loop, &c->source, want);
}

static void on_connection(struct loop_source *src, uint32_t ready)
{
    struct connection *c = owner_of(src, struct connection, source);

    (void)ready;
    if (take_turn(c) < 0)
        connection_close(c);
    else
        want_next(c);
}

static void on_later_answer(struct api_later *l, struct api_answer *answer)
{
    struct api *api = owner_of(l, struct api, later);
    struct connection *c = api->waiting;

    api->waiting = NULL;
    if (!c) {
        json_writer_fini(&answer->body);
        return;
    }
    c->waits = false;
    c->body = answer->body;
    begin_answer(c, answer->status, answer->deprecated, answer->type);
    if (send_rest(c) < 0)
        connection_close(c);
    else
        want_next(c);
}

static void refuse_connection(int fd)
{
    if (write(fd, http_busy_answer, strlen(http_busy_answer)) < 0)
        log_debug("The API server could not answer a connection too many: %s",
                  os_error_text(errno));
    log_warn("The API server refused a connection: %d are open.", API_CONNECTIONS_MAX);
}

/* One of no connection, or of one that is over; NULL: there is none. */
static struct connection **free_place(struct api *api)
{
    struct connection **over = NULL;

    for (unsigned i = 0; i < API_CONNECTIONS_MAX; i++) {
        if (!api->connections[i])
            return &api->connections[i];
        if (api->connections[i]->is_over)
            over = &api->connections[i];
    }
    if (over)
        connection_close(*over);
    return over;
}

static void connection_open(struct api *api, int accepted)
{
    autofd int fd = accepted;
    struct connection **slot = free_place(api);
    struct connection *c;
    int ret;

    if (!slot) {
        refuse_connection(fd);
        return;
    }
    c = calloc(1, sizeof(*c));
    BUG_ON(!c);
    c->api = api;
    c->source = (struct loop_source){ fd, EPOLLIN, on_connection };
    http_reader_init(&c->reader, api->max_payload);
    ret = loop_add(api->loop, &c->source);
    if (ret < 0) {
        log_error("The API server can't watch a connection: %s", os_error_text(-ret));
        free(c);
        return;
    }
    *slot = c;
    take_fd(&fd);
}

/* One connection a turn: those that have ended meanwhile give up their places in time. When none
 * can be accepted (out of descriptors) the listener falls asleep until the next one comes, so that
 * the loop does not spin over the one it can't have. */
static void on_listener(struct loop_source *src, uint32_t ready)
{
    struct api *api = owner_of(src, struct api, listener);
    int fd = accept4(src->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    uint32_t want = EPOLLIN;

    (void)ready;
    if (fd >= 0) {
        connection_open(api, fd);
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        log_error("The API server can't accept a connection: %s", os_error_text(errno));
        want |= EPOLLET;
    }
    if (want != src->want)
        loop_want(api->loop, src, want);
}

static int listen_at(const char *path, struct error *e)
{
    autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t length = strlen(path);

    if (length == 0) /* the kernel would choose a name that nobody knows */
        return fail(e, ERR_INVALID,
                    "Failed to bind and run the HTTP server: IO error: the path is empty");
    if (length >= sizeof(address.sun_path))
        return fail(e, ERR_INVALID,
                    "Failed to bind and run the HTTP server: IO error: %.200s: path must be "
                    "shorter than SUN_LEN",
                    path);
    if (fd < 0)
        return fail_os(e, errno, "Failed to bind and run the HTTP server: IO error");
    memcpy(address.sun_path, path, length);
    if (bind(fd, (struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1)) < 0) {
        if (errno == EADDRINUSE)
            return fail(e, ERR_INVALID,
                        "Failed to open the API socket at: %s. Check that it is not already used.",
                        path);
        return fail_os(e, errno, "Failed to bind and run the HTTP server: IO error: %s", path);
    }
    if (listen(fd, BACKLOG) < 0)
        return fail_os(e, errno, "Failed to bind and run the HTTP server: IO error: %s", path);
    return take_fd(&fd);
}

struct api *api_open(struct loop *loop, struct vm *vm, const char *path, size_t max_payload,
                     struct error *e)
{
    struct api *api;
    int fd = listen_at(path, e);
    int ret;

    if (fd < 0)
        return NULL;
    api = calloc(1, sizeof(*api));
    BUG_ON(!api);
    api->loop = loop;
    api->vm = vm;
    api->max_payload = max_payload;
    api->later.on_answer = on_later_answer;
    api->listener = (struct loop_source){ fd, EPOLLIN, on_listener };
    ret = loop_add(loop, &api->listener);
    if (ret < 0) {
        fail_os(e, -ret, "Failed to bind and run the HTTP server: IO error: %s", path);
        close(fd);
        free(api);
        return NULL;
    }
    log_info("Listening on API socket (\"%s\").", path);
    timeline_mark(PHASE_API_READY);
    log_info("API server started.");
    return api;
}

void api_close(struct api *api)
{
    for (unsigned i = 0; i < API_CONNECTIONS_MAX; i++)
        if (api->connections[i])
            connection_close(api->connections[i]);
    loop_remove(api->loop, &api->listener);
    close(api->listener.fd);
    free(api);
}
