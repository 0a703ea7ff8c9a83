#include "api/config_schema.h"

#include <ctype.h>
#include <string.h>

#include "vmm/base/config.h"
#include "vmm/base/log.h"
#include "vmm/machine/vm.h"

#define FIELDS(table) .fields = (table), .count = sizeof(table) / sizeof(*(table))

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

#define MACHINE(m) offsetof(struct machine_request, config.m)

static const struct schema_field machine_fields[] = {
    SCHEMA_FIELD("vcpu_count", U8, SCHEMA_REQUIRED, MACHINE(vcpu_count),
                 .given = MACHINE_VCPU_COUNT),
    SCHEMA_FIELD("mem_size_mib", USIZE, SCHEMA_REQUIRED, MACHINE(mem_size_mib),
                 .given = MACHINE_MEM_SIZE),
    SCHEMA_FIELD("smt", BOOL, SCHEMA_DEFAULT, MACHINE(smt), .given = MACHINE_SMT),
    SCHEMA_FIELD("cpu_template", ENUM, SCHEMA_NULLABLE | SCHEMA_DEFAULT | SCHEMA_HIDDEN,
                 MACHINE(cpu_template), .variants = cpu_templates, .hidden = CPU_TEMPLATE_NONE,
                 .given = MACHINE_CPU_TEMPLATE),
    SCHEMA_FIELD("track_dirty_pages", BOOL, SCHEMA_DEFAULT, MACHINE(track_dirty_pages),
                 .given = MACHINE_TRACK_DIRTY),
    SCHEMA_FIELD("huge_pages", ENUM, SCHEMA_DEFAULT, MACHINE(huge_pages),
                 .variants = huge_page_sizes, .given = MACHINE_HUGE_PAGES),
};

const struct schema machine_schema = {
    .name = "MachineConfig",
    .size = sizeof(struct machine_request),
    FIELDS(machine_fields),
    .given_at = SCHEMA_HAS(struct machine_request, given),
};

static const struct schema_field machine_patch_fields[] = {
    SCHEMA_FIELD("vcpu_count", U8, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(vcpu_count),
                 .given = MACHINE_VCPU_COUNT),
    SCHEMA_FIELD("mem_size_mib", USIZE, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(mem_size_mib),
                 .given = MACHINE_MEM_SIZE),
    SCHEMA_FIELD("smt", BOOL, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(smt), .given = MACHINE_SMT),
    SCHEMA_FIELD("cpu_template", ENUM, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(cpu_template),
                 .variants = cpu_templates, .given = MACHINE_CPU_TEMPLATE),
    SCHEMA_FIELD("track_dirty_pages", BOOL, SCHEMA_NULLABLE | SCHEMA_DEFAULT,
                 MACHINE(track_dirty_pages), .given = MACHINE_TRACK_DIRTY),
    SCHEMA_FIELD("huge_pages", ENUM, SCHEMA_NULLABLE | SCHEMA_DEFAULT, MACHINE(huge_pages),
                 .variants = huge_page_sizes, .given = MACHINE_HUGE_PAGES),
};

const struct schema machine_patch_schema = {
    .name = "MachineConfigUpdate",
    .size = sizeof(struct machine_request),
    FIELDS(machine_patch_fields),
    .given_at = SCHEMA_HAS(struct machine_request, given),
};

#define BOOT(m) offsetof(struct boot_source, m)

static const struct schema_field boot_source_fields[] = {
    SCHEMA_FIELD("kernel_image_path", STRING, SCHEMA_REQUIRED, BOOT(kernel_image_path)),
    SCHEMA_FIELD("initrd_path", STRING, SCHEMA_NULLABLE, BOOT(initrd_path)),
    SCHEMA_FIELD("boot_args", STRING, SCHEMA_NULLABLE, BOOT(boot_args)),
};

const struct schema boot_source_schema = {
    .name = "BootSourceConfig",
    .size = sizeof(struct boot_source),
    FIELDS(boot_source_fields),
};

#define BUCKET(m) offsetof(struct token_bucket, m)

static const struct schema_field token_bucket_fields[] = {
    SCHEMA_FIELD("size", U64, SCHEMA_REQUIRED, BUCKET(size)),
    SCHEMA_FIELD("one_time_burst", U64, SCHEMA_NULLABLE | SCHEMA_ZERO_IS_NULL,
                 BUCKET(one_time_burst)),
    SCHEMA_FIELD("refill_time", U64, SCHEMA_REQUIRED, BUCKET(refill_time_ms)),
};

static const struct schema token_bucket_schema = {
    .name = "TokenBucketConfig",
    .size = sizeof(struct token_bucket),
    FIELDS(token_bucket_fields),
    .takes_unknown = true,
};

/* A bucket that limits nothing is no bucket. */
static void settle_limits(void *object)
{
    struct rate_limits *l = object;

    l->has_bandwidth = l->has_bandwidth && token_bucket_limits(&l->bandwidth);
    l->has_ops = l->has_ops && token_bucket_limits(&l->ops);
}

#define LIMITS(m) offsetof(struct rate_limits, m)

static const struct schema_field rate_limits_fields[] = {
    SCHEMA_FIELD("bandwidth", OBJECT, SCHEMA_NULLABLE, LIMITS(bandwidth),
                 .has_at = SCHEMA_HAS(struct rate_limits, has_bandwidth),
                 .object = &token_bucket_schema),
    SCHEMA_FIELD("ops", OBJECT, SCHEMA_NULLABLE, LIMITS(ops),
                 .has_at = SCHEMA_HAS(struct rate_limits, has_ops), .object = &token_bucket_schema),
};

static const struct schema rate_limits_schema = {
    .name = "RateLimiterConfig",
    .size = sizeof(struct rate_limits),
    FIELDS(rate_limits_fields),
    .settle = settle_limits,
};

/* A PATCH keeps a bucket that limits nothing: it removes the one there is. */
static const struct schema rate_limits_patch_schema = {
    .name = "RateLimiterConfig",
    .size = sizeof(struct rate_limits),
    FIELDS(rate_limits_fields),
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

static void settle_drive(void *object)
{
    struct drive_config *d = object;

    d->has_rate_limits = rate_limits_any(&d->rate_limits);
}

#define DRIVE(m) offsetof(struct drive_config, m)

static const struct schema_field drive_fields[] = {
    SCHEMA_FIELD("drive_id", STRING, SCHEMA_REQUIRED, DRIVE(drive_id)),
    SCHEMA_FIELD("partuuid", STRING, SCHEMA_NULLABLE, DRIVE(partuuid)),
    SCHEMA_FIELD("is_root_device", BOOL, SCHEMA_REQUIRED, DRIVE(is_root_device)),
    SCHEMA_FIELD("cache_type", ENUM, SCHEMA_DEFAULT, DRIVE(cache_type), .variants = cache_types),
    SCHEMA_FIELD("is_read_only", BOOL, SCHEMA_NULLABLE, DRIVE(is_read_only)),
    SCHEMA_FIELD("path_on_host", STRING, SCHEMA_NULLABLE, DRIVE(path_on_host)),
    SCHEMA_FIELD("rate_limiter", OBJECT, SCHEMA_NULLABLE, DRIVE(rate_limits),
                 .has_at = SCHEMA_HAS(struct drive_config, has_rate_limits),
                 .object = &rate_limits_schema),
    SCHEMA_FIELD("io_engine", ENUM, SCHEMA_NULLABLE, DRIVE(io_engine), .variants = io_engines),
    SCHEMA_FIELD("socket", STRING, SCHEMA_NULLABLE, DRIVE(socket)),
};

const struct schema drive_schema = {
    .name = "BlockDeviceConfig",
    .size = sizeof(struct drive_config),
    FIELDS(drive_fields),
    .settle = settle_drive,
};

#define DRIVE_PATCH(m) offsetof(struct drive_patch, m)

static const struct schema_field drive_patch_fields[] = {
    SCHEMA_FIELD("drive_id", STRING, SCHEMA_REQUIRED, DRIVE_PATCH(drive_id)),
    SCHEMA_FIELD("path_on_host", STRING, SCHEMA_NULLABLE, DRIVE_PATCH(path_on_host)),
    SCHEMA_FIELD("rate_limiter", OBJECT, SCHEMA_NULLABLE, DRIVE_PATCH(rate_limits),
                 .has_at = SCHEMA_HAS(struct drive_patch, has_rate_limits),
                 .object = &rate_limits_patch_schema),
};

const struct schema drive_patch_schema = {
    .name = "BlockDeviceUpdateConfig",
    .size = sizeof(struct drive_patch),
    FIELDS(drive_patch_fields),
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
    SCHEMA_FIELD("level", PARSED, SCHEMA_NULLABLE, LOGGER(level),
                 .has_at = SCHEMA_HAS(struct logger_config, has_level), .parse = parse_level),
    SCHEMA_FIELD("show_level", BOOL, SCHEMA_NULLABLE, LOGGER(show_level),
                 .has_at = SCHEMA_HAS(struct logger_config, has_show_level)),
    SCHEMA_FIELD("show_log_origin", BOOL, SCHEMA_NULLABLE, LOGGER(show_origin),
                 .has_at = SCHEMA_HAS(struct logger_config, has_show_origin)),
    SCHEMA_FIELD("module", STRING, SCHEMA_NULLABLE, LOGGER(module)),
};

const struct schema logger_schema = {
    .name = "LoggerConfig",
    .size = sizeof(struct logger_config),
    FIELDS(logger_fields),
};

#define METRICS(m) offsetof(struct metrics_config, m)

static const struct schema_field metrics_fields[] = {
    SCHEMA_FIELD("metrics_path", PATH, SCHEMA_REQUIRED, METRICS(metrics_path)),
    SCHEMA_FIELD("emit_id", BOOL, SCHEMA_DEFAULT, METRICS(emit_id)),
    SCHEMA_FIELD("properties", TEXT, SCHEMA_DEFAULT | SCHEMA_MAP, METRICS(properties)),
};

const struct schema metrics_schema = {
    .name = "MetricsConfig",
    .size = sizeof(struct metrics_config),
    FIELDS(metrics_fields),
    .takes_unknown = true,
};

static void settle_serial(void *object)
{
    struct serial_config *s = object;

    s->has_limit = s->has_limit && token_bucket_limits(&s->limit);
}

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

static void settle_net(void *object)
{
    struct net_config *n = object;

    n->has_rx_limits = rate_limits_any(&n->rx_limits);
    n->has_tx_limits = rate_limits_any(&n->tx_limits);
}

#define NET(m) offsetof(struct net_config, m)

static const struct schema_field net_fields[] = {
    SCHEMA_FIELD("iface_id", STRING, SCHEMA_REQUIRED, NET(iface_id)),
    SCHEMA_FIELD("host_dev_name", STRING, SCHEMA_REQUIRED, NET(host_dev_name)),
    SCHEMA_FIELD("guest_mac", PARSED, SCHEMA_NULLABLE, NET(guest_mac), .parse = parse_mac),
    SCHEMA_FIELD("mtu", U16, SCHEMA_NULLABLE, NET(mtu),
                 .has_at = SCHEMA_HAS(struct net_config, has_mtu)),
    SCHEMA_FIELD("rx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET(rx_limits),
                 .has_at = SCHEMA_HAS(struct net_config, has_rx_limits),
                 .object = &rate_limits_schema),
    SCHEMA_FIELD("tx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET(tx_limits),
                 .has_at = SCHEMA_HAS(struct net_config, has_tx_limits),
                 .object = &rate_limits_schema),
};

const struct schema net_schema = {
    .name = "NetworkInterfaceConfig",
    .size = sizeof(struct net_config),
    FIELDS(net_fields),
    .settle = settle_net,
};

#define NET_PATCH(m) offsetof(struct net_patch, m)

static const struct schema_field net_patch_fields[] = {
    SCHEMA_FIELD("iface_id", STRING, SCHEMA_REQUIRED, NET_PATCH(iface_id)),
    SCHEMA_FIELD("rx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET_PATCH(rx_limits),
                 .has_at = SCHEMA_HAS(struct net_patch, has_rx_limits),
                 .object = &rate_limits_patch_schema),
    SCHEMA_FIELD("tx_rate_limiter", OBJECT, SCHEMA_NULLABLE, NET_PATCH(tx_limits),
                 .has_at = SCHEMA_HAS(struct net_patch, has_tx_limits),
                 .object = &rate_limits_patch_schema),
};

const struct schema net_patch_schema = {
    .name = "NetworkInterfaceUpdateConfig",
    .size = sizeof(struct net_patch),
    FIELDS(net_patch_fields),
};

#define VSOCK(m) offsetof(struct vsock_config, m)

static const struct schema_field vsock_fields[] = {
    SCHEMA_FIELD("vsock_id", STRING, SCHEMA_NULLABLE | SCHEMA_DEFAULT, VSOCK(vsock_id)),
    SCHEMA_FIELD("guest_cid", U32, SCHEMA_REQUIRED, VSOCK(guest_cid)),
    SCHEMA_FIELD("uds_path", STRING, SCHEMA_REQUIRED, VSOCK(uds_path)),
};

const struct schema vsock_schema = {
    .name = "VsockDeviceConfig",
    .size = sizeof(struct vsock_config),
    FIELDS(vsock_fields),
};

/* Without the deprecated member. */
const struct schema vsock_shown_schema = {
    .name = "VsockDeviceConfig",
    .size = sizeof(struct vsock_config),
    .fields = vsock_fields + 1,
    .count = sizeof(vsock_fields) / sizeof(*vsock_fields) - 1,
};

#define SERIAL(m) offsetof(struct serial_config, m)

static const struct schema_field serial_fields[] = {
    SCHEMA_FIELD("serial_out_path", PATH, SCHEMA_NULLABLE, SERIAL(serial_out_path)),
    SCHEMA_FIELD("rate_limiter", OBJECT, SCHEMA_NULLABLE, SERIAL(limit),
                 .has_at = SCHEMA_HAS(struct serial_config, has_limit),
                 .object = &token_bucket_schema),
};

const struct schema serial_schema = {
    .name = "SerialConfig",
    .size = sizeof(struct serial_config),
    FIELDS(serial_fields),
    .settle = settle_serial,
};

static const struct schema_variant action_types[] = {
    { "FlushMetrics", ACTION_FLUSH_METRICS },
    { "InstanceStart", ACTION_INSTANCE_START },
    { "SendCtrlAltDel", ACTION_CTRL_ALT_DEL },
    { 0 },
};

static const struct schema_field action_fields[] = {
    SCHEMA_FIELD("action_type", ENUM, SCHEMA_REQUIRED, offsetof(struct action_body, type),
                 .variants = action_types),
};

const struct schema action_schema = {
    .name = "ActionBody",
    .size = sizeof(struct action_body),
    FIELDS(action_fields),
};

static const struct schema_variant vm_targets[] = {
    { "Paused", TARGET_PAUSED },
    { "Resumed", TARGET_RESUMED },
    { 0 },
};

static const struct schema_field vm_state_fields[] = {
    SCHEMA_FIELD("state", ENUM, SCHEMA_REQUIRED, offsetof(struct vm_state_body, state),
                 .variants = vm_targets),
};

const struct schema vm_state_schema = {
    .name = "Vm",
    .size = sizeof(struct vm_state_body),
    FIELDS(vm_state_fields),
};
