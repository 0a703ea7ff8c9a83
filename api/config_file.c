#include "api/config_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "api/canonical.h"
#include "api/cpu_schema.h"
#include "api/routes.h"
#include "vmm/base/log.h"
#include "vmm/base/whole_file.h"

/* Which of the process's files is read, as its errors call it. */
#define CONFIGURATION "configuration"
#define METADATA      "mmds content"

static int fail_read(struct error *e, int os_errno, const char *what, const char *path)
{
    return fail_os(e, os_errno, "Unable to open or read from the %s file: %s", what, path);
}

/* Its text with a NUL behind it, to be freed whatever is returned; how many bytes, or -1. Pages
 * that are not needed are never touched. */
static ssize_t read_file(char **text, const char *what, const char *path, struct error *e)
{
    const size_t room = CONFIG_FILE_MAX + 1;
    autofd int fd = open(path, O_RDONLY | O_NOCTTY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return fail_read(e, errno, what, path);
    *text = malloc(room + 1);
    BUG_ON(!*text);
    n = whole_file_read(fd, *text, room);
    if (n < 0)
        return fail_read(e, (int)-n, what, path);
    if ((size_t)n == room)
        return fail(e, ERR_TOO_LARGE,
                    "Unable to open or read from the %s file: %s: larger than %u bytes", what, path,
                    CONFIG_FILE_MAX);
    (*text)[n] = '\0';
    return n;
}

/* A string is a path, decoded by the same means. */
static int read_cpu_config(const char *text, struct cpu_config *out, struct error *e)
{
    static const struct schema_field path_fields[] = {
        SCHEMA_FIELD("", PATH, SCHEMA_REQUIRED, 0),
    };
    static const struct schema path_schema = {
        .name = "CpuConfig", .size = sizeof(char *), .fields = path_fields, .count = 1
    };
    autofree char *path = NULL, *file = NULL, *list = NULL;
    ssize_t size = (ssize_t)strlen(text);
    uint32_t given;

    if (*text == '"') {
        if (asprintf(&list, "[%s]", text) < 0)
            BUG_ON(true);
        if (schema_decode(&path_schema, &path, list, strlen(list), &given, e) < 0)
            return -1;
        size = read_file(&file, CONFIGURATION, path, e);
        if (size < 0)
            return -1;
        text = file;
    }
    return schema_decode(&cpu_config_schema, out, text, (size_t)size, &given, e);
}

static bool has_member(const char *name, uint32_t given)
{
    for (unsigned i = 0; i < config_file_schema.count; i++)
        if (strcmp(config_file_schema.fields[i].name, name) == 0)
            return given & UINT32_C(1) << i;
    return false;
}

/* What of the file is given, in Firecracker's order. Errors name their subsystem in its words for a
 * file, which are not those of its API. */
static int apply_members(struct vm *vm, struct action *a, const char *cpu_config, uint32_t given,
                         struct error *e)
{
    for (a->kind = 0; a->kind < ACTIONS; a->kind++) {
        const struct route *r = route_of(a->kind);

        if (!r || !has_member(r->member ? r->member : r->first, given))
            continue;
        if ((a->kind == ACT_PUT_CPU_CONFIG && read_cpu_config(cpu_config, &a->config.cpu, e) < 0) ||
            vm_apply(vm, a, e) < 0)
            return fail_within(e, r->subsystem_of_file);
    }
    return 0;
}

static int configure(struct vm *vm, const char *text, size_t size, struct error *e)
{
    struct config_file file = { 0 };
    struct action a;
    uint32_t given;
    int ret;

    action_init(&a, ACT_PUT_MACHINE, vm);
    file.config = a.config;
    ret = schema_decode(&config_file_schema, &file, text, size, &given, e);
    a.config = file.config;
    if (ret < 0)
        fail_within(e, "Invalid JSON");
    else
        ret = apply_members(vm, &a, file.cpu_config, given, e);
    action_fini(&a);
    free(file.cpu_config);
    return ret;
}

static int put_metadata_file(struct vm *vm, const char *path, struct error *e)
{
    autofree char *text = NULL;
    ssize_t size = read_file(&text, METADATA, path, e);
    struct action a;
    int ret;

    if (size < 0)
        return -1;
    action_init(&a, ACT_PUT_MMDS, vm);
    a.metadata = canonical_json(text, (size_t)size, e);
    ret = a.metadata ? vm_apply(vm, &a, e) : fail_within(e, "metadata provided not valid json");
    action_fini(&a);
    return ret;
}

int metadata_file_apply(struct vm *vm, const char *path, struct error *e)
{
    if (put_metadata_file(vm, path, e) < 0) {
        fail_within(e, "Populating MMDS from file failed");
        return fail_within(e, "Failed to build MicroVM");
    }
    log_info("Successfully added metadata to mmds from file");
    return 0;
}

int config_file_apply(struct vm *vm, const char *path, const char *metadata_path, struct error *e)
{
    struct action start;
    autofree char *text = NULL;
    ssize_t size = read_file(&text, CONFIGURATION, path, e);

    if (size < 0)
        return -1;
    if (configure(vm, text, (size_t)size, e) < 0) {
        fail_within(e, "Configuration for VMM from one single json failed");
        return fail_within(e, "Failed to build MicroVM from Json");
    }
    if (metadata_path && metadata_file_apply(vm, metadata_path, e) < 0)
        return -1;
    action_init(&start, ACT_START, vm);
    if (vm_apply(vm, &start, e) < 0) {
        fail_within(e, "Could not Start MicroVM from one single json");
        return fail_within(e, "Failed to build MicroVM from Json");
    }
    log_info("Successfully started microvm that was configured from one single json");
    return 0;
}
