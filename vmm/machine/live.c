#include "vmm/machine/live.h"

/* The guest stands still while its disk changes; the vCPUs are enough of it: to hold all of the
 * machine would wait for the other disks, too. It reads the configuration in several loads, which
 * are plain ones (virtio/mmio.h): between two of them both the configuration and its generation
 * change, or neither (virtio 1.2, section 2.5.1). */
static int update_block(struct machine *m, unsigned at, const struct block_file *file,
                        const struct rate_limits *limits, struct error *e)
{
    int ret;

    if (file && !vcpus_hold(&m->vcpus))
        return machine_fail_standing(m, e);
    ret = block_update(&m->blocks[at], file, limits, e);
    if (file)
        vcpus_release(&m->vcpus);
    return ret;
}

/* All of a patch or nothing. */
static int change_drive(struct machine *m, struct drive_configs *drives, struct drive_patch *p,
                        struct error *e)
{
    const struct rate_limits *limits = p->has_rate_limits ? &p->rate_limits : NULL;
    unsigned at = drives_find(drives, p->drive_id);
    struct block_file file = { .fd = -1 };
    struct drive_config *config;

    if (at == drives->count)
        return fail(e, ERR_INVALID, "Failed perform action on device: Device not found");
    config = &drives->items[at];
    if (!p->path_on_host && !limits)
        return fail(e, ERR_INVALID, "Block: Running method expected different backend.");
    if (p->path_on_host && config->overlay_path)
        return fail(e, ERR_INVALID, "Block: The file below an overlay can't be replaced.");
    if (p->path_on_host && !config->is_read_only)
        copy_ahead_let_write(&m->copy_ahead, p->path_on_host);
    if (p->path_on_host && drives_open_file(&file, config, p->path_on_host, e) < 0)
        return fail_within(e, "Block");
    if (update_block(m, at, p->path_on_host ? &file : NULL, limits, e) < 0) {
        block_file_close(&file);
        return fail_within(e, "Block");
    }
    if (p->path_on_host) {
        free(config->path_on_host);
        config->path_on_host = p->path_on_host;
        p->path_on_host = NULL;
    }
    if (limits)
        rate_limits_update(&config->rate_limits, limits);
    return 0;
}

int live_patch_drive(struct machine *m, struct drive_configs *drives, struct drive_patch *p,
                     struct error *e)
{
    struct error why;

    if (change_drive(m, drives, p, &why) == 0)
        return 0;
    return fail(e, why.kind,
                "Unable to patch the block device: %.900s Please verify the request arguments.",
                why.msg);
}

int live_patch_net(struct machine *m, struct net_configs *interfaces, const struct net_patch *p,
                   struct error *e)
{
    unsigned at = interfaces_find(interfaces, p->iface_id);
    struct net_config *config;

    if (at == interfaces->count)
        return fail(e, ERR_INVALID,
                    "Unable to update the net device: Failed perform action on device: Device not "
                    "found");
    if (net_update(&m->nets[at], &p->rx_limits, &p->tx_limits, e) < 0)
        return fail_within(e, "Unable to update the net device");
    config = &interfaces->items[at];
    rate_limits_update(&config->rx_limits, &p->rx_limits);
    rate_limits_update(&config->tx_limits, &p->tx_limits);
    return 0;
}
