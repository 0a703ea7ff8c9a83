#include "vmm/machine/drives.h"

#include <string.h>

unsigned drives_find(const struct drives *list, const char *id)
{
    unsigned i = 0;

    while (i < list->count && strcmp(list->items[i].config.drive_id, id) != 0)
        i++;
    return i;
}

static int check_drive(const struct drives *list, const struct drive_config *d, struct error *e)
{
    const struct drive_config *first = list->count ? &list->items[0].config : NULL;

    if (!d->path_on_host == !d->socket)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: Invalid block "
                    "config.");
    if (d->socket)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: vhost-user sockets "
                    "are not supported.");
    if (d->is_root_device && first && first->is_root_device &&
        strcmp(first->drive_id, d->drive_id) != 0)
        return fail(e, ERR_INVALID, "A root block device already exists!");
    return 0;
}

static void swap_drives(struct drive *a, struct drive *b)
{
    struct drive t = *a;

    *a = *b;
    *b = t;
}

/* Opens what a drive of that configuration needs; the configuration stays the caller's. */
static int open_drive(struct drive *out, const struct drive_config *d, struct error *e)
{
    *out = (struct drive){ .file = { .fd = -1 } };
    if (block_file_open(&out->file, d->path_on_host, d->is_read_only, e) < 0)
        return fail_within(e, "Unable to create the virtio block device");
    if (d->io_engine == IO_ENGINE_ASYNC && block_async_new(&out->async, &out->file, e) < 0) {
        block_file_close(&out->file);
        return fail_within(e, "Unable to create the virtio block device");
    }
    return 0;
}

static void close_drive(struct drive *d)
{
    block_async_free(d->async);
    block_file_close(&d->file);
    drive_config_fini(&d->config);
}

int drives_put(struct drives *list, struct drive_config *d, struct error *e)
{
    unsigned at = drives_find(list, d->drive_id);
    bool is_new = at == list->count;
    struct drive drive;

    if (check_drive(list, d, e) < 0 || open_drive(&drive, d, e) < 0)
        return -1;
    drive.config = *d;
    *d = (struct drive_config){ 0 };
    if (is_new) {
        list->items = reallocarray(list->items, ++list->count, sizeof(*list->items));
        BUG_ON(!list->items);
    } else {
        close_drive(&list->items[at]);
    }
    list->items[at] = drive;
    /* The root drive is attached first. A new one moves the others back, one that was there already
     * changes places with the first. */
    if (list->items[at].config.is_root_device)
        for (; at > 0; at = is_new ? at - 1 : 0)
            swap_drives(&list->items[at], &list->items[is_new ? at - 1 : 0]);
    return 0;
}

void drives_fini(struct drives *list)
{
    for (unsigned i = 0; i < list->count; i++)
        close_drive(&list->items[i]);
    free(list->items);
    *list = (struct drives){ 0 };
}
