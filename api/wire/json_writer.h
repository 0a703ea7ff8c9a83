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

/* A string of n bytes, which may be NULs. */
void json_put_text(struct json_writer *w, const char *s, size_t n);

void json_put_unsigned(struct json_writer *w, uint64_t value);

/* A finite number as serde_json has it: the shortest decimal that reads back as d, digits alone up
 * to 16 places, else with an exponent. It never looks like an integer. Returns out. */
const char *json_show_double(char *out, size_t size, double d);
