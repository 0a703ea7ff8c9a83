/*
 * Filters from a file (--seccomp-filter), in the format that Firecracker's seccompiler-bin writes:
 * a map from the names of threads to BPF programs, in bincode with integers of fixed size.
 */
#pragma once

#include "vmm/base/error.h"
#include "vmm/seccomp/seccomp.h"

/* Reads the filters "vmm", for the main thread, and "vcpu". A filter "api" must be there, too, but
 * has no thread: the main thread serves the API. Whether the programs are valid BPF is for the
 * kernel to say when they are installed. They live as long as the process. */
must_check int seccomp_file_read(struct seccomp_threads *out, const char *path, struct error *e);
