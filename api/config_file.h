/* The files that do what the API's requests do: the configuration file, one JSON object (struct
 * config_file in routes.h) and the start; and the metadata's, any JSON. */
#pragma once

#include "vmm/base/error.h"
#include "vmm/machine/vm.h"

#define CONFIG_FILE_MAX (4u << 20) /* bytes, of either */

/* Reads the file, or a pipe until its end, configures the VM as it says, gives it the metadata of
 * the other file (NULL: none) and starts it. All of it is
 * read and decoded before anything is applied. -1 with the reason, for the log: the VM may then be
 * configured in part, and the process is expected to end. */
must_check int config_file_apply(struct vm *vm, const char *path, const char *metadata_path,
                                 struct error *e);

/* Gives the VM the metadata of a file. -1 with nothing changed and the reason, for the log. */
must_check int metadata_file_apply(struct vm *vm, const char *path, struct error *e);
