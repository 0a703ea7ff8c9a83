#include "vmm/machine/snapshots.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "vmm/base/clock.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/machine/restore.h"
#include "vmm/snapshot/files.h"
#include "vmm/snapshot/prefetch.h"

void snapshots_log_created(bool is_diff, uint64_t start_us)
{
    const uint64_t us = monotonic_us() - start_us;

    metric_set(is_diff ? &metrics.latencies_us.vmm_diff_create_snapshot
                       : &metrics.latencies_us.vmm_full_create_snapshot,
               us);
    log_info("'create %s snapshot' VMM action took %llu us.", is_diff ? "diff" : "full",
             (unsigned long long)us);
}

static int save_files(struct machine *m, const struct vm_config *config,
                      const struct snapshot_create_config *c, struct error *e)
{
    const struct snapshot_files files = { c->snapshot_path, c->mem_file_path, c->sync };
    const enum snapshot_kind kind = c->type == SNAPSHOT_TYPE_DIFF ? SNAPSHOT_DIFF : SNAPSHOT_FULL;
    const uint64_t start_us = monotonic_us();
    struct saved *s = saved_new();
    autofree uint8_t *state = NULL;
    size_t bytes;
    int ret = machine_save(m, config, s, e);

    if (ret == 0 && m->uffd)
        ret = snapshot_memory_fetch(&m->pages, kind, m->uffd, e);
    if (ret < 0)
        fail_within(e, "Cannot save the microVM state");
    else
        ret = saved_encode(s, &state, &bytes, e);
    if (ret == 0)
        ret = snapshot_files_write(&files, &m->pages, kind, &s->name, state, bytes, e);
    if (ret == 0)
        snapshots_log_created(kind == SNAPSHOT_DIFF, start_us);
    saved_free(s);
    return ret;
}

static int create_frozen(struct machine *m, struct vm_config *config,
                         const struct snapshot_create_config *c, struct error *e)
{
    struct drive *open = m->opened->drives;

    if (drives_freeze(&config->drives, open, c, e) < 0)
        return -1;
    if (drives_sync_overlays(&config->drives, open, e) < 0 || save_files(m, config, c, e) < 0) {
        drives_thaw(&config->drives, open);
        return -1;
    }
    drives_go_on(&config->drives);
    return 0;
}

int snapshots_create(struct machine *m, struct vm_config *config,
                     const struct snapshot_create_config *c, struct error *e)
{
    const int ret = create_frozen(m, config, c, e);

    if (c->drive_overlays.count > 0)
        fold_begin(&m->fold, &config->drives);
    return ret;
}

static int read_saved(struct saved *s, const char *path, struct error *e)
{
    autofree uint8_t *state = NULL;
    size_t bytes;

    if (snapshot_files_read_state(path, &state, &bytes, e) < 0)
        return -1;
    if (saved_decode(s, state, bytes, e) < 0)
        return fail_within(e, "Failed to load snapshot state from file");
    return 0;
}

static void override_text(char **text, const char *other)
{
    free(*text);
    *text = strdup(other);
    BUG_ON(!*text);
}

/* An overlay over a drive that had none has to be a new one, as over one that was frozen: all that
 * the guest knows of its disk is below. */
static int override_drive(struct drive_config *d, const struct drive_override *o, struct error *e)
{
    if (o->path_on_host)
        override_text(&d->path_on_host, o->path_on_host);
    if (!o->overlay_path)
        return 0;
    d->is_frozen |= !d->overlay_path;
    override_text(&d->overlay_path, o->overlay_path);
    return drives_check(&(struct drive_configs){ .count = 0 }, d, e);
}

/* One that was not frozen has what the guest wrote: it would be made anew where it is missing. */
static int check_overlay(const struct drive_config *d, struct error *e)
{
    struct stat st;

    if (d->is_frozen && !d->overlay_path)
        return fail(e, ERR_INVALID,
                    "Drive %.200s was frozen: it needs a new overlay_path by drive_overrides.",
                    d->drive_id);
    if (d->is_frozen || !d->overlay_path)
        return 0;
    if (stat(d->overlay_path, &st) < 0)
        return fail_os(e, errno, "Drive %.200s: its overlay %.400s", d->drive_id, d->overlay_path);
    return st.st_size > 0 ? 0
                          : fail(e, ERR_INVALID,
                                 "Drive %.200s: its overlay %.400s is empty, and was not frozen.",
                                 d->drive_id, d->overlay_path);
}

static int override_drives(struct drive_configs *drives, const struct drive_overrides *list,
                           struct error *e)
{
    for (size_t i = 0; i < list->count; i++) {
        unsigned at = drives_find(drives, list->items[i].drive_id);

        if (at == drives->count)
            return fail(e, ERR_INVALID, "Unknown Block Device.");
        if (override_drive(&drives->items[at], &list->items[i], e) < 0)
            return -1;
    }
    for (size_t i = 0; i < drives->count; i++)
        if (check_overlay(&drives->items[i], e) < 0)
            return -1;
    return 0;
}

/* The client's words for what is otherwise here. */
static int override(struct vm_config *config, const struct snapshot_load_config *c, struct error *e)
{
    if (override_drives(&config->drives, &c->drive_overrides, e) < 0)
        return -1;
    for (size_t i = 0; i < c->network_overrides.count; i++) {
        const struct network_override *o = &c->network_overrides.items[i];
        unsigned at = interfaces_find(&config->interfaces, o->iface_id);

        if (at == config->interfaces.count)
            return fail(e, ERR_INVALID, "Unknown Network Device.");
        override_text(&config->interfaces.items[at].host_dev_name, o->host_dev_name);
    }
    if (!c->vsock_override.uds_path)
        return 0;
    if (!config->vsock.uds_path)
        return fail(e, ERR_INVALID, "Unknown Vsock Device.");
    override_text(&config->vsock.uds_path, c->vsock_override.uds_path);
    return 0;
}

static int read_state(struct saved *s, const struct snapshot_load_config *c, struct error *e)
{
    struct machine_config *machine = &s->config.machine;
    const uint64_t now_ns = clock_ns(CLOCK_REALTIME);

    if (read_saved(s, c->snapshot_path, e) < 0 || override(&s->config, c, e) < 0)
        return fail_within(e, "Failed to get snapshot state from file");
    machine->track_dirty_pages = c->track_dirty_pages || c->enable_diff_snapshots;
    if (c->huge_pages != LOAD_HUGE_PAGES_AS_SAVED)
        machine->huge_pages = (enum huge_pages)(c->huge_pages - LOAD_HUGE_PAGES);
    if (machine_check(machine, e) < 0)
        return -1;
    if (c->clock_realtime && now_ns > s->wall_ns)
        s->kvm.clock.clock += now_ns - s->wall_ns;
    return 0;
}

static int check_page_size(const struct guest_mem *mem, const struct machine_config *machine,
                           struct error *e)
{
    if (mem->hugetlb == (machine->huge_pages == HUGE_PAGES_2M))
        return 0;
    if (mem->hugetlb)
        return fail(e, ERR_INVALID,
                    "the memory file has huge pages: it is loaded with `huge_pages` 2M");
    return fail(e, ERR_INVALID,
                "Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use "
                "uffd.");
}

static int open_memory_files(struct guest_mem *mem, struct snapshot_origin *origin,
                             const struct saved *s, const struct snapshot_load_config *c,
                             struct error *e)
{
    const struct machine_config *machine = &s->config.machine;
    const struct text_list *layers = &c->backend.layers;
    const char *paths[1 + SNAPSHOT_LAYERS_MAX] = { c->backend.path ? c->backend.path
                                                                   : c->mem_file_path };

    origin->source = SNAPSHOT_SOURCE_FILE;
    if (layers->count > SNAPSHOT_LAYERS_MAX)
        return fail(e, ERR_INVALID, "there are %zu `layers`, and %u are the most", layers->count,
                    SNAPSHOT_LAYERS_MAX);
    for (size_t i = 0; i < layers->count; i++)
        paths[1 + i] = layers->items[i];
    if (snapshot_chain_open(origin->files, paths, 1 + (unsigned)layers->count, &s->name,
                            machine->mem_size_mib << 20, e) < 0)
        return -1;
    if (snapshot_chain_map(origin->files, mem, machine->mem_size_mib, e) < 0)
        return -1;
    if (machine->huge_pages == HUGE_PAGES_TRANSPARENT)
        gmem_want_huge_pages(mem);
    if (check_page_size(mem, machine, e) == 0)
        return 0;
    gmem_fini(mem);
    return -1;
}

/* Puts memory in the place of what was mapped, which serves it from now on. */
static int record_working_set(struct guest_mem *mem, struct snapshot_origin *origin,
                              const struct saved *s, const char *path,
                              const struct seccomp_threads *seccomp, struct error *e)
{
    struct guest_mem source = *mem;

    if (mem->hugetlb)
        fail(e, ERR_INVALID, "the working set of huge pages of 2 MiB can't be recorded");
    else if (gmem_init(mem, s->config.machine.mem_size_mib, HUGE_PAGES_NONE, e) == 0) {
        origin->recorder =
            recorder_open(mem, &source, &s->name, path, seccomp ? seccomp->pager : NULL, e);
        if (origin->recorder)
            return 0;
        gmem_fini(mem);
    }
    gmem_fini(&source);
    return -1;
}

static int open_working_set(struct guest_mem *mem, struct snapshot_origin *origin,
                            struct prefetch **prefetch, const struct saved *s,
                            const struct working_set_config *c,
                            const struct seccomp_threads *seccomp, struct error *e)
{
    if (c->path && c->record)
        return record_working_set(mem, origin, s, c->path, seccomp, e);
    if (c->path)
        *prefetch = prefetch_open(mem, origin->files, c->path, &s->name);
    return 0;
}

/* Said now, for whoever asks later why a guest stands still. */
static int open_memory_uffd(struct guest_mem *mem, struct snapshot_origin *origin,
                            const struct machine_config *machine, const struct mem_backend *backend,
                            const struct sock_fprog *filter, struct error *e)
{
    char who[192];

    if (backend->layers.count > 0)
        return fail(e, ERR_INVALID, "`layers` are for a backend of type `File`");
    if (gmem_init(mem, machine->mem_size_mib, machine->huge_pages, e) < 0)
        return -1;
    origin->source = SNAPSHOT_SOURCE_UFFD;
    origin->uffd = uffd_open(mem, backend->path, filter, e);
    if (!origin->uffd) {
        gmem_fini(mem);
        return -1;
    }
    log_info("Guest memory comes from %s", uffd_describe(origin->uffd, who, sizeof(who)));
    return 0;
}

static int open_memory(struct guest_mem *mem, struct snapshot_origin *origin,
                       struct prefetch **prefetch, const struct saved *s,
                       const struct snapshot_load_config *c, const struct seccomp_threads *seccomp,
                       struct error *e)
{
    int ret;

    if (c->backend.path && c->backend.type == MEM_BACKEND_UFFD)
        return open_memory_uffd(mem, origin, &s->config.machine, &c->backend,
                                seccomp ? seccomp->vcpu : NULL, e) < 0
                   ? fail_within(e, "Failed to load guest memory")
                   : 0;
    ret = open_memory_files(mem, origin, s, c, e);
    if (ret == 0)
        ret = open_working_set(mem, origin, prefetch, s, &c->working_set, seccomp, e);
    if (ret == 0)
        return 0;
    fail_within(e, "Error creating guest memory from file");
    return fail_within(e, "Failed to load guest memory");
}

static int open_devices(struct opened *opened, const struct vm_config *config, struct error *e)
{
    if (drives_open(&opened->drives, &config->drives, e) < 0)
        return fail_within(e, "Block");
    if (interfaces_open(&opened->interfaces, &config->interfaces, e) < 0) {
        fail_within(e, "Failed to create a network device");
        return fail_within(e, "Net");
    }
    if (config->vsock.uds_path && vsock_unix_listen(&opened->vsock, config->vsock.uds_path, e) < 0)
        return fail_within(e, "VsockUnixBackend");
    return 0;
}

static void close_devices(struct opened *opened, const struct vm_config *config)
{
    drives_close(opened->drives, opened->drives ? config->drives.count : 0);
    interfaces_close(opened->interfaces, opened->interfaces ? config->interfaces.count : 0);
    if (config->vsock.uds_path)
        vsock_unix_close(&opened->vsock, config->vsock.uds_path);
    opened->drives = NULL;
    opened->interfaces = NULL;
}

static int load_machine(struct machine **out, const struct saved *s, struct opened *opened,
                        const struct snapshot_load_config *c, bool boot_timer, struct loop *loop,
                        const struct seccomp_threads *seccomp, struct error *e)
{
    struct snapshot_chain files = { 0 };
    struct snapshot_origin origin = { .files = &files, .name = &s->name };
    struct guest_mem mem = { .region_count = 0 };
    struct prefetch *prefetch = NULL;

    if (open_memory(&mem, &origin, &prefetch, s, c, seccomp, e) < 0) {
        snapshot_chain_close(&files);
        return -1;
    }
    if (open_devices(opened, &s->config, e) < 0) {
        snapshot_chain_close(&files);
        prefetch_close(prefetch);
        if (origin.recorder)
            recorder_close(origin.recorder);
        if (!origin.uffd || uffd_close(origin.uffd))
            gmem_fini(&mem);
        fail_within(e, "Error restoring MMIO devices");
        fail_within(e, "Failed to restore devices");
        return fail_within(e, "Failed to build microVM from snapshot");
    }
    if (machine_restore(out, s, &mem, &origin, opened, boot_timer, loop, e) < 0) {
        snapshot_chain_close(&files);
        prefetch_close(prefetch);
        return fail_within(e, "Failed to build microVM from snapshot");
    }
    prefetch_finish(prefetch);
    return 0;
}

/* What was loaded is the configuration, but for what is the process's own. */
static void take_config(struct vm_config *config, const struct vm_config *loaded)
{
    struct vm_config old = *config;

    *config = *loaded;
    config->logger = old.logger;
    config->metrics = old.metrics;
    config->serial = old.serial;
    cpu_config_fini(&old.cpu);
}

int snapshots_load(struct machine **out, struct vm_config *config, struct opened *opened,
                   const struct snapshot_load_config *c, bool boot_timer, struct loop *loop,
                   const struct seccomp_threads *seccomp, struct error *e)
{
    struct saved *s = saved_new();
    int ret = read_state(s, c, e);

    if (ret == 0) {
        s->config.serial = config->serial;
        ret = load_machine(out, s, opened, c, boot_timer, loop, seccomp, e);
        s->config.serial = (struct serial_config){ 0 };
        if (ret < 0)
            close_devices(opened, &s->config);
    }
    drives_go_on(&s->config.drives);
    if (ret == 0)
        take_config(config, &s->config);
    else
        vm_config_fini(&s->config);
    saved_free(s);
    return ret;
}

void snapshots_write_working_set(const struct machine *m)
{
    if (m->recorder)
        recorder_write(m->recorder, &m->pages);
}
