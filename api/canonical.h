/* What a client sends for the metadata service, as the text that the service keeps. */
#pragma once

#include <stddef.h>

#include "vmm/base/error.h"

/* The canonical text (mmds/value.h) of a JSON document: a heap block, the caller's. Of keys that
 * are given twice the last counts, and numbers come out as serde_json has them. text[length] is a
 * NUL; length is at most INT_MAX - 1. NULL where the text is no JSON, or is deeper than the
 * metadata may be. */
must_check char *canonical_json(const char *text, size_t length, struct error *e);
