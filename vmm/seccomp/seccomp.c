#include "vmm/seccomp/seccomp.h"

#include <alloca.h>
#include <errno.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int seccomp_install(const struct sock_fprog *program)
{
    /* At most BPF_MAXINSNS, half of a vCPU's stack; of the heap such a thread has no part. */
    size_t bytes = program->len * sizeof(*program->filter);
    // cppcheck-suppress allocaCalled; an array of all of that would be touched at each start
    struct sock_fprog own = { program->len, alloca(bytes) };

    memcpy(own.filter, program->filter, bytes);
    for (unsigned i = 0; i < own.len; i++)
        if (own.filter[i].code == (BPF_JMP | BPF_JEQ | BPF_K) && own.filter[i].k == SECCOMP_OWN_PID)
            own.filter[i].k = (uint32_t)getpid();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &own) < 0)
        return -errno;
    return 0;
}
