/*
 * What the metadata service answers to a request: a piece of the store, a token, or why not. The
 * same for all interfaces. Clients depend on the texts: they are Firecracker's. Loop thread.
 */
#pragma once

#include "mmds/budget.h"
#include "mmds/store.h"
#include "mmds/token.h"

struct mmds_service {
    const struct mmds_store *store; /* borrowed */
    bool needs_token;               /* V2 */
    bool imds_compat;               /* text, whatever the client accepts */
    struct mmds_tokens tokens;
};

struct mmds_answer {
    char *memory; /* of the budget: NULL where there is no answer */
    size_t allocated;
    size_t begin, bytes; /* where in it the answer lies */
    bool is_last;        /* the connection ends with it */
};

/* Answers a request, which ends with its first empty line. False: the budget does not have the
 * memory. now_ns is of the monotonic clock. */
must_check bool mmds_service_answer(struct mmds_service *s, const char *request, size_t n,
                                    uint64_t now_ns, struct mmds_budget *budget,
                                    struct mmds_answer *out);

/* Answers a request that is longer than any may be. */
must_check bool mmds_service_refuse_length(struct mmds_budget *budget, struct mmds_answer *out);

/* Frees an answer, or none. */
void mmds_answer_free(struct mmds_answer *a, struct mmds_budget *budget);
