#include "vmm/machine/drives.h"

#include <string.h>

unsigned drives_find(const struct drive_configs *list, const char *id)
{
    unsigned i = 0;

    while (i < list->count && strcmp(list->items[i].drive_id, id) != 0)
        i++;
    return i;
}

int drives_check(const struct drive_configs *list, const struct drive_config *d, struct error *e)
{
    const struct drive_config *first = list->count ? &list->items[0] : NULL;

    if (!d->path_on_host == !d->socket)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: Invalid block "
                    "config.");
    if (d->socket)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: vhost-user sockets "
                    "are not supported.");
    if (d->is_read_only && d->may_discard)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: Virtio backend error: Discard is "
                    "not supported with read-only drives.");
    if (d->is_root_device && first && first->is_root_device &&
        strcmp(first->drive_id, d->drive_id) != 0)
        return fail(e, ERR_INVALID, "A root block device already exists!");
    return 0;
}

int drives_open_file(struct block_file *f, const struct drive_config *d, const char *path,
                     struct error *e)
{
    if (block_file_open(f, path, d->is_read_only, e) < 0)
        return -1;
    if (d->has_discard)
        f->is_thin = d->may_discard;
    return 0;
}

static int open_drive(struct drive *out, const struct drive_config *d, struct error *e)
{
    *out = (struct drive){ .file = { .fd = -1 } };
    if (drives_open_file(&out->file, d, d->path_on_host, e) < 0)
        return -1;
    if (d->io_engine == IO_ENGINE_ASYNC && block_async_new(&out->async, &out->file, e) < 0) {
        block_file_close(&out->file);
        return -1;
    }
    return 0;
}

static void close_drive(struct drive *d)
{
    block_async_free(d->async);
    block_file_close(&d->file);
}

static void swap_drives(struct drive_configs *list, struct drive *open, unsigned a, unsigned b)
{
    const struct drive_config config = list->items[a];
    const struct drive drive = open[a];

    list->items[a] = list->items[b];
    list->items[b] = config;
    open[a] = open[b];
    open[b] = drive;
}

/* The place of a new drive, behind the others. */
static void add_place(struct drive_configs *list, struct drive **open)
{
    list->items = reallocarray(list->items, ++list->count, sizeof(*list->items));
    *open = reallocarray(*open, list->count, sizeof(**open));
    BUG_ON(!list->items || !*open);
}

int drives_put(struct drive_configs *list, struct drive **open, struct drive_config *d,
               struct error *e)
{
    unsigned at = drives_find(list, d->drive_id);
    bool is_new = at == list->count;
    struct drive drive;

    if (drives_check(list, d, e) < 0)
        return -1;
    if (open_drive(&drive, d, e) < 0)
        return fail_within(e, "Unable to create the virtio block device");
    if (is_new) {
        add_place(list, open);
    } else {
        close_drive(&(*open)[at]);
        drive_config_fini(&list->items[at]);
    }
    list->items[at] = *d;
    (*open)[at] = drive;
    *d = (struct drive_config){ 0 };
    /* The root drive is attached first. A new one moves the others back, one that was there already
     * changes places with the first. */
    if (list->items[at].is_root_device)
        for (; at > 0; at = is_new ? at - 1 : 0)
            swap_drives(list, *open, at, is_new ? at - 1 : 0);
    return 0;
}

int drives_open(struct drive **open, const struct drive_configs *list, struct error *e)
{
    struct drive *drives = calloc(list->count + 1, sizeof(*drives));

    BUG_ON(!drives);
    for (size_t i = 0; i < list->count; i++)
        if (open_drive(&drives[i], &list->items[i], e) < 0) {
            drives_close(drives, i);
            return -1;
        }
    *open = drives;
    return 0;
}

void drives_close(struct drive *open, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close_drive(&open[i]);
    free(open);
}
