#include "vmm/base/config.h"

#include <stdlib.h>

const struct machine_config machine_config_default = { .vcpu_count = 1, .mem_size_mib = 128 };

#define NS_PER_MS 1000000u

bool token_bucket_limits(const struct token_bucket *b)
{
    return b->size > 0 && b->refill_time_ms > 0 && b->refill_time_ms <= UINT64_MAX / NS_PER_MS;
}

bool rate_limits_any(const struct rate_limits *l)
{
    return (l->has_bandwidth && token_bucket_limits(&l->bandwidth)) ||
           (l->has_ops && token_bucket_limits(&l->ops));
}

void rate_limits_update(struct rate_limits *l, const struct rate_limits *patch)
{
    if (patch->has_bandwidth)
        l->bandwidth = patch->bandwidth;
    if (patch->has_ops)
        l->ops = patch->ops;
    l->has_bandwidth |= patch->has_bandwidth;
    l->has_ops |= patch->has_ops;
}

void boot_source_fini(struct boot_source *b)
{
    free(b->kernel_image_path);
    free(b->initrd_path);
    free(b->boot_args);
    *b = (struct boot_source){ 0 };
}

void cpu_config_fini(struct cpu_config *c)
{
    for (size_t i = 0; i < c->leaf_count; i++)
        free(c->leaves[i].registers);
    free(c->capabilities);
    free(c->leaves);
    free(c->msrs);
    *c = (struct cpu_config){ 0 };
}

void text_list_fini(struct text_list *l)
{
    for (size_t i = 0; i < l->count; i++)
        free(l->items[i]);
    free(l->items);
    *l = (struct text_list){ 0 };
}

void drive_config_fini(struct drive_config *d)
{
    free(d->drive_id);
    free(d->path_on_host);
    free(d->overlay_path);
    text_list_fini(&d->layers);
    free(d->partuuid);
    free(d->socket);
    *d = (struct drive_config){ 0 };
}

void net_config_fini(struct net_config *n)
{
    free(n->iface_id);
    free(n->host_dev_name);
    free(n->guest_mac);
    *n = (struct net_config){ 0 };
}

void vsock_config_fini(struct vsock_config *v)
{
    free(v->uds_path);
    free(v->vsock_id);
    *v = (struct vsock_config){ 0 };
}

void smbios_config_fini(struct smbios_config *s)
{
    free(s->uuid);
    free(s->serial);
    *s = (struct smbios_config){ 0 };
}

void mmds_config_fini(struct mmds_config *m)
{
    text_list_fini(&m->interfaces);
    free(m->ipv4_address);
    *m = (struct mmds_config){ 0 };
}

void serial_config_fini(struct serial_config *s)
{
    free(s->serial_out_path);
    *s = (struct serial_config){ 0 };
}

void vm_config_fini(struct vm_config *c)
{
    boot_source_fini(&c->boot_source);
    cpu_config_fini(&c->cpu);
    for (size_t i = 0; i < c->drives.count; i++)
        drive_config_fini(&c->drives.items[i]);
    free(c->drives.items);
    for (size_t i = 0; i < c->interfaces.count; i++)
        net_config_fini(&c->interfaces.items[i]);
    free(c->interfaces.items);
    vsock_config_fini(&c->vsock);
    free(c->logger.log_path);
    free(c->logger.module);
    free(c->metrics.metrics_path);
    free(c->metrics.properties);
    smbios_config_fini(&c->smbios);
    mmds_config_fini(&c->mmds);
    serial_config_fini(&c->serial);
    *c = (struct vm_config){ 0 };
}

void drive_patch_fini(struct drive_patch *p)
{
    free(p->drive_id);
    free(p->path_on_host);
    *p = (struct drive_patch){ 0 };
}

void net_patch_fini(struct net_patch *p)
{
    free(p->iface_id);
    *p = (struct net_patch){ 0 };
}

static void drive_overrides_fini(struct drive_overrides *o)
{
    for (size_t i = 0; i < o->count; i++) {
        free(o->items[i].drive_id);
        free(o->items[i].path_on_host);
        free(o->items[i].overlay_path);
    }
    free(o->items);
}

void snapshot_create_config_fini(struct snapshot_create_config *c)
{
    drive_overrides_fini(&c->drive_overlays);
    free(c->snapshot_path);
    free(c->mem_file_path);
    *c = (struct snapshot_create_config){ 0 };
}

void snapshot_load_config_fini(struct snapshot_load_config *c)
{
    free(c->snapshot_path);
    free(c->mem_file_path);
    free(c->backend.path);
    text_list_fini(&c->backend.layers);
    for (size_t i = 0; i < c->network_overrides.count; i++) {
        free(c->network_overrides.items[i].iface_id);
        free(c->network_overrides.items[i].host_dev_name);
    }
    free(c->network_overrides.items);
    drive_overrides_fini(&c->drive_overrides);
    free(c->vsock_override.uds_path);
    free(c->working_set.path);
    *c = (struct snapshot_load_config){ 0 };
}
