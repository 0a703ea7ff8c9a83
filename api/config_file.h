/* The configuration file: what the API's requests say, in one JSON object (struct config_file in
 * routes.h), and the start. */
#pragma once

#include "vmm/base/error.h"
#include "vmm/machine/vm.h"

#define CONFIG_FILE_MAX (4u << 20) /* bytes */

/* Reads the file, or a pipe until its end, configures the VM as it says and starts it. All of it is
 * read and decoded before anything is applied. -1 with the reason, for the log: the VM may then be
 * configured in part, and the process is expected to end. */
must_check int config_file_apply(struct vm *vm, const char *path, struct error *e);
