#include "vmm/machine/live_snapshot.h"

#include <errno.h>
#include <sys/mman.h>

#include "vmm/base/clock.h"
#include "vmm/base/log.h"
#include "vmm/machine/restore.h"
#include "vmm/machine/snapshots.h"
#include "vmm/snapshot/files.h"
#include "vmm/snapshot/pages.h"
#include "vmm/snapshot/passes.h"

/* The last pages are copied, and written when the machine runs again, where they are no more:
 * writing may wait for the disk. */
#define KEPT_PAGES 1024u

struct live_snapshot {
    struct machine *m;
    struct vm_config *config;
    struct snapshot_create_config c;
    struct uuid name;
    struct loop_source turn; /* a timer that has gone off, and is ready in each turn of the loop */
    struct snapshot_pair *pair;
    struct passes passes;
    uint8_t *kept; /* room for KEPT_PAGES; NULL: the host had none */
    struct snapshot_created result;
    bool has_frozen; /* drives; the guest has gone on in new overlays */
    uint64_t start_us;
    live_end_fn *on_end;
    void *whose;
};

/* KVM's log, and the marks of the VMM, which only change hands while the vCPUs stand: their threads
 * write guest memory when a device is reset. */
static int watch(struct live_snapshot *l, struct error *e)
{
    struct machine *m = l->m;
    uint64_t start_us;
    int ret;

    if (m->pages.logs)
        return 0;
    if (snapshot_memory_watch(&m->pages, true, e) < 0)
        return -1;
    start_us = monotonic_us();
    if (!vcpus_hold(&m->vcpus))
        return machine_fail_standing(m, e);
    ret = gmem_track_writes(&m->mem);
    vcpus_release(&m->vcpus);
    l->result.paused_us += monotonic_us() - start_us;
    return ret < 0 ? fail_os(e, -ret, "cannot keep a list of the pages that change") : 0;
}

static void unwatch(struct live_snapshot *l)
{
    struct machine *m = l->m;
    struct error e;

    if (m->pages.logs)
        return;
    if (m->mem.written && vcpus_hold(&m->vcpus)) {
        gmem_forget_writes(&m->mem);
        vcpus_release(&m->vcpus);
    }
    if (snapshot_memory_watch(&m->pages, false, &e) < 0)
        log_error("The guest goes on with a log of its pages: %s", e.msg);
}

/* Gives all back. */
static void put_down(struct live_snapshot *l, bool is_made)
{
    if (l->passes.memory)
        passes_end(&l->passes, is_made ? &l->name : NULL);
    unwatch(l);
    if (l->pair)
        snapshot_pair_close(l->pair);
    if (l->kept)
        munmap(l->kept, KEPT_PAGES * GMEM_PAGE_BYTES);
    loop_remove_timer(l->m->loop, &l->turn);
    snapshot_create_config_fini(&l->c);
}

static void end_with(struct live_snapshot *l, int ret, struct error *e)
{
    const struct snapshot_created result = l->result;
    live_end_fn *on_end = l->on_end;
    void *whose = l->whose;

    if (ret >= 0) {
        snapshots_log_created(l->c.type == SNAPSHOT_TYPE_DIFF, l->start_us);
        log_info("The guest stood still for %llu us and %llu pages of it",
                 (unsigned long long)result.paused_us,
                 (unsigned long long)result.pages_while_paused);
    }
    if (l->c.drive_overlays.count > 0)
        fold_begin(&l->m->fold, &l->config->drives);
    if (ret < 0 && l->has_frozen)
        fail_within(e, "The drives were frozen, and go on in their new overlays, but");
    put_down(l, ret >= 0);
    free(l);
    on_end(whose, ret < 0 ? NULL : &result, e);
}

/* Of memory that a handler serves, this thread waits for none. */
static int fetch_piece(const struct live_snapshot *l, uint64_t from, uint64_t to, struct error *e)
{
    if (!l->m->uffd || l->passes.content != SNAPSHOT_ALL || l->passes.number > 1)
        return 0;
    return uffd_fetch(l->m->uffd, gmem_page_at(&l->m->mem, from), (to - from) * GMEM_PAGE_BYTES, e);
}

static int write_piece(struct live_snapshot *l, uint64_t from, uint64_t to, struct error *e)
{
    const struct passes *p = &l->passes;

    if (fetch_piece(l, from, to, e) < 0 ||
        snapshot_pair_write(l->pair, &p->set, p->number == 1, from, to, e) < 0)
        return -1;
    return snapshot_pair_push(l->pair, from, to, e);
}

/* The machine stands: what is to be its snapshot is copied, or where that is too much, written. */
static int take_frozen(struct live_snapshot *l, struct saved *s, struct error *e)
{
    struct passes *p = &l->passes;

    if (machine_save(l->m, l->config, s, e) < 0)
        return fail_within(e, "Cannot save the microVM state");
    s->name = l->name;
    if (passes_again(p, e) < 0)
        return -1;
    l->result.pages_while_paused = p->count;
    if (l->kept && p->count <= KEPT_PAGES) {
        snapshot_pages_take(&l->m->mem, &p->set, l->kept);
        return 0;
    }
    return snapshot_pair_write(l->pair, &p->set, false, 0, p->set.pages, e);
}

static int take_last(struct live_snapshot *l, struct saved *s, struct error *e)
{
    struct drive_configs *drives = &l->config->drives;
    struct drive *open = l->m->opened->drives;

    if (drives_freeze(drives, open, &l->c, e) < 0)
        return -1;
    if (take_frozen(l, s, e) < 0) {
        drives_thaw(drives, open);
        return -1;
    }
    l->has_frozen = l->c.drive_overlays.count > 0;
    return 0;
}

/* Also where that fails, the machine goes on. */
static int stand_still(struct live_snapshot *l, struct saved *s, struct error *e)
{
    struct machine *m = l->m;
    const uint64_t start_us = monotonic_us();
    int ret;

    if (!machine_hold(m))
        return machine_fail_standing(m, e);
    ret = take_last(l, s, e);
    if (!m->pages.logs)
        gmem_forget_writes(&m->mem);
    machine_release(m);
    l->result.paused_us += monotonic_us() - start_us;
    l->result.passes = l->passes.number;
    return ret;
}

/* The guest runs, and its threads may reset a device. */
static int sync_overlays(struct machine *m, const struct drive_configs *drives, struct error *e)
{
    int ret;

    for (size_t i = 0; i < drives->count; i++)
        virtio_lock(&m->blocks[i].dev);
    ret = drives_sync_overlays(drives, m->opened->drives, e);
    for (size_t i = 0; i < drives->count; i++)
        virtio_unlock(&m->blocks[i].dev);
    return ret;
}

static int complete(struct live_snapshot *l, struct error *e)
{
    struct saved *s = saved_new();
    autofree uint8_t *state = NULL;
    size_t bytes;
    int ret = stand_still(l, s, e);

    if (ret == 0)
        ret = saved_encode(s, &state, &bytes, e);
    drives_go_on(&l->config->drives); /* now that the state has those that are frozen as such */
    if (ret == 0 && l->kept && l->passes.count <= KEPT_PAGES)
        ret = snapshot_pair_put(l->pair, &l->passes.set, l->kept, e);
    if (ret == 0)
        ret = sync_overlays(l->m, &l->config->drives, e);
    if (ret == 0)
        ret = snapshot_pair_end(l->pair, state, bytes, e);
    saved_free(s);
    return ret;
}

/* Goes on by a piece, or to the next pass, or to the end: 1. */
static int advance(struct live_snapshot *l, struct error *e)
{
    struct passes *p = &l->passes;
    uint64_t from, to;
    int ret = passes_next(p, &from, &to, e);

    if (ret != 0)
        return ret < 0 ? -1 : write_piece(l, from, to, e);
    if (p->number == 1 && snapshot_pair_sync(l->pair, e) < 0)
        return -1;
    if (!passes_are_enough(p))
        return passes_again(p, e);
    return complete(l, e) < 0 ? -1 : 1;
}

static void on_turn(struct loop_source *src, uint32_t ready)
{
    struct live_snapshot *l = owner_of(src, struct live_snapshot, turn);
    struct error e;
    const int ret = advance(l, &e);

    (void)ready;
    if (ret != 0)
        end_with(l, ret, &e);
}

static int begin(struct live_snapshot *l, struct error *e)
{
    const struct snapshot_files files = { l->c.snapshot_path, l->c.mem_file_path, l->c.sync };
    const enum snapshot_kind kind = l->c.type == SNAPSHOT_TYPE_DIFF ? SNAPSHOT_DIFF : SNAPSHOT_FULL;
    const struct itimerspec at_once = { .it_value = { .tv_nsec = 1 } };
    struct machine *m = l->m;
    int ret;

    if (drives_check_create(&l->config->drives, m->opened->drives, &l->c, e) < 0 ||
        uuid_make(&l->name, e) < 0)
        return -1;
    l->pair = snapshot_pair_begin(&files, &m->pages, kind, &l->name, e);
    if (!l->pair || watch(l, e) < 0 || passes_begin(&l->passes, &m->pages, kind, e) < 0)
        return -1;
    l->kept = gmem_spare(KEPT_PAGES * GMEM_PAGE_BYTES);
    ret = loop_add_timer(m->loop, &l->turn, on_turn);
    if (ret < 0)
        return fail_os(e, -ret, "timer");
    loop_set_timer(&l->turn, 0, &at_once, NULL);
    return 0;
}

struct live_snapshot *live_snapshot_begin(struct machine *m, struct vm_config *config,
                                          struct snapshot_create_config *c, live_end_fn *on_end,
                                          void *whose, struct error *e)
{
    struct live_snapshot *l = malloc(sizeof(*l));

    BUG_ON(!l);
    *l = (struct live_snapshot){
        .m = m, .config = config, .c = *c, .turn.fd = -1, .on_end = on_end, .whose = whose
    };
    *c = (struct snapshot_create_config){ 0 };
    if (begin(l, e) == 0)
        return l;
    put_down(l, false);
    free(l);
    return NULL;
}

void live_snapshot_abort(struct live_snapshot *l, const char *why)
{
    struct error e;

    end_with(l, fail(&e, ERR_STATE, "%s", why), &e);
}
