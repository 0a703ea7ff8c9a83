/*
 * HTTP requests of guests, in the dialect of Firecracker's server: no bodies, paths are bytes
 * (nothing is decoded), lines end in CRLF. Pure: a request is a piece of what came, and what is
 * found are pieces of that.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mmds_text {
    const char *at;
    size_t n;
};

struct mmds_header {
    struct mmds_text name, value; /* as sent; the value without blanks around it. No name: absent */
};

enum mmds_method { MMDS_GET, MMDS_PUT, MMDS_PATCH, MMDS_DELETE };

struct mmds_request {
    enum mmds_method method;
    struct mmds_text path; /* from its slash on; empty where there is none */
    bool is_http10, accepts_json;
    bool is_last; /* the client wants the connection to end, or it has to */
    struct mmds_header token, ttl, forwarded;
};

/* Why a request is refused: its status, and the body as up to four texts in a row. */
struct mmds_refusal {
    unsigned status;
    struct mmds_text texts[4];
};

/* The bytes up to and with the first empty line, 0 where there is none yet. */
size_t mmds_http_request_bytes(const char *at, size_t n);

/* Reads a request of so many bytes. False: refused; then only is_last is filled in. */
bool mmds_http_parse(const char *at, size_t n, struct mmds_request *r, struct mmds_refusal *why);

/* A decimal number of 32 bits, a plus sign before it or not. False: it is none. */
bool mmds_http_number(struct mmds_text t, uint32_t *out);

static inline struct mmds_text mmds_text(const char *s)
{
    return (struct mmds_text){ s, __builtin_strlen(s) };
}
