/*
 * `--check`: what this host lacks for running the microVMs of tenants who don't trust each other.
 * docs/production.md has the reasons at length.
 */
#pragma once

/* Prints a line a finding, with what to do about it; also about the binary (NULL: the `firecracker`
 * beside the jailer, if there is one) and where the cells would be. 0: microVMs can run and nothing
 * is wrong; 1: a finding stands. Changes nothing. */
int host_check(const char *exec_file, const char *base);
