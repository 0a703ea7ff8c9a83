#include "vmm/base/config.h"

#include <stdlib.h>

const struct machine_config machine_config_default = {
    .vcpu_count = 1,
    .mem_size_mib = 128,
    .cpu_template = CPU_TEMPLATE_NONE,
    .huge_pages = HUGE_PAGES_NONE,
};

#define NS_PER_MS 1000000u

bool token_bucket_limits(const struct token_bucket *b)
{
    return b->size > 0 && b->refill_time_ms > 0 && b->refill_time_ms <= UINT64_MAX / NS_PER_MS;
}

static void bucket_update(bool *has, struct token_bucket *b, const struct token_bucket *patch)
{
    *has = token_bucket_limits(patch);
    *b = *patch;
}

void rate_limits_update(struct rate_limits *l, const struct rate_limits *patch)
{
    if (patch->has_bandwidth)
        bucket_update(&l->has_bandwidth, &l->bandwidth, &patch->bandwidth);
    if (patch->has_ops)
        bucket_update(&l->has_ops, &l->ops, &patch->ops);
}

void boot_source_fini(struct boot_source *b)
{
    free(b->kernel_image_path);
    free(b->initrd_path);
    free(b->boot_args);
    *b = (struct boot_source){ 0 };
}

void drive_config_fini(struct drive_config *d)
{
    free(d->drive_id);
    free(d->path_on_host);
    free(d->partuuid);
    free(d->socket);
    *d = (struct drive_config){ 0 };
}

void drive_patch_fini(struct drive_patch *p)
{
    free(p->drive_id);
    free(p->path_on_host);
    *p = (struct drive_patch){ 0 };
}

void net_config_fini(struct net_config *n)
{
    free(n->iface_id);
    free(n->host_dev_name);
    free(n->guest_mac);
    *n = (struct net_config){ 0 };
}

void net_patch_fini(struct net_patch *p)
{
    free(p->iface_id);
    *p = (struct net_patch){ 0 };
}

void vsock_config_fini(struct vsock_config *v)
{
    free(v->uds_path);
    free(v->vsock_id);
    *v = (struct vsock_config){ 0 };
}

void logger_config_fini(struct logger_config *l)
{
    free(l->log_path);
    free(l->module);
    *l = (struct logger_config){ 0 };
}

void metrics_config_fini(struct metrics_config *m)
{
    free(m->metrics_path);
    free(m->properties);
    *m = (struct metrics_config){ 0 };
}

void serial_config_fini(struct serial_config *s)
{
    free(s->serial_out_path);
    *s = (struct serial_config){ 0 };
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
