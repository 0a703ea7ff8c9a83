/*
 * `--check`: what this host lacks for running the microVMs of tenants who don't trust each other.
 * docs/production.md has the reasons at length.
 */
#pragma once

/* Prints a line a finding, with what to do about it. 0: microVMs can run and nothing is wrong; 1: a
 * finding stands. Changes nothing. */
int host_check(void);
