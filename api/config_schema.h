/* The tables of the JSON bodies: what vmm/base/config.h and vmm/machine/vm.h look like to a client.
 */
#pragma once

#include "api/wire/schema.h"

extern const struct schema machine_schema;       /* struct machine_request */
extern const struct schema machine_patch_schema; /* struct machine_request */
extern const struct schema boot_source_schema;   /* struct boot_source */
extern const struct schema drive_schema;         /* struct drive_config */
extern const struct schema drive_patch_schema;   /* struct drive_patch */
extern const struct schema net_schema;           /* struct net_config */
extern const struct schema net_patch_schema;     /* struct net_patch */
extern const struct schema vsock_schema;         /* struct vsock_config */
extern const struct schema vsock_shown_schema;   /* the same, as it is shown */
extern const struct schema logger_schema;        /* struct logger_config */
extern const struct schema metrics_schema;       /* struct metrics_config */
extern const struct schema serial_schema;        /* struct serial_config */
extern const struct schema cpu_config_schema;    /* struct cpu_config */
extern const struct schema action_schema;        /* struct action_body */
extern const struct schema vm_state_schema;      /* struct vm_state_body */

struct action_body {
    enum action_type { ACTION_FLUSH_METRICS, ACTION_INSTANCE_START, ACTION_CTRL_ALT_DEL } type;
};

struct vm_state_body {
    enum vm_target { TARGET_PAUSED, TARGET_RESUMED } state;
};
