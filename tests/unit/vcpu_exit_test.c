/* What a vCPU's thread does at each exit that ends it, confined as in a microVM. KVM is played. */
#include "vmm/kvm/vcpu.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <linux/kvm.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/unit/support/files.h"
#include "tests/unit/support/lock.h"
#include "vmm/base/bug.h"
#include "vmm/base/log.h"
#include "vmm/base/loop.h"
#include "vmm/base/metrics.h"
#include "vmm/base/signals.h"
#include "vmm/seccomp/seccomp.h"

static union {
    struct kvm_run run;
    uint8_t bytes[4096];
} page;

static int failure; /* of KVM_RUN */
static bool is_our_fault;
static int entered = -1, leave; /* KVM_RUN says that it was entered, and waits; -1: does neither */

int ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    void *arg;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);
    if (request == KVM_KVMCLOCK_CTRL)
        return 0;
    if (request != KVM_RUN)
        return (int)syscall(SYS_ioctl, fd, request, arg);
    BUG_ON(is_our_fault);
    if (entered >= 0) {
        loop_signal(entered);
        loop_drain(leave);
    }
    errno = failure;
    return failure ? -1 : 0;
}

static char log_path[] = NEW_FILE;
static char metrics_path[] = NEW_FILE;
static char text[4096];

static void must(int ret, const struct error *e)
{
    if (ret < 0) {
        fprintf(stderr, "%s\n", e->msg);
        _exit(99);
    }
}

/* One vCPU, whose thread writes the process's first line; the process ends as a VMM does. */
static void run_to_the_end(void)
{
    static struct vcpus v;
    static struct guest_end end;
    struct pollfd ended;
    struct error e;

    log_prepare();
    log_set_options((struct log_options){ .level = LOG_INFO });
    must(log_open(log_path, &e), &e);
    must(metrics_open(&(struct metrics_config){ .metrics_path = metrics_path }, "x", &e), &e);
    signals_install();
    end.event_fd = eventfd(0, EFD_CLOEXEC);
    v = (struct vcpus){
        .count = 1,
        .each[0] = { .all = &v, .fd = -1, .run = &page.run },
        .end = &end,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
    };
    must(vcpus_start(&v, &seccomp_vcpu, &e), &e);
    vcpus_release(&v);
    ended = (struct pollfd){ end.event_fd, POLLIN, 0 };
    poll(&ended, 1, -1);
    vcpus_hold(&v); /* it stands */
    _exit(end.exit_code);
}

/* The status of a process of its own, whose log is read then. */
static int status_of_a_run(void)
{
    int status;
    pid_t pid;

    close(new_file(log_path));
    close(new_file(metrics_path));
    pid = fork();
    if (pid == 0)
        run_to_the_end();
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    read_text(log_path, text, sizeof(text));
    unlink(log_path);
    unlink(metrics_path);
    return status;
}

static void expect_end(int code, const char *line)
{
    int status = status_of_a_run();
    char *first = strstr(text, line);

    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == code, "status 0x%x, not %d: %s", status,
              code, line);
    cr_expect(first, "no \"%s\" in:\n%s", line, text);
    cr_expect(first && strchr(first, '\n') && !strchr(first, '\n')[1], "more than once:\n%s", text);
}

Test(vcpu_exit, of_each_kind_is_told_and_ends_the_process)
{
    static const struct {
        uint32_t reason, type;
        int code;
        const char *line;
    } cases[] = {
        { KVM_EXIT_SHUTDOWN, 0, 1, "vCPU 0: the guest's processor shut down (triple fault) (0)" },
        { KVM_EXIT_FAIL_ENTRY, 7, 1, "vCPU 0: the processor refuses to enter the guest (7)" },
        { KVM_EXIT_INTERNAL_ERROR, 3, 1, "vCPU 0: KVM internal error at RIP 0x0 (3)" },
        { KVM_EXIT_UNKNOWN, 0, 1, "vCPU 0: unexpected exit reason at RIP 0x0 (0)" },
        { KVM_EXIT_HYPERCALL, 0, 1, "vCPU 0: unexpected exit reason at RIP 0x0 (3)" },
        { KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_SHUTDOWN, 0, "The guest asked for a shutdown" },
        { KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_RESET, 0, "The guest asked for a reset" },
        { KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_CRASH, 1, "The guest asked for a shutdown" },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        page.run.exit_reason = cases[i].reason;
        page.run.hw.hardware_exit_reason = cases[i].type; /* each kind's first field lies there */
        expect_end(cases[i].code, cases[i].line);
    }
}

/* Also one that libc has no name for. */
Test(vcpu_exit, by_an_error_of_kvm_is_told_and_ends_the_process)
{
    failure = EFAULT;
    expect_end(1, "vCPU 0: Bad address at RIP 0x0 (14)");
    failure = EIO;
    expect_end(1, "vCPU 0: I/O error at RIP 0x0 (5)");
    failure = 530;
    expect_end(1, "vCPU 0: No error information at RIP 0x0 (530)");
}

Test(vcpu_exit, by_a_fault_of_our_own_is_told)
{
    int status;

    is_our_fault = true;
    status = status_of_a_run();
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status 0x%x", status);
    cr_expect(strstr(text, "broken invariant: is_our_fault\n"), "%s", text);
}

static struct vcpus none = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void hold_vcpus(void)
{
    vcpus_hold(&none);
}

static void release_vcpus(void)
{
    vcpus_release(&none);
}

Test(vcpus, are_held_by_one_thread_at_a_time)
{
    cr_expect(waits_for(&none.lock, hold_vcpus));
    cr_expect(waits_for(&none.lock, release_vcpus));
}

static struct guest_end no_end;
static struct vcpus one = {
    .count = 1,
    .each[0] = { .all = &one, .fd = -1, .run = &page.run },
    .end = &no_end,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER,
};

/* The lock is held. True: the thread waits for it, and has not counted itself yet. */
static bool waits_to_be_counted(const unsigned *count)
{
    bool has_waited = false;

    while (!has_waited && __atomic_load_n(count, __ATOMIC_RELAXED) == 0)
        has_waited = lock_is_waited_for(&one.lock);
    return has_waited;
}

/* By the thread that starts them, and by whoever holds them: when each is confined, when it stands
 * still, and when the guest has ended. */
Test(vcpus, are_counted_by_one_thread_at_a_time)
{
    struct error e;

    entered = eventfd(0, 0);
    leave = eventfd(0, 0);
    failure = EINTR;
    pthread_mutex_lock(&one.lock);
    cr_assert_eq(vcpus_start(&one, NULL, &e), 0, "%s", e.msg);
    cr_expect(waits_to_be_counted(&one.ready));
    pthread_mutex_unlock(&one.lock);
    vcpus_hold(&one); /* it stands */
    vcpus_release(&one);
    vcpus_release(&one);
    loop_drain(entered);
    pthread_mutex_lock(&one.lock);
    one.holds = 1;
    page.run.immediate_exit = 1;
    loop_signal(leave);
    cr_expect(waits_to_be_counted(&one.standing));
    pthread_mutex_unlock(&one.lock);
    vcpus_hold(&one);
    vcpus_release(&one);
    vcpus_release(&one);
    loop_drain(entered);
    pthread_mutex_lock(&one.lock);
    no_end.ended = true;
    loop_signal(leave);
    cr_expect(waits_to_be_counted(&one.standing));
    pthread_mutex_unlock(&one.lock);
    vcpus_hold(&one);
}
