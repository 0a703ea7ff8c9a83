/*
 * A JSON pointer into metadata: it leads where json-c's tree says. The members of every object are
 * in order, and strings are no longer than their text. The input: a pointer, ended by a NUL, and a
 * document.
 */
#include "tests/fuzz/support/metadata.h"

static void unescape(struct mmds_value string)
{
    char *out = malloc(string.length - 1);

    MUST(out && mmds_unescape(string, out) < string.length - 1);
    free(out);
}

static void look_at(struct mmds_value v)
{
    struct mmds_member m = { 0 };
    const char *last = NULL;

    MUST(mmds_value(v.at).length == v.length);
    if (mmds_type(v) == MMDS_STRING)
        unescape(v);
    if (mmds_type(v) != MMDS_OBJECT)
        return;
    while (mmds_next_member(v, &m)) {
        MUST(!last || mmds_compare(last, m.key.at) < 0);
        MUST(m.value.at + m.value.length < v.at + v.length);
        unescape(m.key);
        last = m.key.at;
    }
}

/* The pointer's bytes are behind no NUL, and before none. */
static bool find(struct mmds_value root, const char *pointer, struct mmds_value *out)
{
    size_t n = strlen(pointer);
    char *bytes = malloc(n);
    bool is_found;

    memcpy(bytes, pointer, n);
    is_found = mmds_find(root, bytes, n, out);
    free(bytes);
    return is_found;
}

static void follow(const char *text, const char *pointer)
{
    struct mmds_value v;
    bool is_found = find(mmds_value(text), pointer, &v);
    struct json_object *model, *found;

    if (is_found)
        look_at(v);
    if (!can_be_modelled(text))
        return;
    model = model_parse(text);
    MUST(model_find(model, pointer, &found) == is_found);
    if (is_found) {
        char *there = strndup(v.at, v.length);

        must_be_as_modelled(there, found);
        free(there);
    }
    json_object_put(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    size_t length;
    char *pointer = take_text(&in, &length), *text = pointer + strlen(pointer);
    char *metadata = take_metadata(text < pointer + length ? text + 1 : text);

    if (metadata) {
        look_at(mmds_value(metadata));
        follow(metadata, pointer);
    }
    free(metadata);
    free(pointer);
    return 0;
}
