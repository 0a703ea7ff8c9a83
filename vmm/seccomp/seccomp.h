/*
 * The seccomp filters: which system calls are left to whom. The policy is policy.h; it is compiled
 * to BPF while building, so that installing a filter is one system call on constant data.
 *
 * A filter is for the calling thread and for those it starts later; a thread that has several can
 * do what all of them allow. What isn't allowed raises SIGSYS in the calling thread (signals.h).
 */
#pragma once

#include <linux/filter.h>

/* What the whole process may call from the jailer's execve on; the jailer installs it. */
extern const struct sock_fprog seccomp_process;

/* What is left to each thread from the guest's first instruction on. */
struct seccomp_threads {
    const struct sock_fprog *main, *vcpu;
    const struct sock_fprog
        *pager; /* a thread that serves guest memory (vmm/snapshot/recorder.h) */
};
extern const struct seccomp_threads seccomp_threads;
extern const struct sock_fprog seccomp_main, seccomp_vcpu, seccomp_pager; /* its three */

/* Stands in a program for the process's PID: greater than any, so that no call passes by itself. */
#define SECCOMP_OWN_PID 0x7fff6f77u

/* Installs a filter, with the PID of the calling process where it compares with SECCOMP_OWN_PID. 0
 * or -errno. Sets no_new_privs, which the kernel asks for. */
__attribute__((warn_unused_result)) int seccomp_install(const struct sock_fprog *program);
