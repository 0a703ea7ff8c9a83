/*
 * What JSON merge patch and JSON pointers make of documents, by json-c's trees and the pseudo code
 * of RFC 7396. Keys have no NULs. json-c prints a double as it was written.
 */
#pragma once

#include <json-c/json_object.h>
#include <json-c/json_tokener.h>
#include <json-c/linkhash.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define MODEL_DEPTH 200

/* A tree, which the caller puts; NULL is JSON's null. */
static inline struct json_object *model_parse(const char *text)
{
    struct json_tokener *tokener = json_tokener_new_ex(MODEL_DEPTH);
    struct json_object *value = json_tokener_parse_ex(tokener, text, (int)strlen(text) + 1);

    json_tokener_free(tokener);
    return value;
}

/* Takes the target over; what it returns is the caller's. */
static inline struct json_object *model_merge(struct json_object *target, struct json_object *patch)
{
    if (!json_object_is_type(patch, json_type_object)) {
        json_object_put(target);
        return json_object_get(patch);
    }
    if (!json_object_is_type(target, json_type_object)) {
        json_object_put(target);
        target = json_object_new_object();
    }
    json_object_object_foreach(patch, key, value)
    {
        if (value)
            json_object_object_add(
                target, key,
                model_merge(json_object_get(json_object_object_get(target, key)), value));
        else
            json_object_object_del(target, key);
    }
    return target;
}

/* A tree's text, whose keys are in json-c's order: the tree's, until it is put. */
static inline const char *model_text(struct json_object *value)
{
    return json_object_to_json_string_ext(value,
                                          JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}

/* A piece of a pointer as the key that it means: "~1" is a slash, "~0" a tilde. */
static inline char *model_key(const char *piece, size_t n)
{
    char *key = strndup(piece, n), *tilde = key;

    while ((tilde = strchr(tilde, '~'))) {
        if (tilde[1] == '0' || tilde[1] == '1') {
            *tilde = tilde[1] == '0' ? '~' : '/';
            memmove(tilde + 1, tilde + 2, strlen(tilde + 2) + 1);
        }
        tilde++;
    }
    return key;
}

static inline bool model_element(struct json_object *array, const char *key,
                                 struct json_object **out)
{
    size_t digits = strspn(key, "0123456789");
    size_t index = strtoull(key, NULL, 10);

    if (digits == 0 || key[digits] || (*key == '0' && digits > 1) || digits > 18 ||
        index >= json_object_array_length(array))
        return false;
    *out = json_object_array_get_idx(array, index);
    return true;
}

/* Where a pointer, a text, leads; false: nowhere. */
static inline bool model_find(struct json_object *root, const char *pointer,
                              struct json_object **out)
{
    *out = root;
    while (*pointer) {
        size_t n = strcspn(pointer + 1, "/");
        char *key = model_key(pointer + 1, n);
        bool is_found = false;

        if (*pointer == '/' && json_object_is_type(*out, json_type_array))
            is_found = model_element(*out, key, out);
        else if (*pointer == '/' && json_object_is_type(*out, json_type_object))
            is_found = json_object_object_get_ex(*out, key, out);
        free(key);
        if (!is_found)
            return false;
        pointer += n + 1;
    }
    return true;
}
