#include "vmm/machine/drives.h"

#include <string.h>
#include <sys/stat.h>

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
    if (d->is_read_only && d->overlay_path)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: Virtio backend error: An overlay is "
                    "not supported with read-only drives.");
    if (d->layers.count > BLOCK_LAYERS_MAX)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: Virtio backend error: There are %zu "
                    "layers, and at most %u are possible.",
                    d->layers.count, BLOCK_LAYERS_MAX);
    if (d->is_root_device && first && first->is_root_device &&
        strcmp(first->drive_id, d->drive_id) != 0)
        return fail(e, ERR_INVALID, "A root block device already exists!");
    return 0;
}

int drives_open_file(struct block_file *f, const struct drive_config *d, const char *path,
                     struct error *e)
{
    if (block_file_open(f, path, d->is_read_only || d->overlay_path, e) < 0)
        return -1;
    if (d->overlay_path && block_file_put_overlay(f, d, e) < 0) {
        block_file_close(f);
        return -1;
    }
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
        block_file_drop(&out->file);
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
    const struct block_overlay *old;
    struct drive drive;

    if (drives_check(list, d, e) < 0)
        return -1;
    if (d->layers.count > 0 && !d->overlay_path)
        return fail(e, ERR_INVALID,
                    "Unable to create the virtio block device: Virtio backend error: There are "
                    "layers, and no overlay above them.");
    old = is_new ? NULL : (*open)[at].file.overlay;
    if (old)
        block_overlay_lend(old);
    if (open_drive(&drive, d, e) < 0) {
        if (old)
            block_overlay_take_back(old);
        return fail_within(e, "Unable to create the virtio block device");
    }
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

/* One that was just opened. */
static void forget_drive(struct drive *d)
{
    block_async_free(d->async);
    block_file_drop(&d->file);
}

int drives_open(struct drive **open, const struct drive_configs *list, struct error *e)
{
    struct drive *drives = calloc(list->count + 1, sizeof(*drives));

    BUG_ON(!drives);
    for (size_t i = 0; i < list->count; i++)
        if (open_drive(&drives[i], &list->items[i], e) < 0) {
            while (i > 0)
                forget_drive(&drives[--i]);
            drives_close(drives, 0);
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

static void add_layer(struct drive_config *d, const char *top)
{
    struct text_list *l = &d->layers;

    l->items = reallocarray(l->items, ++l->count, sizeof(*l->items));
    BUG_ON(!l->items);
    l->items[l->count - 1] = d->overlay_path;
    d->overlay_path = strdup(top);
    BUG_ON(!d->overlay_path);
    d->is_frozen = true;
}

static int freeze_drive(struct drive_config *d, struct drive *open, const char *top,
                        struct error *e)
{
    struct block_overlay *o = open->file.overlay;
    int ret;

    if (!o)
        return fail(e, ERR_INVALID, "It has no overlay.");
    if (d->is_frozen)
        return fail(e, ERR_INVALID, "It is named twice.");
    if (block_overlay_freeze(o, top, open->file.fd, e) < 0)
        return -1;
    ret = open->async ? block_async_set_file(open->async, &open->file) : 0;
    if (ret < 0) {
        block_overlay_thaw(o);
        return fail_os(e, -ret, "Virtio backend error: io_uring");
    }
    add_layer(d, top);
    return 0;
}

static int check_drive_file(const struct drive *d, const char *path, const char *id,
                            struct error *e)
{
    const unsigned overlays = d->file.overlay ? block_overlay_files(d->file.overlay) : 0;
    struct stat named, ours;

    if (stat(path, &named) < 0)
        return 0; /* who opens it says why */
    for (unsigned i = 0; i <= overlays; i++) {
        const int fd = i ? block_overlay_file(d->file.overlay, i) : d->file.fd;

        if (fstat(fd, &ours) == 0 && ours.st_dev == named.st_dev && ours.st_ino == named.st_ino)
            return fail(e, ERR_INVALID, "%.400s is a file of drive %.200s", path, id);
    }
    return 0;
}

int drives_check_create(const struct drive_configs *list, const struct drive *open,
                        const struct snapshot_create_config *c, struct error *e)
{
    for (size_t i = 0; i < list->count; i++)
        if (check_drive_file(&open[i], c->snapshot_path, list->items[i].drive_id, e) < 0 ||
            check_drive_file(&open[i], c->mem_file_path, list->items[i].drive_id, e) < 0)
            return -1;
    return 0;
}

int drives_freeze(struct drive_configs *list, struct drive *open,
                  const struct snapshot_create_config *c, struct error *e)
{
    const struct drive_overrides *tops = &c->drive_overlays;

    for (size_t i = 0; i < tops->count; i++) {
        const struct drive_override *t = &tops->items[i];
        const unsigned at = drives_find(list, t->drive_id);
        struct error why;

        if (at == list->count)
            fail(&why, ERR_INVALID, "There is no such drive.");
        else if (freeze_drive(&list->items[at], &open[at], t->overlay_path, &why) == 0)
            continue;
        drives_thaw(list, open);
        return fail(e, why.kind, "Cannot freeze drive %.200s: %.700s", t->drive_id, why.msg);
    }
    if (drives_check_create(list, open, c, e) == 0)
        return 0;
    drives_thaw(list, open);
    return -1;
}

int drives_sync_overlays(const struct drive_configs *list, struct drive *open, struct error *e)
{
    for (size_t i = 0; i < list->count; i++) {
        const int ret = open[i].file.overlay ? block_file_sync(&open[i].file) : 0;

        if (ret < 0)
            return fail_os(e, -ret, "Cannot sync drive %.200s", list->items[i].drive_id);
    }
    return 0;
}

void drives_go_on(struct drive_configs *list)
{
    for (size_t i = 0; i < list->count; i++)
        list->items[i].is_frozen = false;
}

/* The ring has the old top in the place of a layer, where it stays the top. */
void drives_thaw(struct drive_configs *list, struct drive *open)
{
    for (size_t i = 0; i < list->count; i++) {
        struct drive_config *d = &list->items[i];

        if (!d->is_frozen)
            continue;
        block_overlay_thaw(open[i].file.overlay);
        if (open[i].async)
            (void)!block_async_set_file(open[i].async, &open[i].file);
        free(d->overlay_path);
        d->overlay_path = d->layers.items[--d->layers.count];
        if (d->layers.count == 0) {
            free(d->layers.items);
            d->layers.items = NULL;
        }
        d->is_frozen = false;
    }
}
