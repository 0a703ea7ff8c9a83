"""api/openapi.yaml and the server say the same: the file's operations, schemas and examples are
walked against the running server. Needs python3-yaml."""

import ctypes
import json
import os
import re
import subprocess

import pytest

import mayfly
from guests import needs_kvm, write_halting_kernel
from mayfly import AFTER, BEFORE, Mayfly
from openapi_file import (ANNOTATIONS, LIMITS, SPEC, STRUCTURE, extremes, misfits, plain, read,
                          resolve, spoiled)
from overlays import make_layer
from unix_http import Answers

METHODS = ("get", "put", "patch", "delete")
JSON = "application/json"
FILES = "/srv/vm"
EXAMPLE_ID = "rootfs"
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
LIBC = ctypes.CDLL(None)
DECODING = "An error occurred when deserializing the json body of a request: "


class Operation:
    def __init__(self, method, path, node):
        self.method, self.path, self.node = method.upper(), path, node
        self.phase = node["x-phase"]
        body = node.get("requestBody", {}).get("content", {}).get(JSON, {})
        self.schema, self.examples = body.get("schema"), body.get("examples", {})
        self.faults = self.answer_examples(400)

    def __repr__(self):
        return f"{self.method} {self.path}"

    def answer(self, status):
        return resolve(self.node["responses"].get(str(status), {}))

    def answer_examples(self, status):
        return self.answer(status).get("content", {}).get(JSON, {}).get("examples", {})

    def example_path(self, example=None):
        example = example or {}
        body = example.get("value", {})
        return example.get("x-path") or re.sub(
            r"{(\w+)}", lambda parameter: body.get(parameter[1], EXAMPLE_ID), self.path)

    def succeeding(self, phase=None):
        return [example for name, example in self.examples.items() if name not in self.faults
                and phase in (None, example.get("x-phase", self.phase))]

    def richest(self):
        """The example whose members are spoiled one by one."""
        return max(self.succeeding(), key=lambda example: len(json.dumps(example["value"])))


OPERATIONS = [Operation(method, path, node) for path, methods in SPEC["paths"].items()
              for method, node in methods.items() if method in METHODS]
WITH_BODY = [operation for operation in OPERATIONS if operation.schema]
WITH_MEMBERS = [operation for operation in WITH_BODY if "properties" in resolve(operation.schema)]
EXAMPLES = [pytest.param(operation, name, id=f"{operation} {name}")
            for operation in WITH_BODY for name in operation.examples]


def named(operations):
    return [pytest.param(operation, id=str(operation)) for operation in operations]


def test_the_checker_finds_what_does_not_fit():
    schema = SPEC["components"]["schemas"]["MachineConfig"]
    good = {"vcpu_count": 2, "mem_size_mib": 64, "cpu_template": None}
    assert not misfits(schema, good)
    for wrong, _ in spoiled(schema, good):
        assert misfits(schema, wrong), wrong
    assert len(list(spoiled(schema, good))) > 30


# The server


def enter_own_network():
    """A network namespace in which the process may make taps. Who is not root becomes it there."""
    user = os.getuid()
    if LIBC.unshare(CLONE_NEWNET | (CLONE_NEWUSER if user else 0)) == 0 and user:
        with open("/proc/self/uid_map", "w", encoding="ascii") as ids:
            ids.write(f"0 {user} 1")


class Served(Mayfly):
    """A server with the files of the examples in its directory, in any phase, on a network without
    anything."""

    def __init__(self, *args, **more):
        super().__init__(*args, before_exec=enter_own_network, **more)

    def start(self):
        for name in ("vmlinux", "initrd", "root.ext4", "data.ext4"):
            with open(os.path.join(self.directory, name), "wb") as file:
                file.truncate(1 << 20)
        make_layer(os.path.join(self.directory, "data.layer"), 2048)
        write_halting_kernel(os.path.join(self.directory, "vmlinux"))
        return super().start()

    def here(self, value):
        """The example's value with this server's paths."""
        return json.loads(json.dumps(value).replace(FILES, self.directory))

    def ask(self, operation, example=None):
        """Sends the example, an object like those of the file, or a request without a body."""
        body = None if example is None else json.dumps(self.here(example["value"]))
        return self.request(operation.method, operation.example_path(example), body)

    def reach(self, phase):
        """Brings the microVM into the phase."""
        if phase == "saved":
            with Served() as other:
                other.reach("configured")
                other.ok("PATCH", "/machine-config", {"track_dirty_pages": True})
                other.ok("PUT", "/network-interfaces/eth0",
                         {"iface_id": "eth0", "host_dev_name": "tap0"})
                other.ok("PUT", "/vsock",
                         {"guest_cid": 3, "uds_path": f"{other.directory}/vsock"})
                other.ok("PUT", f"/drives/{EXAMPLE_ID}",
                         {"drive_id": EXAMPLE_ID, "path_on_host": f"{self.directory}/root.ext4",
                          "is_root_device": True})
                other.ok("PUT", "/actions", {"action_type": "InstanceStart"})
                other.ok("PATCH", "/vm", {"state": "Paused"})
                other.ok("PUT", "/snapshot/create",
                         {"snapshot_path": f"{self.directory}/snapshot",
                          "mem_file_path": f"{self.directory}/memory"})
                other.ok("PUT", "/snapshot/create",
                         {"snapshot_type": "Diff", "snapshot_path": f"{self.directory}/layer-state",
                          "mem_file_path": f"{self.directory}/layer"})
        if phase in ("always", "before_start", "saved"):
            return self
        if phase == "filled":
            self.ok("PUT", "/mmds", {})
            return self
        self.ok("PUT", "/boot-source", {"kernel_image_path": f"{self.directory}/vmlinux"})
        self.ok("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap0"})
        if phase in ("after_start", "paused"):
            drive = {"drive_id": EXAMPLE_ID, "path_on_host": f"{self.directory}/root.ext4",
                     "is_root_device": True}
            if phase == "paused":
                drive["overlay_path"] = f"{self.directory}/rootfs.1"
            self.ok("PUT", f"/drives/{EXAMPLE_ID}", drive)
            self.ok("PUT", "/mmds/config", {"network_interfaces": ["eth0"]})
            self.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        if phase == "paused":
            self.ok("PATCH", "/vm", {"state": "Paused"})
        return self


def served(phase):
    if phase in ("after_start", "paused", "saved") and needs_kvm.args[0]:
        pytest.skip(needs_kvm.kwargs["reason"])
    return Served()


def check_answer(operation, status, body):
    """The answer is one that the file documents."""
    answer = operation.answer(status)
    assert answer, f"{operation}: {status} is not in the file: {body}"
    if body is None:
        assert "content" not in answer
        return
    media, = answer["content"].values()
    assert not misfits(media["schema"], body)


# The file itself


def test_the_file_is_of_this_version():
    versions = dict(re.findall(r'#define (\w+_VERSION)\s+"(.+)"', read("vmm", "base", "version.h")))
    assert SPEC["openapi"].startswith("3.0.")
    assert SPEC["info"]["version"] == versions["MAYFLY_VERSION"]
    shown = SPEC["paths"]["/version"]["get"]["responses"]["200"]["content"][JSON]["examples"]
    assert shown["version"]["value"] == {"firecracker_version": versions["FIRECRACKER_VERSION"]}


def schemas_within(node):
    """All there are, those of members too."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list)):
            yield from schemas_within(value)
    if isinstance(node, dict) and isinstance(node.get("type"), (str, list)):
        yield node


def test_the_file_has_nothing_that_generators_stumble_over():
    found = list(schemas_within(SPEC["components"]))
    assert len(found) > 100
    for schema in found:
        assert set(schema) <= STRUCTURE | ANNOTATIONS | set(LIMITS) | {"example"}, schema
        assert isinstance(schema["type"], str) and None not in schema.get("enum", ())
        assert schema["type"] != "array" or "items" in schema
    # Go has the names of all of them in one place.
    enums = [resolve(schema) for schema in SPEC["components"]["schemas"].values()
             if "enum" in resolve(schema)]
    names = [name for enum in enums for name in enum["enum"]]
    assert len(enums) >= 2 and len(set(map(str.upper, names))) == len(names)


def test_the_file_has_the_servers_routes():
    table = re.findall(r"{ HTTP_VERB_.*", read("api", "routes.c"))
    served_rows = "\n".join(row for row in table if ".is_unknown" not in row)
    rows = re.findall(r'{ HTTP_VERB_(\w+), "([^"]*)", (?:"([^"]*)", )?(\.id = )?', served_rows)
    rows = [(verb, first, second, "{}" * bool(has_id)) for verb, first, second, has_id in rows]
    routes = {(verb, "/" + "/".join(filter(None, path))) for verb, *path in rows}
    assert len(routes) == len(rows) > 10
    assert {(operation.method, re.sub(r"{\w+}", "{}", operation.path))
            for operation in OPERATIONS} == routes


def test_operation_ids_are_unique():
    ids = [operation.node["operationId"] for operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_examples_fit_their_schemas(operation):
    assert not operation.schema or operation.succeeding(), "no example that succeeds"
    for name, example in operation.examples.items():
        if name not in operation.faults:
            assert not misfits(operation.schema, example["value"]), name
    for status in map(int, operation.node["responses"]):
        for media in operation.answer(status).get("content", {}).values():
            for name, example in media.get("examples", {}).items():
                assert not misfits(media["schema"], example["value"]), name


# The file and the server


@pytest.mark.parametrize("operation, name", EXAMPLES)
def test_a_request_example_is_answered_as_documented(operation, name):
    example = operation.examples[name]
    phase = example.get("x-phase", operation.phase)
    with served(phase) as server:
        status, _, body = server.reach(phase).ask(operation, example)
        check_answer(operation, status, body)
        if name in operation.faults:
            assert (status, body) == (400, server.here(operation.faults[name]["value"]))
        else:
            assert status == example.get("x-status", 204), body


@pytest.mark.parametrize("phase", ["before_start", "configured", "after_start"])
@pytest.mark.parametrize("operation", named(op for op in OPERATIONS if op.method == "GET"))
def test_what_is_read_fits_its_schema(operation, phase):
    with served(phase) as server:
        status, headers, body = server.reach(phase).ask(operation)
        assert status == 200
        media, = operation.answer(200)["content"]
        assert headers["content-type"].split(";")[0] == media
        check_answer(operation, status, body)


@needs_kvm
def test_the_shown_configuration_fits_its_schema_with_all_there_is():
    operation, = [op for op in OPERATIONS if op.path == "/vm/config"]
    with Served() as server:
        for each in WITH_BODY:
            for example in each.succeeding("before_start"):
                if each.path != "/cpu-config":  # not shown; this host may not do it
                    server.ask(each, example)
        server.ok("PUT", "/mmds/config", {"network_interfaces": ["eth0"]})
        status, _, body = server.ask(operation)
        assert any(drive["rate_limiter"] for drive in body["drives"])
        assert body["mmds-config"]
        check_answer(operation, status, body)
        server.ok("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64})
        server.reach("after_start").ok("PATCH", "/vm", {"state": "Paused"})
        check_answer(operation, *server.ask(operation)[::2])


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_a_request_in_the_wrong_phase_gets_the_documented_fault(operation):
    requests = [(operation.phase, None)] if not operation.schema else [
        (example.get("x-phase", operation.phase), example) for example in operation.succeeding()]
    for phase, example in requests:
        if phase == "always":
            continue
        wrong, text = (("before_start", BEFORE) if phase in ("after_start", "paused")
                       else ("after_start", operation.node.get("x-wrong-phase", AFTER)))
        with served(wrong) as server:
            status, _, body = server.reach(wrong).ask(operation, example)
            assert (status, body) == (400, {"fault_message": text})


@needs_kvm
@pytest.mark.parametrize("operation", named(op for op in OPERATIONS if op.method == "DELETE"))
def test_what_is_always_refused_is_refused_with_the_documented_fault(operation):
    with Served() as server:
        answer = server.reach("after_start").ask(operation)[2]
        assert answer == operation.faults["always"]["value"]


def refusal(server, operation, body):
    """The text of a fault, whose request changed nothing. body: an object, or a text."""
    before = server.ok("GET", "/vm/config")
    path = operation.example_path(operation.richest())
    text = body if isinstance(body, str) else json.dumps(server.here(body))
    status, _, answer = server.request(operation.method, path, text)
    assert status == 400, body
    check_answer(operation, status, answer)
    assert server.ok("GET", "/vm/config") == before, body
    return answer["fault_message"]


@pytest.mark.parametrize("operation", named(WITH_MEMBERS))
def test_what_does_not_fit_the_schema_is_refused_and_changes_nothing(operation):
    prefixes = (DECODING, operation.node["x-fault"] or DECODING, "The id from the path",
                "Empty PATCH request.")
    tried = 0
    with served(operation.phase) as server:
        server.reach(operation.phase)
        for wrong, is_read in spoiled(operation.schema, operation.richest()["value"]):
            assert misfits(operation.schema, wrong), wrong
            fault = refusal(server, operation, wrong)
            assert fault.startswith(prefixes if is_read else DECODING), (wrong, fault)
            tried += 1
    assert tried >= 10


@pytest.mark.parametrize("number", ["46819066.0", "4.7e7", "47E0", "1.0"])
def test_an_integer_is_written_in_digits_alone(number):
    with Served() as server:
        status, _, answer = server.request("PUT", "/machine-config",
                                           f'{{"vcpu_count": 1, "mem_size_mib": {number}}}')
        assert status == 400
        assert answer["fault_message"].startswith(DECODING + "invalid type: floating point")


def fitting(schema):
    tried = (None, True, 1, "x", *plain(schema)[0].get("enum", ()))
    return next(value for value in tried if not misfits(schema, value))


@pytest.mark.parametrize("operation", named(WITH_MEMBERS))
def test_missing_unknown_and_duplicate_members_are_named(operation):
    schema, good = resolve(operation.schema), operation.richest()["value"]
    with served(operation.phase) as server:
        server.reach(operation.phase)
        for name in schema.get("required", ()):
            less = {key: value for key, value in good.items() if key != name}
            fault = refusal(server, operation, less)
            assert fault.startswith(DECODING + f"missing field `{name}`")
        if schema.get("additionalProperties") is False:
            fault = refusal(server, operation, {**good, "zz": 1})
            assert fault.startswith(DECODING + "unknown field `zz`, expected ")
        for name, member in schema["properties"].items():
            once = {name: server.here(good[name]) if name in good else fitting(member)}
            text = json.dumps({**server.here(good), **once})
            fault = refusal(server, operation, text[:-1] + ", " + json.dumps(once)[1:])
            assert fault.startswith(DECODING + f"duplicate field `{name}`")


@pytest.mark.parametrize("operation", named(WITH_MEMBERS))
def test_bodies_that_are_no_object_are_faults(operation):
    with served(operation.phase) as server:
        server.reach(operation.phase)
        for text in (" ", "null", "0", '""', "{", "}", "{'a':1}", "NaN", "\0", "//\n{}",
                     "[" * 2000, '{"a":' * 2000, "\ufeff{}", '{"a":1,}', "{}{}"):
            refusal(server, operation, text)


@pytest.mark.parametrize("operation", named(WITH_BODY))
def test_what_just_fits_the_schema_is_read(operation):
    """It may be refused for what it asks for, but not for what it is: `drive` without a path."""
    path = operation.example_path(operation.richest())
    either = set(operation.node.get("x-either", ()))
    for body in extremes(operation.schema, operation.richest()["value"]):
        assert not misfits(operation.schema, body), body
        if either and sum(body.get(name) is not None for name in either) != 1:
            continue  # no schema of this file says that
        with served(operation.phase) as server:
            server.reach(operation.phase)
            answer = server.ask(operation, {"value": body, "x-path": path})[2]
            fault = (answer or {}).get("fault_message", "")
            assert not fault.startswith((DECODING, "Empty PATCH request.")), body
            assert not fault.startswith("Machine config error"), body


def test_what_is_left_out_gets_the_documented_default():
    schemas = SPEC["components"]["schemas"]
    with Served() as server:
        server.ok("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64})
        server.ok("PUT", "/drives/d", {"drive_id": "d", "is_root_device": False,
                                       "path_on_host": f"{server.directory}/root.ext4"})
        server.ok("PUT", "/network-interfaces/n", {"iface_id": "n", "host_dev_name": "tap0"})
        server.ok("PUT", "/mmds/config", {"network_interfaces": ["n"]})
        shown = server.ok("GET", "/vm/config")
        for schema, value in (("MachineConfig", shown["machine-config"]),
                              ("Drive", shown["drives"][0]),
                              ("MmdsConfig", shown["mmds-config"])):
            defaults = {name: resolve(member)["default"] for name, member in
                        schemas[schema]["properties"].items() if "default" in resolve(member)}
            assert len(defaults) >= 3
            for name, default in defaults.items():
                assert value.get(name, "None") == default, name
        assert server.ok("GET", "/")["id"] == "anonymous-instance"


@pytest.mark.parametrize("path", SPEC["paths"])
def test_what_is_not_in_the_file_is_not_served(path):
    """Only the first parts of a path count, so what a shorter one takes is left out."""
    taken = {(operation.method, operation.path.split("/")[1]) for operation in OPERATIONS}
    with Served() as server:
        for method in map(str.upper, METHODS):
            first = path.split("/")[1]
            if (method, first) in taken:
                continue
            body = "{}" if method in ("PUT", "PATCH") else None
            status, _, answer = server.request(method, re.sub(r"{\w+}", EXAMPLE_ID, path), body)
            assert status == 400
            assert answer["fault_message"].startswith(
                f"Invalid request method and/or path: {method} {first}."), answer


def test_a_request_that_is_none_gets_an_error_of_the_other_family():
    with Served() as server, server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\n\r\n")
        _, body = Answers(client).raw()
        assert re.fullmatch(rb'{ "error": "[^"]*\n[^"]*" }', body)


def test_an_eleventh_connection_gets_the_documented_answer():
    example, = OPERATIONS[0].answer_examples(503).values()
    with Served() as server:
        clients = [server.connect() for _ in range(10)]
        with server.connect() as extra:
            assert Answers(extra).next()[::2] == (503, example["value"])
        for client in clients:
            client.close()


# The command line and the page for those who move from Firecracker


def offered():
    text = subprocess.run([mayfly.BINARY, "--help"], capture_output=True, text=True,
                          check=True).stdout
    return set(re.findall(r"^  (--[a-z-]+)", text, re.M))


def test_the_readmes_flags_are_offered():
    others = re.compile(r"curl|devtool|cmake|mayfly-jailer|apt-get")
    lines = [line for line in read("README.md").splitlines() if not others.search(line)]
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    assert flags, "the README names no flag"
    assert flags <= offered()


def test_the_page_for_movers_names_every_flag():
    page = read("docs", "firecracker.md").partition("\n## The jailer\n")[0]
    rows = re.findall(r"^\| `(--[a-z-]+).*?\| (same|differs|new|refused)\b", page, re.M)
    assert sorted(flag for flag, _ in rows) == sorted(offered())


def test_the_page_for_movers_names_every_operation():
    rows = re.findall(r"^\| `(GET|PUT|PATCH|DELETE) (/\S*)` ", read("docs", "firecracker.md"), re.M)
    assert {(operation.method, operation.path) for operation in OPERATIONS} <= set(rows)
    assert len(set(rows)) == len(rows)
