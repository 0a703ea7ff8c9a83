/*
 * UUIDs (RFC 9562), by which snapshots are told apart, and machines that are given one. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"

struct uuid {
    uint8_t bytes[16]; /* all zero: none */
};

#define UUID_TEXT 37 /* 8-4-4-4-12 lower-case hexadecimal digits and a NUL */

/* A new random one (version 4). Fails where the host has no random bytes. */
must_check int uuid_make(struct uuid *uuid, struct error *e);

bool uuid_equal(const struct uuid *a, const struct uuid *b);

void uuid_text(const struct uuid *uuid, char text[UUID_TEXT]);

/* Reads one at the start of a text, its digits of either case. False: there is none. */
bool uuid_parse(struct uuid *uuid, const char *text);
