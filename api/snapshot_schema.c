#include "api/snapshot_schema.h"

#include "vmm/base/config.h"

static const struct schema_variant snapshot_types[] = {
    { "Diff", SNAPSHOT_TYPE_DIFF },
    { "Full", SNAPSHOT_TYPE_FULL },
    { 0 },
};

#define DRIVE_OVERRIDE(m) offsetof(struct drive_override, m)

static const struct schema_field drive_overlay_fields[] = {
    SCHEMA_FIELD("drive_id", STRING, SCHEMA_REQUIRED, DRIVE_OVERRIDE(drive_id)),
    SCHEMA_FIELD("overlay_path", STRING, SCHEMA_REQUIRED, DRIVE_OVERRIDE(overlay_path)),
};

static const struct schema drive_overlay_schema = {
    .name = "DriveOverlay",
    .size = sizeof(struct drive_override),
    SCHEMA_FIELDS(drive_overlay_fields),
};

#define CREATE(m) offsetof(struct snapshot_create_config, m)

static const struct schema_field snapshot_create_fields[] = {
    SCHEMA_FIELD("snapshot_type", ENUM, SCHEMA_DEFAULT, CREATE(type), .variants = snapshot_types),
    SCHEMA_FIELD("snapshot_path", PATH, SCHEMA_REQUIRED, CREATE(snapshot_path)),
    SCHEMA_FIELD("mem_file_path", PATH, SCHEMA_REQUIRED, CREATE(mem_file_path)),
    SCHEMA_FIELD("sync_snapshot_files", BOOL, SCHEMA_DEFAULT | SCHEMA_NEW, CREATE(sync)),
    SCHEMA_FIELD("drive_overlays", LIST, SCHEMA_DEFAULT | SCHEMA_NEW, CREATE(drive_overlays),
                 .object = &drive_overlay_schema),
    SCHEMA_FIELD("live", BOOL, SCHEMA_DEFAULT | SCHEMA_NEW, CREATE(live)),
};

const struct schema snapshot_create_schema = {
    .name = "CreateSnapshotParams",
    .size = sizeof(struct snapshot_create_config),
    SCHEMA_FIELDS(snapshot_create_fields),
};

#define CREATED(m) offsetof(struct snapshot_created, m)

static const struct schema_field snapshot_created_fields[] = {
    SCHEMA_FIELD("paused_us", U64, SCHEMA_REQUIRED, CREATED(paused_us)),
    SCHEMA_FIELD("passes", U64, SCHEMA_REQUIRED, CREATED(passes)),
    SCHEMA_FIELD("pages_while_paused", U64, SCHEMA_REQUIRED, CREATED(pages_while_paused)),
};

const struct schema snapshot_created_schema = {
    .name = "SnapshotCreated",
    .size = sizeof(struct snapshot_created),
    SCHEMA_FIELDS(snapshot_created_fields),
};

static const struct schema_variant backend_types[] = {
    { "File", MEM_BACKEND_FILE },
    { "Uffd", MEM_BACKEND_UFFD },
    { 0 },
};

#define BACKEND(m) offsetof(struct mem_backend, m)

static const struct schema_field layer_item = SCHEMA_FIELD("", PATH, SCHEMA_REQUIRED, 0);

static const struct schema_field backend_fields[] = {
    SCHEMA_FIELD("backend_path", PATH, SCHEMA_REQUIRED, BACKEND(path)),
    SCHEMA_FIELD("backend_type", ENUM, SCHEMA_REQUIRED, BACKEND(type), .variants = backend_types),
    SCHEMA_FIELD("layers", LIST, SCHEMA_DEFAULT | SCHEMA_NEW, BACKEND(layers), .item = &layer_item,
                 .item_size = sizeof(char *)),
};

_Static_assert(BACKEND(layers.count) == BACKEND(layers.items) + sizeof(void *),
               "it is read as struct schema_list");

static const struct schema backend_schema = {
    .name = "MemBackendConfig",
    .size = sizeof(struct mem_backend),
    SCHEMA_FIELDS(backend_fields),
};

#define OVERRIDE(m) offsetof(struct network_override, m)

static const struct schema_field network_override_fields[] = {
    SCHEMA_FIELD("iface_id", STRING, SCHEMA_REQUIRED, OVERRIDE(iface_id)),
    SCHEMA_FIELD("host_dev_name", STRING, SCHEMA_REQUIRED, OVERRIDE(host_dev_name)),
};

static const struct schema network_override_schema = {
    .name = "NetworkOverride",
    .size = sizeof(struct network_override),
    SCHEMA_FIELDS(network_override_fields),
    .takes_unknown = true,
};

static const struct schema_field drive_override_fields[] = {
    SCHEMA_FIELD("drive_id", STRING, SCHEMA_REQUIRED, DRIVE_OVERRIDE(drive_id)),
    SCHEMA_FIELD("path_on_host", STRING, SCHEMA_NULLABLE, DRIVE_OVERRIDE(path_on_host)),
    SCHEMA_FIELD("overlay_path", STRING, SCHEMA_NULLABLE, DRIVE_OVERRIDE(overlay_path)),
};

static const struct schema drive_override_schema = {
    .name = "DriveOverride",
    .size = sizeof(struct drive_override),
    SCHEMA_FIELDS(drive_override_fields),
};

static const struct schema_field vsock_override_fields[] = {
    SCHEMA_FIELD("uds_path", STRING, SCHEMA_REQUIRED, offsetof(struct vsock_override, uds_path)),
};

static const struct schema vsock_override_schema = {
    .name = "VsockOverride",
    .size = sizeof(struct vsock_override),
    SCHEMA_FIELDS(vsock_override_fields),
    .takes_unknown = true,
};

#define WORKING_SET(m) offsetof(struct working_set_config, m)

static const struct schema_field working_set_fields[] = {
    SCHEMA_FIELD("path", PATH, SCHEMA_REQUIRED, WORKING_SET(path)),
    SCHEMA_FIELD("record", BOOL, SCHEMA_DEFAULT, WORKING_SET(record)),
};

static const struct schema working_set_schema = {
    .name = "WorkingSet",
    .size = sizeof(struct working_set_config),
    SCHEMA_FIELDS(working_set_fields),
};

static const struct schema_variant load_huge_pages[] = {
    { "Snapshot", LOAD_HUGE_PAGES_AS_SAVED },
    { "None", LOAD_HUGE_PAGES + HUGE_PAGES_NONE },
    { "Transparent", LOAD_HUGE_PAGES + HUGE_PAGES_TRANSPARENT },
    { "2M", LOAD_HUGE_PAGES + HUGE_PAGES_2M },
    { 0 },
};

#define LOAD(m) offsetof(struct snapshot_load_config, m)

static const struct schema_field snapshot_load_fields[] = {
    SCHEMA_FIELD("snapshot_path", PATH, SCHEMA_REQUIRED, LOAD(snapshot_path)),
    SCHEMA_FIELD("mem_file_path", PATH, SCHEMA_NULLABLE | SCHEMA_DEFAULT | SCHEMA_DEPRECATED,
                 LOAD(mem_file_path)),
    SCHEMA_FIELD("mem_backend", OBJECT, SCHEMA_NULLABLE | SCHEMA_DEFAULT, LOAD(backend),
                 .object = &backend_schema),
    SCHEMA_FIELD("enable_diff_snapshots", BOOL, SCHEMA_DEFAULT | SCHEMA_DEPRECATED,
                 LOAD(enable_diff_snapshots)),
    SCHEMA_FIELD("track_dirty_pages", BOOL, SCHEMA_DEFAULT, LOAD(track_dirty_pages)),
    SCHEMA_FIELD("resume_vm", BOOL, SCHEMA_DEFAULT, LOAD(resume_vm)),
    SCHEMA_FIELD("network_overrides", LIST, SCHEMA_DEFAULT, LOAD(network_overrides),
                 .object = &network_override_schema),
    SCHEMA_FIELD("drive_overrides", LIST, SCHEMA_DEFAULT | SCHEMA_NEW, LOAD(drive_overrides),
                 .object = &drive_override_schema),
    SCHEMA_FIELD("vsock_override", OBJECT, SCHEMA_NULLABLE | SCHEMA_DEFAULT, LOAD(vsock_override),
                 .object = &vsock_override_schema),
    SCHEMA_FIELD("clock_realtime", BOOL, SCHEMA_DEFAULT, LOAD(clock_realtime)),
    SCHEMA_FIELD("huge_pages", ENUM, SCHEMA_DEFAULT, LOAD(huge_pages), .variants = load_huge_pages),
    SCHEMA_FIELD("working_set", OBJECT, SCHEMA_NULLABLE | SCHEMA_DEFAULT | SCHEMA_NEW,
                 LOAD(working_set), .object = &working_set_schema),
};

static int check_load(const void *object, struct error *e)
{
    const struct snapshot_load_config *c = object;

    if (c->mem_file_path && c->backend.path)
        return fail(e, ERR_INVALID,
                    "too many fields: either `mem_backend` or `mem_file_path` exclusively is "
                    "required");
    if (!c->mem_file_path && !c->backend.path)
        return fail(e, ERR_INVALID,
                    "missing field: either `mem_backend` or `mem_file_path` is required");
    return 0;
}

const struct schema snapshot_load_schema = {
    .name = "LoadSnapshotConfig",
    .size = sizeof(struct snapshot_load_config),
    SCHEMA_FIELDS(snapshot_load_fields),
    .check = check_load,
};
