/* The registers with which a vCPU enters a kernel, as its boot protocol wants them. */
#pragma once

#include "vmm/boot/kernel.h"
#include "vmm/kvm/vcpu.h"

/* Points a vCPU at the kernel: one that is as after its reset, and does not run. */
must_check int boot_registers_set(const struct vcpu *c, const struct kernel_image *kernel,
                                  struct error *e);
