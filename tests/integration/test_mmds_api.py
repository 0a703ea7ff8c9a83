"""The metadata service's host side: /mmds, /mmds/config, the flags and the configuration file."""

import contextlib
import json
import os

import pytest

from guests import make_files, needs_kvm, start, write_halting_kernel
from mayfly import AFTER, BINARY, Mayfly, complete, wait_until
from taps import needs_taps
from unix_http import Answers, encode

LIMIT = 51200
EMPTY = {"fault_message": "MMDS error: The MMDS data store is not initialized."}
TOO_LARGE = {"fault_message":
             "MMDS limit exceeded error: The MMDS patch request doesn't fit."}
DECODING = "An error occurred when deserializing the json body of a request: "
CONFIG = "MMMDS config error: "
NO_LINK = CONFIG + "The MMDS IPv4 address is not link local."
NO_ID = CONFIG + ("The list of network interface IDs that allow forwarding MMDS requests is "
                  "empty.")
BAD_ID = CONFIG + ("The list of network interface IDs provided contains at least one ID that does "
                   "not correspond to any existing network interface.")


def text_of(vm, path="/mmds"):
    """What a GET answers, to the byte."""
    with vm.connect() as client:
        client.sendall(encode("GET", path))
        head, body = Answers(client).raw()
    assert head.startswith(b"HTTP/1.1 200 "), body
    return body.decode()


def put_interface(vm, name, **members):
    vm.ok("PUT", f"/network-interfaces/{name}",
          {"iface_id": name, "host_dev_name": f"tap_{name}", **members})


def put_config(vm, *ids, **members):
    vm.ok("PUT", "/mmds/config", {"version": "V2", "network_interfaces": list(ids), **members})


def configuration(vm):
    return vm.ok("GET", "/vm/config")["mmds-config"]


def refused(vm, method, path, body):
    """The text of a request's fault. It has changed nothing."""
    before = text_of(vm), vm.ok("GET", "/vm/config")
    status, _, answer = vm.request(method, path, body)
    assert status == 400
    assert (text_of(vm), vm.ok("GET", "/vm/config")) == before
    return answer["fault_message"]


# The store


@pytest.mark.parametrize("put, shown", [
    ('{"b": {"y": 1, "x": [ ]},\n "a": "z"}', '{"a":"z","b":{"x":[],"y":1}}'),
    ("[1, 2.50, 1e2, -0, 18446744073709551616]", "[1,2.5,100.0,-0.0,1.8446744073709552e+19]"),
    ('"\\u00e9\\/\\u0001"', '"\u00e9/\\u0001"'),
    ("7", "7"), ("false", "false"), ("{}", "{}"), ("null", "{}"),
    ('{"a": 1, "a": 2}', '{"a":2}'),
])
def test_any_json_is_kept_and_shown_compact_and_sorted(vm, put, shown):
    assert text_of(vm) == "{}"
    vm.ok("PUT", "/mmds", put)
    assert text_of(vm) == shown
    vm.ok("PUT", "/mmds", {"last": 1})
    assert text_of(vm) == '{"last":1}'


@pytest.mark.parametrize("store, patch, shown", [
    ('{"a":{"b":1,"c":[1,2]},"d":"x"}', '{"a":{"b":null,"e":true},"d":null,"zz":null}',
     '{"a":{"c":[1,2],"e":true}}'),
    ("{}", '{"b":{"c":null,"d":{"e":null}}}', '{"b":{"d":{}}}'),
    ("[3,1]", '{"q":1}', '{"q":1}'),
    ('{"a":1}', "[1]", "[1]"),
    ('{"a":1}', "null", "{}"),
    ("null", '{"a":1}', '{"a":1}'),
])
def test_a_patch_is_merged(vm, store, patch, shown):
    vm.ok("PUT", "/mmds", store)
    vm.ok("PATCH", "/mmds", patch)
    assert text_of(vm) == shown


@pytest.mark.parametrize("patch", ["{}", '{"a":1}', "null", "[]"])
def test_what_was_never_put_takes_no_patch(vm, patch):
    assert vm.request("PATCH", "/mmds", patch)[::2] == (400, EMPTY)
    assert text_of(vm) == "{}"


@pytest.mark.parametrize("body, why", [
    (" ", "EOF while parsing a value at line 1 column 1"),
    ('{"a"', "EOF while parsing an object at line 1 column 4"),
    ('{"a":1,}', "trailing comma at line 1 column 8"),
    ("NaN", "expected value at line 1 column 1"),
    ("1E400", "number out of range at line 1 column 5"),
    ("{}x", "trailing characters at line 1 column 3"),
    ("[" * 128, "recursion limit exceeded at line 1 column 128"),
    ('{"a":' * 128, "recursion limit exceeded at line 1 column 636"),
    (b'"\xff"', ""),
    ('"\\ud800"', ""),
])
def test_what_is_no_json_changes_nothing(vm, body, why):
    vm.ok("PUT", "/mmds", {"a": 1})
    for method in ("PUT", "PATCH"):
        fault = refused(vm, method, "/mmds", body)
        assert fault.startswith(DECODING + why) and fault.endswith(".")


def test_127_levels_are_kept(vm):
    for deep in ("[" * 127 + "]" * 127, '{"a":' * 127 + "1" + "}" * 127):
        vm.ok("PUT", "/mmds", deep)
        vm.ok("PATCH", "/mmds", deep)
        assert text_of(vm) == deep


def test_a_store_of_the_limit_fits_and_a_longer_one_changes_nothing():
    with Mayfly("--mmds-size-limit", "40") as vm:
        full = {"a": "x" * 32}
        assert vm.request("PUT", "/mmds", {"a": "x" * 33})[::2] == (413, TOO_LARGE)
        assert vm.request("PATCH", "/mmds", {"a": 1})[0] == 400, "it was put all the same"
        vm.ok("PUT", "/mmds", "  " + json.dumps(full, indent=9))
        for method, body in (("PUT", {"a": "x" * 33}), ("PATCH", {"b": 1}),
                             ("PATCH", json.dumps("y" * 39))):
            status, headers, answer = vm.request(method, "/mmds", body)
            assert (status, answer) == (413, TOO_LARGE)
            assert headers["connection"] == "keep-alive"
            assert json.loads(text_of(vm)) == full
        vm.ok("PATCH", "/mmds", {"a": None, "b": "y" * 32})
        assert json.loads(text_of(vm)) == {"b": "y" * 32}
        line, = [line for line in vm.output().splitlines() if "Status code: 413" in line][:1]
        assert line.endswith("Payload too large. Message: " + TOO_LARGE["fault_message"])


def test_the_limit_is_the_payload_s_unless_it_is_given():
    fits = {"a": "x" * (LIMIT - 9)}  # with a blank behind its colon a body of the limit
    with Mayfly() as vm:
        vm.ok("PUT", "/mmds", fits)
        vm.ok("PATCH", "/mmds", {"a": "x" * (LIMIT - 12)})
        assert vm.request("PATCH", "/mmds", {"b": "xyz"})[0] == 413
    with Mayfly("--http-api-max-payload-size", "100") as vm:
        vm.ok("PUT", "/mmds", {"a": "x" * 60})
        assert vm.request("PATCH", "/mmds", {"b": "x" * 60})[0] == 413
    with Mayfly("--mmds-size-limit", "300000") as vm:
        for key in "abcde":  # no request may have it all
            vm.ok("PATCH" if key > "a" else "PUT", "/mmds", {key: "x" * 50000})
        assert len(text_of(vm)) > 250000


@pytest.mark.parametrize("method, path", [
    ("PUT", "/mmds/"), ("PATCH", "/mmds/"), ("PATCH", "/mmds/config"), ("PATCH", "/mmds/a/b")])
def test_further_parts_of_a_path_mean_nothing(vm, method, path):
    vm.ok("PUT", "/mmds", {})
    vm.ok(method, path, {"a": 1})
    for shown in ("/mmds", "/mmds/", "/mmds/config", "/mmds/a/b"):
        assert text_of(vm, shown) == '{"a":1}'


def test_other_paths_and_methods_are_refused(vm):
    assert refused(vm, "PUT", "/mmds/x", {}) == "Unrecognized PUT request path `x`."
    fault = refused(vm, "DELETE", "/mmds", None)
    assert fault == "Invalid request method and/or path: DELETE mmds."
    assert refused(vm, "PUT", "/mmds", None) == "Empty PUT request."
    assert refused(vm, "PATCH", "/mmds", None) == "Empty PATCH request."
    assert refused(vm, "GET", "/mmds", {}) == "GET request cannot have a body."


SECRET = "correct horse"


@pytest.mark.parametrize("method, path", [
    ("PUT", "/mmds"), ("PATCH", "/mmds"), ("PUT", "/mmds/"), ("PUT", "//mmds"), ("PUT", "/mmds/x"),
    ("PATCH", "/mmds/config")])
def test_metadata_is_never_in_the_log(vm, method, path):
    vm.ok("PUT", "/mmds", {})
    for body in ({"a": SECRET}, f'"{SECRET}" "{SECRET}"', {SECRET: {SECRET: 0}, "": "\n"},
                 {"a": SECRET * 5000}, f'{{"{SECRET}": '):
        vm.request(method, path, body)
    name = method.capitalize()
    assert f'The API server received a {name} request on "{path}".' in vm.output()
    assert SECRET not in vm.output()


@pytest.mark.parametrize("value, is_told", [
    ({"": 1}, True), ({"a": [{"b": {"": 1}}]}, True), ({"a b": 1}, True), ({"a\n": 1}, True),
    ({"\x00": 1}, True), ({"\x7f": 1}, True), ("\"\":", False), ({"a": ""}, False),
    ({'a"': {"\\": {"/~?%\u00e9": " "}}}, False)])
def test_a_key_that_no_guest_can_ask_for_gets_a_warning(vm, value, is_told):
    vm.ok("PUT", "/mmds", json.dumps(value))
    assert vm.output().count("has a key that no guest can ask for") == is_told
    vm.ok("PATCH", "/mmds", json.dumps(value))
    assert vm.output().count("has a key that no guest can ask for") == 2 * is_told
    vm.ok("PATCH", "/mmds", {"c": 1}) # what was told is not told again
    assert vm.output().count("has a key that no guest can ask for") == 2 * is_told


@needs_kvm
def test_requests_are_counted(vm, files):
    path = os.path.join(vm.directory, "metrics")
    vm.ok("PUT", "/metrics", {"metrics_path": path})
    for method, target, body in (("GET", "/mmds", None), ("PUT", "/mmds", {}),
                                 ("PUT", "/mmds", "{"), ("PUT", "/mmds/x", {}),
                                 ("PUT", "/mmds/config", "{"), ("PATCH", "/mmds", {}),
                                 ("PATCH", "/mmds", "{")):
        vm.request(method, target, body)
    start(vm, files)
    vm.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
    with open(path, encoding="utf-8") as lines:
        line = json.loads(lines.readline())
    assert line["get_api_requests"]["mmds_count"] == 1
    assert [line["put_api_requests"][f"mmds_{what}"] for what in ("count", "fails")] == [4, 3]
    assert [line["patch_api_requests"][f"mmds_{what}"] for what in ("count", "fails")] == [2, 1]


# The configuration


@needs_taps
@pytest.mark.parametrize("members, fault", [
    ({"ipv4_address": "169.254.0.255"}, NO_LINK),
    ({"ipv4_address": "169.254.255.0"}, NO_LINK),
    ({"ipv4_address": "169.253.169.254"}, NO_LINK),
    ({"ipv4_address": "10.0.0.1", "network_interfaces": []}, NO_LINK),
    ({"network_interfaces": []}, NO_ID),
    ({"network_interfaces": ["n1", "n3"]}, BAD_ID),
    ({"network_interfaces": [""]}, BAD_ID),
    ({"ipv4_address": "x"}, DECODING + "invalid IPv4 address syntax at line 1 column"),
    ({"ipv4_address": ""}, DECODING + "invalid IPv4 address syntax at line 1 column"),
    ({"ipv4_address": "169.254.169.0254"}, DECODING + "invalid IPv4 address syntax"),
    ({"ipv4_address": 1}, DECODING + "invalid type: integer `1`, expected IPv4 address"),
    ({"version": "x"}, DECODING + "unknown variant `x`, expected `V1` or `V2`"),
    ({"version": None}, DECODING + "expected value"),
    ({"imds_compat": None}, DECODING + "invalid type: null, expected a boolean"),
    ({"network_interfaces": None}, DECODING + "invalid type: null, expected a sequence"),
    ({"network_interfaces": [1]}, DECODING + "invalid type: integer `1`, expected a string"),
    ({"zz": 1}, DECODING + "unknown field `zz`, expected one of `version`, `network_interfaces`, "
                           "`ipv4_address`, `imds_compat` at line 1 column"),
])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_configuration_that_is_refused_changes_nothing(vm, is_first, members, fault):
    put_interface(vm, "n1")
    if not is_first:
        put_config(vm, "n1", ipv4_address="169.254.1.0", imds_compat=True)
    body = {"version": "V2", "network_interfaces": ["n1"], **members}
    assert refused(vm, "PUT", "/mmds/config", body).startswith(fault)
    assert (configuration(vm) is None) == is_first


@needs_taps
@pytest.mark.parametrize("members, shown", [
    ({}, {}),
    ({"version": "V2"}, {"version": "V2"}),
    ({"ipv4_address": None}, {}),
    ({"ipv4_address": "169.254.1.0", "imds_compat": True},
     {"ipv4_address": "169.254.1.0", "imds_compat": True}),
    ({"ipv4_address": "169.254.254.255"}, {"ipv4_address": "169.254.254.255"}),
])
def test_a_configuration_is_shown(vm, members, shown):
    put_interface(vm, "n1")
    assert configuration(vm) is None
    vm.ok("PUT", "/mmds/config", {"network_interfaces": ["n1"], **members})
    assert configuration(vm) == {"version": "V1", "network_interfaces": ["n1"],
                                 "ipv4_address": "169.254.169.254", "imds_compat": False, **shown}


@needs_taps
def test_interfaces_are_shown_once_in_their_own_order_and_each_put_replaces_all(vm):
    for name in ("n1", "n2", "n3"):
        put_interface(vm, name)
    put_config(vm, "n3", "n1", "n1", ipv4_address="169.254.9.9", imds_compat=True)
    assert configuration(vm)["network_interfaces"] == ["n1", "n3"]
    put_config(vm, "n2", version="V1")
    assert configuration(vm) == {"version": "V1", "network_interfaces": ["n2"],
                                 "ipv4_address": "169.254.169.254", "imds_compat": False}


@needs_taps
def test_an_interface_that_is_put_again_keeps_it(vm):
    for name in ("n1", "n2"):
        put_interface(vm, name)
    put_config(vm, "n1", "n2")
    before = configuration(vm)
    put_interface(vm, "n1", mtu=1400)
    assert configuration(vm) == before


@needs_taps
def test_v1_is_deprecated_given_or_not_and_refused_or_not(vm):
    put_interface(vm, "n1")
    line = "PUT /mmds/config: V1 is deprecated. Use V2 instead."
    for members, is_deprecated in (({}, True), ({"version": "V1"}, True),
                                   ({"version": "V2"}, False)):
        for ids in (["n1"], []):
            told = vm.output().count(line)
            body = {"network_interfaces": ids, **members}
            _, headers, _ = vm.request("PUT", "/mmds/config", body)
            assert headers.get("deprecation") == ("true" if is_deprecated else None)
            assert vm.output().count(line) == told + is_deprecated
    _, headers, _ = vm.request("PUT", "/mmds/config", {})
    assert "deprecation" not in headers
    assert '"/mmds/config" with body ' in vm.output()


# After the start


@needs_kvm
@needs_taps
def test_a_running_microvm_s_metadata_can_be_changed_and_its_configuration_not(vm, files):
    put_interface(vm, "n1")
    vm.ok("PUT", "/mmds", {"a": 1})
    put_config(vm, "n1")
    start(vm, files)
    for state in ("Paused", "Resumed"):
        assert text_of(vm) == '{"a":1}'
        # more members than any sort has by heart: the filters are on
        vm.ok("PUT", "/mmds", {str(i): i for i in range(999, 0, -1)})
        assert len(json.loads(text_of(vm))) == 999
        vm.ok("PUT", "/mmds", {"b": [1, 2]})
        vm.ok("PATCH", "/mmds", {"b": None, "a": 1})
        vm.ok("PATCH", "/vm", {"state": state})
    before = configuration(vm)
    status, headers, answer = vm.request("PUT", "/mmds/config", {"network_interfaces": ["n1"]})
    assert (status, answer) == (400, {"fault_message": AFTER})
    assert headers["deprecation"] == "true"
    assert configuration(vm) == before


@needs_kvm
@needs_taps
def test_a_running_microvm_takes_metadata_of_a_mebibyte():
    """What the allocator asks the kernel for is in the filters."""
    with Mayfly("--http-api-max-payload-size", str(8 << 20)) as vm:
        put_interface(vm, "n1")
        put_config(vm, "n1")
        start(vm, make_files(vm.directory))
        half = {str(i): "x" * 16 for i in range(20000, 0, -1)}
        for key in ("a", "b"):
            vm.ok("PUT" if key == "a" else "PATCH", "/mmds", {key: half})
            assert json.loads(text_of(vm))[key] == half
        vm.ok("PUT", "/mmds", {})


@needs_kvm
def test_a_microvm_that_was_started_without_it_has_no_metadata(vm, files):
    vm.ok("PUT", "/mmds", {"a": 1})
    start(vm, files)
    for method, body in (("GET", None), ("PUT", {}), ("PATCH", {})):
        assert vm.request(method, "/mmds", body)[::2] == (400, EMPTY)
    assert vm.request("PUT", "/mmds", "{")[2]["fault_message"].startswith(DECODING)


# Flags, and the configuration file


def read(path):
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        return file.read()
    return ""


def write(directory, name, text):
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def test_metadata_may_come_from_a_file(tmp_path):
    path = write(tmp_path, "m", '{"b": 1,\n "a": {"x": "y"}}\n')
    with Mayfly("--metadata", path) as vm:
        vm.wait_for_output("Successfully added metadata to mmds from file")
        assert text_of(vm) == '{"a":{"x":"y"},"b":1}'
        vm.ok("PATCH", "/mmds", {"b": None})


def run(*args):
    done = complete(BINARY, *args)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: ")
    return done.returncode, done.stderr


POPULATING = "Failed to build MicroVM: Populating MMDS from file failed: "


@pytest.mark.parametrize("text, flags, why", [
    (None, [], "Unable to open or read from the mmds content file: {}: No such file or directory"),
    ("{", [], "metadata provided not valid json: EOF while parsing an object at line 1 column 1"),
    ("", [], "metadata provided not valid json: EOF while parsing a value at line 1 column 0"),
    ('{"a":12}', ["--mmds-size-limit", "7"], "The MMDS patch request doesn't fit."),
    ('{"a":12}', ["--http-api-max-payload-size", "7"], "The MMDS patch request doesn't fit."),
])
def test_a_file_of_metadata_that_is_of_no_use_ends_the_process(tmp_path, text, flags, why):
    path = os.path.join(tmp_path, "m") if text is None else write(tmp_path, "m", text)
    code, error = run("--api-sock", f"{tmp_path}/s", "--metadata", path, *flags)
    assert code == 1
    assert POPULATING + why.format(path) in error


@pytest.mark.parametrize("limit", ["x", "", "-1", "1.5", "18446744073709551616"])
def test_a_limit_that_is_no_number_ends_the_process(limit):
    code, error = run("--mmds-size-limit", limit)
    assert code == 153
    assert "The argument 'mmds-size-limit' must be" in error


def configured(vm, mmds, **more):
    write_halting_kernel(os.path.join(vm.directory, "kernel"))
    return write(vm.directory, "config", json.dumps({
        "boot-source": {"kernel_image_path": f"{vm.directory}/kernel"}, "drives": [],
        "network-interfaces": [{"iface_id": "n1", "host_dev_name": "tap_n1"}],
        "mmds-config": mmds, **more}))


@needs_kvm
@needs_taps
@pytest.mark.parametrize("api", [True, False])
def test_a_configuration_file_may_have_it(api):
    vm = Mayfly(api=api)
    log = os.path.join(vm.directory, "log")
    config = configured(vm, {"network_interfaces": ["n1"]}, logger={"log_path": log})
    vm.args = ("--config-file", config, "--metadata", write(vm.directory, "m", '{"a": 1}'))
    with vm:
        if api:
            assert configuration(vm) == {
                "version": "V1", "network_interfaces": ["n1"], "ipv4_address": "169.254.169.254",
                "imds_compat": False}
            assert text_of(vm) == '{"a":1}'
        wait_until(lambda: "Successfully added metadata to mmds from file" in read(log),
                   "the line of the log that the file names")


@needs_kvm
@needs_taps
@pytest.mark.parametrize("mmds, why", [
    ({"network_interfaces": ["n2"]},
     "MMDS config error: The list of network interface IDs provided contains"),
    ({"network_interfaces": [], "version": "V2"}, "MMDS config error: The list of network"),
    ({}, "Invalid JSON: missing field `network_interfaces`"),
])
def test_a_configuration_file_that_is_wrong_about_it_ends_the_process(tmp_path, mmds, why):
    vm = Mayfly()
    code, error = run("--api-sock", f"{tmp_path}/s", "--config-file", configured(vm, mmds))
    assert code == 1
    assert "Configuration for VMM from one single json failed: " + why in error
