/* The other vCPUs. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SMP_TRAMPOLINE 0x10000ul /* a free page below 1 MiB */
#define SMP_MAX        32

/* Starts the vCPU with this APIC id by INIT and SIPI; it runs work(apic_id) on a stack of its own
 * and then halts. False where it does not come up within some seconds. One at a time. */
bool smp_start(uint32_t apic_id, void (*work)(uint32_t apic_id));

/* The id that the local APIC of the running vCPU reports. */
uint32_t smp_apic_id(void);

/* Sends vector VECTOR_IPI. */
void smp_send_ipi(uint32_t apic_id);
