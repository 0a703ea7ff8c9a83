#include "vmm/machine/vm.h"

#include <criterion/criterion.h>
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/unit/support/directory.h"

static struct loop loop;
static struct vm *vm;
static struct error e;

/* A kernel that does nothing, for ever: cli; hlt; jmp back. */
static void write_kernel(const char *path)
{
    static const uint8_t code[] = { 0xfa, 0xf4, 0xeb, 0xfd };
    struct {
        Elf64_Ehdr eh;
        Elf64_Phdr ph;
        uint8_t code[sizeof(code)];
    } image = {
        .eh = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
                .e_type = ET_EXEC,
                .e_machine = EM_X86_64,
                .e_version = EV_CURRENT,
                .e_entry = 0x1000000,
                .e_phoff = sizeof(Elf64_Ehdr),
                .e_ehsize = sizeof(Elf64_Ehdr),
                .e_phentsize = sizeof(Elf64_Phdr),
                .e_phnum = 1 },
        .ph = { .p_type = PT_LOAD,
                .p_flags = PF_R | PF_X,
                .p_offset = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
                .p_vaddr = 0x1000000,
                .p_paddr = 0x1000000,
                .p_filesz = sizeof(code),
                .p_memsz = sizeof(code) },
    };
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    memcpy(image.code, code, sizeof(code));
    cr_assert_eq(write(fd, &image, sizeof(image)), sizeof(image));
    close(fd);
}

static void set_up(void)
{
    static const struct vm_options options = { .id = "test" };

    make_directory();
    write_kernel(at("kernel"));
    close(open(at("disk"), O_WRONLY | O_CREAT, 0600));
    cr_assert_eq(truncate(at("disk"), 1 << 20), 0);
    close(open(at("text"), O_WRONLY | O_CREAT, 0600));
    cr_assert_eq(loop_init(&loop, &e), 0);
    vm = vm_new(&loop, &options);
}

static void tear_down(void)
{
    remove_directory();
}

TestSuite(vm, .init = set_up, .fini = tear_down);
TestSuite(machine_config, .init = set_up, .fini = tear_down);
TestSuite(boot_source, .init = set_up, .fini = tear_down);
TestSuite(drives, .init = set_up, .fini = tear_down);

static int apply(enum action_kind kind)
{
    struct action a = { .kind = kind };

    return vm_apply(vm, &a, &e);
}

static int put_machine(struct machine_config config)
{
    struct action a = { .kind = ACT_PUT_MACHINE, .config.machine = config };

    return vm_apply(vm, &a, &e);
}

static int put_boot(const char *kernel, const char *initrd, const char *args)
{
    struct action a = { .kind = ACT_PUT_BOOT_SOURCE,
                        .config.boot_source = { .kernel_image_path = strdup(kernel),
                                                .initrd_path = initrd ? strdup(initrd) : NULL,
                                                .boot_args = args ? strdup(args) : NULL } };
    int ret = vm_apply(vm, &a, &e);

    action_fini(&a);
    return ret;
}

static int put_drive(const char *id, const char *path, bool is_root)
{
    struct action a = { .kind = ACT_PUT_DRIVE,
                        .config.drives = { calloc(1, sizeof(struct drive_config)), 1 } };
    int ret;

    a.config.drives.items[0] = (struct drive_config){ .drive_id = strdup(id),
                                                      .path_on_host = path ? strdup(path) : NULL,
                                                      .is_root_device = is_root };
    ret = vm_apply(vm, &a, &e);
    action_fini(&a);
    return ret;
}

static void need_kvm(void)
{
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
}

static void start(void)
{
    need_kvm();
    cr_assert_eq(put_boot(at("kernel"), NULL, "x"), 0, "%s", e.msg);
    cr_assert_eq(apply(ACT_START), 0, "%s", e.msg);
}

Test(vm, refuses_before_the_start_what_needs_a_guest)
{
    static const enum action_kind kinds[] = { ACT_CTRL_ALT_DEL, ACT_POWER_BUTTON,  ACT_PAUSE,
                                              ACT_RESUME,       ACT_FLUSH_METRICS, ACT_PATCH_NET,
                                              ACT_PATCH_DRIVE,  ACT_DELETE_DEVICE };

    for (unsigned i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        cr_expect_eq(apply(kinds[i]), -1);
        cr_expect_eq(e.kind, ERR_STATE);
        cr_expect_str_eq(e.msg,
                         "The requested operation is not supported before starting the microVM.");
    }
}

Test(vm, refuses_after_the_start_what_shapes_it)
{
    static const enum action_kind kinds[] = {
        ACT_PUT_MACHINE, ACT_PATCH_MACHINE,  ACT_PUT_BOOT_SOURCE, ACT_PUT_VSOCK,   ACT_PUT_SERIAL,
        ACT_PUT_SMBIOS,  ACT_PUT_CPU_CONFIG, ACT_PUT_LOGGER,      ACT_PUT_METRICS, ACT_START
    };

    start();
    for (unsigned paused = 0; paused < 2; paused++) {
        for (unsigned i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
            cr_expect_eq(apply(kinds[i]), -1);
            cr_expect_eq(e.kind, ERR_STATE);
            cr_expect_str_eq(
                e.msg, "The requested operation is not supported after starting the microVM.");
        }
        cr_expect_eq(apply(ACT_PAUSE), 0);
    }
}

Test(vm, cannot_plug_or_unplug_devices_that_it_runs_with)
{
    static const enum action_kind kinds[] = { ACT_PUT_DRIVE, ACT_PUT_NET, ACT_DELETE_DEVICE };

    start();
    for (unsigned i = 0; i < 3; i++) {
        cr_expect_eq(apply(kinds[i]), -1);
        cr_expect_eq(e.kind, ERR_STATE);
        cr_expect_str_eq(e.msg, "PCI is not enabled");
    }
}

Test(vm, pauses_and_resumes_any_number_of_times)
{
    start();
    cr_expect_eq(vm_state(vm), VM_RUNNING);
    for (unsigned i = 0; i < 100; i++) {
        cr_expect_eq(apply(ACT_RESUME), 0, "already running");
        cr_expect_eq(apply(ACT_PAUSE), 0);
        cr_expect_eq(vm_state(vm), VM_PAUSED);
        cr_expect_eq(apply(ACT_PAUSE), 0, "already paused");
        cr_expect_eq(apply(ACT_RESUME), 0);
        cr_expect_eq(vm_state(vm), VM_RUNNING);
    }
    vm_stop(vm);
}

Test(vm, does_not_start_without_a_kernel)
{
    cr_expect_eq(apply(ACT_START), -1);
    cr_expect_str_eq(e.msg, "Cannot start microvm without kernel configuration.");
    cr_expect_eq(vm_state(vm), VM_NOT_STARTED);
}

/* The kernel of a VM that doesn't run is nobody's but its owner's. */
Test(vm, holds_up_nobody_who_writes_to_its_kernel_after_a_failed_start)
{
    autofd int writer = -1;

    cr_assert_eq(put_boot(at("kernel"), at("text"), "x"), 0, "%s", e.msg);
    cr_assert_eq(apply(ACT_START), -1);
    cr_expect(strstr(e.msg, "Cannot load initrd"), "%s", e.msg);
    writer = open(at("kernel"), O_WRONLY | O_NONBLOCK);
    cr_expect(writer >= 0, "it still has a lease");
}

static uint64_t mapped_mib(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    uint64_t pages;

    cr_assert_eq(fscanf(f, "%lu", &pages), 1);
    fclose(f);
    return pages >> 8;
}

Test(vm, can_be_configured_anew_after_a_failed_start)
{
    const uint64_t before = mapped_mib();

    need_kvm();
    cr_assert_eq(put_drive("a", at("disk"), false), 0);
    cr_assert_eq(put_boot(at("text"), NULL, "x"), 0);
    cr_expect_eq(apply(ACT_START), -1);
    cr_expect(strstr(e.msg, "Kernel Loader"), "%s", e.msg);
    cr_expect_eq(vm_state(vm), VM_NOT_STARTED);
    cr_expect_lt(mapped_mib(), before + 64, "the guest's memory is still there");
    cr_assert_eq(put_machine((struct machine_config){ .vcpu_count = 2, .mem_size_mib = 64 }), 0);
    cr_assert_eq(put_boot(at("kernel"), NULL, "x"), 0);
    cr_expect_eq(apply(ACT_START), 0, "%s", e.msg);
    cr_expect_eq(vm_state(vm), VM_RUNNING);
}

Test(vm, says_when_kvm_is_missing)
{
    if (access("/dev/kvm", F_OK) == 0)
        cr_skip_test("this host has /dev/kvm");
    cr_assert_eq(put_boot(at("kernel"), NULL, "x"), 0);
    cr_expect_eq(apply(ACT_START), -1);
    cr_expect(strstr(e.msg, "/dev/kvm"), "%s", e.msg);
}

static void put_drives_up_to(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char id[16];

        snprintf(id, sizeof(id), "d%u", i);
        cr_assert_eq(put_drive(id, at("disk"), false), 0, "%s", e.msg);
    }
}

Test(vm, refuses_more_drives_than_there_are_interrupt_lines_at_the_start)
{
    static const char *const texts[] = {
        "Could not attach device: Error while registering ACPI with KVM: VMClock: Could not "
        "allocate GSI: The requested resource is not available.",
        "Could not attach device: Error while registering ACPI with KVM: VMGenID: Could not "
        "allocate GSI: The requested resource is not available.",
        "Could not attach device: MMIO transport error: Failed to allocate requested resource: "
        "The requested resource is not available.",
        "Could not attach device: MMIO transport error: Failed to allocate requested resource: "
        "The requested resource is not available.",
    };

    need_kvm();
    cr_assert_eq(put_boot(at("kernel"), NULL, "x"), 0);
    for (unsigned i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        put_drives_up_to(18 + i);
        cr_expect_eq(apply(ACT_START), -1);
        cr_expect_str_eq(e.msg, texts[i], "%u drives", 18 + i);
    }
}

Test(machine_config, has_the_documented_defaults)
{
    const struct machine_config *c = &vm_config(vm)->machine;

    cr_expect_eq(c->vcpu_count, 1);
    cr_expect_eq(c->mem_size_mib, 128);
    cr_expect_not(c->smt || c->track_dirty_pages);
    cr_expect_eq(c->huge_pages, HUGE_PAGES_NONE);
    cr_expect_eq(c->cpu_template, CPU_TEMPLATE_NONE);
}

Test(machine_config, checks_values_and_changes_nothing_when_it_refuses)
{
    static const struct {
        struct machine_config config;
        bool ok;
    } cases[] = {
        { { .vcpu_count = 0, .mem_size_mib = 64 }, false },
        { { .vcpu_count = 1, .mem_size_mib = 64 }, true },
        { { .vcpu_count = 32, .mem_size_mib = 64 }, true },
        { { .vcpu_count = 33, .mem_size_mib = 64 }, false },
        { { .vcpu_count = 3, .mem_size_mib = 64 }, true },
        { { .vcpu_count = 3, .mem_size_mib = 64, .smt = true }, false },
        { { .vcpu_count = 1, .mem_size_mib = 64, .smt = true }, true },
        { { .vcpu_count = 4, .mem_size_mib = 64, .smt = true }, true },
        { { .vcpu_count = 1, .mem_size_mib = 0 }, false },
        { { .vcpu_count = 1, .mem_size_mib = 3 }, true },
        { { .vcpu_count = 1, .mem_size_mib = 3, .huge_pages = HUGE_PAGES_2M }, false },
        { { .vcpu_count = 1, .mem_size_mib = 3, .huge_pages = HUGE_PAGES_TRANSPARENT }, false },
        { { .vcpu_count = 1, .mem_size_mib = 4, .huge_pages = HUGE_PAGES_2M }, true },
        { { .vcpu_count = 1, .mem_size_mib = UINT64_MAX }, true },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct machine_config before = vm_config(vm)->machine;
        struct machine_config want = cases[i].config;
        const struct machine_config *after = &vm_config(vm)->machine;

        want.cpu_template = CPU_TEMPLATE_NONE;
        cr_expect_eq(put_machine(want), cases[i].ok ? 0 : -1, "case %u", i);
        if (!cases[i].ok)
            want = before;
        cr_expect_eq(after->vcpu_count, want.vcpu_count, "case %u", i);
        cr_expect_eq(after->mem_size_mib, want.mem_size_mib, "case %u", i);
        cr_expect_eq(after->smt, want.smt, "case %u", i);
        cr_expect_eq(after->huge_pages, want.huge_pages, "case %u", i);
    }
}

Test(machine_config, starts_from_defaults_for_a_put_but_keeps_the_template)
{
    struct action a;

    cr_assert_eq(put_machine((struct machine_config){ .vcpu_count = 2,
                                                      .mem_size_mib = 64,
                                                      .smt = true,
                                                      .track_dirty_pages = true,
                                                      .cpu_template = CPU_TEMPLATE_T2 }),
                 0);
    action_init(&a, ACT_PUT_MACHINE, vm);
    cr_expect_eq(a.config.machine.vcpu_count, 1);
    cr_expect_eq(a.config.machine.mem_size_mib, 128);
    cr_expect_not(a.config.machine.smt);
    cr_expect_not(a.config.machine.track_dirty_pages);
    cr_expect_eq(a.config.machine.cpu_template, CPU_TEMPLATE_T2);
    action_init(&a, ACT_PATCH_MACHINE, vm);
    cr_expect_eq(a.config.machine.vcpu_count, 2, "a PATCH leaves the rest");
    cr_expect_eq(a.config.machine.mem_size_mib, 64);
    cr_expect(a.config.machine.smt);
    cr_expect(a.config.machine.track_dirty_pages);
}

Test(machine_config, has_the_template_that_was_given_last)
{
    struct action a;

    cr_expect_eq(apply(ACT_PUT_CPU_CONFIG), 0);
    cr_expect_eq(vm_config(vm)->machine.cpu_template, CPU_TEMPLATE_CUSTOM);
    action_init(&a, ACT_PATCH_MACHINE, vm);
    a.config.machine.smt = true;
    cr_expect_eq(vm_apply(vm, &a, &e), 0);
    cr_expect_eq(vm_config(vm)->machine.cpu_template, CPU_TEMPLATE_CUSTOM);
    a.config.machine.cpu_template = CPU_TEMPLATE_NONE;
    cr_expect_eq(vm_apply(vm, &a, &e), 0);
    cr_expect_eq(vm_config(vm)->machine.cpu_template, CPU_TEMPLATE_NONE);
}

Test(boot_source, opens_its_files_at_once_and_keeps_the_old_ones_on_error)
{
    char text[200];

    cr_assert_eq(put_boot(at("kernel"), NULL, "first"), 0);
    cr_expect_eq(put_boot(at("none"), NULL, "second"), -1);
    snprintf(text, sizeof(text),
             "The kernel file cannot be opened: No such file or directory (os error 2) %s/none",
             directory);
    cr_expect_str_eq(e.msg, text);
    cr_expect_eq(put_boot(at("kernel"), at("none"), "second"), -1);
    snprintf(text, sizeof(text),
             "The initrd file cannot be opened due to invalid path or invalid permissions. "
             "No such file or directory (os error 2) %s/none",
             directory);
    cr_expect_str_eq(e.msg, text);
    cr_expect_str_eq(vm_config(vm)->boot_source.boot_args, "first");
    cr_expect_null(vm_config(vm)->boot_source.initrd_path);
}

Test(boot_source, refuses_a_command_line_that_cannot_fit)
{
    char args[2100];

    memset(args, 'a', sizeof(args));
    args[2048] = 0;
    cr_expect_eq(put_boot(at("kernel"), NULL, args), -1);
    cr_expect(strstr(e.msg, "Invalid cmdline capacity"), "%s", e.msg);
    args[2047] = 0;
    cr_expect_eq(put_boot(at("kernel"), NULL, args), 0, "%s", e.msg);
}

Test(drives, keep_their_order_with_the_root_first)
{
    cr_assert_eq(put_drive("a", at("disk"), false), 0);
    cr_assert_eq(put_drive("b", at("disk"), false), 0);
    cr_assert_eq(put_drive("r", at("disk"), true), 0);
    cr_assert_eq(put_drive("c", at("disk"), false), 0);
    cr_expect_eq(vm_config(vm)->drives.count, 4);
    for (unsigned i = 0; i < 4; i++)
        cr_expect_eq(vm_config(vm)->drives.items[i].drive_id[0], "rabc"[i]);
}

Test(drives, change_places_with_the_first_where_one_becomes_the_root)
{
    static const char *const ids[] = { "a", "b", "c", "d" };

    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(put_drive(ids[i], at("disk"), false), 0);
    cr_assert_eq(put_drive("c", at("disk"), true), 0);
    for (unsigned i = 0; i < 4; i++)
        cr_expect_eq(vm_config(vm)->drives.items[i].drive_id[0], "cbad"[i]);
}

Test(drives, are_replaced_by_id)
{
    cr_assert_eq(put_drive("a", at("disk"), false), 0);
    cr_assert_eq(put_drive("b", at("disk"), false), 0);
    cr_assert_eq(put_drive("a", at("text"), false), 0);
    cr_expect_eq(vm_config(vm)->drives.count, 2);
    cr_expect_str_eq(vm_config(vm)->drives.items[0].path_on_host, at("text"));
    cr_expect_eq(put_drive("a", at("none"), false), -1);
    cr_expect_str_eq(vm_config(vm)->drives.items[0].path_on_host, at("text"), "the old one stays");
}

Test(drives, have_one_root)
{
    cr_assert_eq(put_drive("r", at("disk"), true), 0);
    cr_expect_eq(put_drive("s", at("disk"), true), -1);
    cr_expect_str_eq(e.msg, "A root block device already exists!");
    cr_expect_eq(put_drive("r", at("disk"), true), 0, "itself may be put again");
    cr_assert_eq(put_drive("r", at("disk"), false), 0);
    cr_expect_eq(put_drive("s", at("disk"), true), 0, "the place is free");
    cr_expect_str_eq(vm_config(vm)->drives.items[0].drive_id, "s");
}

Test(drives, need_a_path)
{
    cr_expect_eq(put_drive("a", NULL, false), -1);
    cr_expect_str_eq(e.msg, "Unable to create the virtio block device: Invalid "
                            "block config.");
}
