#include "api/config_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "api/config_schema.h"
#include "api/wire/schema.h"
#include "vmm/base/log.h"

struct config_file {
    struct schema_list drives;     /* of struct drive_config */
    struct schema_list interfaces; /* of struct net_config */
    struct boot_source boot_source;
    char *cpu_config; /* the JSON of a template, or of a string: a file that has it */
    struct logger_config logger;
    struct machine_request machine;
    struct metrics_config metrics;
    struct vsock_config vsock;
    bool has_machine, has_logger, has_metrics, has_vsock;
};

#define CONFIG(m) offsetof(struct config_file, m)

/* Members that are not in this table are ignored, as Firecracker does. */
static const struct schema_field config_fields[] = {
    SCHEMA_FIELD("balloon", ABSENT, SCHEMA_NULLABLE, 0),
    SCHEMA_FIELD("drives", LIST, SCHEMA_REQUIRED, CONFIG(drives), .object = &drive_schema),
    SCHEMA_FIELD("boot-source", OBJECT, SCHEMA_REQUIRED, CONFIG(boot_source),
                 .object = &boot_source_schema),
    SCHEMA_FIELD("cpu-config", TEXT, SCHEMA_NULLABLE, CONFIG(cpu_config)),
    SCHEMA_FIELD("logger", OBJECT, SCHEMA_NULLABLE, CONFIG(logger),
                 .has_at = SCHEMA_HAS(struct config_file, has_logger), .object = &logger_schema),
    SCHEMA_FIELD("machine-config", OBJECT, SCHEMA_NULLABLE, CONFIG(machine),
                 .has_at = SCHEMA_HAS(struct config_file, has_machine), .object = &machine_schema),
    SCHEMA_FIELD("metrics", OBJECT, SCHEMA_NULLABLE, CONFIG(metrics),
                 .has_at = SCHEMA_HAS(struct config_file, has_metrics), .object = &metrics_schema),
    SCHEMA_FIELD("mmds-config", ABSENT, SCHEMA_NULLABLE, 0),
    SCHEMA_FIELD("network-interfaces", LIST, SCHEMA_DEFAULT, CONFIG(interfaces),
                 .object = &net_schema),
    SCHEMA_FIELD("vsock", OBJECT, SCHEMA_NULLABLE, CONFIG(vsock),
                 .has_at = SCHEMA_HAS(struct config_file, has_vsock), .object = &vsock_schema),
    SCHEMA_FIELD("entropy", ABSENT, SCHEMA_NULLABLE, 0),
    SCHEMA_FIELD("pmem", ABSENT, SCHEMA_NULLABLE, 0),
    SCHEMA_FIELD("memory-hotplug", ABSENT, SCHEMA_NULLABLE, 0),
};

static const struct schema config_schema = {
    .name = "VmmConfig",
    .size = sizeof(struct config_file),
    .fields = config_fields,
    .count = sizeof(config_fields) / sizeof(*config_fields),
    .takes_unknown = true,
};

static void config_fini(struct config_file *c)
{
    struct drive_config *drives = c->drives.items;

    for (size_t i = 0; i < c->drives.count; i++)
        drive_config_fini(&drives[i]);
    free(drives);
    for (size_t i = 0; i < c->interfaces.count; i++)
        net_config_fini(&((struct net_config *)c->interfaces.items)[i]);
    free(c->interfaces.items);
    boot_source_fini(&c->boot_source);
    free(c->cpu_config);
    logger_config_fini(&c->logger);
    metrics_config_fini(&c->metrics);
    vsock_config_fini(&c->vsock);
}

static int fail_read(struct error *e, const char *path, int os_errno)
{
    return fail_os(e, os_errno, "Unable to open or read from the configuration file: %s", path);
}

/* Opened without blocking, so that a FIFO does not hang the start before it is refused. */
static int open_file(const char *path, size_t *size, struct error *e)
{
    autofd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return fail_read(e, path, errno);
    if (S_ISDIR(st.st_mode))
        return fail_read(e, path, EISDIR);
    if (!S_ISREG(st.st_mode))
        return fail(e, ERR_INVALID,
                    "Unable to open or read from the configuration file: %s: not a regular file",
                    path);
    if (st.st_size > CONFIG_FILE_MAX)
        return fail(e, ERR_TOO_LARGE,
                    "Unable to open or read from the configuration file: %s: larger than %u bytes",
                    path, CONFIG_FILE_MAX);
    *size = (size_t)st.st_size;
    return take_fd(&fd);
}

/* The file's text with a NUL behind it, as a heap block; NULL on failure. A file that shrinks while
 * it is read is taken for what was read. */
static char *read_file(const char *path, size_t *size, struct error *e)
{
    autofd int fd = open_file(path, size, e);
    size_t have = 0;
    char *text;

    if (fd < 0)
        return NULL;
    text = malloc(*size + 1);
    BUG_ON(!text);
    while (have < *size) {
        ssize_t n = read(fd, text + have, *size - have);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            fail_read(e, path, errno);
            free(text);
            return NULL;
        }
        if (n == 0)
            break;
        have += (size_t)n;
    }
    *size = have;
    text[have] = '\0';
    return text;
}

/* Errors name their subsystem, in Firecracker's words for a file, which are not those of its API.
 */
static int apply(struct vm *vm, struct action *a, const char *subsystem, struct error *e)
{
    return vm_apply(vm, a, e) < 0 ? fail_within(e, subsystem) : 0;
}

static int apply_drives(struct vm *vm, struct config_file *c, struct error *e)
{
    struct drive_config *drives = c->drives.items;

    for (size_t i = 0; i < c->drives.count; i++) {
        struct action a = { .kind = ACT_PUT_DRIVE, .drive = drives[i] };
        int ret;

        drives[i] = (struct drive_config){ 0 };
        ret = apply(vm, &a, "Block device error", e);
        action_fini(&a);
        if (ret < 0)
            return -1;
    }
    return 0;
}

static int apply_interfaces(struct vm *vm, struct config_file *c, struct error *e)
{
    struct net_config *interfaces = c->interfaces.items;

    for (size_t i = 0; i < c->interfaces.count; i++) {
        struct action a = { .kind = ACT_PUT_NET, .net = interfaces[i] };
        int ret;

        interfaces[i] = (struct net_config){ 0 };
        ret = apply(vm, &a, "Network device error", e);
        action_fini(&a);
        if (ret < 0)
            return -1;
    }
    return 0;
}

static int apply_logger(struct vm *vm, struct config_file *c, struct error *e)
{
    struct action a = { .kind = ACT_PUT_LOGGER, .logger = c->logger };
    int ret;

    c->logger = (struct logger_config){ 0 };
    ret = apply(vm, &a, "Logger error", e);
    action_fini(&a);
    return ret;
}

/* A string is a path, decoded by the same means. */
static int read_cpu_config(const struct config_file *c, struct cpu_config *out, struct error *e)
{
    static const struct schema_field path_fields[] = {
        SCHEMA_FIELD("", PATH, SCHEMA_REQUIRED, 0),
    };
    static const struct schema path_schema = {
        .name = "CpuConfig", .size = sizeof(char *), .fields = path_fields, .count = 1
    };
    const char *text = c->cpu_config;
    autofree char *path = NULL, *file = NULL, *list = NULL;
    size_t size = strlen(text);

    if (*text == '"') {
        if (asprintf(&list, "[%s]", text) < 0)
            BUG_ON(true);
        if (schema_decode(&path_schema, &path, list, strlen(list), e) < 0)
            return -1;
        text = file = read_file(path, &size, e); /* NOLINT(*DeadStores): freed at the end */
        if (!text)
            return -1;
    }
    return schema_decode(&cpu_config_schema, out, text, size, e);
}

static int apply_cpu_config(struct vm *vm, const struct config_file *c, struct error *e)
{
    struct action a = { .kind = ACT_PUT_CPU_CONFIG };
    int ret = read_cpu_config(c, &a.cpu, e);

    if (ret < 0)
        fail_within(e, "CPU config error");
    else
        ret = apply(vm, &a, "CPU config error", e);
    action_fini(&a);
    return ret;
}

static int apply_boot_source(struct vm *vm, struct config_file *c, struct error *e)
{
    struct action a = { .kind = ACT_PUT_BOOT_SOURCE, .boot_source = c->boot_source };
    int ret;

    c->boot_source = (struct boot_source){ 0 };
    ret = apply(vm, &a, "Boot source error", e);
    action_fini(&a);
    return ret;
}

static int apply_vsock(struct vm *vm, struct config_file *c, struct error *e)
{
    struct action a = { .kind = ACT_PUT_VSOCK, .vsock = c->vsock };
    int ret;

    c->vsock = (struct vsock_config){ 0 };
    ret = apply(vm, &a, "Vsock device error", e);
    action_fini(&a);
    return ret;
}

/* In Firecracker's order. */
static int apply_config(struct vm *vm, struct config_file *c, struct error *e)
{
    struct action metrics = { .kind = ACT_PUT_METRICS, .metrics = c->metrics };
    struct action machine = { .kind = ACT_PUT_MACHINE, .machine = c->machine };

    if ((c->has_logger && apply_logger(vm, c, e) < 0) ||
        (c->has_metrics && apply(vm, &metrics, "Metrics error", e) < 0) ||
        (c->has_machine && apply(vm, &machine, "VM config error", e) < 0) ||
        (c->cpu_config && apply_cpu_config(vm, c, e) < 0))
        return -1;
    if (apply_boot_source(vm, c, e) < 0 || apply_drives(vm, c, e) < 0 ||
        apply_interfaces(vm, c, e) < 0)
        return -1;
    return c->has_vsock ? apply_vsock(vm, c, e) : 0;
}

static int configure(struct vm *vm, const char *text, size_t size, struct error *e)
{
    struct config_file c = { 0 };
    int ret = schema_decode(&config_schema, &c, text, size, e);

    if (ret < 0)
        fail_within(e, "Invalid JSON");
    else
        ret = apply_config(vm, &c, e);
    config_fini(&c);
    return ret;
}

int config_file_apply(struct vm *vm, const char *path, struct error *e)
{
    struct action start = { .kind = ACT_START };
    size_t size = 0;
    autofree char *text = read_file(path, &size, e);

    if (!text)
        return -1;
    if (configure(vm, text, size, e) < 0) {
        fail_within(e, "Configuration for VMM from one single json failed");
        return fail_within(e, "Failed to build MicroVM from Json");
    }
    if (apply(vm, &start, "Could not Start MicroVM from one single json", e) < 0)
        return fail_within(e, "Failed to build MicroVM from Json");
    log_info("Successfully started microvm that was configured from one single json");
    return 0;
}
