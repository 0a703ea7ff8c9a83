/*
 * The microVM as its client sees it: its configuration, its state, and what each state allows.
 *
 * The API and the configuration file change it through vm_apply() alone, which checks the state,
 * validates everything and only then commits: a refused action changes nothing. Files are opened
 * when they are configured, so that an error comes back on the call that caused it and the start
 * does no path look-ups. All functions are for the main thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/config.h"
#include "vmm/base/error.h"
#include "vmm/base/loop.h"
#include "vmm/seccomp/seccomp.h"

enum vm_state { VM_NOT_STARTED, VM_RUNNING, VM_PAUSED, VM_STATES };

enum action_kind {
    ACT_PUT_MACHINE,
    ACT_PATCH_MACHINE,
    ACT_PUT_BOOT_SOURCE,
    ACT_PUT_DRIVE,
    ACT_PATCH_DRIVE,
    ACT_PUT_NET,
    ACT_PATCH_NET,
    ACT_PUT_VSOCK,
    ACT_PUT_LOGGER,
    ACT_PUT_METRICS,
    ACT_PUT_SERIAL,
    ACT_PUT_CPU_CONFIG,
    ACT_START,
    ACT_CTRL_ALT_DEL,
    ACT_FLUSH_METRICS,
    ACT_PAUSE,
    ACT_RESUME,
    ACTIONS
};

/* Which members of a machine request were given (not null): bits of machine_request.given. */
enum machine_member {
    MACHINE_VCPU_COUNT = 1 << 0,
    MACHINE_MEM_SIZE = 1 << 1,
    MACHINE_SMT = 1 << 2,
    MACHINE_CPU_TEMPLATE = 1 << 3,
    MACHINE_TRACK_DIRTY = 1 << 4,
    MACHINE_HUGE_PAGES = 1 << 5,
};

struct machine_request {
    struct machine_config config; /* members not given hold nothing of meaning */
    unsigned given;
};

/* One request to change the VM. vm_apply() takes over the strings it keeps and clears them here;
 * the caller frees what is left with action_fini(). */
struct action {
    enum action_kind kind;
    union {
        struct machine_request machine; /* ACT_PUT_MACHINE, ACT_PATCH_MACHINE */
        struct boot_source boot_source; /* ACT_PUT_BOOT_SOURCE */
        struct drive_config drive;      /* ACT_PUT_DRIVE */
        struct drive_patch drive_patch; /* ACT_PATCH_DRIVE */
        struct net_config net;          /* ACT_PUT_NET */
        struct net_patch net_patch;     /* ACT_PATCH_NET */
        struct vsock_config vsock;      /* ACT_PUT_VSOCK */
        struct logger_config logger;
        struct metrics_config metrics;
        struct serial_config serial;
        struct cpu_config cpu;
    };
};

void action_fini(struct action *a);

struct vm_options {
    const char *id; /* borrowed for the process's life */
    bool boot_timer;
    const struct seccomp_threads *seccomp; /* NULL: none; borrowed likewise */
};

struct vm;

/* Never fails but for lack of memory, which ends the process. Borrows the loop. */
struct vm *vm_new(struct loop *loop, const struct vm_options *options);

/* Carries out an action. 0, or -1 with nothing changed and a text for the client, which may put the
 * name of the subsystem before it. ERR_STATE: the action is not allowed in this state. */
must_check int vm_apply(struct vm *vm, struct action *a, struct error *e);

/* Frees a VM that was never started, with all it opened. (One that ran goes with its process.) */
void vm_free(struct vm *vm);

/* Ends a started or never started VM in order, flushing what a guest was promised is on the disk,
 * and restores the terminal. The vCPUs stop. */
void vm_stop(struct vm *vm);

/* Closes KVM's part of a VM that was stopped; the last thing before the process exits, since it
 * waits for the kernel. */
void vm_close(struct vm *vm);

/* What `GET` requests show. Pointers are valid until the next vm_apply(). */
const char *vm_id(const struct vm *vm);
enum vm_state vm_state(const struct vm *vm);
const struct machine_config *vm_machine_config(const struct vm *vm);
const struct boot_source *vm_boot_source(const struct vm *vm);
unsigned vm_drive_count(const struct vm *vm);
const struct drive_config *vm_drive(const struct vm *vm, unsigned i); /* root drive first */
unsigned vm_net_count(const struct vm *vm);
const struct net_config *vm_net(const struct vm *vm, unsigned i); /* in attach order */
const struct vsock_config *vm_vsock(const struct vm *vm);         /* NULL: none */
