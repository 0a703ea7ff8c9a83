/* How a test guest ends. */
#pragma once

/* The i8042's reset: the VMM exits with 0. */
_Noreturn void power_off(void);

/* ACPI's S5, by the sleep control register that the FADT names (see tables.c): likewise. */
_Noreturn void soft_off(void);

/* A fault without an interrupt table: the VMM exits with 1. */
_Noreturn void triple_fault(void);

/* Waits for ever, without interrupts. */
_Noreturn void halt(void);
