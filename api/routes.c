#include "api/routes.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>

#include "api/cpu_schema.h"
#include "api/snapshot_schema.h"
#include "vmm/base/log.h"
#include "vmm/base/uuid.h"

_Static_assert(sizeof(enum cpu_template) == sizeof(unsigned), "enums are read as unsigned");

static const struct schema_variant cpu_templates[] = {
    { "C3", CPU_TEMPLATE_C3 },
    { "T2", CPU_TEMPLATE_T2 },
    { "T2S", CPU_TEMPLATE_T2S },
    { "None", CPU_TEMPLATE_NONE },
    { "T2CL", CPU_TEMPLATE_T2CL },
    { "T2A", CPU_TEMPLATE_T2A },
    { 0 },
};

static const struct schema_variant huge_page_sizes[] = {
    { "None", HUGE_PAGES_NONE },
    { "Transparent", HUGE_PAGES_TRANSPARENT },
    { "2M", HUGE_PAGES_2M },
    { 0 },
};

#define MACHINE(m) offsetof(struct machine_config, m)

static const struct schema_field machine_fields[] = {
    SCHEMA_FIELD("vcpu_count", U8, SCHEMA_REQUIRED, MACHINE(vcpu_count)),
    SCHEMA_FIELD("mem_size_mib", USIZE, SCHEMA_REQUIRED, MACHINE(mem_size_mib)),
    SCHEMA_FIELD("smt", BOOL, SCHEMA_DEFAULT, MACHINE(smt)),
    SCHEMA_FIELD("cpu_template", ENUM,
                 SCHEMA_NULLABLE | SCHEMA_DEFAULT | SCHEMA_HIDDEN | SCHEMA_DEPRECATED,
                 MACHINE(cpu_template), .variants = cpu_templates),
    SCHEMA_FIELD("track_dirty_pages", BOOL, SCHEMA_DEFAULT, MACHINE(track_dirty_pages)),
    SCHEMA_FIELD("huge_pages", ENUM, SCHEMA_DEFAULT, MACHINE(huge_pages),
                 .variants = huge_page_sizes),
};

static const struct schema machine_schema = {
    .name = "MachineConfig",
    .size = sizeof(struct machine_config),
    SCHEMA_FIELDS(machine_fields),
};

static const struct schema_field machine_patch_fields[] = {
    SCHEMA_FIELD("vcpu_count", U8, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(vcpu_count)),
    SCHEMA_FIELD("mem_size_mib", USIZE, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(mem_size_mib)),
    SCHEMA_FIELD("smt", BOOL, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(smt)),
    SCHEMA_FIELD("cpu_template", ENUM, SCHEMA_NULLABLE | SCHEMA_DEFAULT | SCHEMA_DEPRECATED,
                 MACHINE(cpu_template), .variants = cpu_templates),
    SCHEMA_FIELD("track_dirty_pages", BOOL, SCHEMA_NULLABLE | SCHEMA_DEFAULT,
                 MACHINE(track_dirty_pages)),
    SCHEMA_FIELD("huge_pages", ENUM, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(huge_pages),
                 .variants = huge_page_sizes),
};

static const struct schema machine_patch_schema = {
    .name = "MachineConfigUpdate",
    .size = sizeof(struct machine_config),
    SCHEMA_FIELDS(machine_patch_fields),
};

#define BOOT(m) offsetof(struct boot_source, m)

static const struct schema_field boot_source_fields[] = {
    SCHEMA_FIELD("kernel_image_path", STRING, SCHEMA_REQUIRED, BOOT(kernel_image_path)),
    SCHEMA_FIELD("initrd_path", STRING, SCHEMA_NULLABLE, BOOT(initrd_path)),
    SCHEMA_FIELD("boot_args", STRING, SCHEMA_NULLABLE, BOOT(boot_args)),
};

static const struct schema boot_source_schema = {
    .name = "BootSourceConfig",
    .size = sizeof(struct boot_source),
    SCHEMA_FIELDS(boot_source_fields),
};

#define BUCKET(m) offsetof(struct token_bucket, m)

static const struct schema_field token_bucket_fields[] = {
    SCHEMA_FIELD("size", U64, SCHEMA_REQUIRED, BUCKET(size)),
    SCHEMA_FIELD("one_time_burst", U64, SCHEMA_NULLABLE | SCHEMA_ZERO_IS_NULL,
                 BUCKET(one_time_burst)),
    SCHEMA_FIELD("refill_time", U64, SCHEMA_REQUIRED, BUCKET(refill_time_ms)),
};

static bool bucket_is_none(const void *object)
{
    return !token_bucket_limits(object);
}

static const struct schema token_bucket_schema = {
    .name = "TokenBucketConfig",
    .size = sizeof(struct token_bucket),
    SCHEMA_FIELDS(token_bucket_fields),
    .takes_unknown = true,
    .is_none = bucket_is_none,
};

#define LIMITS(m) offsetof(struct rate_limits, m)

static const struct schema_field rate_limits_fields[] = {
    SCHEMA_FIELD("bandwidth", OBJECT, SCHEMA_NULLABLE, LIMITS(bandwidth),
                 .has_at = SCHEMA_HAS(struct rate_limits, has_bandwidth),
                 .object = &token_bucket_schema),
    SCHEMA_FIELD("ops", OBJECT, SCHEMA_NULLABLE, LIMITS(ops),
                 .has_at = SCHEMA_HAS(struct rate_limits, has_ops), .object = &token_bucket_schema),
};

static bool limits_are_none(const void *object)
{
    return !rate_limits_any(object);
}

static const struct schema rate_limits_schema = {
    .name = "RateLimiterConfig",
    .size = sizeof(struct rate_limits),
    SCHEMA_FIELDS(rate_limits_fields),
    .is_none = limits_are_none,
};

static const struct schema_variant cache_types[] = {
    { "Unsafe", CACHE_UNSAFE },
    { "Writeback", CACHE_WRITEBACK },
    { 0 },
};

static const struct schema_variant io_engines[] = {
    { "Async", IO_ENGINE_ASYNC },
    { "Sync", IO_ENGINE_SYNC },
    { 0 },
};

#define DRIVE(m) offsetof(struct drive_config, m)

static const struct schema_field layer_item = { .type = SCHEMA_STRING };

static const struct schema_field drive_fields[] = {
    SCHEMA_FIELD("drive_id", STRING, SCHEMA_REQUIRED, DRIVE(drive_id)),
    SCHEMA_FIELD("partuuid", STRING, SCHEMA_NULLABLE, DRIVE(partuuid)),
    SCHEMA_FIELD("is_root_device", BOOL, SCHEMA_REQUIRED, DRIVE(is_root_device)),
    SCHEMA_FIELD("cache_type", ENUM, SCHEMA_DEFAULT, DRIVE(cache_type), .variants = cache_types),
    SCHEMA_FIELD("is_read_only", BOOL, SCHEMA_NULLABLE, DRIVE(is_read_only)),
    SCHEMA_FIELD("discard", BOOL, SCHEMA_NULLABLE | SCHEMA_HIDDEN | SCHEMA_NEW, DRIVE(may_discard),
                 .has_at = SCHEMA_HAS(struct drive_config, has_discard)),
    SCHEMA_FIELD("path_on_host", STRING, SCHEMA_NULLABLE, DRIVE(path_on_host)),
    SCHEMA_FIELD("overlay_path", STRING, SCHEMA_NULLABLE | SCHEMA_HIDDEN | SCHEMA_NEW,
                 DRIVE(overlay_path)),
    SCHEMA_FIELD("layers", LIST, SCHEMA_DEFAULT | SCHEMA_HIDDEN | SCHEMA_NEW, DRIVE(layers),
                 .item = &layer_item, .item_size = sizeof(char *)),
    SCHEMA_FIELD("rate_limiter", OBJECT, SCHEMA_NULLABLE, DRIVE(rate_limits),
                 .object = &rate_limits_schema),
    SCHEMA_FIELD("io_engine", ENUM, SCHEMA_NULLABLE, DRIVE(io_engine), .variants = io_engines),
    SCHEMA_FIELD("socket", STRING, SCHEMA_NULLABLE, DRIVE(socket)),
};

static const struct schema drive_schema = {
    .name = "BlockDeviceConfig",
    .size = sizeof(struct drive_config),
    SCHEMA_FIELDS(drive_fields),
};

#define DRIVE_PATCH(m) offsetof(struct drive_patch, m)

static const struct schema_field drive_patch_fields[] = {
    SCHEMA_FIELD("drive_id", STRING, SCHEMA_REQUIRED, DRIVE_PATCH(drive_id)),
    SCHEMA_FIELD("path_on_host", STRING, SCHEMA_NULLABLE, DRIVE_PATCH(path_on_host)),
    SCHEMA_FIELD("rate_limiter", OBJECT, SCHEMA_NULLABLE, DRIVE_PATCH(rate_limits),
                 .has_at = SCHEMA_HAS(struct drive_patch, has_rate_limits),
                 .object = &rate_limits_schema),
};

static const struct schema drive_patch_schema = {
    .name = "BlockDeviceUpdateConfig",
    .size = sizeof(struct drive_patch),
    SCHEMA_FIELDS(drive_patch_fields),
};

static int parse_level(const char *text, void *member, struct error *e)
{
    int level = log_level_parse(text);

    if (level < 0)
        return fail(e, ERR_INVALID, "Invalid LevelFilter");
    *(unsigned *)member = (unsigned)level;
    return 0;
}

#define LOGGER(m) offsetof(struct logger_config, m)

static const struct schema_field logger_fields[] = {
    SCHEMA_FIELD("log_path", PATH, SCHEMA_NULLABLE, LOGGER(log_path)),
    SCHEMA_FIELD("level", PARSED, SCHEMA_NULLABLE, LOGGER(level), .parse = parse_level),
    SCHEMA_FIELD("show_level", BOOL, SCHEMA_NULLABLE, LOGGER(show_level)),
    SCHEMA_FIELD("show_log_origin", BOOL, SCHEMA_NULLABLE, LOGGER(show_origin)),
    SCHEMA_FIELD("module", STRING, SCHEMA_NULLABLE, LOGGER(module)),
};

static const struct schema logger_schema = {
    .name = "LoggerConfig",
    .size = sizeof(struct logger_config),
    SCHEMA_FIELDS(logger_fields),
};

#define METRICS(m) offsetof(struct metrics_config, m)

static const struct schema_field metrics_fields[] = {
    SCHEMA_FIELD("metrics_path", PATH, SCHEMA_REQUIRED, METRICS(metrics_path)),
    SCHEMA_FIELD("emit_id", BOOL, SCHEMA_DEFAULT, METRICS(emit_id)),
    SCHEMA_FIELD("properties", TEXT, SCHEMA_NULLABLE | SCHEMA_DEFAULT | SCHEMA_MAP,
                 METRICS(properties)),
};

static const struct schema metrics_schema = {
    .name = "MetricsConfig",
    .size = sizeof(struct metrics_config),
    SCHEMA_FIELDS(metrics_fields),
    .takes_unknown = true,
};

/* Six pairs of hexadecimal digits. */
static int parse_mac(const char *text, void *member, struct error *e)
{
    char *mac = strdup(text);

    BUG_ON(!mac);
    *(char **)member = mac;
    for (unsigned i = 0; i < 17; i++) {
        if (i % 3 == 2 ? mac[i] != ':' : !isxdigit((unsigned char)mac[i]))
            return fail(e, ERR_INVALID, "The provided MAC address is invalid.");
        mac[i] = (char)tolower((unsigned char)mac[i]);
    }
    return mac[17] ? fail(e, ERR_INVALID, "The provided MAC address is invalid.") : 0;
}

#define NET(m) offsetof(struct net_config, m)

static const struct schema_field net_fields[] = {
    SCHEMA_FIELD("iface_id", STRING, SCHEMA_REQUIRED, NET(iface_id)),
    SCHEMA_FIELD("host_dev_name", STRING, SCHEMA_REQUIRED, NET(host_dev_name)),
    SCHEMA_FIELD("guest_mac", PARSED, SCHEMA_NULLABLE, NET(guest_mac), .parse = parse_mac),
    SCHEMA_FIELD("mtu", U16, SCHEMA_NULLABLE, NET(mtu),
                 .has_at = SCHEMA_HAS(struct net_config, has_mtu)),
    SCHEMA_FIELD("rx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET(rx_limits),
                 .object = &rate_limits_schema),
    SCHEMA_FIELD("tx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET(tx_limits),
                 .object = &rate_limits_schema),
};

static const struct schema net_schema = {
    .name = "NetworkInterfaceConfig",
    .size = sizeof(struct net_config),
    SCHEMA_FIELDS(net_fields),
};

#define NET_PATCH(m) offsetof(struct net_patch, m)

static const struct schema_field net_patch_fields[] = {
    SCHEMA_FIELD("iface_id", STRING, SCHEMA_REQUIRED, NET_PATCH(iface_id)),
    SCHEMA_FIELD("rx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET_PATCH(rx_limits),
                 .object = &rate_limits_schema),
    SCHEMA_FIELD("tx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET_PATCH(tx_limits),
                 .object = &rate_limits_schema),
};

static const struct schema net_patch_schema = {
    .name = "NetworkInterfaceUpdateConfig",
    .size = sizeof(struct net_patch),
    SCHEMA_FIELDS(net_patch_fields),
};

#define VSOCK(m) offsetof(struct vsock_config, m)

static const struct schema_field vsock_fields[] = {
    SCHEMA_FIELD("vsock_id", STRING,
                 SCHEMA_NULLABLE | SCHEMA_DEFAULT | SCHEMA_HIDDEN | SCHEMA_DEPRECATED,
                 VSOCK(vsock_id)),
    SCHEMA_FIELD("guest_cid", U32, SCHEMA_REQUIRED, VSOCK(guest_cid)),
    SCHEMA_FIELD("uds_path", STRING, SCHEMA_REQUIRED, VSOCK(uds_path)),
};

static bool vsock_is_none(const void *object)
{
    return !((const struct vsock_config *)object)->uds_path;
}

static const struct schema vsock_schema = {
    .name = "VsockDeviceConfig",
    .size = sizeof(struct vsock_config),
    SCHEMA_FIELDS(vsock_fields),
    .is_none = vsock_is_none,
};

static const struct schema_variant mmds_versions[] = {
    { "V1", MMDS_V1 },
    { "V2", MMDS_V2 },
    { 0 },
};

static int parse_ipv4(const char *text, void *member, struct error *e)
{
    struct in_addr address;

    if (inet_pton(AF_INET, text, &address) != 1)
        return fail(e, ERR_INVALID, "invalid IPv4 address syntax");
    *(char **)member = strdup(text);
    BUG_ON(!*(char **)member);
    return 0;
}

#define MMDS(m) offsetof(struct mmds_config, m)

static const struct schema_field interface_id_field = SCHEMA_FIELD("", STRING, SCHEMA_REQUIRED, 0);

static const struct schema_field mmds_fields[] = {
    SCHEMA_FIELD("version", ENUM, SCHEMA_DEFAULT, MMDS(version), .variants = mmds_versions,
                 .outdated = "V1", .instead = "V2"),
    SCHEMA_FIELD("network_interfaces", LIST, SCHEMA_REQUIRED, MMDS(interfaces),
                 .item = &interface_id_field, .item_size = sizeof(char *)),
    SCHEMA_FIELD("ipv4_address", PARSED, SCHEMA_NULLABLE, MMDS(ipv4_address), .parse = parse_ipv4,
                 .expected = "IPv4 address"),
    SCHEMA_FIELD("imds_compat", BOOL, SCHEMA_DEFAULT, MMDS(imds_compat)),
};

static bool mmds_is_none(const void *object)
{
    return ((const struct mmds_config *)object)->interfaces.count == 0;
}

static const struct schema mmds_schema = {
    .name = "MmdsConfig",
    .size = sizeof(struct mmds_config),
    SCHEMA_FIELDS(mmds_fields),
    .is_none = mmds_is_none,
};

static int parse_uuid(const char *text, void *member, struct error *e)
{
    struct uuid uuid;
    char *shown;

    if (!uuid_parse(&uuid, text) || text[UUID_TEXT - 1])
        return fail(e, ERR_INVALID,
                    "The provided UUID is invalid: hexadecimal digits in groups of 8, 4, 4, 4 and "
                    "12, with hyphens between, are wanted.");
    shown = malloc(UUID_TEXT);
    BUG_ON(!shown);
    uuid_text(&uuid, shown);
    *(char **)member = shown;
    return 0;
}

static int parse_serial(const char *text, void *member, struct error *e)
{
    size_t n = 0;

    while (isprint((unsigned char)text[n]))
        n++;
    if (n == 0 || n > SMBIOS_SERIAL_MAX || text[n])
        return fail(e, ERR_INVALID,
                    "The provided serial number is invalid: 1 to %u printable characters of ASCII "
                    "are wanted.",
                    SMBIOS_SERIAL_MAX);
    *(char **)member = strdup(text);
    BUG_ON(!*(char **)member);
    return 0;
}

#define SMBIOS(m) offsetof(struct smbios_config, m)

static const struct schema_field smbios_fields[] = {
    SCHEMA_FIELD("uuid", PARSED, SCHEMA_REQUIRED, SMBIOS(uuid), .parse = parse_uuid),
    SCHEMA_FIELD("serial", PARSED, SCHEMA_NULLABLE | SCHEMA_HIDDEN, SMBIOS(serial),
                 .parse = parse_serial),
};

static bool smbios_is_none(const void *object)
{
    return !((const struct smbios_config *)object)->uuid;
}

static const struct schema smbios_schema = {
    .name = "SmbiosConfig",
    .size = sizeof(struct smbios_config),
    SCHEMA_FIELDS(smbios_fields),
    .is_none = smbios_is_none,
};

#define SERIAL(m) offsetof(struct serial_config, m)

static const struct schema_field serial_fields[] = {
    SCHEMA_FIELD("serial_out_path", PATH, SCHEMA_NULLABLE, SERIAL(serial_out_path)),
    SCHEMA_FIELD("rate_limiter", OBJECT, SCHEMA_NULLABLE, SERIAL(limit),
                 .object = &token_bucket_schema),
};

static const struct schema serial_schema = {
    .name = "SerialConfig",
    .size = sizeof(struct serial_config),
    SCHEMA_FIELDS(serial_fields),
};

static const struct schema_variant action_types[] = {
    { "FlushMetrics", ACT_FLUSH_METRICS },
    { "InstanceStart", ACT_START },
    { "SendCtrlAltDel", ACT_CTRL_ALT_DEL },
    { "SendPowerButton", ACT_POWER_BUTTON },
    { 0 },
};

static const struct schema_field action_fields[] = {
    SCHEMA_FIELD("action_type", ENUM, SCHEMA_REQUIRED, 0, .variants = action_types,
                 .new_variants = 1),
};

static const struct schema action_schema = {
    .name = "ActionBody",
    .size = sizeof(enum action_kind),
    SCHEMA_FIELDS(action_fields),
};

static const struct schema_variant vm_states[] = {
    { "Paused", ACT_PAUSE },
    { "Resumed", ACT_RESUME },
    { 0 },
};

static const struct schema_field vm_state_fields[] = {
    SCHEMA_FIELD("state", ENUM, SCHEMA_REQUIRED, 0, .variants = vm_states),
};

static const struct schema vm_state_schema = {
    .name = "Vm",
    .size = sizeof(enum action_kind),
    SCHEMA_FIELDS(vm_state_fields),
};

#define CONFIG(m) offsetof(struct config_file, config.m)

/* Members that are not in this table are ignored, as Firecracker does, but not silently. */
static const struct schema_field config_file_fields[] = {
    SCHEMA_FIELD("balloon", ABSENT, SCHEMA_NULLABLE, 0),
    SCHEMA_FIELD("drives", LIST, SCHEMA_REQUIRED, CONFIG(drives), .object = &drive_schema),
    SCHEMA_FIELD("boot-source", OBJECT, SCHEMA_REQUIRED, CONFIG(boot_source),
                 .object = &boot_source_schema),
    SCHEMA_FIELD("cpu-config", TEXT, SCHEMA_NULLABLE | SCHEMA_UNSHOWN,
                 offsetof(struct config_file, cpu_config)),
    SCHEMA_FIELD("logger", OBJECT, SCHEMA_NULLABLE | SCHEMA_UNSHOWN, CONFIG(logger),
                 .object = &logger_schema),
    SCHEMA_FIELD("machine-config", OBJECT, SCHEMA_NULLABLE, CONFIG(machine),
                 .object = &machine_schema),
    SCHEMA_FIELD("metrics", OBJECT, SCHEMA_NULLABLE | SCHEMA_UNSHOWN, CONFIG(metrics),
                 .object = &metrics_schema),
    SCHEMA_FIELD("mmds-config", OBJECT, SCHEMA_NULLABLE, CONFIG(mmds), .object = &mmds_schema),
    SCHEMA_FIELD("network-interfaces", LIST, SCHEMA_DEFAULT, CONFIG(interfaces),
                 .object = &net_schema),
    SCHEMA_FIELD("vsock", OBJECT, SCHEMA_NULLABLE, CONFIG(vsock), .object = &vsock_schema),
    SCHEMA_FIELD("smbios", OBJECT, SCHEMA_NULLABLE | SCHEMA_HIDDEN | SCHEMA_NEW, CONFIG(smbios),
                 .object = &smbios_schema),
    SCHEMA_FIELD("entropy", ABSENT, SCHEMA_NULLABLE, 0),
    SCHEMA_FIELD("pmem", ABSENT, SCHEMA_NULLABLE | SCHEMA_NO_LIST, 0),
    SCHEMA_FIELD("memory-hotplug", ABSENT, SCHEMA_NULLABLE, 0),
};

const struct schema config_file_schema = {
    .name = "VmmConfig",
    .size = sizeof(struct config_file),
    SCHEMA_FIELDS(config_file_fields),
    .takes_unknown = true,
};

_Static_assert(CONFIG(drives.count) == CONFIG(drives.items) + sizeof(void *) &&
                   CONFIG(interfaces.count) == CONFIG(interfaces.items) + sizeof(void *) &&
                   MMDS(interfaces.count) == MMDS(interfaces.items) + sizeof(void *),
               "these are read as struct schema_list");
_Static_assert(DRIVE(drive_id) == 0 && DRIVE_PATCH(drive_id) == 0 && NET(iface_id) == 0 &&
                   NET_PATCH(iface_id) == 0,
               "bodies begin with their id");

#define GETS(what) .count = &metrics.get_api_requests.what##_count
#define PUTS(what)                                                                                 \
    .count = &metrics.put_api_requests.what##_count, .fails = &metrics.put_api_requests.what##_fails
#define PATCHES(what)                                                                              \
    .count = &metrics.patch_api_requests.what##_count,                                             \
    .fails = &metrics.patch_api_requests.what##_fails
#define SHOWS(schema, place)  .body = &(schema), .at = (place)
#define TAKES(schema, member) .body = &(schema), .at = offsetof(struct action, member)
#define FAILS(request, file)  .subsystem = (request), .subsystem_of_file = (file)

static const struct route routes[] = {
    { HTTP_VERB_GET, "", .answer = answer_instance, GETS(instance_info) },
    { HTTP_VERB_GET, "version", .answer = answer_version, GETS(vmm_version) },
    { HTTP_VERB_GET, "metrics", "", .answer = answer_metrics },
    { HTTP_VERB_GET, "boot-timeline", "", .answer = answer_boot_timeline },
    { HTTP_VERB_GET, "vm", "config", SHOWS(config_file_schema, 0) },
    { HTTP_VERB_GET, "mmds", .answer = answer_metadata, .subsystem = "MMDS error", GETS(mmds) },
    { HTTP_VERB_GET, "machine-config", SHOWS(machine_schema, CONFIG(machine)), GETS(machine_cfg) },
    { HTTP_VERB_PUT, "logger", .kind = ACT_PUT_LOGGER, TAKES(logger_schema, config.logger),
      FAILS("Logger error", "Logger error"), PUTS(logger) },
    { HTTP_VERB_PUT, "metrics", .kind = ACT_PUT_METRICS, TAKES(metrics_schema, config.metrics),
      FAILS("Metrics error", "Metrics error"), PUTS(metrics) },
    { HTTP_VERB_PUT, "machine-config", .kind = ACT_PUT_MACHINE,
      TAKES(machine_schema, config.machine), FAILS("Machine config error", "VM config error"),
      PUTS(machine_cfg) },
    { HTTP_VERB_PATCH, "machine-config", .kind = ACT_PATCH_MACHINE,
      TAKES(machine_patch_schema, config.machine), FAILS("Machine config error", NULL),
      PATCHES(machine_cfg) },
    { HTTP_VERB_PUT, "cpu-config", .kind = ACT_PUT_CPU_CONFIG, TAKES(cpu_config_schema, config.cpu),
      FAILS("Configure CPU error", "CPU config error"), PUTS(cpu_cfg) },
    { HTTP_VERB_PUT, "boot-source", .kind = ACT_PUT_BOOT_SOURCE,
      TAKES(boot_source_schema, config.boot_source),
      FAILS("Boot source error", "Boot source error"), PUTS(boot_source) },
    { HTTP_VERB_PUT, "drives", .id = ID_OF_DRIVE, .kind = ACT_PUT_DRIVE,
      TAKES(drive_schema, config.drives), .is_item = true,
      FAILS("Drive config error", "Block device error"), PUTS(drive) },
    { HTTP_VERB_PATCH, "drives", .id = ID_OF_DRIVE, .kind = ACT_PATCH_DRIVE,
      TAKES(drive_patch_schema, drive_patch), FAILS("Drive config error", NULL), PATCHES(drive) },
    { HTTP_VERB_DELETE, "drives", .id = ID_OF_DRIVE, .kind = ACT_DELETE_DEVICE },
    { HTTP_VERB_PUT, "network-interfaces", .id = ID_OF_INTERFACE, .kind = ACT_PUT_NET,
      TAKES(net_schema, config.interfaces), .is_item = true,
      FAILS("Network config error", "Network device error"), PUTS(network) },
    { HTTP_VERB_PATCH, "network-interfaces", .id = ID_OF_INTERFACE, .kind = ACT_PATCH_NET,
      TAKES(net_patch_schema, net_patch), FAILS("Network config error", NULL), PATCHES(network) },
    { HTTP_VERB_DELETE, "network-interfaces", .id = ID_OF_INTERFACE, .kind = ACT_DELETE_DEVICE },
    { HTTP_VERB_PUT, "vsock", .kind = ACT_PUT_VSOCK, TAKES(vsock_schema, config.vsock),
      FAILS("Vsock config error", "Vsock device error"), PUTS(vsock) },
    { HTTP_VERB_PUT, "smbios", .kind = ACT_PUT_SMBIOS, TAKES(smbios_schema, config.smbios),
      FAILS("SMBIOS error", "SMBIOS error") },
    { HTTP_VERB_PUT, "serial", .kind = ACT_PUT_SERIAL, TAKES(serial_schema, config.serial),
      FAILS("Serial error", NULL), PUTS(serial) },
    { HTTP_VERB_PUT, "mmds", "config", .kind = ACT_PUT_MMDS_CONFIG, .member = "mmds-config",
      TAKES(mmds_schema, config.mmds), FAILS("MMMDS config error", "MMDS config error"),
      PUTS(mmds) },
    { HTTP_VERB_PUT, "mmds", "", .kind = ACT_PUT_MMDS, .takes_metadata = true,
      FAILS("MMDS error", NULL), PUTS(mmds) },
    { HTTP_VERB_PUT, "mmds", .is_unknown = true, PUTS(mmds) },
    { HTTP_VERB_PATCH, "mmds", .kind = ACT_PATCH_MMDS, .takes_metadata = true,
      FAILS("MMDS error", NULL), PATCHES(mmds) },
    { HTTP_VERB_PUT, "snapshot", "create", .kind = ACT_SNAPSHOT_CREATE,
      TAKES(snapshot_create_schema, snapshot_create), FAILS("Create snapshot error", NULL) },
    { HTTP_VERB_PUT, "snapshot", "load", .kind = ACT_SNAPSHOT_LOAD,
      TAKES(snapshot_load_schema, snapshot_load), FAILS("Load snapshot error", NULL) },
    { HTTP_VERB_PUT, "actions", .kind = ACTIONS, TAKES(action_schema, kind),
      FAILS("Internal VMM error", NULL), PUTS(actions) },
    { HTTP_VERB_PATCH, "vm", .kind = ACTIONS, TAKES(vm_state_schema, kind),
      FAILS("Internal VMM error", NULL) },
};
#define ROUTES (sizeof(routes) / sizeof(*routes))

bool token_is(struct token t, const char *name)
{
    return strlen(name) == t.length && memcmp(t.at, name, t.length) == 0;
}

const struct route *route_find(enum http_verb verb, struct token first, struct token second)
{
    for (const struct route *r = routes; r < routes + ROUTES; r++)
        if (r->verb == verb && token_is(first, r->first) &&
            (!r->second || token_is(second, r->second)))
            return r;
    return NULL;
}

const struct route *route_of(enum action_kind kind)
{
    for (const struct route *r = routes; r < routes + ROUTES; r++)
        if (r->verb == HTTP_VERB_PUT && r->kind == kind)
            return r;
    return NULL;
}
