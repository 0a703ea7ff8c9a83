/*
 * The rule for a microVM's id, which the VMM and the jailer share. Pure; no dependencies.
 */
#pragma once

#include <stdbool.h>

#define INSTANCE_ID_MAX_BYTES   64u
#define INSTANCE_ID_ERROR_BYTES 128u

/* 1 to 64 bytes of letters (whatever lies beyond ASCII counts as one), digits and hyphens. If not,
 * the reason goes to `why`, of INSTANCE_ID_ERROR_BYTES. */
bool instance_id_check(const char *id, char *why);
