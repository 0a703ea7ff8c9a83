/*
 * CPU templates: named sets of changes (struct cpu_config) that make different processors look
 * alike to guests, so that a microVM may move between them. Each fits some processors only.
 */
#pragma once

#include "vmm/base/config.h"
#include "vmm/base/error.h"
#include "vmm/kvm/cpuid.h"

/* The changes of a named template, or NULL for CPU_TEMPLATE_NONE. Fails when the template is for
 * another vendor or model than that processor. Pure. */
must_check int cpu_template_find(const struct cpu_config **out, enum cpu_template name,
                                 struct processor on, struct error *e);

/* Changes a CPUID. Fails, naming it, at a leaf that the CPUID lacks. Pure. */
must_check int cpu_template_apply(const struct cpu_config *t, struct cpuid *c, struct error *e);
