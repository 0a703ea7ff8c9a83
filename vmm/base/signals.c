#include "vmm/base/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "vmm/base/bug.h"
#include "vmm/base/console.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"

static const struct fatal {
    int signal;
    int exit_code;
    metric *count;
} fatals[] = {
    { SIGSYS, 148, &metrics.seccomp.num_faults }, { SIGBUS, 149, &metrics.signals.sigbus },
    { SIGSEGV, 150, &metrics.signals.sigsegv },   { SIGXFSZ, 151, &metrics.signals.sigxfsz },
    { SIGXCPU, 154, &metrics.signals.sigxcpu },   { SIGHUP, 156, &metrics.signals.sighup },
    { SIGILL, 157, &metrics.signals.sigill },
};
#define FATALS (sizeof(fatals) / sizeof(*fatals))

/* On whatever thread and in the middle of whatever it did: async-signal-safe throughout. A second
 * such signal in here finds the default disposition and ends the process as well. */
static void on_fatal(int signal, siginfo_t *info, void *context)
{
    (void)context;
    for (size_t i = 0; i < FATALS; i++) {
        if (fatals[i].signal != signal)
            continue;
        metric_set(fatals[i].count, 1);
        log_signal(info, true);
        metrics_write();
        console_restore();
        _exit(fatals[i].exit_code);
    }
}

void bug(const char *file, int line, const char *what)
{
    log_error("%s:%d: broken invariant: %s", file, line, what);
    metric_set(&metrics.vmm.panic_count, 1);
    metrics_write();
    console_restore();
    abort();
}

/* A handler, not SIG_IGN: that would be inherited by what is executed, and nothing would count. One
 * that we raise by a write is its caller's to deal with, and not logged: a guest could bring that
 * about as often as it likes, and where the log is the pipe, a line would raise the next. */
static void on_sigpipe(int signal, siginfo_t *info, void *context)
{
    int saved = errno;

    (void)signal;
    (void)context;
    metric_inc(&metrics.signals.sigpipe);
    if (info->si_pid != getpid())
        log_signal(info, false);
    errno = saved;
}

void signals_install(void)
{
    const struct sigaction pipe = {
        .sa_sigaction = on_sigpipe,
        .sa_flags = SA_SIGINFO | SA_RESTART,
    };
    const struct sigaction fatal = {
        .sa_sigaction = on_fatal,
        .sa_flags = SA_SIGINFO | (int)SA_RESETHAND,
    };

    signal(SIGTTIN, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    sigaction(SIGPIPE, &pipe, NULL);
    for (size_t i = 0; i < FATALS; i++)
        sigaction(fatals[i].signal, &fatal, NULL);
}
