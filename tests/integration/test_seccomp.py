"""The seccomp filters: that they are there in time, what they stop, and what they leave."""

import errno
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios

import pytest

from filters import (GETPPID, LIBC, filters, make_call, no_sanitizer, result_of_call, threads,
                     wait_for)
from guests import drive, make_disk, make_files, needs_kvm, run, start
from mayfly import BINARY, DEADLINE_S, GUESTS, IS_LONG, ROOT, Mayfly, complete

TGKILL = 234


def boot(vm, vcpus=2):
    vm.ok("PUT", "/machine-config", {"vcpu_count": vcpus, "mem_size_mib": 64})
    start(vm, make_files(vm.directory))


# When


@needs_kvm
def test_each_thread_has_its_filter_once_a_guest_runs(vm):
    assert filters(vm) == {"mayfly": 0}
    boot(vm)
    confined = {"mayfly": 1, "fc_vcpu 0": 1, "fc_vcpu 1": 1}
    wait_for(lambda: filters(vm) == confined) # the start's answer does not wait for the threads


@needs_kvm
def test_every_filter_is_there_before_the_first_guest_instruction(tmp_path):
    trace = tmp_path / "trace"
    files = make_files(str(tmp_path))
    socket_path = str(tmp_path / "s")
    config = tmp_path / "vm.json"
    config.write_text(json.dumps({
        "boot-source": {"kernel_image_path": files["kernel"]}, "drives": [],
        "machine-config": {"vcpu_count": 4, "mem_size_mib": 64}}))
    process = subprocess.Popen(
        ["strace", "-D", "-f", "-qqq", "-e", "raw=all", "-e", "trace=ioctl,seccomp", "-e",
         "signal=none", "-e", f"inject=seccomp:delay_enter=200000", "-o", trace,
         BINARY, "--config-file", config, "--api-sock", socket_path],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        seen = ""
        while seen.count(", 0xae80,") < 4:
            assert process.poll() is None
            seen = trace.read_text() if trace.exists() else ""
    finally:
        process.kill()
        process.wait()
    before, _, after = seen.partition(", 0xae80,")
    assert len(re.findall(r"seccomp.*= 0\b", before)) == 1 + 4, seen
    assert "seccomp" not in after


@needs_kvm
def test_without_filters_there_are_none():
    with Mayfly("--no-seccomp") as vm:
        boot(vm)
        assert set(filters(vm).values()) == {0}


# The policy


LISTER = os.path.join(os.path.dirname(BINARY), "seccomp-compile")


@pytest.mark.skipif(not os.path.exists(LISTER), reason="there is no seccomp-compile")
def test_the_list_has_each_row_in_the_filters_of_whom_it_names():
    """What the calls of the tests are held against (./devtool seccomp)."""
    who = {"START": {"process"}, "MAIN": {"process", "main"}, "VCPU": {"process", "vcpu"},
           "EVER": {"process", "main"}, "BOTH": {"process", "main", "vcpu"}, "PAGER": {"process", "pager"},
           "EACH": {"process", "main", "vcpu", "pager"}, "UNSEEN": set()}
    with open(os.path.join(ROOT, "vmm/seccomp/policy.h"), encoding="ascii") as policy:
        rows = re.findall(r"^(?:ALLOW|ALLOW_IF|REFUSE)\(([A-Z |]+), (\w+),", policy.read(), re.M)
    expected = {(name, str(number), call, "unseen" if "UNSEEN" in names else "seen")
                for number, (names, call) in enumerate(rows)
                for word in names.split(" | ") for name in who[word]}
    listed = [line.split("\t") for line in complete(LISTER, "--list").stdout.splitlines()]
    assert sorted((name, number, text.split()[0], seen)
                  for name, number, text, _, seen, *_ in listed) == sorted(expected)


# What they stop


@no_sanitizer
@needs_kvm
@pytest.mark.parametrize("thread", ["mayfly", "fc_vcpu 0", "fc_vcpu 1"])
def test_a_forbidden_call_ends_the_process_and_is_told(tmp_path, thread):
    metrics = tmp_path / "metrics"
    with Mayfly("--metrics-path", str(metrics)) as vm:
        boot(vm)
        wait_for(lambda: set(filters(vm).values()) == {1})
        make_call(threads(vm)[thread][0], GETPPID)
        assert vm.wait() == 148
        name = "main" if thread == "mayfly" else thread
        for what in ("signal 31, code 1", f"a bad syscall ({GETPPID})"):
            assert f":{name}] Shutting down VM after intercepting {what}.\n" in vm.output()
    assert json.loads(metrics.read_text().splitlines()[-1])["seccomp"]["num_faults"] == 1


KILL = 62


@pytest.mark.skipif(LIBC.syscall(444, None, 0, 1) < 6, reason="this kernel's Landlock has no scopes")
@pytest.mark.parametrize("flags, wanted", [([], -errno.EPERM), (["--no-seccomp"], 0)])
def test_a_vmm_without_a_jail_and_a_guest_signals_nobody_else(flags, wanted):
    with Mayfly(*flags) as vm:
        pid = vm.process.pid
        assert result_of_call(pid, KILL, os.getpid(), 0, 0) == wanted
        assert result_of_call(pid, KILL, pid, 0, 0) == 0
        assert vm.ok("GET", "/")["state"] == "Not started"


# At each level of the log: a thread's first line sets up nothing that its filter refuses, whether it
# is the process's first or not, and wherever the log goes


LEVELS = ("Off", "Error", "Warn", "Info", "Debug", "Trace")


def end_of(tmp_path, level, guest, *flags, drives=(), boot_args=""):
    """(status, log) of a guest whose console is not the log's place."""
    with Mayfly("--level", level, *flags) as vm:
        vm.ok("PUT", "/serial", {"serial_out_path": str(tmp_path / "console")})
        for each in drives:
            vm.ok("PUT", f"/drives/{each['drive_id']}", each)
        vm.ok("PUT", "/boot-source",
              {"kernel_image_path": f"{GUESTS}/{guest}", "boot_args": boot_args})
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        return vm.wait(), vm.output()


@needs_kvm
@pytest.mark.parametrize("level", LEVELS)
def test_a_triple_fault_is_told_at_each_level(tmp_path, level):
    status, log = end_of(tmp_path, level, "exit", boot_args="triple_fault")
    assert status == 1, log
    wanted = "fc_vcpu 0] vCPU 0: the guest's processor shut down (triple fault) (0)\n"
    assert (wanted in log) == (level != "Off"), log


@needs_kvm
@pytest.mark.parametrize("level", LEVELS if IS_LONG else ("Error", "Warn"))
def test_a_device_that_stops_is_told_at_each_level(tmp_path, level):
    disks = [drive(make_disk(tmp_path / name, 256), name) for name in ("disk", "other")]
    status, log = end_of(tmp_path, level, "hostile", drives=disks)
    assert status == 0, log
    assert ("stops until the guest resets it" in log) == (LEVELS.index(level) >= 2), log


@needs_kvm
@pytest.mark.parametrize("level", LEVELS if IS_LONG else ("Warn", "Info"))
def test_a_guests_mark_is_told_at_each_level(tmp_path, level):
    status, log = end_of(tmp_path, level, "boot_timer", "--boot-timer")
    assert status == 0, log
    assert ("fc_vcpu 0] Guest-boot-time" in log) == (LEVELS.index(level) >= 3), log


# Filters of the caller's


ALLOW, TRAP = 0x7fff0000, 0x00030000


def program(*steps):
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


RETURN_ALLOW = program((6, 0, 0, ALLOW))


def trap(number):
    """Traps one call, allows all others."""
    return program((0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, TRAP), (6, 0, 0, ALLOW))


def filter_file(path, **programs):
    data = struct.pack("<Q", len(programs))
    for name, code in programs.items():
        data += struct.pack("<Q", len(name)) + name.encode()
        data += struct.pack("<Q", len(code) // 8) + code
    path.write_bytes(data)
    return str(path)


@needs_kvm
def test_filters_of_a_file_take_the_place_of_our_own(tmp_path):
    path = filter_file(tmp_path / "f", api=RETURN_ALLOW, vcpu=RETURN_ALLOW, vmm=trap(GETPPID))
    with Mayfly("--seccomp-filter", path) as vm:
        assert filters(vm) == {"mayfly": 0}
        boot(vm)
        wait_for(lambda: filters(vm) == {"mayfly": 1, "fc_vcpu 0": 1, "fc_vcpu 1": 1})
        make_call(threads(vm)["mayfly"][0], GETPPID)
        assert vm.wait() == 148


@needs_kvm
def test_a_file_has_a_filter_for_vcpus(tmp_path):
    path = filter_file(tmp_path / "f", vmm=RETURN_ALLOW, vcpu=trap(16), api=RETURN_ALLOW)
    with Mayfly("--seccomp-filter", path) as vm:
        vm.ok("PUT", "/boot-source",
              {"kernel_image_path": make_files(vm.directory)["kernel"]})
        try:
            vm.request("PUT", "/actions", {"action_type": "InstanceStart"})
        except ConnectionResetError:
            pass
        assert vm.wait() == 148, "ioctl(KVM_RUN) is not allowed"


@needs_kvm
def test_a_program_that_the_kernel_refuses_fails_the_start(tmp_path):
    path = filter_file(tmp_path / "f", vmm=program((0, 0, 0, 0)), vcpu=RETURN_ALLOW, api=RETURN_ALLOW)
    with Mayfly("--seccomp-filter", path) as vm:
        vm.ok("PUT", "/boot-source", {"kernel_image_path": make_files(vm.directory)["kernel"]})
        status, _, answer = vm.request("PUT", "/actions", {"action_type": "InstanceStart"})
        assert status == 400
        assert "cannot install the seccomp filter: Invalid argument" in answer["fault_message"]
        assert vm.wait() == 1


def broken_files(tmp_path):
    whole = filter_file(tmp_path / "whole", vmm=RETURN_ALLOW, vcpu=RETURN_ALLOW, api=RETURN_ALLOW)
    with open(whole, "rb") as f:
        data = f.read()
    yield from (data[:n] for n in range(0, len(data), 7))
    yield data + b"x"
    yield data + b"x" * 200000
    yield struct.pack("<Q", 1 << 63) + data[8:]
    for programs in ({"vmm": RETURN_ALLOW, "vcpu": RETURN_ALLOW},
                     {"vmm": RETURN_ALLOW, "vcpu": RETURN_ALLOW, "other": RETURN_ALLOW},
                     {"vmm": RETURN_ALLOW, "vcpu": RETURN_ALLOW, "api": b""},
                     {"vmm": RETURN_ALLOW, "vcpu": RETURN_ALLOW, "api": RETURN_ALLOW * 4097},
                     {"vmm": RETURN_ALLOW, "vcpu": RETURN_ALLOW, "a" * 17: RETURN_ALLOW}):
        with open(filter_file(tmp_path / "f", **programs), "rb") as f:
            yield f.read()
    with open(filter_file(tmp_path / "f", vmm=RETURN_ALLOW, vcpu=RETURN_ALLOW), "rb") as f:
        once = f.read()[8:]
    yield struct.pack("<Q", 3) + once + once[:8 + 3 + 8 + 8]


def test_what_is_not_three_filters_is_refused(tmp_path):
    path = tmp_path / "broken"
    for data in broken_files(tmp_path):
        path.write_bytes(data)
        done = complete(BINARY, "--seccomp-filter", path)
        assert done.returncode == 1, data
        assert f"Seccomp error: Filter deserialization failed: {path} does not have the three " \
            "filters vmm, api and vcpu" in done.stderr


# What they leave: calls that other tests don't bring about while a guest runs


def kill_thread(vm, tid, number):
    assert LIBC.syscall(TGKILL, vm.process.pid, tid, number) == 0


@needs_kvm
def test_large_requests_and_too_many_connections_are_served_while_a_guest_runs():
    with Mayfly("--http-api-max-payload-size", str(8 << 20)) as vm:
        boot(vm)
        for path in ("\n" * 2_000_000, "x" * 200_000, "x" * 5_000_000):
            body = {"drive_id": "none", "path_on_host": path}
            assert vm.request("PATCH", "/drives/none", body)[0] == 400
        clients = [vm.connect() for _ in range(11)]
        assert b"503" in clients[-1].recv(1000)
        for client in clients:
            client.close()


@needs_kvm
def test_sigpipe_is_survived_while_a_guest_runs(vm):
    boot(vm)
    kill_thread(vm, vm.process.pid, signal.SIGPIPE)
    assert "mayfly_signals_sigpipe_total 1\n" in vm.request("GET", "/metrics")[2]


@needs_kvm
def test_a_fatal_signal_on_a_vcpu_restores_terminal_and_standard_output():
    master, slave = pty.openpty()
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    before = termios.tcgetattr(slave)
    try:
        with Mayfly("--level", "Off", stdin=slave, stdout=theirs) as vm:
            vm.ok("PUT", "/boot-source", {"kernel_image_path": f"{GUESTS}/exit"})
            vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
            for letter in b"ending": # the guest runs
                assert ours.recv(1)[0] == letter
            assert termios.tcgetattr(slave) != before
            assert not os.get_blocking(theirs.fileno())
            kill_thread(vm, threads(vm)["fc_vcpu 0"][0], signal.SIGSEGV)
            assert vm.wait() == 150
            assert termios.tcgetattr(slave) == before
            assert os.get_blocking(theirs.fileno())
    finally:
        for fd in (master, slave):
            os.close(fd)
        ours.close()
        theirs.close()


@needs_kvm
def test_a_guests_end_restores_standard_output():
    ours, theirs = socket.socketpair()
    with ours, theirs, Mayfly("--level", "Off", stdout=theirs) as vm:
        vm.ok("PUT", "/boot-source",
              {"kernel_image_path": f"{GUESTS}/exit", "boot_args": "reset"})
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        assert vm.wait() == 0
        assert os.get_blocking(theirs.fileno())


@needs_kvm
@pytest.mark.parametrize("engine", ["Sync", "Async"])
def test_a_thin_disk_is_trimmed(tmp_path, engine):
    path = tmp_path / "disk"
    with open(path, "wb") as disk:
        disk.truncate(1 << 20)
        disk.write(b"x" * 65536)
    run("trim", drives=[drive(path, io_engine=engine)])
    with open(path, "rb") as disk:
        assert disk.read(65536) == b"\0" * 65536
