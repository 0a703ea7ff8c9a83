"""The API as its clients meet it: over a socket, with a guest that only halts."""

import json
import os
import select
import socket
import subprocess

import pytest

import mayfly
from guests import drive, make_files, start
from mayfly import AFTER, BEFORE, Mayfly
from unix_http import Answers, encode

CONNECTIONS = 10
MAX_PAYLOAD = 51200
LOST = "\nAll previous unanswered requests will be dropped."
VERSION = encode("GET", "/version")


@pytest.fixture
def vm():
    with Mayfly() as process:
        yield process
        process.ok("GET", "/version")  # whatever was tried, it still serves


def refused(vm, method, path, body, fragment):
    """The request fails with a fault that contains fragment, and changes nothing."""
    before = vm.ok("GET", "/vm/config")
    status, _, answer = vm.request(method, path, body)
    assert status == 400
    assert fragment in answer["fault_message"]
    assert vm.ok("GET", "/vm/config") == before


# HTTP


def test_an_answer_has_firecrackers_bytes(vm):
    with vm.connect() as client:
        client.sendall(VERSION)
        head, body = Answers(client).raw()
    assert head == (b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                    b"Content-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(body))
    assert list(json.loads(body)) == ["firecracker_version"]


def test_a_connection_serves_one_request_after_the_other(vm):
    with vm.connect() as client:
        answers = Answers(client)
        for _ in range(3):
            client.sendall(VERSION)
            assert answers.next()[0] == 200


def test_pipelined_requests_are_answered_in_order(vm):
    paths = ["/version", "/nope", "/", "/machine-config"] * 50
    with vm.connect() as client:
        client.sendall(b"".join(encode("GET", path) for path in paths))
        answers = Answers(client)
        assert [answers.next()[0] for _ in paths] == [200, 400, 200, 200] * 50


def test_a_request_may_come_byte_by_byte(vm):
    body = {"vcpu_count": 2, "mem_size_mib": 64}
    with vm.connect() as client:
        for byte in encode("PUT", "/machine-config", body):
            client.sendall(bytes([byte]))
        assert Answers(client).next()[0] == 204
    assert vm.ok("GET", "/machine-config")["vcpu_count"] == 2


def test_half_a_request_holds_up_nobody(vm):
    request = encode("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 64})
    for length in (1, 10, request.index(b"\r\n\r\n") + 2, len(request) - 1):
        with vm.connect() as client:
            client.sendall(request[:length])
            vm.ok("GET", "/version")
    assert vm.ok("GET", "/machine-config")["vcpu_count"] == 1


def test_a_client_that_ends_its_side_still_gets_its_answer(vm):
    with vm.connect() as client:
        client.sendall(VERSION)
        client.shutdown(socket.SHUT_WR)
        assert Answers(client).next()[0] == 200
        assert client.recv(1) == b""


def test_the_eleventh_connection_is_turned_away_and_the_tenth_is_not(vm):
    clients = [vm.connect() for _ in range(CONNECTIONS)]
    with vm.connect() as extra:
        status, headers, body = Answers(extra).next()
        assert status == 503
        assert headers["connection"] == "close"
        assert body == {"error": "Too many open connections"}
        assert extra.recv(1) == b""
    clients[-1].sendall(VERSION)
    assert Answers(clients[-1]).next()[0] == 200
    for client in clients:
        client.close()


def test_a_closed_connection_makes_room_for_another(vm):
    for _ in range(3 * CONNECTIONS):
        with vm.connect() as client:
            client.sendall(VERSION)
            assert Answers(client).next()[0] == 200


def test_a_client_that_never_reads_blocks_only_itself(vm):
    with vm.connect() as deaf:
        deaf.setblocking(False)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += deaf.send(VERSION * 100)
                vm.ok("GET", "/version")
        except BlockingIOError:
            pass
        assert sent < 64 << 20, "it reads on although nobody takes its answers"
        vm.ok("GET", "/version")


def test_a_client_that_reads_late_gets_every_answer(vm):
    count = 20000
    requests = VERSION * count
    with vm.connect() as client:
        client.setblocking(False)
        received = b""
        while received.count(b"HTTP/1.1 200 ") < count:
            wanted = [client] if requests else []
            readable, writable, _ = select.select([client], wanted, [], mayfly.DEADLINE_S)
            assert readable or writable
            if writable:
                requests = requests[client.send(requests[:1 << 16]):]
            elif readable:
                received += client.recv(1 << 16)


def test_a_body_over_the_limit_is_refused_with_400(vm):
    body = b" " * (MAX_PAYLOAD + 1)
    with vm.connect() as client:
        client.sendall(encode("PUT", "/machine-config", body))
        _, answer = Answers(client).raw()
    assert answer == (b'{ "error": "Request payload with size 51201 is larger than the limit of '
                      b'51200 allowed by server.\nAll previous unanswered requests will be '
                      b'dropped." }')


@pytest.mark.parametrize("pattern", [
    b"x", b"\r\n", b"\0", encode("PATCH", "/machine-config", {"vcpu_count": 2})])
def test_a_client_may_send_all_of_a_body_over_the_limit_before_it_looks(vm, pattern):
    """One answer, whatever is in the body; and then the connection goes on."""
    body = (pattern * (4 << 20))[:4 << 20]
    with vm.connect() as client:
        answers = Answers(client)
        for _ in range(2):
            client.sendall(encode("PUT", "/machine-config", body))
            assert "Request payload with size 4194304 is larger than" in answers.next()[2]
        client.sendall(encode("GET", "/machine-config"))
        assert answers.next()[2]["vcpu_count"] == 1


def test_a_body_of_the_limit_is_served(vm):
    body = b'{"vcpu_count":1,"mem_size_mib":64}'.ljust(MAX_PAYLOAD)
    assert vm.request("PUT", "/machine-config", body)[0] == 204


def test_a_client_may_wait_for_a_100(vm):
    request = encode("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64},
                     headers=["Expect: 100-continue"])
    end = request.index(b"\r\n\r\n") + 4
    with vm.connect() as client:
        answers = Answers(client)
        client.sendall(request[:end])
        assert answers.raw() == (b"HTTP/1.1 100 \r\nServer: Firecracker API\r\n"
                                 b"Connection: keep-alive\r\n\r\n", b"")
        client.sendall(request[end:])
        assert answers.next()[0] == 204


@pytest.mark.parametrize("request_bytes, text", [
    (b"POST / HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
    (b"get / HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
    (b"GET / HTTP/2.0\r\n\r\n", "Invalid HTTP Version: Unsupported HTTP version."),
    (b"GET  HTTP/1.1\r\n\r\n", "Invalid URI: Empty URI not allowed."),
    (b"GET / HTTP/1.1\r\nnonsense\r\n\r\n",
     "Invalid header. Reason: Header is incorrectly formatted. Key: nonsense"),
    (b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
     "Invalid header. Reason: Invalid value. Key:Content-Length; Value: -1"),
])
def test_what_is_no_request_gets_400_and_the_connection_goes_on(vm, request_bytes, text):
    with vm.connect() as client:
        answers = Answers(client)
        client.sendall(request_bytes)
        assert answers.next()[2] == '{ "error": "' + text + LOST + '" }'
        client.sendall(VERSION)
        assert answers.next()[0] == 200


def test_binary_noise_does_no_harm(vm):
    noise = bytes(range(256)) * 40
    for cut in (1, 11, 1024, 5000, len(noise)):
        with vm.connect() as client:
            client.sendall(noise[:cut])
        vm.ok("GET", "/version")


# Paths and ids


def test_unknown_paths_and_methods_are_faults(vm):
    for method, path, body in [("GET", "/nope", None), ("PUT", "/nope", {}),
                               ("PATCH", "/boot-source", {}), ("DELETE", "/machine-config", None)]:
        refused(vm, method, path, body,
                f"Invalid request method and/or path: {method} {path[1:]}.")


def test_bad_ids_are_faults(vm, files):
    refused(vm, "PUT", "/drives/", drive(files["disk"], ""), "The ID cannot be empty.")
    for bad in ("a-b", "a.b", "..", "a%20b"):
        refused(vm, "PUT", f"/drives/{bad}", drive(files["disk"], bad),
                "API Resource IDs can only contain alphanumeric characters and underscores.")
    refused(vm, "PUT", "/drives/a", drive(files["disk"], "b"),
            "The id from the path does not match the id from the body!")


# Configuring


def test_the_configuration_is_shown_as_it_was_put(vm, files):
    machine = {"vcpu_count": 2, "mem_size_mib": 64, "smt": False, "track_dirty_pages": False,
               "huge_pages": "None"}
    boot = {"kernel_image_path": files["kernel"], "initrd_path": files["text"],
            "boot_args": "a=\"b\" \u00fc\t"}
    root = drive(files["disk"], "r", is_root_device=True, is_read_only=True)
    vm.ok("PUT", "/machine-config", machine)
    vm.ok("PUT", "/boot-source", boot)
    vm.ok("PUT", "/drives/disk", drive(files["disk"]))
    vm.ok("PUT", "/drives/r", root)
    config = vm.ok("GET", "/vm/config")
    assert config["machine-config"] == machine == vm.ok("GET", "/machine-config")
    assert config["boot-source"] == boot
    assert [d["drive_id"] for d in config["drives"]] == ["r", "disk"]
    assert config["drives"][0] == {**root, "partuuid": None, "cache_type": "Unsafe",
                                   "rate_limiter": None, "io_engine": "Sync", "socket": None}


def test_a_second_put_replaces_the_first(vm, files):
    for args in ("first", "second"):
        vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"], "boot_args": args})
        vm.ok("PUT", "/drives/disk", drive(files["disk"], partuuid=args))
        vm.ok("PUT", "/machine-config", {"vcpu_count": len(args) - 4, "mem_size_mib": 64})
    config = vm.ok("GET", "/vm/config")
    assert config["boot-source"]["boot_args"] == "second"
    assert [d["partuuid"] for d in config["drives"]] == ["second"]
    assert config["machine-config"]["vcpu_count"] == 2


def test_a_cpu_template_is_deprecated(vm):
    body = {"vcpu_count": 1, "mem_size_mib": 64}
    assert "deprecation" not in vm.request("PUT", "/machine-config", body)[1]
    body["cpu_template"] = "None"
    assert vm.request("PUT", "/machine-config", body)[1]["deprecation"] == "true"
    body["vcpu_count"] = 0
    status, headers, _ = vm.request("PUT", "/machine-config", body)
    assert (status, headers["deprecation"]) == (400, "true")


def test_missing_and_surplus_bodies_are_faults(vm):
    refused(vm, "PUT", "/machine-config", None, "Empty PUT request.")
    refused(vm, "PATCH", "/machine-config", None, "Empty PATCH request.")
    refused(vm, "PATCH", "/machine-config", {}, "Empty PATCH request.")
    refused(vm, "GET", "/version", {}, "GET request cannot have a body.")
    refused(vm, "DELETE", "/drives/disk", {}, "Empty Delete request.")


def test_values_out_of_range_are_faults(vm):
    for body in ({"vcpu_count": 0}, {"vcpu_count": 33}, {"vcpu_count": 3, "smt": True},
                 {"mem_size_mib": 0}, {"mem_size_mib": 3, "huge_pages": "2M"}):
        refused(vm, "PATCH", "/machine-config", body, "Machine config error: ")


def test_files_that_can_not_be_opened_are_faults(vm, files):
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    vm.ok("PUT", "/drives/disk", drive(files["disk"]))
    refused(vm, "PUT", "/boot-source", {"kernel_image_path": files["none"]},
            "The kernel file cannot be opened: No such file or directory (os error 2) "
            f"{files['none']}")
    refused(vm, "PUT", "/boot-source",
            {"kernel_image_path": files["kernel"], "initrd_path": files["none"]},
            "The initrd file cannot be opened due to invalid path or invalid permissions. No such file "
            f"or directory (os error 2) {files['none']}")
    refused(vm, "PUT", "/drives/disk", drive(files["none"]),
            "Error manipulating the backing file: No such file or directory (os error 2)")
    refused(vm, "PUT", "/drives/e", drive(files["directory"], "e"), "Drive config error: ")


def test_a_second_root_drive_is_a_fault(vm, files):
    vm.ok("PUT", "/drives/a", drive(files["disk"], "a", is_root_device=True))
    refused(vm, "PUT", "/drives/b", drive(files["disk"], "b", is_root_device=True),
            "A root block device already exists!")


# Phases


def test_a_start_without_a_kernel_leaves_the_vm_to_be_configured(vm, files):
    refused(vm, "PUT", "/actions", {"action_type": "InstanceStart"},
            "Cannot start microvm without kernel configuration.")
    assert vm.ok("GET", "/")["state"] == "Not started"
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})


@pytest.mark.parametrize("kernel", ["text", "empty", "directory", "fifo"])
def test_a_start_with_no_kernel_image_leaves_the_vm_to_be_configured(vm, files, kernel):
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files[kernel]})
    refused(vm, "PUT", "/actions", {"action_type": "InstanceStart"}, "Start microvm error: ")
    assert vm.ok("GET", "/")["state"] == "Not started"
    start(vm, files)
    assert vm.ok("GET", "/")["state"] == "Running"


def test_actions_on_a_running_vm_wait_for_the_start(vm):
    for method, path, body in [("PATCH", "/vm", {"state": "Paused"}),
                               ("PATCH", "/vm", {"state": "Resumed"}),
                               ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
                               ("PUT", "/actions", {"action_type": "SendPowerButton"}),
                               ("PUT", "/actions", {"action_type": "FlushMetrics"}),
                               ("DELETE", "/drives/disk", None)]:
        refused(vm, method, path, body, BEFORE)


def test_a_started_vm_is_not_configured_again(vm, files):
    start(vm, files)
    for method, path, body in [
            ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64}),
            ("PATCH", "/machine-config", {"vcpu_count": 1}),
            ("PUT", "/boot-source", {"kernel_image_path": files["kernel"]}),
            ("PUT", "/actions", {"action_type": "InstanceStart"})]:
        refused(vm, method, path, body, AFTER)
    refused(vm, "PUT", "/drives/disk", drive(files["disk"]), "PCI is not enabled")
    refused(vm, "DELETE", "/drives/disk", None, "PCI is not enabled")


def test_pause_and_resume_are_idempotent(vm, files):
    start(vm, files)
    for state, shown in [("Paused", "Paused"), ("Paused", "Paused"), ("Resumed", "Running"),
                         ("Resumed", "Running"), ("Paused", "Paused")]:
        vm.ok("PATCH", "/vm", {"state": state})
        assert vm.ok("GET", "/")["state"] == shown


def test_requests_and_results_are_logged(vm):
    vm.request("PATCH", "/vm", '{"state": 1}')
    vm.ok("PUT", "/machine-config", '{"vcpu_count":1,"mem_size_mib":64}')
    vm.ok("GET", "/version")
    output = vm.wait_for_output("Status code: 200 OK.")
    assert r'The API server received a Patch request on "/vm" with body "{\"state\": 1}".' in output
    assert "Received Error. Status code: 400 Bad Request. Message: An error occurred when" in output
    assert "The request was executed successfully. Status code: 204 No Content." in output
    assert 'The API server received a Get request on "/version".' in output


def test_what_the_user_may_not_open_is_refused():
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    denied = "Permission denied (os error 13)"
    with Mayfly(user=65534) as vm:
        files = make_files(vm.directory)
        os.chmod(files["kernel"], 0)
        os.chmod(files["disk"], 0o444)
        refused(vm, "PUT", "/boot-source", {"kernel_image_path": files["kernel"]},
                f"Boot source error: The kernel file cannot be opened: {denied}")
        status, _, body = vm.request("PUT", "/drives/disk", drive(files["disk"]))
        assert status == 400 and denied in body["fault_message"]
        vm.ok("PUT", "/drives/disk", drive(files["disk"], is_read_only=True))


# The socket


def test_a_path_that_exists_is_not_taken_over():
    with Mayfly() as first:
        second = Mayfly()
        second.socket_path = first.socket_path
        with second:
            assert second.wait() == 1
            output = second.output()
        assert f"Failed to open the API socket at: {first.socket_path}." in output
        first.ok("GET", "/version")


def test_a_directory_for_the_socket_must_be_there():
    process = Mayfly()
    process.socket_path = "/none/api.sock"
    with pytest.raises(AssertionError, match="/none/api.sock: No such file or directory"):
        process.start()
    assert process.stop() == 1


@pytest.mark.parametrize("line, last", [
    ("HTTP/1.1\r\nConnection: close", True), ("HTTP/1.0", True), ("HTTP/1.1", False),
    ("HTTP/1.0\r\nConnection: keep-alive", False)])
def test_the_connection_ends_after_the_answer_where_the_client_says_so(vm, line, last):
    with vm.connect() as client:
        answers = Answers(client)
        client.sendall(f"GET /version {line}\r\n\r\n".encode())
        status, headers, body = answers.next()
        assert (status, headers["connection"]) == (200, "close" if last else "keep-alive")
        assert list(body) == ["firecracker_version"]
        if last:
            assert client.recv(1) == b""
        else:
            client.sendall(VERSION)
            assert answers.next()[0] == 200


def test_an_old_client_reads_its_answer_to_the_end(vm):
    """As ab and Python's HTTP/1.0 do; and so it is also in a jail and with a guest (the filters)."""
    start(vm, make_files(vm.directory))
    with vm.connect() as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as answer:
            assert json.loads(answer.read().partition(b"\r\n\r\n")[2])["state"] == "Running"
    vm.ok("GET", "/version")


def test_a_client_that_uploads_in_chunks_is_told_what_to_send_instead(vm):
    """However much it sends before it looks."""
    chunks = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    with vm.connect() as client:
        client.sendall(b"PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks * 500)
        answers = Answers(client)
        status, headers, body = answers.next()
        assert (status, headers["connection"]) == (400, "close")
        assert body.startswith('{ "error": "Invalid request. Transfer-Encoding is not supported: '
                               'send Content-Length.' + LOST)
        assert client.recv(1) == b""
    vm.ok("GET", "/version")


def test_a_socket_without_a_path_is_refused():
    done = mayfly.complete(mayfly.BINARY, "--api-sock", "")
    assert done.returncode == 1
    assert done.stderr.endswith("HTTP server: IO error: the path is empty\n")


def test_a_path_that_is_too_long_for_a_socket_is_told():
    done = mayfly.complete(mayfly.BINARY, "--api-sock", "/" + "x" * 108)
    assert done.returncode == 1
    assert done.stderr.endswith("x: path must be shorter than SUN_LEN\n")


def test_the_socket_stays_after_the_end():
    process = Mayfly()
    process.start()
    process.stop()
    assert os.path.exists(process.socket_path)


# The configuration file


def with_config(tmp_path, config):
    """A started process for a configuration given as text or as an object; kernel and disk are
    filled in."""
    files = make_files(str(tmp_path))
    text = config if isinstance(config, str) else json.dumps(config)
    path = tmp_path / "config.json"
    path.write_text(text.replace("KERNEL", files["kernel"]).replace("DISK", files["disk"]))
    return path


BOOT = {"boot-source": {"kernel_image_path": "KERNEL", "boot_args": "x"}, "drives": []}


def test_a_configuration_file_starts_the_vm_and_the_api_goes_on(tmp_path):
    config = {**BOOT, "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
              "drives": [drive("DISK", "a-b", rate_limiter={})], "zz": [1], "vsock": None}
    with Mayfly("--config-file", str(with_config(tmp_path, config))) as vm:
        text = vm.wait_for_output(
            "Successfully started microvm that was configured from one single json")
        assert text.count('VmmConfig: unknown field "zz" is ignored, expected one of `balloon`') == 1
        assert vm.ok("GET", "/")["state"] == "Running"
        assert vm.ok("GET", "/machine-config")["vcpu_count"] == 2
        refused(vm, "PUT", "/actions", {"action_type": "InstanceStart"}, AFTER)


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "-fifo"])
def test_a_configuration_may_come_by_a_pipe(tmp_path, path):
    """In pieces, the last of them late; a FIFO is waited for until there is a writer."""
    text = with_config(tmp_path, BOOT).read_bytes()
    fifo = str(tmp_path / "vm.fifo")
    os.mkfifo(fifo)
    with Mayfly("--config-file", path.replace("-fifo", fifo), stdin=subprocess.PIPE) as vm:
        with vm.process.stdin if path != "-fifo" else open(fifo, "wb") as pipe:
            for i in range(len(text)):
                pipe.write(text[i:i + 1])
                pipe.flush()
        vm.wait_for_output("Successfully started microvm")
        assert vm.ok("GET", "/")["state"] == "Running"


def test_the_shown_configuration_is_a_configuration_file(tmp_path, vm, files):
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    vm.ok("PUT", "/drives/disk", drive(files["disk"], partuuid="x"))
    vm.ok("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 64})
    shown = vm.ok("GET", "/vm/config")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shown))
    with Mayfly("--config-file", str(path)) as copy:
        copy.wait_for_output("Successfully started microvm")
        assert copy.ok("GET", "/vm/config") == shown


@pytest.mark.parametrize("config, fragment", [
    ("", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
    ("not json", "Invalid JSON: expected ident at line 1 column 2"),
    ("[]", "Invalid JSON: invalid length 0, expected struct VmmConfig with 13 elements"),
    ({"drives": []}, "Invalid JSON: missing field `boot-source`"),
    ({**BOOT, "machine-config": {"vcpu_count": 0, "mem_size_mib": 64}}, "VM config error: "),
    ({**BOOT, "drives": [drive("/none")]}, "Block device error: "),
    ({**BOOT, "boot-source": {"kernel_image_path": "/none"}}, "Boot source error: "),
    ({**BOOT, "boot-source": {"kernel_image_path": "DISK"}},
     "Could not Start MicroVM from one single json: "),
    ({**BOOT, "balloon": {"amount_mib": 1}}, "`balloon` is not supported by this version"),
])
def test_a_configuration_file_that_is_wrong_ends_the_process(tmp_path, config, fragment):
    with Mayfly("--config-file", str(with_config(tmp_path, config)), api=False) as vm:
        assert vm.wait() == 1
        assert fragment in vm.output()
        assert "Firecracker exiting with error. exit_code=1" in vm.output()


def test_a_configuration_file_that_is_not_there_ends_the_process(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with Mayfly("--config-file", str(path), api=False) as vm:
            assert vm.wait() == 1
            assert f"configuration file: {path}: " in vm.output()
