/*
 * The boot timeline: when each phase between exec and the guest's mark was reached. The first time
 * counts; a new start forgets those of a start that failed. Any thread marks.
 */
#pragma once

#include <stdint.h>

enum phase {
    PHASE_MAIN,           /* the program's first instruction of its own */
    PHASE_API_READY,      /* the socket takes connections */
    PHASE_INSTANCE_START, /* the start was asked for */
    PHASE_GUEST_LOADED,   /* kernel, initrd and tables are in guest memory */
    PHASE_KVM_VM,         /* KVM has a VM */
    PHASE_KVM_MEMORY,     /* it has memory */
    PHASE_KVM_IRQCHIP,    /* it has interrupt controllers */
    PHASE_KVM_VCPUS,      /* it has vCPUs */
    PHASE_DEVICES,        /* it has devices: the machine is complete */
    PHASE_GUEST_ENTRY,    /* the first vCPU enters the guest */
    PHASE_STARTED,        /* the start has been carried out */
    PHASE_GUEST_MARK,     /* the guest wrote to the boot timer */
    PHASES
};

/* The zero is as long ago as the process has used CPU time: the kernel does not tell the time of an
 * exec to the microsecond. Main thread, first of all. */
void timeline_init(void);

/* The zero is start_us on CLOCK_MONOTONIC, if that is earlier; 0: not known. */
void timeline_begin(uint64_t start_us);

/* The phase is reached. Any thread. */
void timeline_mark(enum phase p);

/* As a JSON member is called: "api_ready_us". */
const char *timeline_name(enum phase p);

/* The zero, on CLOCK_MONOTONIC in microseconds. */
uint64_t timeline_start_us(void);

/* Microseconds since the zero; -1: not reached. */
int64_t timeline_us(enum phase p);
