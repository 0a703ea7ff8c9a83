/* Metadata of an input: its canonical text in a block of exactly its size, and by json-c. */
#pragma once

#include "api/canonical.h"
#include "mmds/value.h"
#include "tests/fuzz/support/input.h"
#include "tests/support/json_model.h"

static inline char *in_exact_block(const char *text)
{
    char *copy = strdup(text);

    MUST(copy);
    return copy;
}

/* A text that is its own canonical text. */
static inline void must_be_canonical(const char *text)
{
    struct error e;
    char *again = canonical_json(text, strlen(text), &e);

    MUST(again && strcmp(again, text) == 0);
    free(again);
}

/* NULL: the text is no JSON. */
static inline char *take_metadata(const char *text)
{
    struct error e = { 0 };
    char *grown = canonical_json(text, strlen(text), &e), *exact;

    if (!grown) {
        MUST(e.kind == ERR_INVALID && e.msg[0]);
        return NULL;
    }
    exact = in_exact_block(grown);
    free(grown);
    must_be_canonical(exact);
    return exact;
}

/* A text that json-c's tree would have, could it have all keys. */
static inline void must_be_as_modelled(const char *text, struct json_object *model)
{
    struct error e;
    const char *modelled = model_text(model);
    char *canonical = canonical_json(modelled, strlen(modelled), &e);

    MUST(canonical && strcmp(canonical, text) == 0);
    free(canonical);
}

static inline bool can_be_modelled(const char *text)
{
    return !strstr(text, "\\u0000");
}
