/*
 * What a snapshot is told apart by: its name, which is random.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct snapshot_uuid {
    uint8_t bytes[16]; /* all zero: none */
};

#define SNAPSHOT_UUID_TEXT 37 /* 8-4-4-4-12 lower-case hex digits and a NUL */

/* A new one (RFC 9562, version 4). */
void snapshot_uuid_make(struct snapshot_uuid *uuid);

bool snapshot_uuid_equal(const struct snapshot_uuid *a, const struct snapshot_uuid *b);

void snapshot_uuid_text(const struct snapshot_uuid *uuid, char text[SNAPSHOT_UUID_TEXT]);

/* Reads one at the start of a text. False: there is none. */
bool snapshot_uuid_parse(struct snapshot_uuid *uuid, const char *text);
