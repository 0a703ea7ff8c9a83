/* snapshot-editor: what tools for Firecracker's snapshots ask of a program of that name. */

#include <stdio.h>
#include <string.h>

#include "vmm/base/options.h"
#include "vmm/base/version.h"
#include "vmm/machine/saved.h"
#include "vmm/snapshot/files.h"
#include "vmm/snapshot/rebase.h"

struct arguments {
    const char *memory_path, *diff_path, *vmstate_path;
};

#define AT(member) offsetof(struct arguments, member)

static const struct option rebase_rows[] = {
    { "memory-path", "PATH", AT(memory_path), .rules = OPTION_REQUIRED,
      .help = "memory file of a snapshot, which is changed" },
    { "diff-path", "PATH", AT(diff_path), .rules = OPTION_REQUIRED,
      .help = "memory file of a Diff that was made after it" },
};
OPTIONS(rebase_options, rebase_rows);

static const struct option info_rows[] = {
    { "vmstate-path", "PATH", AT(vmstate_path), .rules = OPTION_REQUIRED,
      .help = "state file of a snapshot" },
};
OPTIONS(info_options, info_rows);

static int run_rebase(const struct arguments *a, struct error *e)
{
    return snapshot_rebase(a->memory_path, a->diff_path, e);
}

static int print_version(const struct arguments *a, struct error *e)
{
    struct snapshot_header h;
    autofree uint8_t *state = NULL;
    size_t bytes;

    if (snapshot_files_read_state(a->vmstate_path, &state, &bytes, e) < 0 ||
        snapshot_header_read(&h, state, bytes, e) < 0)
        return -1;
    printf("v%u.%u.0\n", h.major, h.minor);
    return 0;
}

static void print_vcpus(const struct saved *s)
{
    for (size_t i = 0; i < s->vcpu_count; i++) {
        const struct vcpu_state *v = &s->vcpus[i];

        printf("vcpu %zu:\n  state %u\n  rip 0x%llx rsp 0x%llx rflags 0x%llx\n"
               "  cr0 0x%llx cr3 0x%llx cr4 0x%llx efer 0x%llx\n  tsc %llu at %u kHz\n",
               i, v->mp_state.mp_state, v->regs.rip, v->regs.rsp, v->regs.rflags, v->sregs.cr0,
               v->sregs.cr3, v->sregs.cr4, v->sregs.efer, (unsigned long long)v->tsc, v->tsc_khz);
        for (uint32_t m = 0; m < v->msr_count; m++)
            printf("  msr 0x%x 0x%llx\n", v->msrs[m].index, v->msrs[m].data);
    }
}

static void print_machine(const struct saved *s)
{
    const struct vm_config *c = &s->config;
    char uuid[UUID_TEXT];

    uuid_text(&s->name, uuid);
    printf("snapshot %s\nmemory %llu MiB\n", uuid, (unsigned long long)c->machine.mem_size_mib);
    for (size_t i = 0; i < c->drives.count; i++)
        printf("drive %s %s\n", c->drives.items[i].drive_id, c->drives.items[i].path_on_host);
    for (size_t i = 0; i < c->interfaces.count; i++)
        printf("network interface %s %s\n", c->interfaces.items[i].iface_id,
               c->interfaces.items[i].host_dev_name);
    if (c->vsock.uds_path)
        printf("vsock %s\n", c->vsock.uds_path);
    printf("kvm clock %llu ns\n", s->kvm.clock.clock);
    print_vcpus(s);
}

static int print_saved(const struct arguments *a, void (*print)(const struct saved *),
                       struct error *e)
{
    struct saved *s = saved_new();
    autofree uint8_t *state = NULL;
    size_t bytes;
    int ret = snapshot_files_read_state(a->vmstate_path, &state, &bytes, e);

    if (ret == 0)
        ret = saved_decode(s, state, bytes, e);
    if (ret == 0)
        print(s);
    vm_config_fini(&s->config);
    saved_free(s);
    return ret;
}

static int print_vcpu_states(const struct arguments *a, struct error *e)
{
    return print_saved(a, print_vcpus, e);
}

static int print_vm_state(const struct arguments *a, struct error *e)
{
    return print_saved(a, print_machine, e);
}

static const struct command {
    const char *group, *name;
    const struct options *options;
    int (*run)(const struct arguments *a, struct error *e);
    const char *help;
} commands[] = {
    { "edit-memory", "rebase", &rebase_options, run_rebase,
      "put a Diff into the memory before it" },
    { "info-vmstate", "version", &info_options, print_version, "print the format's version" },
    { "info-vmstate", "vcpu-states", &info_options, print_vcpu_states, "print the vCPUs" },
    { "info-vmstate", "vm-state", &info_options, print_vm_state, "print the machine" },
};
#define COMMANDS (sizeof(commands) / sizeof(*commands))

static void print_help(void)
{
    printf("snapshot-editor of mayfly %s\n", MAYFLY_VERSION);
    for (size_t i = 0; i < COMMANDS; i++) {
        printf("\nsnapshot-editor %s %s: %s\n", commands[i].group, commands[i].name,
               commands[i].help);
        options_print(commands[i].options);
    }
}

static int run(const struct command *c, char **argv, struct error *e)
{
    struct arguments a = { 0 };

    if (options_check(c->options, argv, e) < 0 || !options_take(c->options, argv, &a, e))
        return -1;
    return c->run(&a, e);
}

int main(int argc, char **argv)
{
    struct error e;

    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("snapshot-editor v%s\nmayfly %s\n", FIRECRACKER_VERSION, MAYFLY_VERSION);
        return 0;
    }
    for (size_t i = 0; argc > 2 && i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].group) != 0 || strcmp(argv[2], commands[i].name) != 0)
            continue;
        if (run(&commands[i], argv + 3, &e) == 0)
            return 0;
        fprintf(stderr, "Error: %s\n", e.msg);
        return 1;
    }
    print_help();
    return argc == 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
}
