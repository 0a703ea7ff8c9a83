#include "api/canonical.h"

#include <json-c/json_object.h>
#include <string.h>

#include "api/wire/json_reader.h"
#include "api/wire/json_writer.h"
#include "mmds/value.h"

_Static_assert(JSON_DEPTH_MAX == MMDS_DEPTH_MAX, "what is read can be walked");

/* Where a member of an object stands in what is written: its key, the colon and its value. */
struct span {
    size_t begin, end;
};

/* An array or object that is being written. */
struct container {
    bool is_array, is_begun;
    size_t members; /* an object's first, in the list of all */
};

struct canonical {
    struct json_writer out;
    struct container containers[JSON_DEPTH_MAX];
    unsigned depth;
    /* The members of the objects that are not complete, the innermost's last. */
    struct span *members;
    size_t count, capacity;
};

/* The comma between this element of an array, or member of an object, and the one before. */
static void begin_item(struct canonical *c)
{
    struct container *in = &c->containers[c->depth - 1];

    if (in->is_begun)
        json_put(&c->out, ",");
    in->is_begun = true;
}

static void begin_value(struct canonical *c)
{
    if (c->depth > 0 && c->containers[c->depth - 1].is_array)
        begin_item(c);
}

static void put_string(struct canonical *c, struct json_object *value)
{
    json_put_text(&c->out, json_object_get_string(value),
                  (size_t)json_object_get_string_len(value));
}

static void put_scalar(struct canonical *c, struct json_object *value)
{
    char number[64];

    begin_value(c);
    switch (json_object_get_type(value)) {
    case json_type_string: put_string(c, value); return;
    case json_type_double:
        json_put(&c->out, json_show_double(number, sizeof(number), json_object_get_double(value)));
        return;
    case json_type_null: json_put(&c->out, "null"); return;
    default: json_put(&c->out, json_object_get_string(value));
    }
}

/* The last member ends where the text ends. */
static void end_member(struct canonical *c)
{
    if (c->count > c->containers[c->depth - 1].members)
        c->members[c->count - 1].end = c->out.length;
}

static void put_member_key(struct canonical *c, struct json_object *key)
{
    end_member(c);
    begin_item(c);
    if (c->count == c->capacity) {
        c->capacity = c->capacity * 2 + 16;
        c->members = reallocarray(c->members, c->capacity, sizeof(*c->members));
        BUG_ON(!c->members);
    }
    c->members[c->count++] = (struct span){ .begin = c->out.length };
    put_string(c, key);
    json_put(&c->out, ":");
}

static void enter_container(struct canonical *c, bool is_array)
{
    begin_value(c);
    c->containers[c->depth++] = (struct container){ .is_array = is_array, .members = c->count };
    json_put(&c->out, is_array ? "[" : "{");
}

/* Whether a comes before b: by their keys, and those of one key in the order of the document. */
static bool is_before(const char *text, struct span a, struct span b)
{
    int order = mmds_compare(text + a.begin, text + b.begin);

    return order < 0 || (order == 0 && a.begin < b.begin);
}

/* Moves the member at `at` down in a heap of n whose greatest is on top. */
static void sift_down(const char *text, struct span *heap, size_t at, size_t n)
{
    struct span moved = heap[at];

    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_before(text, heap[child], heap[child + 1]))
            child++;
        if (!is_before(text, moved, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* Not by qsort(), which asks the kernel how much memory there is: the filters don't allow that. */
static void sort_members(const char *text, struct span *members, size_t n)
{
    for (size_t i = n / 2; i-- > 0;)
        sift_down(text, members, i, n);
    for (size_t i = n; i-- > 1;) {
        struct span greatest = members[0];

        members[0] = members[i];
        members[i] = greatest;
        sift_down(text, members, 0, i);
    }
}

static bool is_sorted(const char *text, const struct span *members, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (mmds_compare(text + members[i - 1].begin, text + members[i].begin) >= 0)
            return false;
    return true;
}

/* Writes an object's members once more, in their order and the last of each key. */
static void rewrite_members(struct canonical *c, struct span *members, size_t n)
{
    size_t begin = members[0].begin, length = c->out.length - begin;
    autofree char *copy = malloc(length);
    char *to = c->out.text + begin;

    BUG_ON(!copy);
    sort_members(c->out.text, members, n);
    memcpy(copy, c->out.text + begin, length);
    for (size_t i = 0; i < n; i++) {
        const char *from = copy + members[i].begin - begin;
        size_t size = members[i].end - members[i].begin;

        if (i + 1 < n && mmds_compare(from, copy + members[i + 1].begin - begin) == 0)
            continue;
        memcpy(to, from, size);
        to += size;
        *to++ = ',';
    }
    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): autofree
    c->out.length = (size_t)(to - c->out.text) - 1;
}

/* Puts the members of a complete object in their order. */
static void order_members(struct canonical *c, size_t first)
{
    size_t n = c->count - first;

    if (n == 0)
        return;
    end_member(c);
    if (!is_sorted(c->out.text, c->members + first, n))
        rewrite_members(c, c->members + first, n);
    c->count = first;
}

static void leave_container(struct canonical *c)
{
    const struct container *in = &c->containers[c->depth - 1];

    if (!in->is_array)
        order_members(c, in->members);
    json_put(&c->out, in->is_array ? "]" : "}");
    c->depth--;
}

static void put_step(struct canonical *c, int step, struct json_object *value)
{
    switch (step) {
    case JSON_KEY: put_member_key(c, value); break;
    case JSON_SCALAR: put_scalar(c, value); break;
    case JSON_ARRAY:
    case JSON_OBJECT: enter_container(c, step == JSON_ARRAY); break;
    default: leave_container(c);
    }
}

char *canonical_json(const char *text, size_t length, struct error *e)
{
    struct canonical c = { 0 };
    struct json_walk walk = { 0 };
    struct json_reader r;
    int step;

    json_reader_init(&r, text, length);
    while ((step = json_walk(&r, &walk, e)) > 0) {
        put_step(&c, step, walk.value);
        json_object_put(walk.value);
    }
    if (step == 0)
        step = json_end(&r, e);
    json_reader_fini(&r);
    free(c.members);
    if (step < 0)
        json_writer_fini(&c.out);
    return c.out.text;
}
