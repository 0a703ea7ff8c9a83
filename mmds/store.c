#include "mmds/store.h"

#include <string.h>

#include "mmds/merge.h"

void mmds_store_fini(struct mmds_store *s)
{
    free(s->text);
    s->text = NULL;
}

struct mmds_value mmds_store_root(const struct mmds_store *s)
{
    return mmds_value(s->text ? s->text : "null");
}

/* Takes the text over if it fits, else frees it. */
static int replace_text(struct mmds_store *s, char *text, struct error *e)
{
    if (strlen(text) > s->limit_bytes) {
        free(text);
        return fail(e, ERR_TOO_LARGE, "The MMDS patch request doesn't fit.");
    }
    free(s->text);
    s->text = text;
    return 0;
}

int mmds_store_put(struct mmds_store *s, const char *text, struct error *e)
{
    char *copy = strdup(text);

    BUG_ON(!copy);
    return replace_text(s, copy, e);
}

int mmds_store_patch(struct mmds_store *s, const char *patch, struct error *e)
{
    if (!s->text)
        return fail(e, ERR_INVALID, "The MMDS data store is not initialized.");
    return replace_text(s, mmds_merge(s->text, patch), e);
}
