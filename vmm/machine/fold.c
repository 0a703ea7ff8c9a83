#include "vmm/machine/fold.h"

#include "vmm/base/log.h"
#include "vmm/kvm/layout.h"

#define FOLD_PERIOD_NS 1000000

_Static_assert(PLATFORM_VIRTIO_MAX <= 32, "a bit each");

static void end_drive(const struct fold *f, unsigned at, int ret)
{
    struct drive_config *d = &f->drives->items[at];

    if (ret < 0) {
        log_error("Drive %s goes on with its layers, which can't be folded into %s: %s",
                  d->drive_id, d->overlay_path, os_error_text(-ret));
        return;
    }
    log_info("Drive %s: %zu layers are folded into %s", d->drive_id, d->layers.count,
             d->overlay_path);
    text_list_fini(&d->layers);
}

static void on_fold_due(struct loop_source *src, uint32_t ready)
{
    struct fold *f = owner_of(src, struct fold, timer);

    (void)ready;
    loop_drain(src->fd);
    for (unsigned i = 0; i < f->drives->count; i++) {
        int ret;

        if (!(f->due >> i & 1))
            continue;
        ret = block_fold(&f->blocks[i]);
        if (ret > 0)
            continue;
        f->due &= ~(UINT32_C(1) << i);
        end_drive(f, i, ret);
    }
    if (f->due == 0)
        loop_remove_timer(f->loop, src);
}

static void go_on_folding(struct fold *f)
{
    const struct itimerspec times = { { 0, FOLD_PERIOD_NS }, { 0, FOLD_PERIOD_NS } };
    int ret;

    if (f->due == 0 || f->timer.fd >= 0 || f->is_held)
        return;
    ret = loop_add_timer(f->loop, &f->timer, on_fold_due);
    if (ret < 0)
        log_error("Layers of drives can't be folded: timer: %s", os_error_text(-ret));
    else
        loop_set_timer(&f->timer, 0, &times, NULL);
}

void fold_begin(struct fold *f, struct drive_configs *drives)
{
    f->drives = drives;
    for (unsigned i = 0; i < drives->count; i++) {
        const struct block_overlay *o = f->blocks[i].host.file->overlay;

        if (o && block_overlay_files(o) > FOLD_LAYERS + 1)
            f->due |= UINT32_C(1) << i;
    }
    go_on_folding(f);
}

void fold_hold(struct fold *f)
{
    f->is_held = true;
    loop_remove_timer(f->loop, &f->timer);
}

void fold_release(struct fold *f)
{
    f->is_held = false;
    go_on_folding(f);
}
