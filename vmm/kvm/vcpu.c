#include "vmm/kvm/vcpu.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/base/clock.h"
#include "vmm/base/log.h"
#include "vmm/base/probe.h"
#include "vmm/base/thread.h"
#include "vmm/base/timeline.h"
#include "vmm/kvm/cpu_template.h"
#include "vmm/seccomp/seccomp.h"

/* Not one of the real-time signals, which are refused where the user has RLIMIT_SIGPENDING of them
 * waiting already. */
#define KICK_SIGNAL SIGURG

/* MSRs whose boot value is not what KVM resets them to. The rest of what a boot protocol asks for
 * (SYSENTER, STAR, KERNEL_GS_BASE, the TSC at 0, FPU control words) is KVM's reset state; writing
 * the TSC would only undo KVM's own synchronisation between vCPUs. */
#define MSR_IA32_MISC_ENABLE    0x1a0u
#define MISC_ENABLE_FAST_STRING 1u
#define MSR_MTRR_DEF_TYPE       0x2ffu
#define MTRR_ENABLE_WRITE_BACK  (1u << 11 | 6u)

#define LAPIC_LVT_LINT0 0x350u
#define LAPIC_LVT_LINT1 0x360u
#define LVT_MODE_MASK   0x700u
#define LVT_MODE_NMI    0x400u
#define LVT_MODE_EXTINT 0x700u

static const struct kvm_msr_entry reset_msrs[] = {
    { .index = MSR_IA32_MISC_ENABLE, .data = MISC_ENABLE_FAST_STRING },
    { .index = MSR_MTRR_DEF_TYPE, .data = MTRR_ENABLE_WRITE_BACK },
};

/* One MSR as a template wants it. */
static int change_msr(int fd, const struct msr_modifier *m, struct error *e)
{
    struct kvm_msr_entry msr = { .index = m->index };

    if (msrs_read(fd, &msr, 1, e) < 0)
        return fail(e, ERR_HOST,
                    "Failed to apply CPU template: Template changes an MSR entry not supported by "
                    "KVM: Register Address: %x",
                    m->index);
    msr.data = (msr.data & ~m->bits.mask) | m->bits.value;
    if (msrs_write(fd, &msr, 1, e) < 0)
        return fail(e, ERR_HOST,
                    "Failed to apply CPU template: KVM refuses to set MSR 0x%x to 0x%llx", m->index,
                    (unsigned long long)msr.data);
    return 0;
}

static void lapic_set_mode(struct kvm_lapic_state *lapic, unsigned reg, uint32_t mode)
{
    uint32_t lvt;

    memcpy(&lvt, lapic->regs + reg, sizeof(lvt));
    lvt = (lvt & ~LVT_MODE_MASK) | mode;
    memcpy(lapic->regs + reg, &lvt, sizeof(lvt));
}

/* Virtual wire mode (MultiProcessor Specification 1.4, section 3.6.2.2): the PIC's interrupts
 * arrive as ExtINT on LINT0. */
static int set_lapic(int fd, struct error *e)
{
    struct kvm_lapic_state lapic;

    if (ioctl(fd, KVM_GET_LAPIC, &lapic) < 0)
        return fail_os(e, errno, "KVM_GET_LAPIC");
    lapic_set_mode(&lapic, LAPIC_LVT_LINT0, LVT_MODE_EXTINT);
    lapic_set_mode(&lapic, LAPIC_LVT_LINT1, LVT_MODE_NMI);
    if (ioctl(fd, KVM_SET_LAPIC, &lapic) < 0)
        return fail_os(e, errno, "KVM_SET_LAPIC");
    return 0;
}

static int create_vcpu(struct vcpu *c, const struct kvm *k, struct error *e)
{
    c->fd = ioctl(k->vm_fd, KVM_CREATE_VCPU, c->index);
    if (c->fd < 0)
        return fail_os(e, errno, "cannot create vCPU %u", c->index);
    c->run = mmap(NULL, k->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
    if (c->run == MAP_FAILED) {
        c->run = NULL;
        return fail_os(e, errno, "cannot map vCPU %u", c->index);
    }
    /* Bytes of guest memory pass through it; guest_mem.h keeps them from core dumps. */
    if (madvise(c->run, k->run_bytes, MADV_DONTDUMP) < 0)
        return fail_os(e, errno, "cannot keep vCPU %u from core dumps", c->index);
    return 0;
}

/* What the tiles of AMX hold is 8 KiB for each vCPU, which Linux does not give unasked (Linux
 * Documentation/arch/x86/xstate.rst), and not to a process that has a vCPU. Without it KVM shows no
 * tiles, or half of them (5.17 to 6.3). A host or a processor that has none refuses. */
static void ask_for_tiles(void)
{
    uint64_t supported = 0;

    if (syscall(SYS_arch_prctl, ARCH_GET_XCOMP_SUPP, &supported) == 0 &&
        supported >> CPUID_XTILE_DATA & 1)
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM, CPUID_XTILE_DATA);
}

int vcpus_create(struct vcpus *v, const struct kvm *k, unsigned count, const struct bus *pio,
                 const struct bus *mmio, struct guest_end *end, struct error *e)
{
    *v = (struct vcpus){
        .kvm = k,
        .pio = pio,
        .mmio = mmio,
        .end = end,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
    };
    ask_for_tiles();
    while (v->count < count) {
        struct vcpu *c = &v->each[v->count];

        *c = (struct vcpu){ .all = v, .index = v->count++, .fd = -1 };
        if (create_vcpu(c, k, e) < 0)
            return -1;
    }
    return 0;
}

static int reset_vcpu(const struct vcpu *c, const struct cpuid *cpuid,
                      const struct cpu_config *template, struct error *e)
{
    if (ioctl(c->fd, KVM_SET_CPUID2, cpuid) < 0)
        return fail_os(e, errno, "KVM_SET_CPUID2 of vCPU %u", c->index);
    if (msrs_write(c->fd, reset_msrs, sizeof(reset_msrs) / sizeof(*reset_msrs), e) < 0)
        return -1;
    for (size_t i = 0; template && i < template->msr_count; i++)
        if (change_msr(c->fd, &template->msrs[i], e) < 0)
            return -1;
    return set_lapic(c->fd, e);
}

int vcpus_reset(struct vcpus *v, bool smt, const struct cpu_config *template, struct error *e)
{
    const struct cpu_topology topology = { v->count, smt };
    struct cpuid cpuid;

    if (cpuid_supported(&cpuid, v->kvm->kvm_fd, e) < 0)
        return -1;
    /* The template first: what makes a VM of these vCPUs has the last word. */
    if (template && cpu_template_apply(template, &cpuid, e) < 0)
        return -1;
    for (size_t i = 0; template && i < template->msr_count; i++)
        msr_list_add(&v->msrs, template->msrs[i].index);
    cpuid_normalise(&cpuid, &topology);
    for (unsigned i = 0; i < v->count; i++) {
        cpuid_set_vcpu(&cpuid, i, &topology);
        if (reset_vcpu(&v->each[i], &cpuid, template, e) < 0)
            return -1;
    }
    return 0;
}

void vcpus_fini(struct vcpus *v)
{
    for (unsigned i = 0; i < v->count; i++) {
        if (v->each[i].run)
            munmap(v->each[i].run, v->kvm->run_bytes);
        close_fdp(&v->each[i].fd);
    }
    v->count = 0;
}

int vcpu_get_sregs(const struct vcpu *c, struct kvm_sregs *s, struct error *e)
{
    return ioctl(c->fd, KVM_GET_SREGS, s) < 0 ? fail_os(e, errno, "KVM_GET_SREGS") : 0;
}

int vcpu_set_registers(const struct vcpu *c, const struct kvm_regs *r, const struct kvm_sregs *s,
                       struct error *e)
{
    if (ioctl(c->fd, KVM_SET_SREGS, s) < 0)
        return fail_os(e, errno, "KVM_SET_SREGS");
    return ioctl(c->fd, KVM_SET_REGS, r) < 0 ? fail_os(e, errno, "KVM_SET_REGS") : 0;
}

/* No guest instruction before every thread is confined. */
static bool must_stand(const struct vcpus *v)
{
    return v->holds || v->ready < v->count;
}

static void stand(struct vcpu *c)
{
    struct vcpus *v = c->all;

    pthread_mutex_lock(&v->lock);
    if (must_stand(v)) {
        /* Tells the guest's watchdogs that it stood still; a guest without kvmclock has none. */
        if (ioctl(c->fd, KVM_KVMCLOCK_CTRL, 0) < 0 && errno != EINVAL)
            metric_inc(&c->metrics.kvmclock_ctrl_fails);
        v->standing++;
        pthread_cond_broadcast(&v->changed);
        while (must_stand(v))
            pthread_cond_wait(&v->changed, &v->lock);
        v->standing--;
    }
    __atomic_store_n(&c->run->immediate_exit, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&v->lock);
}

static void on_pio(struct vcpu *c)
{
    const struct kvm_run *run = c->run;
    bool is_in = run->io.direction == KVM_EXIT_IO_IN;
    uint64_t start = monotonic_us();
    uint8_t *data = (uint8_t *)c->run + run->io.data_offset;

    /* A string instruction comes as one exit with `count` items for the same port. */
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if (is_in)
            bus_read(c->all->pio, run->io.port, data, run->io.size);
        else
            bus_write(c->all->pio, run->io.port, data, run->io.size);
    }
    metric_inc(is_in ? &c->metrics.exit_io_in : &c->metrics.exit_io_out);
    latency_record(is_in ? &c->metrics.exit_io_in_agg : &c->metrics.exit_io_out_agg, start);
}

static void on_mmio(struct vcpu *c)
{
    struct kvm_run *run = c->run;
    bool is_write = run->mmio.is_write;
    uint64_t start = monotonic_us();

    if (run->mmio.len > sizeof(run->mmio.data))
        return;
    if (is_write)
        bus_write(c->all->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    else
        bus_read(c->all->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    metric_inc(is_write ? &c->metrics.exit_mmio_write : &c->metrics.exit_mmio_read);
    latency_record(is_write ? &c->metrics.exit_mmio_write_agg : &c->metrics.exit_mmio_read_agg,
                   start);
}

static void on_system_event(const struct vcpu *c)
{
    uint32_t type = c->run->system_event.type;

    log_info("The guest asked for %s", type == KVM_SYSTEM_EVENT_RESET ? "a reset" : "a shutdown");
    guest_end_signal(c->all->end,
                     type == KVM_SYSTEM_EVENT_RESET || type == KVM_SYSTEM_EVENT_SHUTDOWN ? 0 : 1);
}

static void fail_vcpu(struct vcpu *c, const char *why, uint64_t detail)
{
    metric_inc(&c->metrics.failures);
    log_error("vCPU %u: %s (%llu)", c->index, why, (unsigned long long)detail);
    guest_end_signal(c->all->end, 1);
}

/* What a guest did that KVM can't go on with: where, and if KVM says so the instruction's bytes
 * (Linux 5.15: its emulator could not carry it out). */
static void fail_vcpu_there(struct vcpu *c, const char *why, uint64_t detail)
{
    const struct kvm_run *run = c->run;
    struct kvm_regs regs = { .rip = 0 };
    char text[160];
    int n;

    (void)!ioctl(c->fd, KVM_GET_REGS, &regs);
    n = snprintf(text, sizeof(text), "%s at RIP 0x%llx", why, (unsigned long long)regs.rip);
    if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
        run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
        run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) {
        n += snprintf(text + n, sizeof(text) - n, ", instruction bytes");
        for (unsigned i = 0;
             i < sizeof(run->emulation_failure.insn_bytes) && i < run->emulation_failure.insn_size;
             i++)
            n +=
                snprintf(text + n, sizeof(text) - n, " %02x", run->emulation_failure.insn_bytes[i]);
    }
    fail_vcpu(c, text, detail);
}

static void on_exit_reason(struct vcpu *c)
{
    const struct kvm_run *run = c->run;

    PROBE2(vcpu_exit, c->index, run->exit_reason);
    switch (run->exit_reason) {
    case KVM_EXIT_IO: on_pio(c); break;
    case KVM_EXIT_MMIO: on_mmio(c); break;
    case KVM_EXIT_INTR: break;
    case KVM_EXIT_SYSTEM_EVENT: on_system_event(c); break;
    case KVM_EXIT_SHUTDOWN:
        fail_vcpu(c, "the guest's processor shut down (triple fault)", 0);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        fail_vcpu(c, "the processor refuses to enter the guest",
                  run->fail_entry.hardware_entry_failure_reason);
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        fail_vcpu_there(c, "KVM internal error", run->internal.suberror);
        break;
    default: fail_vcpu_there(c, "unexpected exit reason", run->exit_reason);
    }
}

/* The process is about to end: the guest's next instruction must not run. A hold that the end
 * brings about finds this thread standing still as well. */
static void stand_for_good(struct vcpu *c)
{
    struct vcpus *v = c->all;

    pthread_mutex_lock(&v->lock);
    v->standing++;
    pthread_cond_broadcast(&v->changed);
    for (;;)
        pthread_cond_wait(&v->changed, &v->lock);
}

static void confine(struct vcpus *v)
{
    BUG_ON(v->filter && seccomp_install(v->filter) < 0);
    pthread_mutex_lock(&v->lock);
    v->ready++;
    pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->lock);
}

/* Once around the guest. Where an exit is an access to a device, KVM ends the instruction only when
 * it is entered again; until then the registers say that it hasn't run, and a guest restored from
 * them would do it twice. So a thread that is to stand still enters KVM once more: with
 * immediate_exit KVM ends the instruction and returns EINTR before the next one. On the way it may
 * ask for more, which is answered: the second page of an access to two, the next byte of a REP (KVM
 * goes back to the guest after 1024). */
static void run_vcpu(struct vcpu *c)
{
    if (ioctl(c->fd, KVM_RUN, 0) == 0)
        on_exit_reason(c);
    else if (errno == EINTR && __atomic_load_n(&c->run->immediate_exit, __ATOMIC_RELAXED))
        stand(c);
    else if (errno != EINTR && errno != EAGAIN)
        fail_vcpu_there(c, os_error_text(errno), (uint64_t)errno);
}

static void *vcpu_thread(void *arg)
{
    struct vcpu *c = arg;

    confine(c->all);
    stand(c); /* there is no exit yet that KVM could end */
    timeline_mark(PHASE_GUEST_ENTRY);
    for (;;) {
        run_vcpu(c);
        if (c->all->end->ended)
            stand_for_good(c);
    }
    return NULL;
}

/* The handler exists so that the signal interrupts KVM_RUN instead of killing the process. */
static void on_kick_signal(int signal)
{
    (void)signal;
}

static int start_thread(struct vcpu *c)
{
    char name[THREAD_NAME_BYTES];

    snprintf(name, sizeof(name), "fc_vcpu %u", c->index);
    return thread_start(&c->thread, name, vcpu_thread, c);
}

int vcpus_start(struct vcpus *v, const struct sock_fprog *filter, struct error *e)
{
    struct sigaction kick = { .sa_handler = on_kick_signal };
    int ret = 0;

    v->filter = filter;
    v->patience_ns = VCPUS_PATIENCE_S * NS_PER_S;
    v->holds = 1;
    for (unsigned i = 0; i < v->count; i++)
        metrics_add_source(METRICS_OF_VCPU, NULL, &v->each[i].metrics);
    sigaction(KICK_SIGNAL, &kick, NULL);
    while (v->started < v->count && !ret) {
        ret = start_thread(&v->each[v->started]);
        v->started += !ret;
    }
    return ret ? fail_os(e, ret, "cannot start a vCPU thread") : 0;
}

bool vcpus_hold(struct vcpus *v)
{
    const struct timespec until = timespec_of(monotonic_ns() + v->patience_ns);
    bool stands = true;

    pthread_mutex_lock(&v->lock);
    if (v->holds++ == 0)
        for (unsigned i = 0; i < v->started; i++) {
            /* Read by the kernel on entry: a kick that comes just before KVM_RUN isn't lost. */
            __atomic_store_n(&v->each[i].run->immediate_exit, 1, __ATOMIC_RELAXED);
            pthread_kill(v->each[i].thread, KICK_SIGNAL);
        }
    while (v->standing < v->started && stands)
        stands = pthread_cond_clockwait(&v->changed, &v->lock, CLOCK_MONOTONIC, &until) == 0;
    stands = v->standing == v->started;
    if (!stands && --v->holds == 0)
        pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->lock);
    return stands;
}

void vcpus_release(struct vcpus *v)
{
    pthread_mutex_lock(&v->lock);
    BUG_ON(v->holds == 0);
    if (--v->holds == 0)
        pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->lock);
}
