/* The host's random bytes. Any thread. */
#pragma once

#include <stddef.h>

#include "vmm/base/error.h"

/* Fills n bytes, at most 256, from getrandom(2). 0, or -errno with nothing said of them. */
must_check int random_fill(void *bytes, size_t n);
