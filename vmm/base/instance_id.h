/*
 * The rule for a microVM's id, which the VMM and the jailer share. Pure.
 */
#pragma once

#include "vmm/base/options.h"

#define INSTANCE_ID_MAX_BYTES 64u

/* 1 to 64 bytes of letters (whatever lies beyond ASCII counts as one), digits and hyphens, into a
 * const char *. */
option_parse instance_id_parse;
