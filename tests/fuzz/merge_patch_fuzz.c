/*
 * Metadata and a patch of it: what is canonical stays so, and what is merged is what json-c's trees
 * say. The input: two documents, the first ended by a NUL.
 */
#include "mmds/merge.h"

#include "tests/fuzz/support/metadata.h"

static void merge(const char *target, const char *patch)
{
    char *grown = mmds_merge(target, patch), *merged = in_exact_block(grown);
    struct json_object *model, *model_patch;

    free(grown);
    MUST(strlen(merged) <= strlen(target) + strlen(patch));
    must_be_canonical(merged);
    (void)mmds_has_unreachable_key(merged);
    if (can_be_modelled(target) && can_be_modelled(patch)) {
        model_patch = model_parse(patch);
        model = model_merge(model_parse(target), model_patch);
        must_be_as_modelled(merged, model);
        json_object_put(model);
        json_object_put(model_patch);
    }
    free(merged);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    size_t length;
    char *text = take_text(&in, &length), *second = text + strlen(text);
    char *target = take_metadata(text), *patch;

    patch = take_metadata(second < text + length ? second + 1 : second);
    if (target && patch)
        merge(target, patch);
    free(patch);
    free(target);
    free(text);
    return 0;
}
