/*
 * What a test guest says, on the serial port: "ok NAME", "not ok NAME: why", other lines as notes,
 * "done" at the end (guest_start() adds it). Also the few string functions a compiler expects.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* %s, %c, %u, %d, %x, with l for 64 bits; nothing else. */
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Reports one check. The name says what holds when it passes; it returns `holds`. */
bool expect(bool holds, const char *name);
bool expect_equal(uint64_t got, uint64_t wanted, const char *name);

/* Says "waiting WHAT" and returns once the test has sent a byte to the serial port. */
void wait_for_host(const char *what);

/* Ends the guest with a failed check: for what makes going on pointless. */
_Noreturn void give_up(const char *name, const char *why);

void *memset(void *to, int value, size_t n);
void *memcpy(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
