/* Text shown in messages: somebody else's bytes, cut to a length and made visible. */
#pragma once

#include <stddef.h>

/*
 * Writes the n bytes at s to out in double quotes, with ", \, control characters and what is no
 * UTF-8 escaped. What does not fit in size (at least 3) bytes is left out at a character's
 * boundary. Ends with a NUL; returns out.
 */
const char *quote(char *out, size_t size, const char *s, size_t n);

/*
 * As quote(), without quotes or escapes: but a NUL, which could not stand in a C string, becomes
 * the two bytes c0 80, which can't stand in UTF-8. json_put_string() turns them back.
 */
const char *plain(char *out, size_t size, const char *s, size_t n);
