/*
 * The microVM as its client sees it: its configuration, its state, and what each state allows.
 *
 * The API and the configuration file change it through vm_apply() alone, which checks the state,
 * validates everything and only then commits: a refused action changes nothing. What a guest boots
 * from and its devices work on is opened when it is configured, so that an error comes back on the
 * call that caused it. All functions are for the main thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "mmds/store.h"
#include "vmm/base/config.h"
#include "vmm/base/error.h"
#include "vmm/base/loop.h"
#include "vmm/seccomp/seccomp.h"

enum vm_state { VM_NOT_STARTED, VM_RUNNING, VM_PAUSED, VM_STATES };

/* What a client may ask for; first what configures, in the order in which a file of it all is
 * applied. */
enum action_kind {
    ACT_PUT_LOGGER,
    ACT_PUT_METRICS,
    ACT_PUT_MACHINE,
    ACT_PUT_CPU_CONFIG,
    ACT_PUT_BOOT_SOURCE,
    ACT_PUT_DRIVE, /* each in the action's list; those before one that is refused stay */
    ACT_PUT_NET,   /* likewise */
    ACT_PUT_VSOCK,
    ACT_PUT_SMBIOS,
    ACT_PUT_SERIAL,
    ACT_PUT_MMDS_CONFIG,
    ACT_PUT_MMDS,
    ACT_PATCH_MMDS,
    ACT_PATCH_MACHINE,
    ACT_PATCH_DRIVE,
    ACT_PATCH_NET,
    ACT_DELETE_DEVICE,
    ACT_START,
    ACT_CTRL_ALT_DEL,
    ACT_POWER_BUTTON,
    ACT_FLUSH_METRICS,
    ACT_PAUSE,
    ACT_RESUME,
    ACT_SNAPSHOT_CREATE,
    ACT_SNAPSHOT_LOAD,
    ACTIONS
};

/* Who waits for what goes on after vm_apply(). */
struct vm_waiter {
    /* It is done; or result NULL: it is not, and e says why. From the loop, or from vm_stop(). */
    void (*on_end)(struct vm_waiter *w, const struct snapshot_created *result, struct error *e);
};

/* One request to change the VM. vm_apply() takes over the strings it keeps and clears them here;
 * the caller frees what is left with action_fini(). */
struct action {
    enum action_kind kind;
    struct vm_config config;        /* its member of that kind */
    struct drive_patch drive_patch; /* ACT_PATCH_DRIVE */
    struct net_patch net_patch;     /* ACT_PATCH_NET */
    char *metadata; /* ACT_PUT_MMDS, ACT_PATCH_MMDS: the canonical text of a value, or of a patch */
    struct snapshot_create_config snapshot_create;
    struct vm_waiter *waiter; /* for one that is live; borrowed until on_end() */
    struct snapshot_load_config snapshot_load;
};

struct vm_options {
    const char *id; /* borrowed for the process's life */
    bool boot_timer;
    size_t metadata_max_bytes;             /* of its canonical text */
    const struct seccomp_threads *seccomp; /* NULL: none; borrowed likewise */
};

struct vm;

/* Never fails but for lack of memory, which ends the process. Borrows the loop. */
struct vm *vm_new(struct loop *loop, const struct vm_options *options);

/* Makes KVM's VM ahead, which is an eighth of what a load costs, while no client waits for a start
 * or a load. Does nothing when there is a machine. What fails is tried again, and told, then. */
void vm_prepare(struct vm *vm);

/* An action whose configuration holds what members that a client leaves out mean: their default, or
 * what the VM has now. */
void action_init(struct action *a, enum action_kind kind, const struct vm *vm);

/* Frees what the VM has not taken over. */
void action_fini(struct action *a);

/* Carries out an action. 0, or -1 with nothing changed and a text for the client, which may put the
 * name of the subsystem before it. ERR_STATE: the action is not allowed in this state. 1: it goes
 * on, and the waiter will hear of its end. */
must_check int vm_apply(struct vm *vm, struct action *a, struct error *e);

/* Frees a VM that was never started, with all it opened. (One that ran goes with its process.) */
void vm_free(struct vm *vm);

/* Ends a started or never started VM in order, flushing what a guest was promised is on the disk,
 * and restores the terminal. The vCPUs stop. */
void vm_stop(struct vm *vm);

/* Closes KVM's part of a VM that was stopped; the last thing before the process exits, since it
 * waits for the kernel. */
void vm_close(struct vm *vm);

/* What the options say, and the state. */
const char *vm_id(const struct vm *vm);
enum vm_state vm_state(const struct vm *vm);

/* Pointers in it are valid until the next vm_apply(). Of what log and metrics were told there is
 * only the log's module, which the log borrows. */
const struct vm_config *vm_config(const struct vm *vm);

/* What guests can ask the metadata service for, valid likewise. NULL, with the reason: it was
 * started without one. */
must_check const struct mmds_store *vm_metadata(const struct vm *vm, struct error *e);
