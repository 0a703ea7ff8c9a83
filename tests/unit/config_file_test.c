#include "api/config_file.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "vmm/base/log.h"

static struct loop loop;
static struct vm *vm;
static struct error e;
static char directory[] = "/tmp/mayfly-config-XXXXXX";
static char file[64], disk[64];

static void set_up(void)
{
    static const struct vm_options options = { .id = "test" };
    int fd;

    strcpy(directory, "/tmp/mayfly-config-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
    snprintf(file, sizeof(file), "%s/c.json", directory);
    snprintf(disk, sizeof(disk), "%s/disk", directory);
    fd = open(disk, O_CREAT | O_WRONLY, 0600);
    cr_assert_eq(ftruncate(fd, 4096), 0);
    close(fd);
    cr_assert_eq(loop_init(&loop, &e), 0);
    vm = vm_new(&loop, &options);
    log_set_options((struct log_options){ .level = LOG_OFF });
}

static void tear_down(void)
{
    unlink(file);
    unlink(disk);
    rmdir(directory);
}

/* Writes a file of `text`, in which DISK stands for a disk's path, and applies it. The kernel is no
 * image, so that nothing ever starts. */
static int apply(const char *text)
{
    FILE *out = fopen(file, "w");

    for (const char *s = text; *s;) {
        const char *mark = strstr(s, "DISK");

        fwrite(s, 1, mark ? (size_t)(mark - s) : strlen(s), out);
        if (!mark)
            break;
        fputs(disk, out);
        s = mark + 4;
    }
    fclose(out);
    return config_file_apply(vm, file, NULL, &e);
}

#define BOOT   "\"boot-source\":{\"kernel_image_path\":\"DISK\",\"boot_args\":\"x\"}"
#define BUILD  "Failed to build MicroVM from Json: "
#define PARSE  BUILD "Configuration for VMM from one single json failed: "
#define SYNTAX PARSE "Invalid JSON: "

TestSuite(config_file, .init = set_up, .fini = tear_down);

struct broken {
    char text[232];
    char message[304];
};

ParameterizedTestParameters(config_file, refuses_what_it_can_not_use)
{
    static struct broken cases[] = {
        { "", SYNTAX "EOF while parsing a value at line 1 column 0" },
        { "not json", SYNTAX "expected ident at line 1 column 2" },
        { "[]", SYNTAX
          "invalid length 0, expected struct VmmConfig with 13 elements at line 1 column 2" },
        { "\"x\"",
          SYNTAX "invalid type: string \"x\", expected struct VmmConfig at line 1 column 3" },
        { "{\"drives\":[]}", SYNTAX "missing field `boot-source` at line 1 column 13" },
        { "{\"boot-source\":{\"kernel_image_path\":\"x\"}}",
          SYNTAX "missing field `drives` at line 1 column 41" },
        { "{\"drives\":null}",
          SYNTAX "invalid type: null, expected a sequence at line 1 column 14" },
        { "{\"drives\":[{\"drive_id\":\"d\"}]}",
          SYNTAX "missing field `is_root_device` at line 1 column 27" },
        { "{\"machine-config\":{\"vcpu_count\":1,\"mem_size_mib\":64,\"zz\":1}}",
          SYNTAX "unknown field `zz`, expected one of `vcpu_count`, `mem_size_mib`, `smt`, "
                 "`cpu_template`, `track_dirty_pages`, `huge_pages` at line 1 column 56" },
        { "{\"drives\":[],\"drives\":[]}", SYNTAX "duplicate field `drives` at line 1 column 21" },
        { "{\"vsock\":{\"guest_cid\":3}}", SYNTAX "missing field `uds_path` at line 1 column 24" },
        { "{\"network-interfaces\":[{}]}", SYNTAX "missing field `iface_id` at line 1 column 25" },
        { "{\"mmds-config\":{}}", SYNTAX "missing field `network_interfaces` at line 1 column 17" },
        { "{" BOOT ",\"drives\":[],\"mmds-config\":{\"network_interfaces\":[]}}",
          PARSE "MMDS config error: The list of network interface IDs that allow forwarding MMDS "
                "requests is empty." },
        { "{\"balloon\":{}}",
          SYNTAX "`balloon` is not supported by this version at line 1 column 11" },
        { "{\"entropy\":{}}",
          SYNTAX "`entropy` is not supported by this version at line 1 column 11" },
        { "{\"pmem\":[1]}", SYNTAX "`pmem` is not supported by this version at line 1 column 9" },
        { "{\"memory-hotplug\":{}}",
          SYNTAX "`memory-hotplug` is not supported by this version at line 1 column 18" },
        { "{\"drives\":[]," BOOT ",\"machine-config\":{\"vcpu_count\":0,\"mem_size_mib\":64}}",
          PARSE
          "VM config error: The number of vCPUs must be greater than 0, less than 32 and must "
          "be 1 or an even number if SMT is enabled." },
        { "{\"drives\":[],\"boot-source\":{\"kernel_image_path\":\"/none\"}}", PARSE
          "Boot source error: The kernel file cannot be opened: No such file or directory (os "
          "error 2) /none" },
        { "{" BOOT ",\"drives\":[{\"drive_id\":\"d\",\"is_root_device\":false,"
          "\"path_on_host\":\"/none\"}]}",
          PARSE "Block device error: Unable to create the virtio block device: Virtio backend "
                "error: Error manipulating the backing file: No such file or directory (os error "
                "2) /none" },
        { "{" BOOT ",\"drives\":[{\"drive_id\":\"d\",\"is_root_device\":true,"
          "\"path_on_host\":\"DISK\"},{\"drive_id\":\"e\",\"is_root_device\":true,"
          "\"path_on_host\":\"DISK\"}]}",
          PARSE "Block device error: A root block device already exists!" },
        { "{" BOOT ",\"drives\":[],\"network-interfaces\":[{\"iface_id\":\"n\","
          "\"host_dev_name\":\"tap7\",\"mtu\":67}]}",
          PARSE "Network device error: Could not create the network device: MTU 67 is out of "
                "range [68, 65535]" },
    };

    return cr_make_param_array(struct broken, cases, sizeof(cases) / sizeof(*cases));
}

ParameterizedTest(struct broken *b, config_file, refuses_what_it_can_not_use, .init = set_up,
                  .fini = tear_down)
{
    cr_assert_eq(apply(b->text), -1);
    cr_expect_str_eq(e.msg, b->message);
    cr_expect_eq(vm_state(vm), VM_NOT_STARTED);
}

/* "Could not Start" comes after everything else has been applied. */
static void expect_only_the_start_fails(void)
{
    cr_expect(strncmp(e.msg, BUILD "Could not Start MicroVM from one single json: ", 78) == 0, "%s",
              e.msg);
}

Test(config_file, configures_machine_boot_source_and_drives)
{
    cr_assert_eq(apply("{" BOOT ",\"drives\":["
                       "{\"drive_id\":\"a-b\",\"is_root_device\":false,\"path_on_host\":\"DISK\","
                       "\"rate_limiter\":{}},"
                       "{\"drive_id\":\"r\",\"is_root_device\":true,\"path_on_host\":\"DISK\"}],"
                       "\"machine-config\":{\"vcpu_count\":2,\"mem_size_mib\":64}}"),
                 -1);
    expect_only_the_start_fails();
    cr_expect_eq(vm_config(vm)->machine.vcpu_count, 2);
    cr_expect_str_eq(vm_config(vm)->boot_source.kernel_image_path, disk);
    cr_assert_eq(vm_config(vm)->drives.count, 2);
    cr_expect_str_eq(vm_config(vm)->drives.items[0].drive_id, "r");
    cr_expect_str_eq(vm_config(vm)->drives.items[1].drive_id, "a-b");
}

Test(config_file, takes_null_and_empty_for_absent_and_ignores_unknown_members)
{
    cr_assert_eq(apply("{\"balloon\":null,\"cpu-config\":null,\"logger\":null,"
                       "\"machine-config\":null,\"metrics\":null,\"mmds-config\":null,"
                       "\"network-interfaces\":[],\"vsock\":null,\"entropy\":null,\"pmem\":[],"
                       "\"memory-hotplug\":null,\"serial\":{\"serial_out_path\":\"x\"},"
                       "\"zz\":[{}],\"drives\":[]," BOOT "}\n"),
                 -1);
    expect_only_the_start_fails();
}

Test(config_file, applies_nothing_when_its_end_is_broken)
{
    cr_assert_eq(apply("{" BOOT ",\"drives\":[],"
                       "\"machine-config\":{\"vcpu_count\":2,\"mem_size_mib\":64}"),
                 -1);
    cr_expect_eq(vm_config(vm)->machine.vcpu_count, 1);
    cr_expect_null(vm_config(vm)->boot_source.kernel_image_path);
}

static void expect_unreadable(const char *path, const char *why)
{
    char expected[256];

    cr_assert_eq(config_file_apply(vm, path, NULL, &e), -1);
    snprintf(expected, sizeof(expected),
             "Unable to open or read from the configuration file: %s: %s", path, why);
    cr_expect_str_eq(e.msg, expected);
}

Test(config_file, must_be_there)
{
    expect_unreadable("/none/c.json", "No such file or directory (os error 2)");
}

Test(config_file, may_not_be_a_directory)
{
    expect_unreadable(directory, "Is a directory (os error 21)");
}

/* Writes the text in two pieces to a FIFO that is read meanwhile. */
static void *write_to_fifo(void *text)
{
    const size_t half = strlen(text) / 2;
    int fd = open(file, O_WRONLY);

    cr_expect_eq((size_t)write(fd, text, half), half);
    cr_expect_eq((size_t)write(fd, (char *)text + half, strlen(text) - half), strlen(text) - half);
    close(fd);
    return NULL;
}

Test(config_file, may_come_by_a_fifo)
{
    static char text[] =
        "{\"boot-source\":{\"kernel_image_path\":\"/proc/self/exe\"},\"drives\":[],"
        "\"machine-config\":{\"vcpu_count\":1,\"mem_size_mib\":18446744073709551615}}";
    pthread_t writer;

    cr_assert_eq(mkfifo(file, 0600), 0);
    cr_assert_eq(pthread_create(&writer, NULL, write_to_fifo, text), 0);
    cr_assert_eq(config_file_apply(vm, file, NULL, &e), -1);
    pthread_join(writer, NULL);
    expect_only_the_start_fails();
}

Test(config_file, may_be_a_file_that_does_not_tell_its_size)
{
    cr_assert_eq(config_file_apply(vm, "/proc/self/status", NULL, &e), -1);
    cr_expect(strstr(e.msg, "Invalid JSON: expected value at line 1 column 1"), "%s", e.msg);
}

Test(config_file, is_bounded_also_where_it_never_ends)
{
    expect_unreadable("/dev/zero", "larger than 4194304 bytes");
}

Test(config_file, is_bounded)
{
    int fd = open(file, O_CREAT | O_WRONLY, 0600);

    cr_assert_eq(ftruncate(fd, CONFIG_FILE_MAX + 1), 0);
    close(fd);
    expect_unreadable(file, "larger than 4194304 bytes");
}
