"""What the host refuses: one system call of a running VMM fails, or does less than it was asked
(faults.py), at the process's start, while drives are configured, at each call of a microVM's start, and
while devices work. The client gets the reason and nothing is left behind, or nobody notices.
"""

import collections
import contextlib
import os
import re
import signal
import subprocess

import pytest

import mayfly
import taps
from faults import (STRERROR, UNFILTERED, descriptors, injected, needs_strace, traced,
                    wait_for_fault)
from guests import Machine, drive, make_disk, needs_kvm

SECTORS = 256
THIN_BYTES = 1 << 20 # of a disk with a hole, which can be discarded
LIMITS = {"ops": {"size": 1, "refill_time": 1}}

pytestmark = needs_strace


# The start of a microVM.

# Which calls of the main thread fail, and how. What libc does to its own threads' stacks and signals
# is left alone, as is what can't fail.
START_FAULTS = {
    "openat": ["EMFILE"], "ioctl": ["ENOMEM"], "mmap": ["ENOMEM"], "epoll_ctl": ["ENOMEM"],
    "eventfd2": ["EMFILE"], "timerfd_create": ["EMFILE"], "pread64": ["EIO", "EINTR"],
    "newfstatat": ["EIO"], "getrandom": ["EAGAIN", "EINTR"], "clone3": ["EAGAIN"],
    "munmap": ["ENOMEM"], "write": ["ENOSPC", "EAGAIN"], "accept4": ["EINTR", "EMFILE"],
    "epoll_wait": ["EINTR"], "read": ["EINTR"], "writev": ["EINTR", "EAGAIN"],
}
with open(mayfly.BINARY, "rb") as binary:
    IS_SANITIZED = b"__asan_init" in binary.read()
if IS_SANITIZED: # its own allocator can't go on without memory
    del START_FAULTS["mmap"], START_FAULTS["munmap"]

# Of these nobody notices one that fails.
HARMLESS = {"munmap", "write", "accept4", "epoll_wait", "read", "writev"}


@contextlib.contextmanager
def configured(tmp_path):
    """Two disks, a vsock, and, where it may be made, a tap in a namespace of its own."""
    disk = make_disk(tmp_path / "disk", SECTORS)
    drives = [drive(disk), drive(disk, "async", io_engine="Async", is_read_only=True,
                                 rate_limiter=LIMITS)]
    options = {"before_exec": taps.unshare_network} if taps.CAN_MAKE_TAPS else {}
    with Machine("smp", vcpus=2, drives=drives, flags=UNFILTERED, **options) as machine:
        machine.configure()
        # With a template of its own a start does not take the VM that was made ahead.
        machine.ok("PUT", "/cpu-config", {"kvm_capabilities": ["0"]})
        machine.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": f"{machine.directory}/v"})
        if options:
            machine.ok("PUT", "/network-interfaces/eth0",
                       {"iface_id": "eth0", "host_dev_name": "tap0", "rx_rate_limiter": LIMITS})
        yield machine


def calls_of_a_start(tmp_path):
    """How often each system call is made from the request to its answer."""
    with configured(tmp_path) as machine, traced(machine, tmp_path) as log:
        assert machine.instance_start()[0] == 204
        machine.finish()
    until_answer, answer, _ = log.read_text().partition("writev(")
    return collections.Counter(re.findall(r"^(\w+)\(", until_answer + answer, re.M))


def answer_of(machine):
    """Status and text; None where the connection was cut before."""
    try:
        status, _, body = machine.instance_start()
    except ConnectionError:
        return None, ""
    return status, body["fault_message"] if body else ""


def start_with_fault(tmp_path, call, error, which):
    """One start with one fault; what was wrong with it, or None."""
    with configured(tmp_path) as machine:
        before = descriptors(machine)
        with traced(machine, tmp_path, f"{call}:error={error}:when={which}") as log:
            status, text = answer_of(machine)
            # A request that comes together with its connection saves a wait before the answer. The
            # next wait is behind it.
            if call == "epoll_wait":
                wait_for_fault(log)
            with contextlib.suppress(subprocess.TimeoutExpired):
                machine.wait(0 if status == 204 else 0.1)
        if not injected(log):
            return "the fault did not happen"
        if status == 204:
            machine.finish()
            return None
        if call in HARMLESS:
            return f"{status} {text}"
        if status == 400 and not re.search(r"os error \d+\)|Kernel Loader|lacks the capab", text):
            return f"no reason in {text!r}"
        try:
            if machine.ok("GET", "/")["state"] != "Not started":
                return "not as it was before"
        except (AssertionError, ConnectionError): # threads had begun to run: it ends
            return None if machine.wait() == 1 and status == 400 else f"exit code {machine.wait()}"
        if left := collections.Counter(descriptors(machine)) - collections.Counter(before):
            return f"left open: {left}"
        if machine.instance_start()[0] != 204:
            return "does not start afterwards"
        machine.finish()
    return None


@needs_kvm
def test_a_start_without_what_it_needs_says_why_and_leaves_nothing(tmp_path):
    calls = calls_of_a_start(tmp_path)
    assert calls["ioctl"] > 30 and calls["clone3"] == 2
    wrong = {}
    for call, errors in START_FAULTS.items():
        assert calls[call] > 0, call
        for error in errors:
            for which in range(1, calls[call] + 1):
                result = start_with_fault(tmp_path, call, error, which)
                if result:
                    wrong[f"{call} {which} {error}"] = result
    assert not wrong


# Configuration.

@pytest.mark.parametrize("call, error, engine", [
    ("openat", "EMFILE", "Sync"), ("openat", "EINTR", "Sync"), ("openat", "EIO", "Sync"),
    ("lseek", "EIO", "Sync"), ("newfstatat", "EIO", "Sync"), ("fcntl", "EMFILE", "Sync"),
    ("io_uring_setup", "ENOMEM", "Async"), ("io_uring_setup", "EMFILE", "Async"),
    ("io_uring_setup", "ENOSYS", "Async"), ("io_uring_register", "ENOMEM", "Async"),
    *([] if IS_SANITIZED else [("mmap", "ENOMEM", "Async")]),
])
def test_a_drive_that_cannot_be_opened_is_refused_whole(tmp_path, call, error, engine):
    config = drive(make_disk(tmp_path / "disk", SECTORS), io_engine=engine)
    with mayfly.Mayfly(*UNFILTERED) as vm:
        before = descriptors(vm)
        with traced(vm, tmp_path, f"{call}:error={error}:when=1") as log:
            status, _, body = vm.request("PUT", "/drives/disk", config)
        assert len(injected(log)) == 1
        assert status == 400 and STRERROR[error] in body["fault_message"]
        assert vm.ok("GET", "/vm/config")["drives"] == []
        assert descriptors(vm) == before
        vm.ok("PUT", "/drives/disk", config)


@pytest.mark.parametrize("path, body", [
    ("/boot-source", {"kernel_image_path": "/bin/true"}),
    ("/logger", {"log_path": "{}/log"}),
    ("/metrics", {"metrics_path": "{}/metrics"}),
])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path, path, body):
    body = {name: value.format(tmp_path) for name, value in body.items()}
    with mayfly.Mayfly(*UNFILTERED) as vm:
        before = descriptors(vm)
        with traced(vm, tmp_path, "openat:error=EMFILE:when=1"):
            status, _, answer = vm.request("PUT", path, body)
        assert status == 400 and STRERROR["EMFILE"] in answer["fault_message"]
        assert descriptors(vm) == before
        vm.ok("PUT", path, body)


# The start of the process.

@pytest.mark.parametrize("call, error", [
    ("socket", "EMFILE"), ("bind", "EACCES"), ("listen", "ENOMEM"), ("epoll_create1", "EMFILE"),
    ("epoll_ctl", "ENOMEM"), ("openat", "EMFILE"),
])
def test_a_process_that_cannot_begin_ends_with_the_reason(tmp_path, call, error):
    socket = tmp_path / "api.sock"
    options = ["-e", f"inject={call}:error={error}"]
    if call == "openat": # the loader's, in a build that has one, are left alone
        options += ["-P", str(tmp_path / "log")]
    result = mayfly.complete("strace", "-o", tmp_path / "strace", *options, mayfly.BINARY,
                             *UNFILTERED, "--api-sock", socket, "--log-path", tmp_path / "log")
    assert injected(tmp_path / "strace")
    assert result.returncode == 1
    assert re.fullmatch(rf"Error: .*{re.escape(STRERROR[error])}.*\n", result.stderr)


# Devices at work.

@contextlib.contextmanager
def at_work(tmp_path, engine="Sync"):
    disk = make_disk(tmp_path / "disk", SECTORS)
    os.truncate(disk, THIN_BYTES)
    drives = [drive(disk, io_engine=engine, cache_type="Writeback")]
    with Machine("requests", drives=drives, stdin=subprocess.PIPE, flags=UNFILTERED) as machine:
        machine.boot()
        machine.wait_for_output("ready\n")
        yield machine
        machine.send(b"q")
        machine.finish()


def answer_to(machine, letter):
    seen = len(machine.output())
    machine.send(letter.encode())
    mayfly.wait_until(lambda: "\n" in machine.output()[seen:] or machine.has_ended(), "an answer")
    return machine.output()[seen:].strip()


OK, IO_ERROR, UNSUPPORTED = 0, 1, 2


# What a vCPU's thread tries by itself and can't, the event loop does by another call.
TRIES = "preadv2:error=EAGAIN", "pwritev2:error=EOPNOTSUPP"


@contextlib.contextmanager
def tried_in_vain(machine, tmp_path):
    """Which a call that moves nothing, and so is no fault of the disk's, must not change."""
    directory = tmp_path / "vcpu"
    directory.mkdir()
    with traced(machine, directory, *TRIES, thread=vcpu_of(machine)) as log:
        yield log


def vcpu_of(machine):
    return sorted(map(int, os.listdir(f"/proc/{machine.process.pid}/task")))[1]


@needs_kvm
@pytest.mark.parametrize("letter, call, error, status", [
    ("r", "preadv", "EIO", IO_ERROR), ("r", "preadv", "EINTR", OK),
    ("w", "pwritev", "ENOSPC", IO_ERROR), ("w", "pwritev", "EIO", IO_ERROR),
    ("w", "pwritev", "EINTR", OK), ("f", "fdatasync", "EIO", IO_ERROR),
    ("f", "fdatasync", "ENOSPC", IO_ERROR), ("d", "fallocate", "EOPNOTSUPP", UNSUPPORTED),
    ("d", "fallocate", "EINTR", OK), ("z", "fallocate", "ENOSPC", IO_ERROR),
    ("r", "preadv", "EAGAIN", OK), ("w", "pwritev", "EAGAIN", OK), ("f", "fdatasync", "EINTR", OK),
    ("f", "fdatasync", "EAGAIN", OK), ("d", "fallocate", "EAGAIN", OK),
    ("r", "epoll_wait", "EINTR", OK), ("r", "read", "EINTR", OK), ("r", "read", "EAGAIN", OK),
])
def test_a_request_tells_the_guest_what_became_of_it(tmp_path, letter, call, error, status):
    with at_work(tmp_path) as machine, tried_in_vain(machine, tmp_path):
        with traced(machine, tmp_path, f"{call}:error={error}:when=1") as log:
            assert answer_to(machine, letter) == f"{letter} {status}"
        assert len(injected(log)) == 1
        assert answer_to(machine, "r").startswith("r 0")


@needs_kvm
@pytest.mark.parametrize("letter, call, what", [
    ("r", "preadv", "read"), ("w", "pwritev", "write"), ("f", "fdatasync", "flush"),
    ("d", "fallocate", "discard"), ("z", "fallocate", "write-zeroes"),
])
def test_a_disk_that_fails_is_told_to_the_log(tmp_path, letter, call, what):
    with at_work(tmp_path) as machine, tried_in_vain(machine, tmp_path):
        with traced(machine, tmp_path, f"{call}:error=EIO") as log:
            assert answer_to(machine, letter) == f"{letter} {IO_ERROR}"
        assert len(injected(log)) == 1
        line = f"Disk {tmp_path}/disk: a {what} failed: {STRERROR['EIO']}\n"
        assert machine.log().count(line) == 1, machine.log()


@needs_kvm
@pytest.mark.parametrize("letter, call", [("r", "preadv"), ("w", "pwritev")])
def test_a_call_that_is_put_off_for_ever_fails_its_request(tmp_path, letter, call):
    with at_work(tmp_path) as machine, tried_in_vain(machine, tmp_path):
        with traced(machine, tmp_path, f"{call}:error=EAGAIN") as log:
            assert answer_to(machine, letter) == f"{letter} {IO_ERROR}"
        assert 10 < len(injected(log)) < 100
        assert answer_to(machine, "r") == "r 0"


@needs_kvm
@pytest.mark.parametrize("letter, call", [("r", "preadv"), ("w", "pwritev")])
def test_a_transfer_that_was_cut_short_goes_on_where_it_stopped(tmp_path, letter, call):
    with at_work(tmp_path) as machine, tried_in_vain(machine, tmp_path):
        with traced(machine, tmp_path, f"{call}:retval=100:when=1") as log:
            assert answer_to(machine, letter) == f"{letter} 0"
        moves = re.findall(rf"^{call}\(.*iov_len=(\d+)}}\], 1, (\d+)\)", log.read_text(), re.M)
        assert moves == [("1024", "2048"), ("924", "2148")]


@needs_kvm
def test_a_file_that_ends_early_is_an_error(tmp_path):
    with at_work(tmp_path) as machine, tried_in_vain(machine, tmp_path), \
         traced(machine, tmp_path, "preadv:retval=0:when=1"):
        assert answer_to(machine, "r") == "r 1"


@needs_kvm
@pytest.mark.parametrize("letter, call", [("r", "preadv"), ("w", "pwritev")])
@pytest.mark.parametrize("fault", ["error=EAGAIN", "error=EOPNOTSUPP", "error=EIO", "retval=0"])
def test_what_a_vcpu_tries_in_vain_is_no_failure(tmp_path, letter, call, fault):
    with at_work(tmp_path) as machine:
        with traced(machine, tmp_path, f"{call}2:{fault}", thread=vcpu_of(machine)) as log:
            assert answer_to(machine, letter) == f"{letter} 0"
        assert len(injected(log)) == 1
        assert "failed" not in machine.log()


@needs_kvm
def test_a_vcpu_is_never_in_a_disks_wait(tmp_path):
    """The disk does not answer until the guest has done its other work."""
    with at_work(tmp_path) as machine, tried_in_vain(machine, tmp_path) as tries:
        with traced(machine, tmp_path, "preadv:delay_enter=3600000000"):
            machine.send(b"b")
            machine.wait_for_output("at work\n" * 10)
            assert len(injected(tries)) == 1
        machine.wait_for_output("b 0\n")


@needs_kvm
@pytest.mark.parametrize("error", ["EAGAIN", "EBUSY", "EINTR", "ENOMEM"])
@pytest.mark.parametrize("letter", ["r", "f"])
def test_a_ring_that_the_host_does_not_take_is_submitted_again(tmp_path, letter, error):
    with at_work(tmp_path, "Async") as machine:
        with traced(machine, tmp_path, f"io_uring_enter:error={error}:when=1..3") as log:
            assert answer_to(machine, letter) == f"{letter} 0"
        assert len(injected(log)) == 3


@needs_kvm
@pytest.mark.parametrize("error", ["EINTR", "EAGAIN"])
def test_a_vcpu_that_was_interrupted_goes_on(tmp_path, error):
    with at_work(tmp_path) as machine:
        with traced(machine, tmp_path, f"ioctl:error={error}:when=1..9",
                    thread=vcpu_of(machine)) as log:
            assert answer_to(machine, "r") == "r 0"
        assert len(injected(log)) == 9


@needs_kvm
@pytest.mark.parametrize("error", ["EAGAIN", "ENOSPC", "EIO"])
def test_output_that_the_host_does_not_take_is_dropped_and_counted(tmp_path, error):
    with at_work(tmp_path) as machine:
        with traced(machine, tmp_path, f"write:error={error}:when=1",
                    thread=vcpu_of(machine)) as log:
            assert answer_to(machine, "r") == "0" # of "r 0": the blank is the second byte
        assert len(injected(log)) == 1


@needs_kvm
@pytest.mark.parametrize("error, is_told", [("EIO", True), ("EINTR", False)])
def test_a_disk_that_cannot_be_synced_in_the_end_is_told_to_the_log(tmp_path, error, is_told):
    disk = drive(make_disk(tmp_path / "disk", SECTORS), cache_type="Writeback")
    with Machine("requests", drives=[disk], stdin=subprocess.PIPE, flags=UNFILTERED) as machine:
        machine.boot()
        machine.wait_for_output("ready\n")
        assert answer_to(machine, "w") == "w 0"
        with traced(machine, tmp_path, f"fdatasync:error={error}:when=1") as log:
            machine.send(b"q")
            machine.finish()
        assert len(injected(log)) == 1
        assert log.read_text().count("fdatasync(") == (1 if is_told else 2)
        assert ("cannot sync: I/O error" in machine.log()) == is_told


# What the kernel can't refuse, however short of things it is. If it did, a guest or a client would
# wait for ever; so the process ends, and says why.

def ends_with_a_broken_invariant(machine):
    assert machine.wait() == -signal.SIGABRT
    return re.search(r"broken invariant: (\w+)\(", machine.log())[1]


@needs_kvm
def test_a_timer_that_cannot_be_set_ends_the_process_with_the_reason(tmp_path):
    limits = {"ops": {"size": 1, "refill_time": 1000000}} # the second request waits
    disk = drive(make_disk(tmp_path / "disk", SECTORS), rate_limiter=limits)
    with Machine("requests", drives=[disk], stdin=subprocess.PIPE, flags=UNFILTERED) as machine:
        machine.boot()
        machine.wait_for_output("ready\n")
        with traced(machine, tmp_path, "timerfd_settime:error=ECANCELED:when=1",
                    thread=vcpu_of(machine)) as log:
            machine.send(b"rr")
            assert ends_with_a_broken_invariant(machine) == "timerfd_settime"
        assert len(injected(log)) == 1


@needs_kvm
def test_a_descriptor_that_cannot_be_watched_otherwise_ends_the_process_with_the_reason(tmp_path):
    """The API's listener falls asleep where it can't accept: the first change of an interest."""
    with Machine("requests", drives=[drive(make_disk(tmp_path / "disk", SECTORS))],
                 stdin=subprocess.PIPE, flags=UNFILTERED) as machine:
        machine.boot()
        machine.wait_for_output("ready\n")
        with traced(machine, tmp_path, "accept4:error=EMFILE:when=1",
                    "epoll_ctl:error=ENOMEM:when=1") as log:
            with machine.connect():
                assert ends_with_a_broken_invariant(machine) == "epoll_ctl"
        assert [line.partition("(")[0] for line in injected(log)] == ["accept4", "epoll_ctl"]
        assert "EPOLL_CTL_MOD" in log.read_text()
