#include "vmm/machine/restore.h"

#include <string.h>

#include "vmm/base/clock.h"
#include "vmm/base/log.h"
#include "vmm/legacy/generation.h"

static int save_kvm(struct machine *m, struct saved *s, struct error *e)
{
    s->vcpu_count = m->vcpus.count;
    s->vcpus = calloc(s->vcpu_count, sizeof(*s->vcpus));
    BUG_ON(!s->vcpus);
    for (unsigned i = 0; i < m->vcpus.count; i++)
        if (vcpu_get_state(&m->vcpus.each[i], &s->vcpus[i], e) < 0)
            return -1;
    return kvm_get_state(&m->kvm, &s->kvm, e);
}

/* Transports are in attach order. */
static void save_devices(struct machine *m, struct saved *s)
{
    const struct virtio_mmio *t = m->transports;

    for (size_t i = 0; i < s->config.drives.count; i++) {
        s->blocks[i].is_thin = m->opened->drives[i].file.is_thin;
        rate_limiter_get_state(&m->blocks[i].limiter, &s->blocks[i].limiter);
        virtio_mmio_get_state(t++, &s->blocks[i].transport);
    }
    for (size_t i = 0; i < s->config.interfaces.count; i++) {
        rate_limiter_get_state(&m->nets[i].rx_limiter, &s->nets[i].rx_limiter);
        rate_limiter_get_state(&m->nets[i].tx_limiter, &s->nets[i].tx_limiter);
        virtio_mmio_get_state(t++, &s->nets[i].transport);
    }
    if (s->config.vsock.uds_path) {
        s->vsock = m->vsock.table.state;
        virtio_mmio_get_state(t, &s->vsock_transport);
    }
    s->serial = m->serial.state;
    s->i8042 = m->i8042.state;
}

int machine_save(struct machine *m, const struct vm_config *config, struct saved *s,
                 struct error *e)
{
    if (uuid_make(&s->name, e) < 0)
        return -1;
    s->wall_ns = clock_ns(CLOCK_REALTIME);
    cpuid_host(s->processor);
    s->config = *config;
    save_devices(m, s);
    return save_kvm(m, s, e);
}

/* The processor that it was saved on will do. A custom template may give a guest what no processor
 * has: then it is the client's word that counts. */
static int check_processor(const struct machine *m, const struct saved *s, struct error *e)
{
    uint32_t here[CPUID_HOST_WORDS];

    cpuid_host(here);
    if (memcmp(here, s->processor, sizeof(here)) == 0)
        return 0;
    if (vcpu_check_processor(&m->vcpus.each[0], &s->vcpus[0], e) == 0)
        return 0;
    if (s->config.machine.cpu_template != CPU_TEMPLATE_CUSTOM)
        return -1;
    log_warn("The snapshot is loaded, by its CPU template: %s", e->msg);
    return 0;
}

static int restore_kvm(struct machine *m, const struct saved *s, struct error *e)
{
    if (check_processor(m, s, e) < 0)
        return -1;
    for (unsigned i = 0; i < m->vcpus.count; i++)
        if (vcpu_set_state(&m->vcpus.each[i], &s->vcpus[i], e) < 0)
            return -1;
    return kvm_set_state(&m->kvm, &s->kvm, e);
}

/* A limiter that was just made has the sizes that were configured; what is left of them is saved.
 */
static int restore_limiter(struct rate_limiter *l, const struct rate_limiter_state *saved)
{
    struct rate_limiter_state s = l->state;

    s.bandwidth.burst = saved->bandwidth.burst;
    s.bandwidth.missing = saved->bandwidth.missing;
    s.ops.burst = saved->ops.burst;
    s.ops.missing = saved->ops.missing;
    return rate_limiter_set_state(l, &s);
}

static int fail_device(const char *kind, const char *id, uint64_t taken, uint64_t offered,
                       struct error *e)
{
    if (taken & ~offered)
        return fail(e, ERR_INVALID,
                    "%s %.200s: the guest uses features that it does not have on this host: 0x%llx",
                    kind, id, (unsigned long long)(taken & ~offered));
    return fail(e, ERR_INVALID, "%s %.200s: no guest could have brought it to its state", kind, id);
}

static int restore_transport(struct virtio_mmio *t, const struct virtio_mmio_state *s,
                             const char *kind, const char *id, struct error *e)
{
    if (virtio_mmio_set_state(t, s) == 0)
        return 0;
    return fail_device(kind, id, s->registers.driver_features, t->device->offered, e);
}

static int restore_virtio(struct machine *m, const struct saved *s, struct error *e)
{
    struct virtio_mmio *t = m->transports;

    for (size_t i = 0; i < s->config.drives.count; i++) {
        const char *id = s->config.drives.items[i].drive_id;

        if (restore_limiter(&m->blocks[i].limiter, &s->blocks[i].limiter) < 0)
            return fail_device("Drive", id, 0, 0, e);
        if (restore_transport(t++, &s->blocks[i].transport, "Drive", id, e) < 0)
            return -1;
    }
    for (size_t i = 0; i < s->config.interfaces.count; i++) {
        const char *id = s->config.interfaces.items[i].iface_id;

        if (restore_limiter(&m->nets[i].rx_limiter, &s->nets[i].rx_limiter) < 0 ||
            restore_limiter(&m->nets[i].tx_limiter, &s->nets[i].tx_limiter) < 0)
            return fail_device("Network interface", id, 0, 0, e);
        if (restore_transport(t++, &s->nets[i].transport, "Network interface", id, e) < 0)
            return -1;
    }
    if (!s->config.vsock.uds_path)
        return 0;
    if (restore_transport(t, &s->vsock_transport, "vsock", "", e) < 0)
        return -1;
    vsock_restore(&m->vsock, &s->vsock);
    return 0;
}

/* The guest learns that it is another, in the order in which its drivers would ask. */
static int tell_guest(struct machine *m, struct error *e)
{
    const struct kvm_line vmgenid = { m->kvm.vm_fd, m->platform.vmgenid_gsi };
    const struct kvm_line vmclock = { m->kvm.vm_fd, m->platform.vmclock_gsi };

    if (m->uffd && (uffd_fetch(m->uffd, gpa(LAYOUT_VMGENID), 1, e) < 0 ||
                    uffd_fetch(m->uffd, gpa(LAYOUT_VMCLOCK), 1, e) < 0))
        return -1;
    if (generation_renew(&m->mem, e) < 0)
        return -1;
    kvm_pulse(&vmgenid);
    kvm_pulse(&vmclock);
    return 0;
}

static int restore(struct machine *m, const struct saved *s, const struct snapshot_origin *origin,
                   struct error *e)
{
    const struct vm_config *config = &s->config;

    if (machine_plan(&m->platform, config, e) < 0 ||
        machine_make_vm(m, &config->machine, &config->cpu, origin, e) < 0 ||
        restore_kvm(m, s, e) < 0)
        return -1;
    /* What a file is decides what a drive offers at first; from then on it is what it was. */
    for (size_t i = 0; i < config->drives.count; i++)
        m->opened->drives[i].file.is_thin = s->blocks[i].is_thin;
    if (machine_add_devices(m, config, e) < 0 || restore_virtio(m, s, e) < 0)
        return -1;
    i8042_restore(&m->i8042, &s->i8042);
    serial_restore(&m->serial, &s->serial);
    serial_pause(&m->serial);
    m->holds = 1;
    return tell_guest(m, e);
}

int machine_restore(struct machine **out, const struct saved *s, struct guest_mem *mem,
                    const struct snapshot_origin *origin, struct opened *opened, bool boot_timer,
                    struct loop *loop, struct error *e)
{
    struct machine *m = machine_new(opened, boot_timer, loop);

    m->mem = *mem;
    m->uffd = origin->uffd;
    m->recorder = origin->recorder;
    *mem = (struct guest_mem){ 0 };
    if (restore(m, s, origin, e) < 0) {
        machine_free(m);
        return -1;
    }
    *out = m;
    return 0;
}
