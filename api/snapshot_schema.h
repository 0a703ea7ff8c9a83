/* The tables of PUT /snapshot/create and /snapshot/load. */
#pragma once

#include "api/wire/schema.h"

extern const struct schema snapshot_create_schema;  /* struct snapshot_create_config */
extern const struct schema snapshot_created_schema; /* struct snapshot_created: an answer */
extern const struct schema snapshot_load_schema;    /* struct snapshot_load_config */
