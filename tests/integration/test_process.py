"""The process: its arguments, its log, its exit codes, signals, and what a start makes of
/logger, /serial, /cpu-config and the configuration file."""

import datetime
import json
import os
import re
import signal

import pytest

from guests import Machine, drive, make_files, needs_kvm, start
from mayfly import BINARY, GUESTS, Mayfly, complete, open_files, wait_until
from unix_http import encode


def run(*args):
    """Exit code, stdout and stderr of a process that ends by itself."""
    done = complete(BINARY, *args)
    return done.returncode, done.stdout, done.stderr


# Arguments


@pytest.mark.parametrize("args, code, text", [
    (["-V"], 153, "Found argument '-V' which wasn't expected"),
    (["--bogus"], 153, "Found argument 'bogus' which wasn't expected"),
    (["--id=x"], 153, "Found argument 'id=x' which wasn't expected"),
    (["--id"], 153, "The argument 'id' requires a value, but none was supplied."),
    (["--id", "--no-api"], 153, "The argument 'id' requires a value, but none was supplied."),
    (["--id", "a", "--id", "a"], 153, "The argument 'id' was provided more than once."),
    (["--id", "a_b"], 153, "Invalid instance ID"),
    (["--id", "x" * 65], 153, "Invalid instance ID"),
    (["--no-api"], 153, "Argument 'config-file' required, but not found."),
    (["--no-seccomp", "--seccomp-filter", "x"], 153,
     "Argument 'seccomp-filter' cannot be used together with argument 'no-seccomp'."),
    (["--start-time-us", "x"], 153, "The argument 'start-time-us' must be a number, not 'x'."),
    (["--start-time-cpu-us", ""], 153, "The argument 'start-time-cpu-us' must be a number"),
    (["--parent-cpu-time-us", "18446744073709551616"], 153,
     "The argument 'parent-cpu-time-us' must be at most 18446744073709551615"),
    (["--http-api-max-payload-size", "-1"], 153,
     "The argument 'http-api-max-payload-size' must be a number, not '-1'."),
    (["--http-api-max-payload-size", "99999999999"], 153,
     "The argument 'http-api-max-payload-size' must be at most 1073741824"),
    (["--log-format", "xml"], 153, "The argument 'log-format' must be text or json, not 'xml'."),
    (["--level", "Loud"], 152, "Failed to parse string to level filter: Loud."),
    (["--log-path", "/none/log"], 1,
     "Could not initialize logger: Failed to open target file: No such file or directory "
     "(os error 2) /none/log"),
    (["--metrics-path", "/none/m"], 1,
     "Could not initialize metrics: Cannot initialize the metrics system due to bad user input: "
     "No such file or directory (os error 2) /none/m"),
    (["--seccomp-filter", "/none"], 1,
     "Seccomp error: Filter file open error: No such file or directory (os error 2) /none"),
    (["--seccomp-filter", "/dev/null"], 1, "Seccomp error: Filter deserialization failed"),
    (["--enable-pci"], 1, "--enable-pci: there is no PCI"),
    (["--describe-snapshot", "/none"], 1, "When printing Snapshot Data format: Unable to open "
     "snapshot state file: No such file or directory (os error 2)"),
    (["--describe-snapshot", "/"], 1, "When printing Snapshot Data format: Unable to open "
     "snapshot state file: Is a directory (os error 21)"),
    (["--describe-snapshot", "/proc/self/exe"], 1, "When printing Snapshot Data format: Invalid "
     "data format version of snapshot file: "),
    (["--api-sock", "/none/s"], 1, "RunWithApiError error: Failed to bind and run the HTTP server"),
    (["--no-api", "--config-file", "/none"], 1, "RunWithoutApiError error: Unable to open or read"),
])
def test_what_can_not_be_run_is_said_twice_and_ends_the_process(args, code, text):
    got, log, error = run(*args)
    assert got == code
    assert error.startswith("Error: ") and text in error and error.count("\n") == 1
    assert text in log
    assert log.rstrip().endswith(f"Firecracker exiting with error. exit_code={code}")


def test_the_version_of_snapshots_is_printed():
    code, text, error = run("--snapshot-version")
    assert (code, error) == (0, "")
    version, end = text.splitlines()
    assert version == "v1.1.0" and end.endswith("Firecracker exiting successfully. exit_code=0")


def test_help_and_version_win_over_everything():
    for flag in ("--help", "-h"):
        code, text, error = run("--bogus", flag)
        assert (code, error) == (0, "")
        for name in ("--api-sock", "--metrics-path", "--no-seccomp", "--module", "153"):
            assert name in text
    code, text, error = run("--bogus", "--version")
    assert (code, error) == (0, "")
    first, second = text.split("\n")[0], text.rstrip().split("\n")[-1]
    assert re.fullmatch(r"Firecracker v\d+\.\d+\.\d+", first)
    assert second.endswith("Firecracker exiting successfully. exit_code=0")


def test_arguments_after_two_dashes_mean_nothing():
    with Mayfly("--", "--bogus") as vm:
        vm.ok("GET", "/version")


def test_the_payload_limit_can_be_set():
    with Mayfly("--http-api-max-payload-size", "10") as vm:
        status, _, answer = vm.request("PUT", "/machine-config", b" " * 11)
        assert status == 400
        assert "size 11 is larger than the limit of 10" in answer


# Signals


FATAL = [(signal.SIGHUP, 156, "sighup"), (signal.SIGBUS, 149, "sigbus"),
         (signal.SIGSEGV, 150, "sigsegv"), (signal.SIGXFSZ, 151, "sigxfsz"),
         (signal.SIGXCPU, 154, "sigxcpu"), (signal.SIGILL, 157, "sigill"),
         (signal.SIGSYS, 148, None)]
LOG_LINE = (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} \[anonymous-instance:[^\]]+\] Shutting down VM "
            r"after intercepting signal (\d+), code (-?\d+)")


@needs_kvm
@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("number, code, name", FATAL)
def test_a_fatal_signal_is_counted_logged_and_has_its_exit_code(tmp_path, number, code, name,
                                                                is_running):
    path = tmp_path / "metrics"
    with Mayfly("--metrics-path", str(path)) as vm:
        if is_running:
            start(vm, make_files(vm.directory))
        vm.process.send_signal(number)
        assert vm.wait() == code
        last = vm.output().splitlines()[-1]
        assert re.match(LOG_LINE, last), last
        assert re.match(LOG_LINE, last)[1] == str(int(number))
        first = re.match(r"(\S+):\d\d\.\d+ ", vm.output().splitlines()[0])[1]
        assert last[:13] >= first[:13], "the same clock and time zone"
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + is_running
    line = json.loads(lines[-1])
    assert (line["signals"][name] if name else line["seccomp"]["num_faults"]) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_other_signals_kill_as_ever(tmp_path, number):
    path = tmp_path / "metrics"
    with Mayfly("--metrics-path", str(path)) as vm:
        vm.process.send_signal(number)
        assert vm.wait() == -number
    assert path.read_text() == ""


def test_sigpipe_is_survived(vm):
    vm.process.send_signal(signal.SIGPIPE)
    vm.ok("GET", "/version")
    text = vm.request("GET", "/metrics")[2]
    assert "mayfly_signals_sigpipe_total 1\n" in text
    assert vm.output().count("] Received signal 13, code 0.\n") == 1


def test_a_sigpipe_of_its_own_making_is_counted_and_not_logged(vm):
    """Else a log that goes to a pipe without a reader would never come to its end."""
    with vm.connect() as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):  # answers wait until they are read
            while True:
                client.send(encode("GET", "/version"))
    wait_until(lambda: "mayfly_signals_sigpipe_total 0\n" not in vm.request("GET", "/metrics")[2],
               "the answer that nobody takes")
    assert "Received signal" not in vm.output()


def test_a_log_to_a_pipe_without_a_reader_holds_nothing_up():
    reader, writer = os.pipe()
    with Mayfly(stdout=writer) as vm:
        os.close(writer)
        os.close(reader)
        for _ in range(3):
            vm.ok("GET", "/version")


# The log


def test_the_log_can_be_moved_and_changed_again_and_again(vm):
    first, second = (os.path.join(vm.directory, name) for name in ("log1", "log2"))
    vm.ok("PUT", "/logger", {"log_path": first, "level": "debug", "show_level": True,
                             "show_log_origin": True})
    vm.ok("GET", "/version")
    vm.ok("PUT", "/logger", {"log_path": second})
    vm.ok("GET", "/version")
    with open(first) as log:
        text = log.read()
    assert re.search(r":main:DEBUG:api/call\.c:\d+\] Total previous API call duration: \d+ us\.",
                     text)
    with open(second) as log:
        text = log.read()
    assert ":main:INFO:api/call.c:" in text, "what was not given stays"
    assert text.count("Total previous") == 0, "but for the level, which is Info again"


@needs_kvm
def test_the_log_is_json_on_request_from_each_thread():
    """Also of a vCPU behind its filter, and with what a client makes up."""
    body = '{"drive_id":\n"x\u00e4\\n"}\x01'
    flags = ("--id", "vm-1", "--log-format", "json", "--show-level", "--show-log-origin")
    with Machine("exit", "triple_fault", flags=flags) as vm:
        vm.request("PUT", "/drives/x", body)
        vm.ok("PUT", "/logger", {"level": "Debug"})
        vm.boot()
        vm.wait()
        lines = [json.loads(line) for line in vm.log().splitlines()]
    assert {tuple(line) for line in lines} == {
        ("time", "id", "thread", "level", "origin", "message")}
    assert {line["id"] for line in lines} == {"vm-1"}
    assert {line["thread"] for line in lines} == {"main", "fc_vcpu 0"}
    assert {line["level"] for line in lines} >= {"DEBUG", "INFO", "ERROR"}
    assert any('{\\"drive_id\\":\\n\\"x\u00e4' in line["message"] for line in lines)
    for line in lines:
        assert re.fullmatch(r"vmm/\S+:\d+|api/\S+:\d+|virtio/\S+:\d+", line["origin"])
        assert datetime.datetime.fromisoformat(line["time"][:26] + line["time"][29:]).tzinfo


def test_a_log_that_can_not_be_opened_changes_nothing(vm):
    status, _, answer = vm.request("PUT", "/logger", {"log_path": "/none/x", "level": "Off"})
    assert status == 400
    assert answer["fault_message"] == (
        "Logger error: Failed to open target file: No such file or directory (os error 2) /none/x")
    assert "Logger error: Failed to open" in vm.output()
    vm.ok("GET", "/version")
    assert 'received a Get request on "/version"' in vm.output()


def test_the_log_can_be_limited_to_a_module():
    with Mayfly("--module", "api") as vm:
        vm.ok("GET", "/version")
        assert "API server started." in vm.output()
        assert "Running Firecracker" not in vm.output()
    with Mayfly("--module", "nothing") as vm:
        vm.ok("GET", "/version")
        assert vm.output() == ""


# The serial console


@needs_kvm
def test_the_console_can_go_to_a_file(vm):
    out = os.path.join(vm.directory, "console")
    vm.ok("PUT", "/serial", {"serial_out_path": out})
    vm.ok("PUT", "/boot-source", {"kernel_image_path": f"{GUESTS}/exit", "boot_args": "reset"})
    vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
    assert vm.wait() == 0
    with open(out) as console:
        assert console.read().startswith("ending\n")
    assert "ending\n" not in vm.output()


@needs_kvm
def test_a_console_that_is_lost_is_told(vm):
    metrics = os.path.join(vm.directory, "metrics")
    vm.ok("PUT", "/metrics", {"metrics_path": metrics})
    vm.ok("PUT", "/serial", {"serial_out_path": "/dev/full"})
    vm.ok("PUT", "/boot-source", {"kernel_image_path": f"{GUESTS}/exit", "boot_args": "reset"})
    vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
    assert vm.wait() == 0
    with open(metrics) as lines:
        lost = sum(json.loads(line)["uart"]["error_count"] for line in lines)
    text = "Output of the guest's console is lost: No space left on device (os error 28)"
    assert lost >= len("ending\n") > vm.output().count(text) > 0


@needs_kvm
def test_the_console_can_be_limited(vm):
    out, metrics = (os.path.join(vm.directory, name) for name in ("console", "metrics"))
    vm.ok("PUT", "/metrics", {"metrics_path": metrics})
    vm.ok("PUT", "/serial", {"serial_out_path": out, "rate_limiter": {
        "size": 2, "refill_time": 3600000, "one_time_burst": 1}})
    vm.ok("PUT", "/boot-source", {"kernel_image_path": f"{GUESTS}/exit", "boot_args": "reset"})
    vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
    assert vm.wait() == 0
    with open(out) as console:
        assert console.read() == "end"
    with open(metrics) as lines:
        dropped = sum(json.loads(line)["uart"]["rate_limiter_dropped_bytes"] for line in lines)
    assert dropped >= len("ing\n")


@needs_kvm
def test_a_console_that_can_not_be_opened_fails_the_start_and_can_be_put_right(vm, files):
    vm.ok("PUT", "/serial", {"serial_out_path": files["directory"]})
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    begin = {"action_type": "InstanceStart"}
    status, _, answer = vm.request("PUT", "/actions", begin)
    assert status == 400
    assert "serial_out_path" in answer["fault_message"]
    vm.ok("PUT", "/serial", {})
    vm.ok("PUT", "/actions", begin)


# CPU templates


def leaf(number, register, bits, subleaf="0x0"):
    return {"leaf": number, "subleaf": subleaf, "flags": 0,
            "modifiers": [{"register": register, "bitmap": bits}]}


@needs_kvm
@pytest.mark.parametrize("template, text", [
    ({"cpuid_modifiers": [leaf("0x12345", "eax", "0b1")]},
     "Template changes a CPUID entry not supported by KVM: Leaf: 12345, Subleaf: 0"),
    ({"msr_modifiers": [{"addr": "0xdeadbeef", "bitmap": "0b1"}]},
     "Template changes an MSR entry not supported by KVM: Register Address: deadbeef"),
    ({"kvm_capabilities": ["4294967295"]}, "lacks the capability 4294967295"),
])
def test_a_template_that_does_not_fit_fails_the_start(vm, files, template, text):
    vm.ok("PUT", "/cpu-config", template)
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    begin = {"action_type": "InstanceStart"}
    status, _, answer = vm.request("PUT", "/actions", begin)
    assert status == 400
    assert answer["fault_message"].startswith("Start microvm error: ")
    assert text in answer["fault_message"]
    vm.ok("PUT", "/cpu-config", {})
    vm.ok("PUT", "/actions", begin)


@needs_kvm
def test_a_template_that_fits_is_taken(vm, files):
    vm.ok("PUT", "/cpu-config", {"kvm_capabilities": ["!24", "0"],
                                 "cpuid_modifiers": [leaf("0x1", "ecx", "0b0" + "x" * 20)],
                                 "msr_modifiers": [{"addr": "0x10", "bitmap": "0bx"}]})
    start(vm, files)


def kvm_vms(vm):
    """How many VMs of KVM the process holds."""
    return open_files(vm.process.pid).count("anon_inode:kvm-vm")


@needs_kvm
@pytest.mark.parametrize("template", [{}, {"kvm_capabilities": ["!24"]},
                                      {"kvm_capabilities": ["4294967295"]}])
def test_the_vm_that_was_made_ahead_is_the_only_one(vm, files, template):
    vm.ok("GET", "/")
    assert kvm_vms(vm) == 1
    vm.ok("PUT", "/cpu-config", template)
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    fits = vm.request("PUT", "/actions", {"action_type": "InstanceStart"})[0] == 204
    assert kvm_vms(vm) == fits == (template != {"kvm_capabilities": ["4294967295"]})


def test_the_later_of_two_templates_counts(vm):
    machine = {"vcpu_count": 1, "mem_size_mib": 64}
    vm.ok("PUT", "/machine-config", {**machine, "cpu_template": "T2"})
    vm.ok("PUT", "/cpu-config", {})
    assert "cpu_template" not in vm.ok("GET", "/machine-config")
    vm.ok("PATCH", "/machine-config", {"cpu_template": "C3"})
    assert vm.ok("GET", "/machine-config")["cpu_template"] == "C3"


@needs_kvm
def test_named_templates_are_for_their_processors(vm, files):
    """No processor may have both vendors' templates."""
    refused = 0
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    for name in ("C3", "T2", "T2S", "T2CL", "T2A"):
        vm.ok("PATCH", "/machine-config", {"cpu_template": name})
        status, _, answer = vm.request("PUT", "/actions", {"action_type": "InstanceStart"})
        if status == 204:
            break
        refused += "CPU vendor mismatched between actual CPU and CPU template." in \
            answer["fault_message"]
    assert status == 204 or refused


# The configuration file


def config(files, **more):
    return {"boot-source": {"kernel_image_path": files["kernel"], "boot_args": "x"},
            "drives": [drive(files["disk"], "a-b", is_root_device=True)], **more}


def boot(tmp_path, content, *flags, api=True):
    path = tmp_path / "vm.json"
    path.write_text(json.dumps(content))
    return Mayfly("--config-file", str(path), *flags, api=api)


@needs_kvm
def test_a_file_configures_logger_metrics_machine_and_template(tmp_path):
    files = make_files(str(tmp_path))
    log, metrics, cpu = (str(tmp_path / name) for name in ("log", "metrics", "cpu.json"))
    with open(cpu, "w") as template:
        json.dump({"kvm_capabilities": ["0"]}, template)
    for template in ({"kvm_capabilities": ["0"]}, cpu, None):
        content = config(files, logger={"log_path": log, "level": "Debug"},
                         metrics={"metrics_path": metrics, "emit_id": True},
                         **{"cpu-config": template, "machine-config": {
                             "vcpu_count": 2, "mem_size_mib": 64}, "unknown": 1})
        with boot(tmp_path, content) as vm:
            vm.wait_for_output("Running Firecracker")
            shown = vm.ok("GET", "/vm/config")
            assert shown["machine-config"]["vcpu_count"] == 2
            assert shown["logger"] is shown["metrics"] is shown["cpu-config"] is None
    with open(metrics) as lines:
        assert [json.loads(line)["id"] for line in lines] == ["anonymous-instance"] * 3
    with open(log) as text:
        assert "Successfully started microvm that was configured from one single json" in text.read()


@needs_kvm
def test_what_is_shown_is_a_configuration_file(tmp_path):
    files = make_files(str(tmp_path))
    with boot(tmp_path, config(files)) as vm:
        first = vm.ok("GET", "/vm/config")
    with boot(tmp_path, first) as vm:
        assert vm.ok("GET", "/vm/config") == first


@pytest.mark.parametrize("section, text", [
    ({"logger": {"log_path": "/none/x"}}, "Logger error: Failed to open target file"),
    ({"logger": {"level": "Loud"}}, "Invalid LevelFilter"),
    ({"metrics": {}}, "missing field `metrics_path`"),
    ({"metrics": {"metrics_path": "/none/x"}}, "Metrics error: Cannot initialize"),
    ({"cpu-config": "/none"}, "CPU config error: Unable to open or read"),
    ({"cpu-config": 1}, "CPU config error: invalid type: integer `1`"),
    ({"cpu-config": {"zz": 1}}, "CPU config error: unknown field `zz`"),
    ({"vsock": {"guest_cid": 3}}, "missing field `uds_path`"),
    ({"vsock": {"guest_cid": 3, "uds_path": "/none/x"}}, "Vsock device error: Cannot create backend"),
    ({"balloon": {}}, "`balloon` is not supported"),
    ({"entropy": {}}, "`entropy` is not supported"),
    ({"pmem": [{}]}, "`pmem` is not supported"),
    ({"memory-hotplug": {}}, "`memory-hotplug` is not supported"),
])
def test_a_section_that_can_not_be_had_fails_the_start(tmp_path, section, text):
    files = make_files(str(tmp_path))
    with boot(tmp_path, config(files, **section), api=False) as vm:
        assert vm.wait() == 1
        assert text in vm.output()
        assert "\nError: RunWithoutApiError error: Failed to build MicroVM from Json: " \
            in vm.output()
