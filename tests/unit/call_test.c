#include "api/call.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/support/files.h"
#include "vmm/base/log.h"

/* A VM that is never started: its files only have to be there. */
#define KERNEL "/proc/self/exe"

static struct loop loop;
static struct vm *vm;
static struct api_answer answer;
static struct api_later later;
static char disk[] = "/tmp/mayfly-routes-XXXXXX";

static void set_up(void)
{
    static const struct vm_options options = { .id = "te\"st" };
    struct error e;
    int fd;

    cr_assert_eq(loop_init(&loop, &e), 0);
    vm = vm_new(&loop, &options);
    strcpy(disk, "/tmp/mayfly-routes-XXXXXX");
    fd = mkstemp(disk);
    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, 4096), 0);
    close(fd);
    log_set_options((struct log_options){ .level = LOG_OFF });
}

static void tear_down(void)
{
    json_writer_fini(&answer.body);
    unlink(disk);
}

static const char *serve(enum http_verb verb, const char *path, const char *body)
{
    struct api_request request = { verb, path, body, body ? strlen(body) : 0 };

    json_writer_fini(&answer.body);
    api_serve(vm, &request, &later, &answer);
    return answer.body.text ? answer.body.text : "";
}

#define GET(path)         serve(HTTP_VERB_GET, path, NULL)
#define PUT(path, body)   serve(HTTP_VERB_PUT, path, body)
#define PATCH(path, body) serve(HTTP_VERB_PATCH, path, body)

static const char *put_disk(const char *id, const char *more)
{
    char path[64], body[512];

    snprintf(path, sizeof(path), "/drives/%s", id);
    snprintf(body, sizeof(body),
             "{\"drive_id\":\"%s\",\"is_root_device\":false,\"path_on_host\":\"%s\"%s}", id, disk,
             more);
    return PUT(path, body);
}

#define CONFIG(drives, boot, machine)                                                              \
    "{\"balloon\":null,\"drives\":[" drives "],\"boot-source\":" boot                              \
    ",\"cpu-config\":null,\"logger\":null,\"machine-config\":" machine                             \
    ",\"metrics\":null,\"mmds-config\":null,\"network-interfaces\":[],\"vsock\":null,"             \
    "\"entropy\":null,\"pmem\":[],\"memory-hotplug\":null}"
#define NO_BOOT "{\"kernel_image_path\":\"\",\"initrd_path\":null,\"boot_args\":null}"
#define DEFAULT_MACHINE                                                                            \
    "{\"vcpu_count\":1,\"mem_size_mib\":128,\"smt\":false,\"track_dirty_pages\":false,"            \
    "\"huge_pages\":\"None\"}"
#define UNTOUCHED CONFIG("", NO_BOOT, DEFAULT_MACHINE)

TestSuite(get, .init = set_up, .fini = tear_down);
TestSuite(path, .init = set_up, .fini = tear_down);
TestSuite(machine, .init = set_up, .fini = tear_down);
TestSuite(boot_source, .init = set_up, .fini = tear_down);
TestSuite(drives, .init = set_up, .fini = tear_down);
TestSuite(smbios, .init = set_up, .fini = tear_down);
TestSuite(actions, .init = set_up, .fini = tear_down);
TestSuite(refusal, .init = set_up, .fini = tear_down);

Test(get, shows_the_instance)
{
    cr_expect_str_eq(GET("/"), "{\"id\":\"te\\\"st\",\"state\":\"Not started\","
                               "\"vmm_version\":\"1.17.0\",\"app_name\":\"Firecracker\"}");
    cr_expect_eq(answer.status, 200);
}

Test(get, shows_the_version)
{
    cr_expect_str_eq(GET("/version"), "{\"firecracker_version\":\"1.17.0\"}");
}

Test(get, shows_the_machine_before_it_is_configured)
{
    cr_expect_str_eq(GET("/machine-config"), DEFAULT_MACHINE);
}

Test(get, shows_every_member_of_the_configuration)
{
    cr_expect_str_eq(GET("/vm/config"), UNTOUCHED);
}

struct routing {
    enum http_verb verb;
    char path[24];
    char body[8]; /* "": none */
    char message[112];
};

ParameterizedTestParameters(refusal, of_a_path_says_what_is_wrong)
{
    static struct routing cases[] = {
        { HTTP_VERB_GET, "/nope", "", "Invalid request method and/or path: GET nope." },
        { HTTP_VERB_GET, "/Version", "", "Invalid request method and/or path: GET Version." },
        { HTTP_VERB_GET, "/version;x", "", "Invalid request method and/or path: GET version;x." },
        { HTTP_VERB_GET, "/version?x", "", "Invalid request method and/or path: GET version?x." },
        { HTTP_VERB_GET, "/vm", "", "Invalid request method and/or path: GET vm." },
        { HTTP_VERB_GET, "/vm//config", "", "Invalid request method and/or path: GET vm." },
        { HTTP_VERB_GET, "/drives/d", "", "Invalid request method and/or path: GET drives." },
        { HTTP_VERB_PUT, "/", "{}", "Invalid request method and/or path: PUT ." },
        { HTTP_VERB_PUT, "/version/", "{}", "Invalid request method and/or path: PUT version." },
        { HTTP_VERB_PUT, "/vm/config", "{}", "Invalid request method and/or path: PUT vm." },
        { HTTP_VERB_PATCH, "/boot-source", "{}",
          "Invalid request method and/or path: PATCH boot-source." },
        { HTTP_VERB_DELETE, "/version", "", "Invalid request method and/or path: DELETE version." },
        { HTTP_VERB_GET, "/", "{}", "GET request cannot have a body." },
        { HTTP_VERB_GET, "/nope", "{}", "GET request cannot have a body." },
        { HTTP_VERB_PUT, "/nope", "", "Empty PUT request." },
        { HTTP_VERB_PUT, "/machine-config", "", "Empty PUT request." },
        { HTTP_VERB_PATCH, "/machine-config", "", "Empty PATCH request." },
        { HTTP_VERB_DELETE, "/drives/d", "{}", "Empty Delete request." },
        { HTTP_VERB_PUT, "/drives", "{}", "The ID cannot be empty." },
        { HTTP_VERB_PUT, "/drives/", "{}", "The ID cannot be empty." },
        { HTTP_VERB_PUT, "/drives//d", "{}", "The ID cannot be empty." },
        { HTTP_VERB_DELETE, "/drives", "", "The ID cannot be empty." },
        { HTTP_VERB_PUT, "/drives/a-b", "{}",
          "API Resource IDs can only contain alphanumeric characters and underscores." },
        { HTTP_VERB_PUT, "/drives/..", "{}",
          "API Resource IDs can only contain alphanumeric characters and underscores." },
        { HTTP_VERB_PUT, "/drives/a%20b", "{}",
          "API Resource IDs can only contain alphanumeric characters and underscores." },
        { HTTP_VERB_PUT, "/drives/\xe2\x80\x93", "{}",
          "API Resource IDs can only contain alphanumeric characters and underscores." },
        { HTTP_VERB_PUT, "/drives/\xe2\xaf\xbf", "{}", /* U+2BFF, the last of the symbols */
          "API Resource IDs can only contain alphanumeric characters and underscores." },
        { HTTP_VERB_PUT, "/drives/\xc2\xa7", "{}",
          "API Resource IDs can only contain alphanumeric characters and underscores." },
        { HTTP_VERB_DELETE, "/drives/d", "",
          "The requested operation is not supported before starting the microVM." },
        { HTTP_VERB_DELETE, "/network-interfaces/n", "",
          "The requested operation is not supported before starting the microVM." },
    };

    return cr_make_param_array(struct routing, cases, sizeof(cases) / sizeof(*cases));
}

ParameterizedTest(struct routing *r, refusal, of_a_path_says_what_is_wrong, .init = set_up,
                  .fini = tear_down)
{
    char expected[160];

    snprintf(expected, sizeof(expected), "{\"fault_message\":\"%s\"}", r->message);
    cr_expect_str_eq(serve(r->verb, r->path, *r->body ? r->body : NULL), expected);
    cr_expect_eq(answer.status, 400);
    cr_expect_str_eq(GET("/vm/config"), UNTOUCHED);
}

Test(path, may_have_further_tokens_and_slashes)
{
    cr_expect(strstr(GET("//"), "\"app_name\""));
    cr_expect_eq((GET("/version/x/y"), answer.status), 200);
    cr_expect_eq((GET("/vm/config/x"), answer.status), 200);
    cr_expect_eq(
        (PUT("/machine-config/x", "{\"vcpu_count\":1,\"mem_size_mib\":64}"), answer.status), 204);
    cr_expect_eq((GET("/machine-config/"), answer.status), 200);
}

Test(path, may_have_an_id_of_letters_beyond_ascii)
{
    put_disk("\xc3\xbc_1\xc2\xb5\xe4\xb8\xad", "");
    cr_expect_eq(answer.status, 204);
    put_disk("\xe2\xb0\x80", ""); /* U+2C00, the first letter behind the symbols */
    cr_expect_eq(answer.status, 204);
}

Test(refusal, of_a_path_is_valid_json_whatever_the_path)
{
    cr_expect_str_eq(GET("/a\"\\\x01\xc3\xbc"),
                     "{\"fault_message\":\"Invalid request method and/or path: GET "
                     "a\\\"\\\\\\u0001\xc3\xbc.\"}");
}

struct body {
    enum http_verb verb;
    char path[24];
    char text[120];
    char message[200];
};

#define AT(position) " at line 1 column " #position "."
#define MACHINE_NAMES                                                                              \
    "one of `vcpu_count`, `mem_size_mib`, `smt`, `cpu_template`, `track_dirty_pages`, "            \
    "`huge_pages`"
#define DRIVE_NAMES                                                                                \
    "one of `drive_id`, `partuuid`, `is_root_device`, `cache_type`, `is_read_only`, "              \
    "`path_on_host`, `rate_limiter`, `io_engine`, `socket`"
#define ACTIONS_NAMES "one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`"
#define TEMPLATES     "one of `C3`, `T2`, `T2S`, `None`, `T2CL`, `T2A`"

/* Each member of each body: left out, null, mistyped. The messages are Firecracker's. */
ParameterizedTestParameters(refusal, of_a_body_says_what_is_wrong)
{
    static struct body cases[] = {
        { HTTP_VERB_PUT, "/machine-config", "{}", "missing field `vcpu_count`" AT(2) },
        { HTTP_VERB_PUT, "/machine-config", "{\"vcpu_count\":1}",
          "missing field `mem_size_mib`" AT(16) },
        { HTTP_VERB_PUT, "/machine-config", "{\"vcpu_count\":null}",
          "invalid type: null, expected u8" AT(18) },
        { HTTP_VERB_PUT, "/machine-config", "{\"vcpu_count\":\"2\"}",
          "invalid type: string \\\"2\\\", expected u8" AT(17) },
        { HTTP_VERB_PUT, "/machine-config", "{\"mem_size_mib\":-1}",
          "invalid value: integer `-1`, expected usize" AT(18) },
        { HTTP_VERB_PUT, "/machine-config", "{\"smt\":null}",
          "invalid type: null, expected a boolean" AT(11) },
        { HTTP_VERB_PUT, "/machine-config", "{\"smt\":1}",
          "invalid type: integer `1`, expected a boolean" AT(8) },
        { HTTP_VERB_PUT, "/machine-config", "{\"track_dirty_pages\":\"\"}",
          "invalid type: string \\\"\\\", expected a boolean" AT(23) },
        { HTTP_VERB_PUT, "/machine-config", "{\"cpu_template\":\"V1N1\"}",
          "unknown variant `V1N1`, expected " TEMPLATES AT(22) },
        { HTTP_VERB_PUT, "/machine-config", "{\"huge_pages\":null}", "expected value" AT(15) },
        { HTTP_VERB_PUT, "/machine-config", "{\"huge_pages\":\"1G\"}",
          "unknown variant `1G`, expected one of `None`, `Transparent`, `2M`" AT(18) },
        { HTTP_VERB_PUT, "/machine-config", "{\"ht_enabled\":true}",
          "unknown field `ht_enabled`, expected " MACHINE_NAMES AT(13) },
        { HTTP_VERB_PUT, "/machine-config", "[]",
          "invalid length 0, expected struct MachineConfig with 6 elements" AT(2) },
        { HTTP_VERB_PATCH, "/machine-config", "null",
          "invalid type: null, expected struct MachineConfigUpdate" AT(4) },
        { HTTP_VERB_PATCH, "/machine-config", "{\"vcpu_count\":256}",
          "invalid value: integer `256`, expected u8" AT(17) },
        { HTTP_VERB_PATCH, "/machine-config", "{\"zz\":1}",
          "unknown field `zz`, expected " MACHINE_NAMES AT(5) },
        { HTTP_VERB_PUT, "/boot-source", "{}", "missing field `kernel_image_path`" AT(2) },
        { HTTP_VERB_PUT, "/boot-source", "{\"kernel_image_path\":null}",
          "invalid type: null, expected a string" AT(25) },
        { HTTP_VERB_PUT, "/boot-source", "{\"initrd_path\":1}",
          "invalid type: integer `1`, expected a string" AT(16) },
        { HTTP_VERB_PUT, "/boot-source", "{\"boot_args\":[]}",
          "invalid type: sequence, expected a string" AT(13) },
        { HTTP_VERB_PUT, "/boot-source", "{\"boot_args\":\"a\\u0000b\"}",
          "invalid value: a NUL character in `boot_args`" AT(23) },
        { HTTP_VERB_PUT, "/boot-source", "{\"x\":1}",
          "unknown field `x`, expected one of `kernel_image_path`, `initrd_path`, `boot_args`" AT(
              4) },
        { HTTP_VERB_PUT, "/drives/d", "{}", "missing field `drive_id`" AT(2) },
        { HTTP_VERB_PUT, "/drives/d", "{\"drive_id\":\"d\"}",
          "missing field `is_root_device`" AT(16) },
        { HTTP_VERB_PUT, "/drives/d", "{\"drive_id\":1}",
          "invalid type: integer `1`, expected a string" AT(13) },
        { HTTP_VERB_PUT, "/drives/d", "{\"is_root_device\":null}",
          "invalid type: null, expected a boolean" AT(22) },
        { HTTP_VERB_PUT, "/drives/d", "{\"path_on_host\":true}",
          "invalid type: boolean `true`, expected a string" AT(20) },
        { HTTP_VERB_PUT, "/drives/d", "{\"is_read_only\":0}",
          "invalid type: integer `0`, expected a boolean" AT(17) },
        { HTTP_VERB_PUT, "/drives/d", "{\"cache_type\":null}", "expected value" AT(15) },
        { HTTP_VERB_PUT, "/drives/d", "{\"cache_type\":\"None\"}",
          "unknown variant `None`, expected `Unsafe` or `Writeback`" AT(20) },
        { HTTP_VERB_PUT, "/drives/d", "{\"io_engine\":\"sync\"}",
          "unknown variant `sync`, expected `Async` or `Sync`" AT(19) },
        { HTTP_VERB_PUT, "/drives/d", "{\"partuuid\":{}}",
          "invalid type: map, expected a string" AT(12) },
        { HTTP_VERB_PUT, "/drives/d", "{\"socket\":1}",
          "invalid type: integer `1`, expected a string" AT(11) },
        { HTTP_VERB_PUT, "/drives/d", "{\"rate_limiter\":1}",
          "invalid type: integer `1`, expected struct RateLimiterConfig" AT(17) },
        { HTTP_VERB_PUT, "/drives/d", "{\"rate_limiter\":{\"x\":1}}",
          "unknown field `x`, expected `bandwidth` or `ops`" AT(20) },
        { HTTP_VERB_PUT, "/drives/d", "{\"rate_limiter\":{\"ops\":{}}}",
          "missing field `size`" AT(25) },
        { HTTP_VERB_PUT, "/drives/d", "{\"rate_limiter\":{\"ops\":{\"size\":1}}}",
          "missing field `refill_time`" AT(33) },
        { HTTP_VERB_PUT, "/drives/d", "{\"rate_limiter\":{\"ops\":{\"size\":-1}}}",
          "invalid value: integer `-1`, expected u64" AT(33) },
        { HTTP_VERB_PUT, "/drives/d", "{\"x\":1}",
          "unknown field `x`, expected " DRIVE_NAMES AT(4) },
        { HTTP_VERB_PUT, "/actions", "{}", "missing field `action_type`" AT(2) },
        { HTTP_VERB_PUT, "/actions", "{\"action_type\":null}", "expected value" AT(16) },
        { HTTP_VERB_PUT, "/actions", "{\"action_type\":\"Stop\"}",
          "unknown variant `Stop`, expected " ACTIONS_NAMES AT(21) },
        { HTTP_VERB_PUT, "/actions", "{\"x\":1}",
          "unknown field `x`, expected `action_type`" AT(4) },
        { HTTP_VERB_PUT, "/actions", "[]",
          "invalid length 0, expected struct ActionBody with 1 element" AT(2) },
        { HTTP_VERB_PATCH, "/vm", "{}", "missing field `state`" AT(2) },
        { HTTP_VERB_PATCH, "/vm", "{\"state\":\"Running\"}",
          "unknown variant `Running`, expected `Paused` or `Resumed`" AT(18) },
        { HTTP_VERB_PATCH, "/vm", "{\"x\":1}", "unknown field `x`, expected `state`" AT(4) },
    };

    return cr_make_param_array(struct body, cases, sizeof(cases) / sizeof(*cases));
}

ParameterizedTest(struct body *b, refusal, of_a_body_says_what_is_wrong, .init = set_up,
                  .fini = tear_down)
{
    char expected[320];

    snprintf(expected, sizeof(expected),
             "{\"fault_message\":\"An error occurred when deserializing the json body of a "
             "request: %s\"}",
             b->message);
    cr_expect_str_eq(serve(b->verb, b->path, b->text), expected);
    cr_expect_eq(answer.status, 400);
    cr_expect(!answer.deprecated);
    cr_expect_str_eq(GET("/vm/config"), UNTOUCHED);
}

Test(machine, is_shown_as_it_was_put)
{
    cr_expect_str_eq(PUT("/machine-config",
                         "{\"vcpu_count\":4,\"mem_size_mib\":256,\"smt\":true,\"cpu_template\":"
                         "\"T2\",\"track_dirty_pages\":true,\"huge_pages\":\"2M\"}"),
                     "");
    cr_expect_eq(answer.status, 204);
    cr_expect(answer.deprecated, "for its CPU template");
    cr_expect_str_eq(GET("/machine-config"),
                     "{\"vcpu_count\":4,\"mem_size_mib\":256,\"smt\":true,\"cpu_template\":\"T2\","
                     "\"track_dirty_pages\":true,\"huge_pages\":\"2M\"}");
}

/* What upstream's tests look for in the log. */
Test(machine, is_told_what_is_deprecated)
{
    char path[] = NEW_FILE, text[4096];
    struct error e;

    close(new_file(path));
    cr_assert_eq(log_open(path, &e), 0);
    log_set_options((struct log_options){ .level = LOG_WARN });
    PUT("/machine-config", "{\"vcpu_count\":1,\"mem_size_mib\":64,\"cpu_template\":\"None\"}");
    PATCH("/machine-config", "{\"cpu_template\":\"None\"}");
    PATCH("/machine-config", "{\"cpu_template\":null,\"vcpu_count\":2}");
    PUT("/vsock", "{\"vsock_id\":\"v\",\"guest_cid\":3,\"uds_path\":\"/none/v\"}");
    read_text(path, text, sizeof(text));
    unlink(path);
    cr_expect(strstr(text, "] PUT /machine-config: cpu_template field is deprecated.\n"), "%s",
              text);
    cr_expect(strstr(text, "] PATCH /machine-config: cpu_template field is deprecated.\n"), "%s",
              text);
    cr_expect(strstr(text, "] PUT /vsock: vsock_id field is deprecated.\n"), "%s", text);
    cr_expect_null(strstr(strstr(text, "PATCH /machine-config: ") + 1, "PATCH /machine-config: "));
}

Test(machine, keeps_what_a_patch_does_not_name)
{
    PUT("/machine-config", "{\"vcpu_count\":4,\"mem_size_mib\":256,\"track_dirty_pages\":true}");
    PATCH("/machine-config", "{\"mem_size_mib\":64,\"smt\":null}");
    cr_expect_eq(answer.status, 204);
    cr_expect(!answer.deprecated);
    cr_expect_str_eq(GET("/machine-config"), "{\"vcpu_count\":4,\"mem_size_mib\":64,\"smt\":false,"
                                             "\"track_dirty_pages\":true,\"huge_pages\":\"None\"}");
}

Test(machine, refuses_a_patch_of_nothing)
{
    cr_expect_str_eq(PATCH("/machine-config", "{}"),
                     "{\"fault_message\":\"Empty PATCH request.\"}");
    cr_expect_str_eq(PATCH("/machine-config", "{\"smt\":null}"),
                     "{\"fault_message\":\"Empty PATCH request.\"}");
    cr_expect_str_eq(PATCH("/machine-config", "[]"),
                     "{\"fault_message\":\"Empty PATCH request.\"}");
}

Test(machine, is_deprecated_even_when_it_is_refused)
{
    PATCH("/machine-config", "{\"vcpu_count\":0,\"cpu_template\":\"None\"}");
    cr_expect_eq(answer.status, 400);
    cr_expect(answer.deprecated);
    cr_expect_str_eq(GET("/vm/config"), UNTOUCHED);
}

Test(boot_source, is_shown_as_it_was_put)
{
    PUT("/boot-source", "{\"kernel_image_path\":\"" KERNEL "\",\"boot_args\":\"a=\\\"b\\\"\"}");
    cr_expect_eq(answer.status, 204, "%s", answer.body.text);
    cr_expect_str_eq(GET("/vm/config"),
                     CONFIG("",
                            "{\"kernel_image_path\":\"" KERNEL
                            "\",\"initrd_path\":null,\"boot_args\":\"a=\\\"b\\\"\"}",
                            DEFAULT_MACHINE));
}

Test(boot_source, stays_when_another_is_refused)
{
    PUT("/boot-source", "{\"kernel_image_path\":\"" KERNEL "\"}");
    cr_expect_str_eq(PUT("/boot-source", "{\"kernel_image_path\":\"/none\"}"),
                     "{\"fault_message\":\"Boot source error: The kernel file cannot be opened: No "
                     "such file or directory (os error 2) /none\"}");
    cr_expect(strstr(GET("/vm/config"), "\"kernel_image_path\":\"" KERNEL "\""));
}

Test(drives, are_shown_as_they_were_put)
{
    char expected[512];

    put_disk("d1", ",\"is_read_only\":true,\"cache_type\":\"Writeback\",\"partuuid\":\"u-1\"");
    cr_expect_eq(answer.status, 204, "%s", answer.body.text);
    snprintf(expected, sizeof(expected),
             "[{\"drive_id\":\"d1\",\"partuuid\":\"u-1\",\"is_root_device\":false,\"cache_type\":"
             "\"Writeback\",\"is_read_only\":true,\"path_on_host\":\"%s\",\"rate_limiter\":null,"
             "\"io_engine\":\"Sync\",\"socket\":null}]",
             disk);
    cr_expect(strstr(GET("/vm/config"), expected), "%s\n%s", expected, answer.body.text);
}

Test(drives, are_replaced_by_a_second_put)
{
    put_disk("d1", ",\"is_read_only\":true");
    put_disk("d1", "");
    cr_expect_eq(vm_config(vm)->drives.count, 1);
    cr_expect(!vm_config(vm)->drives.items[0].is_read_only);
}

Test(drives, have_no_limits_where_the_buckets_limit_nothing)
{
    static const char *const limits[] = {
        "{}",
        "null",
        "{\"ops\":null}",
        "{\"ops\":{\"size\":0,\"refill_time\":5}}",
        "{\"ops\":{\"size\":5,\"refill_time\":0}}",
        "{\"ops\":{\"size\":5,\"refill_time\":18446744073709551615,\"zz\":1}}",
    };

    for (size_t i = 0; i < sizeof(limits) / sizeof(*limits); i++) {
        char more[128];

        snprintf(more, sizeof(more), ",\"rate_limiter\":%s", limits[i]);
        put_disk("d1", more);
        cr_expect_eq(answer.status, 204, "%s: %s", limits[i], answer.body.text);
        cr_expect(strstr(GET("/vm/config"), "\"rate_limiter\":null"), "%s", limits[i]);
    }
}

Test(drives, need_the_id_of_their_path)
{
    cr_expect_str_eq(PUT("/drives/a", "{\"drive_id\":\"b\",\"is_root_device\":false}"),
                     "{\"fault_message\":\"The id from the path does not match the id from the "
                     "body!\"}");
    cr_expect_eq(vm_config(vm)->drives.count, 0);
}

Test(drives, stay_when_another_is_refused)
{
    char *before;

    put_disk("d1", "");
    before = strdup(GET("/vm/config"));
    PUT("/drives/d1", "{\"drive_id\":\"d1\",\"is_root_device\":false,\"path_on_host\":\"/none\"}");
    cr_expect_str_eq(answer.body.text,
                     "{\"fault_message\":\"Drive config error: Unable to create the virtio block "
                     "device: Virtio backend error: Error manipulating the backing file: No such "
                     "file or directory (os error 2) /none\"}");
    cr_expect_str_eq(GET("/vm/config"), before);
    free(before);
}

Test(actions, wait_for_the_start)
{
    static const char text[] = "{\"fault_message\":\"The requested operation is not supported "
                               "before starting the microVM.\"}";

    cr_expect_str_eq(PUT("/actions", "{\"action_type\":\"SendCtrlAltDel\"}"), text);
    cr_expect_str_eq(PUT("/actions", "{\"action_type\":\"SendPowerButton\"}"), text);
    cr_expect_str_eq(PUT("/actions", "{\"action_type\":\"FlushMetrics\"}"), text);
    cr_expect_str_eq(PATCH("/vm", "{\"state\":\"Paused\"}"), text);
    cr_expect_str_eq(PATCH("/vm", "{\"state\":\"Resumed\"}"), text);
}

#define OTHER_UUID "\"uuid\":\"5D1F1E70-93E5-4C3F-8E8B-7F3B1D0C9A42\""

Test(smbios, is_shown_in_lower_case_where_it_was_given)
{
    cr_expect_not(strstr(GET("/vm/config"), "smbios"));
    PUT("/smbios", "{" OTHER_UUID "}");
    cr_expect(strstr(GET("/vm/config"),
                     ",\"smbios\":{\"uuid\":\"5d1f1e70-93e5-4c3f-8e8b-7f3b1d0c9a42\"},"));
    PUT("/smbios", "{" OTHER_UUID ",\"serial\":\"a \\\"b\"}");
    cr_expect(strstr(GET("/vm/config"), "9a42\",\"serial\":\"a \\\"b\"},"));
}

Test(smbios, is_refused_and_stays_what_it_was)
{
    static const char *const bad[] = {
        "{}",
        "{\"serial\":\"1\"}",
        "{\"uuid\":\"\"}",
        "{\"uuid\":\"5d1f1e7093e54c3f8e8b7f3b1d0c9a42\"}",
        "{\"uuid\":\"5d1f1e70-93e5-4c3f-8e8b-7f3b1d0c9a4\"}",
        "{\"uuid\":\"5d1f1e70-93e5-4c3f-8e8b-7f3b1d0c9a42f\"}",
        "{\"uuid\":\"5d1f1e70-93e5-4c3f-8e8b-7f3b1d0c9a4g\"}",
        "{" OTHER_UUID ",\"serial\":\"\"}",
        "{" OTHER_UUID ",\"serial\":\"\\n\"}",
        "{" OTHER_UUID ",\"serial\":\"\u00fc\"}",
        "{" OTHER_UUID ",\"serial\":1}",
        "{" OTHER_UUID ",\"asset\":\"1\"}",
    };
    char long_one[512];
    char *before;

    PUT("/smbios", "{" OTHER_UUID "}");
    before = strdup(GET("/vm/config"));
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        PUT("/smbios", bad[i]);
        cr_expect_eq(answer.status, 400, "%s", bad[i]);
    }
    snprintf(long_one, sizeof(long_one), "{" OTHER_UUID ",\"serial\":\"%0256d\"}", 0);
    cr_expect(strstr(PUT("/smbios", long_one), "1 to 255 printable characters"));
    cr_expect_str_eq(GET("/vm/config"), before);
    free(before);
}

Test(actions, need_a_kernel_to_start)
{
    cr_expect_str_eq(PUT("/actions", "{\"action_type\":\"InstanceStart\"}"),
                     "{\"fault_message\":\"Start microvm error: Cannot start microvm without "
                     "kernel configuration.\"}");
    cr_expect_str_eq(GET("/vm/config"), UNTOUCHED);
}

Test(refusal, is_cut_and_not_overrun_when_it_is_long)
{
    static char path[HTTP_LINE_MAX];

    memset(path, 'a', sizeof(path) - 1);
    path[0] = '/';
    GET(path);
    cr_expect_eq(answer.status, 400);
    cr_expect(strstr(answer.body.text, "aaa.\"}"), "the end of the message is there");
}
