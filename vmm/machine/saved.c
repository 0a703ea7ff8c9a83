#include "vmm/machine/saved.h"

#include <stdio.h>
#include <string.h>

#include "vmm/machine/drives.h"
#include "vmm/machine/interfaces.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/metadata.h"

#define CAPABILITIES_MAX 256u

#define BYTES(c, member)     snapshot_bytes((c), (member), sizeof(*(member)))
#define PADDED(c, member)    snapshot_padded((c), (member), sizeof(*(member)))
#define CHOICE(c, member, n) snapshot_enum((c), (unsigned *)(void *)(member), (n))

_Static_assert(sizeof(enum cpu_template) == sizeof(unsigned), "enums are coded as unsigned");

static void code_gpa(struct snapshot_coder *c, gpa_t *at)
{
    snapshot_u64(c, &at->v);
}

/* A text that can't be left out. */
static void code_name(struct snapshot_coder *c, char **name)
{
    snapshot_text(c, name);
    if (!*name)
        snapshot_refuse(c, "a name or path is missing");
}

static void code_token_bucket(struct snapshot_coder *c, struct token_bucket *b)
{
    snapshot_u64(c, &b->size);
    snapshot_u64(c, &b->one_time_burst);
    snapshot_u64(c, &b->refill_time_ms);
}

static void code_limits(struct snapshot_coder *c, struct rate_limits *l)
{
    snapshot_bool(c, &l->has_bandwidth);
    code_token_bucket(c, &l->bandwidth);
    snapshot_bool(c, &l->has_ops);
    code_token_bucket(c, &l->ops);
}

/* What is left of the burst, and how far from full. */
static void code_bucket(struct snapshot_coder *c, struct bucket *b)
{
    uint64_t low = (uint64_t)b->missing, high = (uint64_t)(b->missing >> 64);

    snapshot_u64(c, &b->burst);
    snapshot_u64(c, &low);
    snapshot_u64(c, &high);
    b->missing = (unsigned __int128)high << 64 | low;
}

static void code_limiter(struct snapshot_coder *c, struct rate_limiter_state *l)
{
    code_bucket(c, &l->bandwidth);
    code_bucket(c, &l->ops);
}

static void code_transport(struct snapshot_coder *c, struct virtio_mmio_state *t)
{
    struct virtio_mmio_registers *r = &t->registers;

    snapshot_u32(c, &r->status);
    snapshot_u32(c, &r->device_features_sel);
    snapshot_u32(c, &r->driver_features_sel);
    snapshot_u64(c, &r->driver_features);
    snapshot_u32(c, &r->queue_sel);
    snapshot_u32(c, &r->config_generation);
    snapshot_bool(c, &r->is_activated);
    snapshot_u32(c, &t->interrupt_status);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        struct virtq_state *q = &t->queues[i];

        snapshot_u16(c, &q->size);
        snapshot_bool(c, &q->ready);
        code_gpa(c, &q->desc);
        code_gpa(c, &q->avail);
        code_gpa(c, &q->used);
        snapshot_u16(c, &q->next_avail);
        snapshot_u16(c, &q->next_used);
        snapshot_u16(c, &q->signalled_used);
    }
}

/* MACH: what the machine is. */
static void code_machine(struct snapshot_coder *c, void *object)
{
    struct saved *s = object;
    struct machine_config *m = &s->config.machine;
    struct cpu_config *cpu = &s->config.cpu;

    snapshot_u64(c, &s->wall_ns);
    for (unsigned i = 0; i < CPUID_HOST_WORDS; i++)
        snapshot_u32(c, &s->processor[i]);
    snapshot_u8(c, &m->vcpu_count);
    snapshot_bool(c, &m->smt);
    snapshot_u64(c, &m->mem_size_mib);
    CHOICE(c, &m->cpu_template, CPU_TEMPLATE_CUSTOM + 1);
    CHOICE(c, &m->huge_pages, HUGE_PAGES_2M + 1);
    cpu->capabilities = snapshot_list(c, cpu->capabilities, &cpu->capability_count,
                                      CAPABILITIES_MAX, sizeof(*cpu->capabilities));
    for (size_t i = 0; i < cpu->capability_count; i++) {
        snapshot_u32(c, &cpu->capabilities[i].number);
        snapshot_bool(c, &cpu->capabilities[i].is_dropped);
    }
}

/* BOOT: what it was booted from, and which identity its tables have, for whoever asks. */
static void code_boot(struct snapshot_coder *c, void *object)
{
    struct vm_config *config = &((struct saved *)object)->config;
    struct boot_source *b = &config->boot_source;

    snapshot_text(c, &b->kernel_image_path);
    snapshot_text(c, &b->initrd_path);
    snapshot_text(c, &b->boot_args);
    snapshot_text(c, &config->smbios.uuid);
    snapshot_text(c, &config->smbios.serial);
}

static void code_drive(struct snapshot_coder *c, struct drive_config *d)
{
    code_name(c, &d->drive_id);
    code_name(c, &d->path_on_host);
    snapshot_text(c, &d->partuuid);
    snapshot_bool(c, &d->is_root_device);
    snapshot_bool(c, &d->is_read_only);
    snapshot_bool(c, &d->has_discard);
    snapshot_bool(c, &d->may_discard);
    CHOICE(c, &d->cache_type, CACHE_WRITEBACK + 1);
    CHOICE(c, &d->io_engine, IO_ENGINE_ASYNC + 1);
    code_limits(c, &d->rate_limits);
}

/* BLKS: the drives. */
static void code_drives(struct snapshot_coder *c, void *object)
{
    struct saved *s = object;
    struct drive_configs *list = &s->config.drives;

    list->items =
        snapshot_list(c, list->items, &list->count, PLATFORM_VIRTIO_MAX, sizeof(*list->items));
    for (size_t i = 0; i < list->count; i++) {
        code_drive(c, &list->items[i]);
        snapshot_bool(c, &s->blocks[i].is_thin);
        code_limiter(c, &s->blocks[i].limiter);
        code_transport(c, &s->blocks[i].transport);
    }
}

/* OVLY: what takes the writes to drives, and the layers below; there is no such section where no
 * drive has either. What was frozen has layers alone. */
static void code_overlays(struct snapshot_coder *c, void *object)
{
    struct drive_configs *list = &((struct saved *)object)->config.drives;
    bool any = c->is_reading;

    for (size_t i = 0; i < list->count; i++)
        any |= list->items[i].overlay_path || list->items[i].layers.count > 0;
    for (size_t i = 0; any && i < list->count; i++) {
        struct drive_config *d = &list->items[i];
        struct text_list *layers = &d->layers;
        char *none = NULL;

        snapshot_text(c, c->is_reading || !d->is_frozen ? &d->overlay_path : &none);
        layers->items = snapshot_list(c, layers->items, &layers->count, BLOCK_LAYERS_MAX,
                                      sizeof(*layers->items));
        for (size_t at = 0; at < layers->count; at++)
            code_name(c, &layers->items[at]);
        if (c->is_reading)
            d->is_frozen = layers->count > 0 && !d->overlay_path;
    }
}

/* A MAC address, as six bytes behind whether there is one. */
static void code_mac(struct snapshot_coder *c, char **text)
{
    uint8_t mac[NET_MAC_BYTES] = { 0 };
    bool is_given = *text;

    if (!c->is_reading && is_given)
        interfaces_parse_mac(mac, *text);
    snapshot_bool(c, &is_given);
    snapshot_bytes(c, mac, sizeof(mac));
    if (!c->is_reading)
        return;
    *text = NULL;
    if (is_given && asprintf(text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
                             mac[4], mac[5]) < 0)
        BUG_ON(true);
}

static void code_interface(struct snapshot_coder *c, struct net_config *n)
{
    code_name(c, &n->iface_id);
    code_name(c, &n->host_dev_name);
    code_mac(c, &n->guest_mac);
    snapshot_bool(c, &n->has_mtu);
    snapshot_u16(c, &n->mtu);
    code_limits(c, &n->rx_limits);
    code_limits(c, &n->tx_limits);
}

/* NETS: the network interfaces. */
static void code_interfaces(struct snapshot_coder *c, void *object)
{
    struct saved *s = object;
    struct net_configs *list = &s->config.interfaces;

    list->items =
        snapshot_list(c, list->items, &list->count, PLATFORM_VIRTIO_MAX, sizeof(*list->items));
    for (size_t i = 0; i < list->count; i++) {
        code_interface(c, &list->items[i]);
        code_limiter(c, &s->nets[i].rx_limiter);
        code_limiter(c, &s->nets[i].tx_limiter);
        code_transport(c, &s->nets[i].transport);
    }
}

/* MMDS: the metadata service, but for the data, which are each process's own; without interfaces
 * there is none, and nothing follows. */
static void code_mmds(struct snapshot_coder *c, void *object)
{
    struct mmds_config *m = &((struct saved *)object)->config.mmds;
    struct text_list *ids = &m->interfaces;

    ids->items =
        snapshot_list(c, ids->items, &ids->count, PLATFORM_VIRTIO_MAX, sizeof(*ids->items));
    if (ids->count == 0)
        return;
    for (size_t i = 0; i < ids->count; i++)
        code_name(c, &ids->items[i]);
    code_name(c, &m->ipv4_address);
    CHOICE(c, &m->version, MMDS_V2 + 1);
    snapshot_bool(c, &m->imds_compat);
}

/* VSCK: the vsock; without a path there is none, and nothing follows. */
static void code_vsock(struct snapshot_coder *c, void *object)
{
    struct saved *s = object;
    struct vsock_config *v = &s->config.vsock;

    snapshot_text(c, &v->uds_path);
    if (!v->uds_path)
        return;
    snapshot_u32(c, &v->guest_cid);
    snapshot_u32(c, &s->vsock.last_port);
    code_transport(c, &s->vsock_transport);
}

static void code_cpuid(struct snapshot_coder *c, struct cpuid *id)
{
    size_t count = id->nent;

    snapshot_count(c, &count, CPUID_ENTRIES_MAX);
    id->nent = (uint32_t)count;
    if (count == 0)
        snapshot_refuse(c, "a vCPU has no CPUID");
    for (size_t i = 0; i < count; i++) {
        struct kvm_cpuid_entry2 *entry = &id->entries[i];

        snapshot_u32(c, &entry->function);
        snapshot_u32(c, &entry->index);
        snapshot_u32(c, &entry->flags);
        snapshot_u32(c, &entry->eax);
        snapshot_u32(c, &entry->ebx);
        snapshot_u32(c, &entry->ecx);
        snapshot_u32(c, &entry->edx);
    }
}

static void code_vcpu(struct snapshot_coder *c, struct vcpu_state *v)
{
    size_t msr_count = v->msr_count;

    code_cpuid(c, &v->cpuid);
    snapshot_u32(c, &v->mp_state.mp_state);
    BYTES(c, &v->regs);
    BYTES(c, &v->sregs);
    PADDED(c, &v->xsave);
    PADDED(c, &v->xcrs);
    PADDED(c, &v->debugregs);
    PADDED(c, &v->lapic);
    snapshot_u32(c, &v->tsc_khz);
    snapshot_bool(c, &v->has_tsc_offset);
    snapshot_u64(c, &v->tsc);
    snapshot_u64(c, &v->tsc_offset);
    snapshot_u64(c, &v->tsc_deadline);
    snapshot_count(c, &msr_count, MSRS_MAX - 1);
    v->msr_count = (uint32_t)msr_count;
    for (size_t i = 0; i < msr_count; i++) {
        snapshot_u32(c, &v->msrs[i].index);
        BYTES(c, &v->msrs[i].data);
    }
    PADDED(c, &v->events);
}

/* VCPU: the vCPUs. */
static void code_vcpus(struct snapshot_coder *c, void *object)
{
    struct saved *s = object;

    s->vcpus = snapshot_list(c, s->vcpus, &s->vcpu_count, PLATFORM_VCPUS_MAX, sizeof(*s->vcpus));
    for (size_t i = 0; i < s->vcpu_count; i++)
        code_vcpu(c, &s->vcpus[i]);
}

/* CHIP: what the vCPUs share. */
static void code_chips(struct snapshot_coder *c, void *object)
{
    struct kvm_state *k = &((struct saved *)object)->kvm;

    PADDED(c, &k->pit);
    BYTES(c, &k->clock.clock);
    for (unsigned i = 0; i < sizeof(k->chips) / sizeof(*k->chips); i++) {
        PADDED(c, &k->chips[i].chip);
        k->chips[i].chip_id = i;
    }
}

/* A ring of bytes in `size` places, as head and count. */
static void code_ring(struct snapshot_coder *c, uint8_t *bytes, unsigned size, unsigned *head,
                      unsigned *count)
{
    snapshot_enum(c, head, size);
    snapshot_enum(c, count, size + 1);
    snapshot_padded(c, bytes, size);
}

/* UART: the serial port. */
static void code_serial(struct snapshot_coder *c, void *object)
{
    struct serial_state *u = &((struct saved *)object)->serial;

    snapshot_u8(c, &u->ier);
    snapshot_u8(c, &u->lcr);
    snapshot_u8(c, &u->mcr);
    snapshot_u8(c, &u->scr);
    snapshot_u8(c, &u->dll);
    snapshot_u8(c, &u->dlh);
    snapshot_bool(c, &u->fifo_on);
    snapshot_bool(c, &u->thr_empty_pending);
    code_ring(c, u->fifo, SERIAL_FIFO_BYTES, &u->fifo_head, &u->fifo_count);
}

/* KBDC: the PS/2 controller. */
static void code_i8042(struct snapshot_coder *c, void *object)
{
    struct i8042_state *k = &((struct saved *)object)->i8042;

    snapshot_u8(c, &k->command_byte);
    snapshot_u8(c, &k->output_port);
    snapshot_u8(c, &k->pending_command);
    snapshot_u8(c, &k->keyboard_command);
    code_ring(c, k->buffer, I8042_BUFFER_BYTES, &k->head, &k->count);
}

#define NEEDED SNAPSHOT_MUST_UNDERSTAND

static const struct snapshot_section sections[] = {
    { "MACH", 1, NEEDED, 0, code_machine },
    { "BOOT", 1, 0, 0, code_boot },
    { "BLKS", 1, NEEDED, 0, code_drives },
    { "NETS", 1, NEEDED, 0, code_interfaces },
    { "VSCK", 1, NEEDED, 0, code_vsock },
    { "VCPU", 1, NEEDED, 0, code_vcpus },
    { "CHIP", 1, NEEDED, 0, code_chips },
    { "UART", 1, NEEDED, 0, code_serial },
    { "KBDC", 1, NEEDED, 0, code_i8042 },
    { "MMDS", 1, NEEDED, 0, code_mmds },
    { "OVLY", 1, NEEDED, SNAPSHOT_OPTIONAL, code_overlays },
};
#define SECTIONS (sizeof(sections) / sizeof(*sections))

struct saved *saved_new(void)
{
    struct saved *s = calloc(1, sizeof(*s));

    BUG_ON(!s);
    return s;
}

void saved_free(struct saved *s)
{
    free(s->vcpus);
    free(s);
}

int saved_encode(struct saved *s, uint8_t **file, size_t *bytes, struct error *e)
{
    struct snapshot_header h = {
        .name = s->name,
        .memory_bytes = s->config.machine.mem_size_mib << 20,
    };

    return snapshot_encode(file, bytes, &h, sections, SECTIONS, s, e);
}

/* As where a client configures them, one after another. */
static int judge_devices(const struct vm_config *config, struct error *e)
{
    struct drive_configs drives = { config->drives.items, 0 };
    struct net_configs interfaces = { config->interfaces.items, 0 };

    for (; drives.count < config->drives.count; drives.count++) {
        const struct drive_config *d = &drives.items[drives.count];

        if (drives_find(&drives, d->drive_id) < drives.count)
            return fail(e, ERR_INVALID, "Two drives are called %.200s", d->drive_id);
        if (d->is_root_device && drives.count > 0)
            return fail(e, ERR_INVALID, "A root device that is not the first drive");
        if (drives_check(&drives, d, e) < 0)
            return -1;
    }
    for (; interfaces.count < config->interfaces.count; interfaces.count++) {
        const struct net_config *n = &interfaces.items[interfaces.count];

        if (interfaces_find(&interfaces, n->iface_id) < interfaces.count)
            return fail(e, ERR_INVALID, "Two network interfaces are called %.200s", n->iface_id);
        if (interfaces_check(&interfaces, n, e) < 0)
            return -1;
    }
    if (config->mmds.interfaces.count > 0 && metadata_check(&config->mmds, &interfaces, e) < 0)
        return fail_within(e, "MMDS");
    return 0;
}

static int judge_saved(const struct saved *s, const struct snapshot_header *h, struct error *e)
{
    const struct machine_config *m = &s->config.machine;

    if (machine_check(m, e) < 0)
        return -1;
    if (s->vcpu_count != m->vcpu_count)
        return fail(e, ERR_INVALID, "It is of %u vCPUs and has the states of %zu", m->vcpu_count,
                    s->vcpu_count);
    if (h->memory_bytes >> 20 != m->mem_size_mib || h->memory_bytes % (1u << 20))
        return fail(e, ERR_INVALID, "It is of %llu MiB of memory, and its header says %llu bytes",
                    (unsigned long long)m->mem_size_mib, (unsigned long long)h->memory_bytes);
    return judge_devices(&s->config, e);
}

int saved_decode(struct saved *s, const uint8_t *file, size_t bytes, struct error *e)
{
    struct snapshot_header h;

    if (snapshot_decode(file, bytes, &h, sections, SECTIONS, s, e) < 0)
        return -1;
    s->name = h.name;
    return judge_saved(s, &h, e);
}
