/* The table of a custom CPU template: PUT /cpu-config, and a file that a configuration file names.
 */
#pragma once

#include "api/wire/schema.h"

extern const struct schema cpu_config_schema; /* struct cpu_config */
