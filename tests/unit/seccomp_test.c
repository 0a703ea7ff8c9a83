#include "vmm/seccomp/seccomp.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* What a filter says to a call, by running it as the kernel would. */
static uint32_t verdict_of(const struct sock_fprog *p, const struct seccomp_data *call)
{
    uint32_t a = 0;

    for (unsigned at = 0; at < p->len; at++) {
        const struct sock_filter *s = &p->filter[at];

        switch (s->code) {
        case BPF_LD | BPF_W | BPF_ABS: memcpy(&a, (const char *)call + s->k, sizeof(a)); break;
        case BPF_ALU | BPF_AND | BPF_K: a &= s->k; break;
        case BPF_JMP | BPF_JA: at += s->k; break;
        case BPF_JMP | BPF_JEQ | BPF_K: at += a == s->k ? s->jt : s->jf; break;
        case BPF_JMP | BPF_JGT | BPF_K: at += a > s->k ? s->jt : s->jf; break;
        case BPF_JMP | BPF_JGE | BPF_K: at += a >= s->k ? s->jt : s->jf; break;
        case BPF_RET | BPF_K: return s->k;
        default: cr_assert(false, "step 0x%x", s->code);
        }
    }
    cr_assert(false, "no verdict");
    return 0;
}

static uint32_t verdict(const struct sock_fprog *p, int number, uint64_t argument_1,
                        uint64_t argument_2)
{
    const struct seccomp_data call = {
        .nr = number,
        .arch = AUDIT_ARCH_X86_64,
        .args = { argument_1, argument_1, argument_2 },
    };

    return verdict_of(p, &call);
}

static bool allows(const struct sock_fprog *p, int number, uint64_t argument)
{
    return verdict(p, number, argument, argument) == SECCOMP_RET_ALLOW;
}

Test(seccomp_filters, leave_kvm_run_to_vcpus_only)
{
    cr_expect(allows(&seccomp_vcpu, SYS_ioctl, KVM_RUN));
    cr_expect_not(allows(&seccomp_main, SYS_ioctl, KVM_RUN));
    cr_expect(allows(&seccomp_process, SYS_ioctl, KVM_RUN));
}

Test(seccomp_filters, decide_on_kvm_run_first)
{
    unsigned loads = 0;

    /* After architecture and number, the first number that is compared is ioctl's. */
    for (unsigned i = 0; i < seccomp_vcpu.len; i++) {
        const struct sock_filter *s = &seccomp_vcpu.filter[i];

        loads += s->code == (BPF_LD | BPF_W | BPF_ABS);
        if (loads == 2 && s->code == (BPF_JMP | BPF_JEQ | BPF_K) && s->k != UINT32_MAX) {
            cr_expect_eq(s->k, SYS_ioctl);
            return;
        }
    }
    cr_assert(false, "no number is compared");
}

Test(seccomp_filters, look_at_all_64_bits_of_a_request)
{
    cr_expect_not(allows(&seccomp_vcpu, SYS_ioctl, KVM_RUN | UINT64_C(1) << 32));
}

Test(seccomp_filters, leave_what_a_start_needs_to_the_process_only)
{
    static const int calls[] = { SYS_clone,          SYS_execve,       SYS_listen, SYS_bind,
                                 SYS_io_uring_setup, SYS_rt_sigaction, SYS_seccomp };

    for (unsigned i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
        cr_expect_not(allows(&seccomp_main, calls[i], 1), "call %d", calls[i]);
        cr_expect_not(allows(&seccomp_vcpu, calls[i], 1), "call %d", calls[i]);
    }
    cr_expect(allows(&seccomp_process, SYS_execve, 0));
    cr_expect_not(allows(&seccomp_main, SYS_ioctl, KVM_CREATE_VM));
    cr_expect(allows(&seccomp_process, SYS_ioctl, KVM_CREATE_VM));
}

Test(seccomp_filters, leave_no_executable_memory)
{
    cr_expect(allows(&seccomp_process, SYS_mmap, PROT_READ | PROT_WRITE));
    cr_expect_not(allows(&seccomp_process, SYS_mmap, PROT_READ | PROT_EXEC));
    cr_expect_not(allows(&seccomp_process, SYS_mprotect, PROT_EXEC));
    cr_expect_not(allows(&seccomp_process, SYS_pkey_mprotect, 0));
}

Test(seccomp_filters, deny_clone3_in_words_the_c_library_understands)
{
    cr_expect_eq(verdict(&seccomp_process, SYS_clone3, 0, 0), SECCOMP_RET_ERRNO | ENOSYS);
}

Test(seccomp_filters, kill_what_comes_by_another_abi)
{
    struct seccomp_data call = { .nr = SYS_write, .arch = AUDIT_ARCH_I386 };

    cr_expect_eq(verdict_of(&seccomp_process, &call), SECCOMP_RET_KILL_PROCESS);
    cr_expect_eq(verdict_of(&seccomp_main, &call), SECCOMP_RET_KILL_PROCESS);
    cr_expect_eq(verdict_of(&seccomp_vcpu, &call), SECCOMP_RET_KILL_PROCESS);
    cr_expect_neq(verdict(&seccomp_vcpu, SYS_write | 0x40000000, 0, 0), SECCOMP_RET_ALLOW);
}

Test(seccomp_filters, of_threads_allow_no_more_than_that_of_the_process)
{
    for (int number = 0; number < 500; number++)
        for (uint64_t argument = 0; argument < 64; argument++) {
            bool is_allowed = allows(&seccomp_process, number, argument);

            cr_expect(is_allowed || !allows(&seccomp_main, number, argument), "call %d", number);
            cr_expect(is_allowed || !allows(&seccomp_vcpu, number, argument), "call %d", number);
        }
}
