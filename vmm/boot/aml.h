/*
 * An encoder of ACPI Machine Language (ACPI 6.5, chapter 20), as much of it as our DSDT is made of.
 *
 * Appends to a buffer of fixed size; what we describe is bounded, so running out of it is a broken
 * invariant. A package (device, method, resource template) is opened, filled and closed; its length
 * is put in when it is closed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/base/error.h"

#define AML_BYTES_MAX 4096

struct aml {
    size_t bytes;
    uint8_t code[AML_BYTES_MAX];
};

/* A name below is four characters ("_HID"); a path is one name or two with a dot ("_SB_.GED_"),
 * with a leading backslash where it starts at the root. */

/* Each returns the mark to close it with. */
must_check size_t aml_device_open(struct aml *a, const char *path);
must_check size_t aml_method_open(struct aml *a, const char *name, unsigned args, bool serialized);
void aml_close(struct aml *a, size_t mark);

/* Name (NAME, value); the integer's width is that of its encoding. */
void aml_name_string(struct aml *a, const char *name, const char *value);
void aml_name_eisa_id(struct aml *a, const char *name, const char *id);
void aml_name_one(struct aml *a, const char *name);
void aml_name_u8(struct aml *a, const char *name, uint8_t value);
void aml_name_u32(struct aml *a, const char *name, uint32_t value);
/* ... of a package of n. */
void aml_name_u32s(struct aml *a, const char *name, const uint32_t *values, uint8_t n);

/* Method (NAME) { Return (value) } */
void aml_method_returning(struct aml *a, const char *name, uint8_t value);
/* If (Arg0 == value) { Notify (PATH, code) } */
void aml_notify_if_arg0(struct aml *a, uint8_t value, const char *path, uint8_t code);

/* Name (_CRS, ResourceTemplate () { ... }) (ACPI 6.5, section 6.4). */
must_check size_t aml_crs_open(struct aml *a);
void aml_crs_close(struct aml *a, size_t mark);
void aml_resource_memory32(struct aml *a, uint32_t start, uint32_t bytes);
void aml_resource_read_only64(struct aml *a, uint64_t start, uint64_t bytes);
void aml_resource_irq(struct aml *a, uint32_t gsi); /* edge, active high, exclusive */
void aml_resource_io(struct aml *a, uint16_t port, uint8_t bytes);
