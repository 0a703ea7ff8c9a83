/* JSON going out: text that grows as it is written. Running out of memory ends the process. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_writer {
    char *text; /* owned; ends with a NUL */
    size_t length, capacity;
};

/* A zeroed writer is empty. */
void json_writer_fini(struct json_writer *w);

/* Punctuation, literals and names that need no escape. */
void json_put(struct json_writer *w, const char *text);

/* A string with its quotes, always valid JSON in valid UTF-8: bytes that are none become U+FFFD,
 * the pair c0 80 a NUL. */
void json_put_string(struct json_writer *w, const char *s);

void json_put_unsigned(struct json_writer *w, uint64_t value);
