/*
 * `--check`: what this host lacks for running microVMs of tenants who don't trust each other.
 * docs/production.md has the reasons at length.
 */
#pragma once

/* Prints a line a finding. 0: nothing that must be put right; 1: something. */
int host_check(void);
