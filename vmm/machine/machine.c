#include "vmm/machine/machine.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "vmm/base/console.h"
#include "vmm/base/log.h"
#include "vmm/base/timeline.h"
#include "vmm/boot/acpi.h"
#include "vmm/boot/boot_info.h"
#include "vmm/boot/mptable.h"
#include "vmm/boot/registers.h"
#include "vmm/boot/smbios.h"
#include "vmm/kvm/cpu_template.h"
#include "vmm/legacy/generation.h"
#include "vmm/machine/metadata.h"

int machine_check(const struct machine_config *c, struct error *e)
{
    if (c->vcpu_count == 0 || c->vcpu_count > PLATFORM_VCPUS_MAX ||
        (c->smt && c->vcpu_count > 1 && c->vcpu_count % 2))
        return fail(e, ERR_INVALID,
                    "The number of vCPUs must be greater than 0, less than %u and must be 1 or an "
                    "even number if SMT is enabled.",
                    PLATFORM_VCPUS_MAX);
    if (c->mem_size_mib == 0 || (c->huge_pages != HUGE_PAGES_NONE && c->mem_size_mib % 2))
        return fail(e, ERR_INVALID,
                    "The memory size (MiB) is either 0, or not a multiple of the configured page "
                    "size.");
    return 0;
}

/* Firecracker's words depend on which device finds no interrupt line: the devices of the board come
 * after those that are configured. */
static int fail_device_count(size_t count, struct error *e)
{
    static const char *const wanting[] = {
        "Error while registering ACPI with KVM: VMClock: Could not allocate GSI",
        "Error while registering ACPI with KVM: VMGenID: Could not allocate GSI",
        "MMIO transport error: Failed to allocate requested resource",
    };
    const size_t over = count - PLATFORM_VIRTIO_MAX;

    return fail(e, ERR_INVALID,
                "Could not attach device: %s: The requested resource is not available.",
                wanting[over > 2 ? 2 : over - 1]);
}

/* Gives each device its addresses and interrupt line; the guest's view of them is fixed by this. */
int machine_plan(struct platform *p, const struct vm_config *config, struct error *e)
{
    const size_t device_count =
        config->drives.count + config->interfaces.count + (config->vsock.uds_path ? 1 : 0);
    uint32_t gsi = GSI_FIRST;

    *p = (struct platform){ .vcpu_count = config->machine.vcpu_count };
    if (device_count > PLATFORM_VIRTIO_MAX)
        return fail_device_count(device_count, e);
    for (; p->virtio_count < device_count; p->virtio_count++)
        p->virtio[p->virtio_count] = (struct virtio_slot){
            .base = gpa(LAYOUT_VIRTIO + p->virtio_count * LAYOUT_VIRTIO_STEP),
            .gsi = gsi++, // cppcheck-suppress unknownEvaluationOrder; two different names
        };
    p->vmgenid_gsi = gsi++;
    p->vmclock_gsi = gsi;
    return 0;
}

static int write_cmdline(struct cmdline *c, const struct vm_config *config,
                         const struct platform *p, struct error *e)
{
    if (cmdline_init(c, config->boot_source.boot_args, e) < 0 || cmdline_add(c, e, "pci=off") < 0)
        return -1;
    for (unsigned i = 0; i < config->drives.count; i++) {
        const struct drive_config *d = &config->drives.items[i];

        if (!d->is_root_device)
            continue;
        if (d->partuuid ? cmdline_add(c, e, "root=PARTUUID=%s", d->partuuid) < 0
                        : cmdline_add(c, e, "root=/dev/vda") < 0)
            return -1;
        if (cmdline_add(c, e, d->is_read_only ? "ro" : "rw") < 0)
            return -1;
    }
    for (unsigned i = 0; i < p->virtio_count; i++)
        if (cmdline_add(c, e, "virtio_mmio.device=4K@0x%llx:%u",
                        (unsigned long long)p->virtio[i].base.v, p->virtio[i].gsi) < 0)
            return -1;
    return 0;
}

static bool hold_for_copy(struct copy_ahead *c)
{
    return machine_hold(owner_of(c, struct machine, copy_ahead));
}

static void release_for_copy(struct copy_ahead *c)
{
    machine_release(owner_of(c, struct machine, copy_ahead));
}

/* Kernel, initrd, command line and firmware tables into guest memory. */
static int load(struct machine *m, const struct vm_config *config, struct kernel_image *kernel,
                struct error *e)
{
    struct initrd initrd = { .bytes = 0 };
    struct cmdline cmdline;
    gpa_t tables;

    if (kernel_load(&m->mem, m->opened->kernel_fd, kernel, e) < 0)
        return -1;
    log_debug("Kernel loaded using %s%s",
              kernel->protocol == BOOT_PVH ? "PVH boot protocol" : "Linux 64-bit boot protocol",
              kernel->is_bzimage ? " (bzImage)" : "");
    if (m->opened->initrd_fd >= 0 &&
        initrd_load(&m->mem, m->opened->initrd_fd, kernel, &initrd, e) < 0)
        return -1;
    copy_ahead_init(&m->copy_ahead, &m->mem, kernel, &initrd, hold_for_copy, release_for_copy);
    if (write_cmdline(&cmdline, config, &m->platform, e) < 0 ||
        boot_info_write(&m->mem, kernel, &cmdline, &initrd, e) < 0 ||
        mptable_write(&m->mem, m->platform.vcpu_count, &tables, e) < 0)
        return -1;
    if (acpi_write(&m->mem, &m->platform, tables, e) < 0)
        return -1;
    if (config->smbios.uuid && smbios_write(&m->mem, &config->smbios, e) < 0)
        return -1;
    return generation_write(&m->mem, e);
}

static int add_serial(struct machine *m, const struct serial_config *config, struct error *e)
{
    if (config->serial_out_path) {
        m->serial_out_fd = console_open_lines(config->serial_out_path);
        if (m->serial_out_fd < 0)
            return fail_os(e, errno, "Failed to open serial_out_path %s", config->serial_out_path);
    }
    serial_init(&m->serial, (struct kvm_line){ m->kvm.vm_fd, GSI_SERIAL },
                config->serial_out_path ? m->serial_out_fd : console_out());
    serial_limit(&m->serial, &config->limit);
    bus_add(&m->pio, &m->serial.bus);
    return 0;
}

static int add_legacy_devices(struct machine *m, const struct serial_config *serial,
                              struct error *e)
{
    m->end.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->end.event_fd < 0)
        return fail_os(e, errno, "eventfd");
    if (add_serial(m, serial, e) < 0)
        return -1;
    i8042_init(&m->i8042, (struct kvm_line){ m->kvm.vm_fd, GSI_I8042 }, &m->end);
    bus_add(&m->pio, &m->i8042.bus);
    power_init(&m->power, (struct kvm_line){ m->kvm.vm_fd, GSI_POWER_BUTTON }, &m->end);
    bus_add(&m->pio, &m->power.bus);
    return 0;
}

#define REGISTER_BYTES ((size_t)PLATFORM_VIRTIO_MAX * LAYOUT_VIRTIO_STEP)

/* The registers of all virtio devices lie side by side, and so does what the guest reads there. */
static int add_registers(struct machine *m, struct error *e)
{
    void *pages;

    if (m->platform.virtio_count == 0)
        return 0;
    pages = mmap(NULL, REGISTER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return fail_os(e, errno, "cannot map the registers of the virtio devices");
    m->registers = pages;
    return kvm_add_readable(&m->kvm, m->platform.virtio[0].base, pages,
                            (size_t)m->platform.virtio_count * LAYOUT_VIRTIO_STEP, e);
}

/* Attaches a device behind those that there are. */
static int add_virtio(struct machine *m, struct virtio_device *d, struct error *e)
{
    const unsigned i = m->attached++;
    const struct virtio_slot *slot = &m->platform.virtio[i];
    struct virtio_mmio *t = &m->transports[i];

    if (virtio_mmio_init(t, d, slot->base, m->registers + i * LAYOUT_VIRTIO_STEP, &m->mem, m->loop,
                         e) < 0 ||
        virtio_mmio_connect(t, &m->kvm, slot->gsi, e) < 0)
        return -1;
    bus_add(&m->mmio, &t->bus);
    return 0;
}

static int add_drives(struct machine *m, const struct drive_configs *list, struct error *e)
{
    for (unsigned i = 0; i < list->count; i++) {
        const struct drive_config *config = &list->items[i];
        struct drive *d = &m->opened->drives[i];
        const struct block_host host = {
            .file = &d->file,
            .async = d->async,
            .offer_flush = config->cache_type == CACHE_WRITEBACK,
            .limits = config->rate_limits,
            .loop = m->loop,
        };

        metrics_add_source(METRICS_OF_BLOCK, config->drive_id, &m->blocks[i].metrics);
        if (block_init(&m->blocks[i], &host, e) < 0 || add_virtio(m, &m->blocks[i].dev, e) < 0)
            return -1;
    }
    return 0;
}

static void init_mmds(struct machine *m, const struct mmds_config *config)
{
    m->mmds = (struct mmds_service){
        .store = m->opened->metadata,
        .needs_token = config->version == MMDS_V2,
        .imds_compat = config->imds_compat,
    };
    mmds_tokens_init(&m->mmds.tokens);
}

/* NULL: the interface has no metadata service. */
static struct mmds_stack *new_mmds_stack(struct machine *m, const struct mmds_config *config,
                                         const char *iface_id)
{
    struct in_addr address;
    int ret;

    if (!metadata_is_on(config, iface_id))
        return NULL;
    ret = inet_pton(AF_INET, config->ipv4_address, &address);
    BUG_ON(ret != 1); /* it was checked */
    return mmds_stack_new(&m->mmds, ntohl(address.s_addr));
}

static int add_interfaces(struct machine *m, const struct net_configs *list,
                          const struct mmds_config *mmds, struct error *e)
{
    if (mmds->interfaces.count > 0)
        init_mmds(m, mmds);
    for (unsigned i = 0; i < list->count; i++) {
        const struct net_config *config = &list->items[i];
        struct interface *interface = &m->opened->interfaces[i];
        const struct net_host host = {
            .tap = &interface->tap,
            .mac = config->guest_mac ? interface->mac : NULL,
            .mtu = config->mtu,
            .rx_limits = config->rx_limits,
            .tx_limits = config->tx_limits,
            .mmds = new_mmds_stack(m, mmds, config->iface_id),
            .loop = m->loop,
        };

        metrics_add_source(METRICS_OF_NET, config->iface_id, &m->nets[i].metrics);
        if (net_init(&m->nets[i], &host, e) < 0 || add_virtio(m, &m->nets[i].dev, e) < 0)
            return -1;
    }
    return 0;
}

static int add_vsock(struct machine *m, const struct vsock_config *config, struct error *e)
{
    const struct vsock_host host = {
        .loop = m->loop,
        .path = config->uds_path,
        .listener = m->opened->vsock.fd,
        .guest_cid = config->guest_cid,
    };

    if (!config->uds_path)
        return 0;
    if (vsock_init(&m->vsock, &host, e) < 0)
        return -1;
    return add_virtio(m, &m->vsock.dev, e);
}

/* Of the two kinds of template the one that was given last. */
static int choose_template(const struct cpu_config **out, const struct vm_config *config,
                           struct error *e)
{
    *out = &config->cpu;
    return config->machine.cpu_template == CPU_TEMPLATE_CUSTOM
               ? 0
               : cpu_template_find(out, config->machine.cpu_template, cpuid_processor(), e);
}

/* One that was made ahead was checked for what each machine needs, but not for a template's. */
static int open_kvm(struct machine *m, const struct cpu_config *template, struct error *e)
{
    struct kvm *ahead = &m->opened->kvm;

    if (ahead->vm_fd >= 0 && !(template && template->capability_count)) {
        m->kvm = *ahead;
        *ahead = KVM_NONE;
        return 0;
    }
    kvm_close(ahead);
    return kvm_open(&m->kvm, template, e);
}

int machine_make_vm(struct machine *m, const struct machine_config *config,
                    const struct cpu_config *template, const struct snapshot_origin *origin,
                    struct error *e)
{
    const bool logs =
        snapshot_memory_logs(origin->source, config->track_dirty_pages, m->mem.hugetlb);

    if (open_kvm(m, template, e) < 0)
        return -1;
    timeline_mark(PHASE_KVM_VM);
    /* Memory slots before anything sits on KVM's I/O bus: see kvm.h. */
    if (kvm_add_memory(&m->kvm, &m->mem, logs, e) < 0 || add_registers(m, e) < 0 ||
        snapshot_memory_open(&m->pages, &m->mem, &m->kvm, origin->source, config->track_dirty_pages,
                             origin->files, origin->name, e) < 0)
        return -1;
    timeline_mark(PHASE_KVM_MEMORY);
    if (kvm_create_irqchip(&m->kvm, e) < 0)
        return -1;
    timeline_mark(PHASE_KVM_IRQCHIP);
    return vcpus_create(&m->vcpus, &m->kvm, config->vcpu_count, &m->pio, &m->mmio, &m->end, e);
}

/* Virtio devices in attach order: see machine_plan(). */
int machine_add_devices(struct machine *m, const struct vm_config *config, struct error *e)
{
    if (add_legacy_devices(m, &config->serial, e) < 0 || add_drives(m, &config->drives, e) < 0 ||
        add_interfaces(m, &config->interfaces, &config->mmds, e) < 0 ||
        add_vsock(m, &config->vsock, e) < 0)
        return -1;
    timeline_mark(PHASE_DEVICES);
    return 0;
}

static int build(struct machine *m, const struct vm_config *config, struct error *e)
{
    static const struct snapshot_origin boot = { .source = SNAPSHOT_SOURCE_BOOT };
    const struct machine_config *machine = &config->machine;
    const struct cpu_config *template;
    struct kernel_image kernel;

    if (choose_template(&template, config, e) < 0 || machine_plan(&m->platform, config, e) < 0)
        return -1;
    /* What can be the client's fault comes first, before KVM costs anything. */
    if (gmem_init(&m->mem, machine->mem_size_mib, machine->huge_pages, e) < 0 ||
        load(m, config, &kernel, e) < 0)
        return -1;
    timeline_mark(PHASE_GUEST_LOADED);
    if (machine_make_vm(m, machine, template, &boot, e) < 0 ||
        vcpus_reset(&m->vcpus, machine->smt, template, e) < 0 ||
        boot_registers_set(&m->vcpus.each[0], &kernel, e) < 0)
        return -1;
    timeline_mark(PHASE_KVM_VCPUS);
    return machine_add_devices(m, config, e);
}

struct machine *machine_new(struct opened *opened, bool boot_timer, struct loop *loop)
{
    struct machine *m = calloc(1, sizeof(*m));

    BUG_ON(!m);
    m->loop = loop;
    m->opened = opened;
    /* Memory floats high, as on real hardware. Ports read as zero: ones would look to Linux like an
     * RTC that is for ever in the middle of an update, and cost each boot three seconds. */
    m->mmio.idle_byte = 0xff;
    m->pio.idle_byte = 0x00;
    m->kvm = KVM_NONE;
    m->end.event_fd = m->serial_out_fd = -1;
    m->fold = (struct fold){ .timer.fd = -1, .loop = loop, .blocks = m->blocks };
    boot_timer_init(&m->boot_timer);
    if (boot_timer)
        bus_add(&m->mmio, &m->boot_timer.bus);
    return m;
}

int machine_build(struct machine **out, const struct vm_config *config, struct opened *opened,
                  bool boot_timer, struct loop *loop, struct error *e)
{
    struct machine *m = machine_new(opened, boot_timer, loop);

    if (build(m, config, e) < 0) {
        image_guard_give_back(opened->kernel_fd);
        image_guard_give_back(opened->initrd_fd);
        machine_free(m);
        return -1;
    }
    *out = m;
    return 0;
}

bool machine_hold(struct machine *m)
{
    if (m->holds == 0 && !vcpus_hold(&m->vcpus))
        return false;
    if (m->holds++ > 0)
        return true;
    fold_hold(&m->fold);
    for (unsigned i = 0; i < m->platform.virtio_count; i++)
        virtio_mmio_pause(&m->transports[i]);
    serial_pause(&m->serial);
    metrics_pause();
    return true;
}

/* Firecracker's words come first. */
int machine_fail_standing(const struct machine *m, struct error *e)
{
    char who[192];

    return fail(e, ERR_HOST,
                "Failed to message the vCPUs.: one has waited for its memory "
                "for %u seconds%s%s",
                VCPUS_PATIENCE_S, m->uffd ? ", which comes from " : "",
                m->uffd ? uffd_describe(m->uffd, who, sizeof(who)) : "");
}

void machine_release(struct machine *m)
{
    BUG_ON(m->holds == 0);
    if (--m->holds > 0)
        return;
    metrics_resume();
    serial_resume(&m->serial);
    for (unsigned i = 0; i < m->platform.virtio_count; i++)
        virtio_mmio_resume(&m->transports[i]);
    fold_release(&m->fold);
    vcpus_release(&m->vcpus);
}

void machine_close_kvm(struct machine *m)
{
    vcpus_fini(&m->vcpus);
    kvm_close(&m->kvm);
}

void machine_free(struct machine *m)
{
    metrics_forget_sources();
    for (unsigned i = 0; i < PLATFORM_VIRTIO_MAX; i++) {
        virtio_mmio_fini(&m->transports[i]);
        block_fini(&m->blocks[i]);
        net_fini(&m->nets[i]);
        mmds_stack_free(m->nets[i].host.mmds);
    }
    vsock_fini(&m->vsock);
    close_fdp(&m->serial_out_fd);
    close_fdp(&m->end.event_fd);
    snapshot_memory_close(&m->pages);
    machine_close_kvm(m);
    if (m->registers)
        munmap(m->registers, REGISTER_BYTES);
    if (m->recorder)
        recorder_close(m->recorder);
    if (!m->uffd || uffd_close(m->uffd))
        gmem_fini(&m->mem);
    free(m);
}
