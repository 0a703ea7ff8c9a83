/*
 * What a microVM's metadata service serves: one JSON value, kept as its canonical text (see
 * mmds/value.h). What a guest reads is a piece of it, its size is the text's. For the main thread.
 */
#pragma once

#include "mmds/value.h"
#include "vmm/base/error.h"

struct mmds_store {
    char *text;         /* owned; NULL: nothing was ever put */
    size_t limit_bytes; /* of the text */
};

/* Frees what it holds; a zeroed one is empty. */
void mmds_store_fini(struct mmds_store *s);

/* The whole value, until the next change; null when nothing was ever put. */
struct mmds_value mmds_store_root(const struct mmds_store *s);

/* Replaces the value by a canonical text, which is copied. -1 with nothing changed: ERR_TOO_LARGE.
 */
must_check int mmds_store_put(struct mmds_store *s, const char *text, struct error *e);

/* Merges a patch into the value. -1 with nothing changed: ERR_TOO_LARGE, or ERR_INVALID where
 * nothing was ever put. */
must_check int mmds_store_patch(struct mmds_store *s, const char *patch, struct error *e);
