/*
 * A guest whose other processor changes the available index of a ring between any two looks of the
 * device: now there is a chain, now there is none. The index's page can't be read; each access
 * faults, is made in single step with the other value, and is counted.
 */
#pragma once

#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/support/in_process.h"

#define TOGGLE_LOOKS_MAX 20000u /* then it stands still */
#define TRAP_FLAG        0x100

static struct toggle {
    uint16_t *index;
    uint8_t *page;
    unsigned looks;
} toggle;

static inline void toggle_protect(int access)
{
    if (mprotect(toggle.page, (size_t)sysconf(_SC_PAGESIZE), access) < 0)
        _exit(1);
}

static inline void toggle_on_access(int number, siginfo_t *info, void *context)
{
    const uintptr_t at = (uintptr_t)info->si_addr, page = (uintptr_t)toggle.page;

    if (at < page || at - page >= (size_t)sysconf(_SC_PAGESIZE)) { /* a fault of the code's own */
        signal(number, SIG_DFL);
        return;
    }
    toggle_protect(PROT_READ | PROT_WRITE);
    if (at == (uintptr_t)toggle.index) {
        *toggle.index = toggle.looks % 2; /* at first there is none */
        toggle.looks++;
    }
    if (toggle.looks < TOGGLE_LOOKS_MAX)
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

static inline void toggle_after_access(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    toggle_protect(PROT_NONE);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
}

/* Begins, with a ring that is empty and was never used. */
static inline void toggle_start(const struct ring *r)
{
    struct sigaction access = { .sa_sigaction = toggle_on_access, .sa_flags = SA_SIGINFO };
    struct sigaction step = { .sa_sigaction = toggle_after_access, .sa_flags = SA_SIGINFO };

    toggle.index = ring_at(r, r->avail + offsetof(struct vring_avail, idx), sizeof(uint16_t));
    toggle.page = ring_at(r, r->avail, 1);
    toggle.looks = 0;
    cr_assert_eq(sigaction(SIGSEGV, &access, NULL), 0);
    cr_assert_eq(sigaction(SIGTRAP, &step, NULL), 0);
    toggle_protect(PROT_NONE);
}

/* Ends; how often the device has looked at the index. */
static inline unsigned toggle_stop(void)
{
    toggle_protect(PROT_READ | PROT_WRITE);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGTRAP, SIG_DFL);
    return toggle.looks;
}
