/*
 * The seccomp filters: which system calls are left to whom. The policy is policy.h; it is compiled
 * to BPF while building, so that installing a filter is one system call on constant data.
 *
 * A filter is for the calling thread and for those it starts later; a thread that has several can
 * do what all of them allow. What isn't allowed raises SIGSYS in the calling thread (signals.h).
 */
#pragma once

#include <linux/filter.h>

enum seccomp_filter {
    SECCOMP_PROCESS, /* from the jailer's execve on: everything that follows, and starting up */
    SECCOMP_MAIN,    /* the main thread from the guest's first instruction on */
    SECCOMP_VCPU,    /* a vCPU's thread, likewise */
    SECCOMP_FILTERS
};

/* Installs a filter. 0 or -errno. Sets no_new_privs, which the kernel asks for. */
__attribute__((warn_unused_result)) int seccomp_install(enum seccomp_filter filter);

/* As seccomp_install(), for a program from elsewhere. */
__attribute__((warn_unused_result)) int seccomp_install_program(const struct sock_fprog *program);

/* Compiled from policy.h. */
extern const struct sock_fprog seccomp_programs[SECCOMP_FILTERS];
