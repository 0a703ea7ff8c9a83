/*
 * HTTP/1.1 framing: bytes in, requests out, answers' heads out. Pure: no file descriptor is touched
 * here, so that any sequence of bytes can be tried by a test. The parsing of lines is the library's
 * (http_parser); the limits, what is refused beyond it and the words of a refusal are ours, and
 * those of Firecracker's API.
 *
 * A reader serves one connection. Its owner asks where to put bytes, puts them there, says how many
 * they were, and then asks for events until none is left. What a client can make it hold is one
 * line of HTTP_LINE_MAX bytes and one body of max_payload bytes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_LINE_MAX 1024u /* the request line, and each header line, with its end */
#define HTTP_HEAD_MAX 256u  /* an answer's head */

enum http_verb { HTTP_VERB_GET, HTTP_VERB_PUT, HTTP_VERB_PATCH, HTTP_VERB_DELETE, HTTP_VERBS };

/* "GET", "PUT", ... */
extern const char *const http_verb_names[HTTP_VERBS];

enum http_event {
    HTTP_NEED_MORE,      /* nothing to do until more bytes come */
    HTTP_HAVE_REQUEST,   /* verb, path, body and body_length are a request, until the next call */
    HTTP_WANTS_CONTINUE, /* the client waits for a 100 before it sends the body */
    HTTP_REFUSED,        /* the bytes are no request: answer 400 with `refusal` as the body */
};

enum http_state {
    HTTP_AT_REQUEST_LINE,
    HTTP_AT_HEADERS,
    HTTP_AT_BODY,
    HTTP_AT_END,
    HTTP_SKIPPING, /* a body that was refused as too large */
};

enum http_header { HTTP_OTHER, HTTP_CONTENT_LENGTH, HTTP_EXPECT, HTTP_ACCEPT_ENCODING };

struct http_reader {
    size_t max_payload;
    /* the request */
    enum http_verb verb;
    char path[HTTP_LINE_MAX]; /* of the target: "/x/y", "" for none */
    char *body;               /* ends with a NUL that body_length does not count */
    size_t body_length, body_have;
    bool expects_continue;
    bool closes; /* of a request or a refusal: its answer is the last on the connection */
    /* the lines */
    enum http_state state;
    enum http_header header; /* the one whose value comes next */
    bool is_waiting;         /* for bytes: those at hand have been looked at */
    size_t begin, end;       /* what of line[] is not yet parsed */
    size_t skipped;          /* how many bytes of a refused body have come */
    size_t kept;             /* what of line[] was there before the last bytes came */
    char line[HTTP_LINE_MAX];
    uint64_t parser[4]; /* the library's state, 32 bytes */
    char refusal[HTTP_LINE_MAX + 256];
};

/* max_payload: the largest body in bytes that is taken. */
void http_reader_init(struct http_reader *r, size_t max_payload);

/* Frees a body. */
void http_reader_fini(struct http_reader *r);

/* Where the next bytes go; returns how many fit, always at least one. Only valid after
 * http_reader_next() has returned HTTP_NEED_MORE, or at the beginning. */
size_t http_reader_space(struct http_reader *r, char **at);

/* n bytes, at most what http_reader_space() said, have been put there. */
void http_reader_fed(struct http_reader *r, size_t n);

/* The next event. After HTTP_REFUSED the rest of what was fed is gone, and of a body that was
 * refused what is still to come is skipped; the connection goes on all the same, as with
 * Firecracker, unless the reader `closes`: the client asked for that, or nobody can say where its
 * next request begins. */
enum http_event http_reader_next(struct http_reader *r);

/* Whether bytes are at hand that http_reader_next() has not looked at. */
bool http_reader_has_more(const struct http_reader *r);

struct http_answer {
    unsigned status;  /* 100, 200, 204, 400, 413 */
    bool deprecated;  /* the request used what will go away */
    bool closes;      /* it is the last one on the connection */
    const char *type; /* of the body; NULL: JSON */
    const char *body; /* NULL: none */
    size_t body_length;
};

/* Writes the head of an answer to buffer; returns its length. */
size_t http_answer_head(char buffer[HTTP_HEAD_MAX], const struct http_answer *a);

/* The whole answer to a connection too many. */
extern const char http_busy_answer[];
