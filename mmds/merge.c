#include "mmds/merge.h"

#include <stdlib.h>
#include <string.h>

#include "mmds/value.h"
#include "vmm/base/bug.h"

/* Two objects that are being merged, and how far. */
struct merge_level {
    struct mmds_value target, patch;
    struct mmds_member old, new; /* the next of each */
    bool has_old, has_new;       /* else there are no more */
    bool is_begun;               /* a member of the result has been written */
};

struct merge {
    struct merge_level levels[MMDS_DEPTH_MAX];
    unsigned depth;
    char *out;
};

static void append(struct merge *m, const char *at, size_t length)
{
    memcpy(m->out, at, length);
    m->out += length;
}

static void next_old(struct merge_level *l)
{
    l->has_old = mmds_next_member(l->target, &l->old);
}

static void next_new(struct merge_level *l)
{
    l->has_new = mmds_next_member(l->patch, &l->new);
}

/* Begins to merge an object onto what is there; NULL: nothing is. What is no object counts as an
 * empty one. */
static void enter_object(struct merge *m, const struct mmds_value *target, struct mmds_value patch)
{
    struct merge_level *l = &m->levels[m->depth++];

    *l = (struct merge_level){ .patch = patch, .target = { "{}", 2 } };
    if (target && mmds_type(*target) == MMDS_OBJECT)
        l->target = *target;
    next_old(l);
    next_new(l);
    append(m, "{", 1);
}

/* A member's key and colon. */
static void append_key(struct merge *m, struct merge_level *l, struct mmds_value key)
{
    if (l->is_begun)
        append(m, ",", 1);
    l->is_begun = true;
    append(m, key.at, key.length);
    append(m, ":", 1);
}

/* The patch's next member, onto the target's of that name, if it has one. */
static void merge_member(struct merge *m, struct merge_level *l, bool has_target)
{
    struct mmds_value target = l->old.value, patch = l->new.value;
    enum mmds_type type = mmds_type(patch);

    if (type != MMDS_NULL)
        append_key(m, l, l->new.key);
    if (has_target)
        next_old(l);
    next_new(l);
    if (type == MMDS_OBJECT)
        enter_object(m, has_target ? &target : NULL, patch);
    else if (type != MMDS_NULL)
        append(m, patch.at, patch.length);
}

/* One member of the innermost objects, or their end. */
static void merge_step(struct merge *m)
{
    struct merge_level *l = &m->levels[m->depth - 1];
    int order;

    if (!l->has_old && !l->has_new) {
        append(m, "}", 1);
        m->depth--;
        return;
    }
    order = !l->has_new ? -1 : !l->has_old ? 1 : mmds_compare(l->old.key.at, l->new.key.at);
    if (order < 0) {
        append_key(m, l, l->old.key);
        append(m, l->old.value.at, l->old.value.length);
        next_old(l);
    } else {
        merge_member(m, l, order == 0);
    }
}

char *mmds_merge(const char *target, const char *patch)
{
    struct mmds_value old = mmds_value(target), new = mmds_value(patch);
    char *text = malloc(old.length + new.length + 1);
    struct merge m = { .out = text };

    BUG_ON(!text);
    if (mmds_type(new) == MMDS_OBJECT)
        enter_object(&m, &old, new);
    else
        append(&m, new.at, new.length);
    while (m.depth > 0)
        merge_step(&m);
    *m.out = '\0';
    return text;
}
