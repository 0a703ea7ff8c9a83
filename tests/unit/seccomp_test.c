#include "vmm/seccomp/seccomp.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* How many steps of a filter the last verdict took. */
static unsigned steps;

/* What a filter says to a call, by running it as the kernel would. */
static uint32_t verdict_of(const struct sock_fprog *p, const struct seccomp_data *call)
{
    uint32_t a = 0;

    steps = 0;
    for (unsigned at = 0; at < p->len; at++, steps++) {
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

Test(seccomp_filters, ask_in_the_policys_order)
{
    static const struct sock_fprog *const filters[] = { &seccomp_process, &seccomp_vcpu };
    static const uint64_t rarer_and_rarer[] = { KVM_RUN, KVM_IRQ_LINE, KVM_KVMCLOCK_CTRL, TCGETS };

    for (size_t f = 0; f < sizeof(filters) / sizeof(*filters); f++)
        for (unsigned i = 0, before = 0; i < 4; i++, before = steps) {
            cr_expect(allows(filters[f], SYS_ioctl, rarer_and_rarer[i]));
            cr_expect_gt(steps, before, "%u", i);
        }
}

Test(seccomp_filters, ask_for_no_bits_that_no_mask_has)
{
    static const struct sock_fprog *const filters[] = { &seccomp_process, &seccomp_main,
                                                        &seccomp_vcpu, &seccomp_pager };

    for (size_t f = 0; f < sizeof(filters) / sizeof(*filters); f++)
        for (unsigned i = 0; i < filters[f]->len; i++)
            cr_expect(filters[f]->filter[i].code != (BPF_ALU | BPF_AND | BPF_K) ||
                          filters[f]->filter[i].k != 0,
                      "filter %zu, step %u", f, i);
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

static bool allows_all(const struct sock_fprog *p, int number, const uint64_t arguments[6])
{
    struct seccomp_data call = { .nr = number, .arch = AUDIT_ARCH_X86_64 };

    memcpy(call.args, arguments, sizeof(call.args));
    return verdict_of(p, &call) == SECCOMP_RET_ALLOW;
}

/* One argument after the other is made another one. */
Test(seccomp_filters, look_at_each_argument_that_a_row_names)
{
    static const struct {
        int number;
        unsigned looked_at; /* a bit for each argument */
        uint64_t arguments[6];
    } calls[] = {
        { SYS_socket, 7, { AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC } },
        { SYS_accept4, 8, { 4, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC } },
        { SYS_connect, 4, { 4, 5, 110 } },
        { SYS_recvfrom, 8, { 4, 5, 6, MSG_PEEK } },
        { SYS_fcntl, 6, { 5, F_SETFL, 0 } },
        { SYS_fcntl, 3, { STDOUT_FILENO, F_SETFL, 5 } },
        { SYS_ioctl, 2, { 5, TCSETS } },
        { SYS_openat, 4, { 5, 5, O_RDWR | O_NONBLOCK | O_CLOEXEC } },
        { SYS_openat, 12, { 5, 5, O_RDWR | O_CREAT | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0666 } },
        { SYS_fchmod, 2, { 5, 0640 } },
        { SYS_mmap, 12, { 5, 5, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS } },
        { SYS_tgkill, 5, { SECCOMP_OWN_PID, 5, SIGURG } },
        { SYS_tgkill, 5, { SECCOMP_OWN_PID, 5, SIGABRT } },
    };

    for (unsigned i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
        cr_expect(allows_all(&seccomp_main, calls[i].number, calls[i].arguments), "call %d",
                  calls[i].number);
        for (unsigned n = 0; n < 6; n++) {
            uint64_t arguments[6];

            memcpy(arguments, calls[i].arguments, sizeof(arguments));
            arguments[n] ^= 0x20000000;
            cr_expect_eq(allows_all(&seccomp_main, calls[i].number, arguments),
                         !(calls[i].looked_at >> n & 1), "call %d, argument %u", calls[i].number,
                         n);
        }
    }
}

static void end_well(int number)
{
    _exit(number == SIGSYS ? 3 : 4);
}

/* A child's, so that a PID that was someone else's at an earlier time would be noticed. */
Test(seccomp_install, leaves_signals_to_the_own_process)
{
    struct sigaction stopped = { .sa_handler = end_well }, taken = { .sa_handler = SIG_IGN };
    pid_t parent = getpid(), child;
    int status;

    if (verdict(&seccomp_main, SYS_getppid, 0, 0) != SECCOMP_RET_TRAP)
        cr_skip_test("a sanitizer's build only logs");
    sigaction(SIGSYS, &stopped, NULL);
    sigaction(34, &taken, NULL);
    child = fork();
    if (child == 0) {
        if (seccomp_install(&seccomp_main) < 0 || syscall(SYS_tgkill, getpid(), gettid(), 34) < 0)
            _exit(5);
        syscall(SYS_tgkill, parent, parent, 34);
        _exit(6);
    }
    waitpid(child, &status, 0);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 3, "status 0x%x", status);
}
