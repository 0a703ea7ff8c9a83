"""Drives as client, guest and host see them together; the test guest is tests/guests/block_model.

MAYFLY_REQUESTS sets how many random requests a guest makes (2000: half a second; millions take
their time), MAYFLY_SEED which.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import time

import pytest

import mayfly
from faults import needs_strace
from guests import Machine, drive, make_disk, needs_kvm, printed, run, tmpfs

pytestmark = needs_kvm

REQUESTS = int(os.environ.get("MAYFLY_REQUESTS", "2000"))
SEED = int(os.environ.get("MAYFLY_SEED", "1"))
SECTORS = 4096
ENGINES = ["Sync", "Async"]
CACHES = ["Unsafe", "Writeback"]
NOT_FOUND = "Error manipulating the backing file: No such file or directory (os error 2)"
LIMITS = {"bandwidth": {"size": 1 << 20, "one_time_burst": 5, "refill_time": 100},
          "ops": {"size": 100, "one_time_burst": None, "refill_time": 10}}


def empty_disk(path, sectors=SECTORS):
    """All allocated: a disk with holes would be offered discard."""
    path.write_bytes(bytes(sectors * 512))
    return path


def sparse_disk(path, sectors=SECTORS):
    with open(path, "wb") as disk:
        disk.truncate(sectors * 512)
    return path


def model(disk, requests=REQUESTS, **members):
    return Machine("block_model", f"requests={requests} seed={SEED}",
                   drives=[drive(disk, **members)])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [empty_disk, sparse_disk])
def test_random_requests_find_what_the_model_says(tmp_path, make, engine, cache):
    with model(make(tmp_path / "disk"), io_engine=engine, cache_type=cache) as machine:
        machine.boot().finish(timeout=60 + REQUESTS / 50)


@pytest.mark.parametrize("engine", ENGINES)
def test_limits_delay_requests_and_lose_none(tmp_path, engine):
    limits = {"ops": {"size": 200, "refill_time": 20},
              "bandwidth": {"size": 1 << 20, "refill_time": 20}}
    with model(empty_disk(tmp_path / "disk"), 500, io_engine=engine,
               rate_limiter=limits) as machine:
        machine.boot().finish()


@pytest.mark.parametrize("engine", ENGINES)
def test_events_of_a_queue_are_what_the_guest_notified(tmp_path, engine):
    """One request after the other, of which all but the first wait for the limiter."""
    metrics = tmp_path / "metrics"
    disk = drive(empty_disk(tmp_path / "disk"), io_engine=engine,
                 rate_limiter={"ops": {"size": 1, "refill_time": 50}})
    with Machine("requests", flags=("--metrics-path", str(metrics)), drives=[disk],
                 stdin=subprocess.PIPE) as machine:
        machine.boot()
        machine.process.stdin.write(b"wwwwwq")
        machine.process.stdin.flush()
        machine.finish()
    block = [json.loads(line)["block_disk"] for line in metrics.read_text().splitlines()]
    assert sum(line["write_count"] for line in block) == 5
    assert sum(line["rate_limiter_event_count"] for line in block) > 0
    assert sum(line["queue_event_count"] for line in block) == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_patches_and_pauses_under_load_lose_no_request(tmp_path, engine):
    """The same file each time: whatever the model wrote must still be there."""
    disk = empty_disk(tmp_path / "disk")
    with model(disk, io_engine=engine) as machine:
        machine.boot()
        patches = 0
        while machine.process.poll() is None:
            with contextlib.suppress(OSError, AssertionError):  # the guest ends meanwhile
                machine.ok("PATCH", "/drives/disk", {"drive_id": "disk", "path_on_host": str(disk)})
                patches += 1
                machine.ok("PATCH", "/drives/disk", {"drive_id": "disk", "rate_limiter": {
                    "ops": {"size": patches % 3 * 50, "refill_time": 5}}})
                for state in ("Paused", "Resumed"):
                    machine.ok("PATCH", "/vm", {"state": state})
        machine.finish()
        assert patches > 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_host_file_system_is_an_io_error(tmp_path, engine):
    with tmpfs(tmp_path / "tiny", "size=256k") as mount:
        disk = sparse_disk(mount / "disk")
        with Machine("block_model", "full", drives=[drive(disk, io_engine=engine)]) as machine:
            machine.boot().finish()


@contextlib.contextmanager
def loop_device(path, *options):
    made = subprocess.run(["losetup", "--find", "--show", *options, path],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    if made.returncode:
        pytest.skip("A BLOCK DEVICE WAS NOT TESTED: a loop device takes root")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_block_device_is_a_disk(tmp_path, engine):
    with loop_device(make_disk(tmp_path / "disk", 32768)) as device:
        lines = run("block", "sectors=32768 writeback",
                    drives=[drive(device, io_engine=engine, cache_type="Writeback")])
        stat = os.stat(device)
        assert printed(lines, "id") == f"{stat.st_dev}{stat.st_rdev}{stat.st_ino}"[:20]


@pytest.mark.parametrize("options", [[], ["--read-only"]])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_read_only_block_device_is_never_written(tmp_path, engine, options):
    """By what the guest is told, by our refusal, and by how the device is opened."""
    disk = make_disk(tmp_path / "backing", 32768)
    before = disk.read_bytes()
    with loop_device(disk, *options) as device:
        members = {"io_engine": engine, "is_read_only": True}
        run("block", "sectors=32768 readonly", drives=[drive(device, **members)])
        with Halted(tmp_path) as vm:
            vm.ok("PUT", "/drives/loop", drive(device, "loop", **members))
            flags = [int(re.search(r"^flags:\s*(\d+)", fd.read_text(), re.M)[1], 8)
                     for fd in pathlib.Path(f"/proc/{vm.process.pid}/fdinfo").iterdir()
                     if os.path.realpath(f"/proc/{vm.process.pid}/fd/{fd.name}") == device]
            assert flags and all(each & os.O_ACCMODE == os.O_RDONLY for each in flags)
    assert disk.read_bytes() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_flushed_survives_a_kill(tmp_path, engine):
    disk = empty_disk(tmp_path / "disk")
    with Machine("block_model", "flushes",
                 drives=[drive(disk, io_engine=engine, cache_type="Writeback")]) as machine:
        factor = 0x9e3779b97f4a7c15
        machine.boot().wait_for_output(f"flushed {factor}\n")
        machine.process.send_signal(signal.SIGKILL)
        machine.wait()
        words = [int(line.split()[1]) for line in machine.output().splitlines(True)
                 if line.startswith("flushed ") and line.endswith("\n")]
        first = struct.unpack("<Q", disk.read_bytes()[:8])[0]
        assert words == [(i + 1) * factor % 2**64 for i in range(len(words))]
        assert first in (words[-1], *((len(words) + 1 + n) * factor % 2**64 for n in range(3)))


def test_an_orderly_end_finishes_what_is_under_way(tmp_path):
    """The guest asks for 48 writes and flushes, and in the next instruction for a reset. The Async
    engine takes up all of them at once; Sync never has more than one under way."""
    disk = empty_disk(tmp_path / "disk")
    metrics = tmp_path / "metrics"
    with Machine("block_model", "leaves", flags=("--metrics-path", str(metrics)),
                 drives=[drive(disk, io_engine="Async", cache_type="Writeback")]) as machine:
        machine.boot()
        assert machine.wait() == 0, machine.output()
    block = [json.loads(line)["block"] for line in metrics.read_text().splitlines()]
    assert sum(line["write_count"] for line in block) == 48
    assert sum(line["flush_count"] for line in block) == 48
    words = struct.unpack(f"<{768 * 64}Q", disk.read_bytes()[:768 * 512])[::64]
    assert words == tuple((sector << 32 | 1) * 0x9e3779b97f4a7c15 % 2**64 for sector in range(768))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_driver_never_reads_half_of_a_new_capacity(tmp_path, engine):
    """Disks of 1 and of 2**32 + 2 sectors: both halves of the capacity differ."""
    paths = [sparse_disk(tmp_path / "small", 1), sparse_disk(tmp_path / "large", 2**32 + 2)]
    with Machine("block_model", "changes=100",
                 drives=[drive(paths[0], io_engine=engine)]) as machine:
        machine.boot()
        for i in range(10000):
            if machine.process.poll() is not None:
                break
            with contextlib.suppress(OSError, AssertionError):  # the guest ends meanwhile
                machine.ok("PATCH", "/drives/disk",
                           {"drive_id": "disk", "path_on_host": str(paths[(i + 1) % 2])})
        machine.finish()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_driver_finds_each_engine_the_same(tmp_path, engine):
    disk = make_disk(tmp_path / "disk", 32768)
    run("block", "sectors=32768 writeback",
        drives=[drive(disk, io_engine=engine, cache_type="Writeback")])


def system_calls(machine):
    """What a machine calls, and how often, from its start to its end."""
    summary = os.path.join(machine.directory, "calls")
    with subprocess.Popen(["strace", "-f", "-c", "-U", "calls,name", "-o", summary,
                           "-p", str(machine.process.pid)], stderr=subprocess.DEVNULL) as strace:
        end = time.monotonic() + 10
        while strace.poll() is None and time.monotonic() < end:
            with open(f"/proc/{machine.process.pid}/status", encoding="ascii") as status:
                if "TracerPid:\t0\n" not in status.read():
                    break
        if strace.poll() is not None:
            pytest.skip("SYSTEM CALLS WERE NOT COUNTED: strace may not attach here")
        machine.instance_start()
        machine.finish()
    with open(summary, encoding="ascii") as lines:
        rows = [line.split() for line in lines]
    return {row[1]: int(row[0]) for row in rows if len(row) == 2 and row[0].isdigit()}


@needs_strace
def test_flushes_sync_and_batches_are_one_call(tmp_path):
    """The guest flushes once, and makes a batch of 80 requests among some 150."""
    calls = {}
    for engine in ENGINES:
        for cache in CACHES:
            disk = make_disk(tmp_path / "disk", 32768)
            with Machine("block", "sectors=32768 " + ("writeback" if cache == "Writeback" else ""),
                         drives=[drive(disk, io_engine=engine, cache_type=cache)]) as machine:
                machine.configure()
                calls[engine, cache] = system_calls(machine)
    syncs = {key: count.get("fdatasync", 0) for key, count in calls.items()}
    # One for the flush, which the Async engine does in its ring, and one at the end.
    assert syncs == {("Sync", "Unsafe"): 0, ("Sync", "Writeback"): 2,
                     ("Async", "Unsafe"): 0, ("Async", "Writeback"): 1}
    for cache in CACHES:
        sync, asynchronous = calls["Sync", cache], calls["Async", cache]
        assert "preadv" not in asynchronous and "pwritev" not in asynchronous
        moves = sum(sync.get(call, 0) for call in ("preadv", "preadv2", "pwritev", "pwritev2"))
        assert asynchronous["io_uring_enter"] < moves - 60


def wake_ups(machine):
    """How often the main thread has gone to sleep."""
    pid = machine.process.pid
    with open(f"/proc/{pid}/task/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", status.read(), re.M)[1])


def test_notifications_without_end_cost_the_vcpu_and_not_the_event_loop(tmp_path):
    """10000 of nothing, after a request that the vCPU has served."""
    metrics = tmp_path / "metrics"
    with Machine("requests", flags=("--metrics-path", str(metrics)), stdin=subprocess.PIPE,
                 drives=[drive(empty_disk(tmp_path / "disk"))]) as machine:
        machine.boot()
        machine.send(b"r")
        machine.wait_for_output("r 0")
        before = wake_ups(machine)
        machine.send(b"n")
        machine.wait_for_output("n 0")
        assert wake_ups(machine) - before < 100
        machine.send(b"q")
        machine.finish()
    block = [json.loads(line)["block_disk"] for line in metrics.read_text().splitlines()]
    assert sum(line["no_avail_buffer"] for line in block) >= 10000
    assert sum(line["queue_event_count"] for line in block) >= 10001


def test_sixteen_disks_work(tmp_path):
    disk = make_disk(tmp_path / "disk", 32768)
    drives = [drive(make_disk(tmp_path / f"d{i}", 8), f"d{i}", io_engine=ENGINES[i % 2])
              for i in range(16)]
    run("block", "sectors=32768", drives=[drive(disk), *drives])


# The API.

class Halted(Machine):
    """A guest that does nothing with its disk."""

    def __init__(self, tmp_path, **members):
        super().__init__("exit", drives=[drive(empty_disk(tmp_path / "disk"), **members)])

    def shown(self):
        return self.ok("GET", "/vm/config")["drives"][0]

    def patch(self, **members):
        return self.ok("PATCH", "/drives/disk", {"drive_id": "disk", **members})

    def refused(self, drive_id="disk", **members):
        before = self.ok("GET", "/vm/config")
        status, _, answer = self.request("PATCH", f"/drives/{drive_id}",
                                         {"drive_id": drive_id, **members})
        assert status == 400 and self.ok("GET", "/vm/config") == before
        return answer["fault_message"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_patch_changes_file_and_limits(tmp_path, engine):
    other = str(empty_disk(tmp_path / "other", 8))
    with Halted(tmp_path, io_engine=engine) as vm:
        vm.boot()
        vm.patch(path_on_host=other)
        assert vm.shown()["path_on_host"] == other and vm.shown()["io_engine"] == engine
        vm.patch(rate_limiter=LIMITS)
        assert vm.shown()["rate_limiter"] == LIMITS
        vm.patch(rate_limiter={"ops": {"size": 0, "refill_time": 0}})
        assert vm.shown()["rate_limiter"] == {**LIMITS, "ops": None}
        vm.patch(path_on_host=other, rate_limiter={"bandwidth": {"size": 0, "refill_time": 0}})
        assert vm.shown()["rate_limiter"] is None
        vm.ok("PATCH", "/vm", {"state": "Paused"})
        vm.patch(path_on_host=str(tmp_path / "disk"))
        vm.ok("PATCH", "/vm", {"state": "Resumed"})


def test_a_patch_that_can_not_be_done_changes_nothing(tmp_path):
    refusal = "Drive config error: Unable to patch the block device: "
    end = " Please verify the request arguments."
    with Halted(tmp_path) as vm:
        assert vm.request("PATCH", "/drives/disk", {"drive_id": "disk"})[2]["fault_message"] == (
            "The requested operation is not supported before starting the microVM.")
        vm.boot()
        assert vm.refused() == (
            f"{refusal}Block: Running method expected different backend.{end}")
        assert vm.refused(path_on_host="/nowhere", rate_limiter=LIMITS) == (
            f"{refusal}Block: Virtio backend error: {NOT_FOUND} /nowhere{end}")
        assert vm.refused("other", path_on_host="/dev/null") == (
            f"{refusal}Failed perform action on device: Device not found{end}")
        for member in ("is_read_only", "io_engine", "is_root_device", "discard"):
            assert f"unknown field `{member}`" in vm.refused(**{member: None})


def test_a_block_device_that_the_host_keeps_from_being_written_is_refused(tmp_path):
    """When it is configured, and in place of another file, under the filters."""
    reason = ("Virtio backend error: Error manipulating the backing file: Read-only file system "
              "(os error 30) ")
    with loop_device(empty_disk(tmp_path / "backing"), "--read-only") as device:
        with Halted(tmp_path) as vm:
            status, _, answer = vm.request("PUT", "/drives/loop", drive(device, "loop"))
            assert status == 400 and reason + device in answer["fault_message"], answer
            assert vm.ok("GET", "/vm/config")["drives"] == []
            vm.boot()
            assert reason + device in vm.refused(path_on_host=device)


# Whether a guest may discard.

@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make, member, is_offered", [
    (empty_disk, {}, False), (empty_disk, {"discard": None}, False),
    (empty_disk, {"discard": False}, False), (empty_disk, {"discard": True}, True),
    (sparse_disk, {}, True), (sparse_disk, {"discard": False}, False),
    (sparse_disk, {"discard": True}, True),
])
def test_a_drive_is_offered_discard_as_its_owner_says(tmp_path, engine, make, member, is_offered):
    with Machine("trim", drives=[drive(make(tmp_path / "disk"), io_engine=engine,
                                       **member)]) as machine:
        machine.configure()
        shown = machine.ok("GET", "/vm/config")["drives"][0]
        assert shown.get("discard") == member.get("discard")
        assert ("discard" in shown) == (member.get("discard") is not None)
        machine.instance_start()
        machine.wait()
        lines = machine.output().splitlines()
    for name in ("a_discard_succeeds", "a_write_zeroes_succeeds"):
        assert (f"ok {name}" if is_offered else f"not ok {name}: got 0x2, wanted 0x0") in lines


@pytest.mark.parametrize("member, is_zeroed", [({}, False), ({"discard": True}, True)])
def test_what_the_owner_says_of_discard_holds_for_another_file(tmp_path, member, is_zeroed):
    """A thin disk that becomes one without holes."""
    other = make_disk(tmp_path / "other", SECTORS)
    with Machine("requests", drives=[drive(sparse_disk(tmp_path / "disk"), **member)],
                 stdin=subprocess.PIPE) as machine:
        machine.boot().wait_for_output("ready\n")
        machine.ok("PATCH", "/drives/disk", {"drive_id": "disk", "path_on_host": str(other)})
        machine.send(b"dq")
        assert "d 0" in machine.finish()
    assert (struct.unpack("<Q", other.read_bytes()[5 * 512:5 * 512 + 8])[0] == 0) == is_zeroed


def test_discard_is_refused_where_there_is_none(tmp_path):
    disk = sparse_disk(tmp_path / "disk")
    with mayfly.Mayfly() as vm:
        for member, reason in [
            ({"discard": True, "is_read_only": True},
             "Unable to create the virtio block device: Virtio backend error: Discard is not "
             "supported with read-only drives."),
            ({"discard": 1}, "invalid type: integer `1`, expected a boolean"),
        ]:
            status, _, answer = vm.request("PUT", "/drives/disk", drive(disk, **member))
            assert status == 400 and reason in answer["fault_message"], answer
        assert vm.ok("GET", "/vm/config")["drives"] == []
        vm.ok("PUT", "/drives/disk", drive(disk, discard=False, is_read_only=True))


def without_io_uring():
    """Makes io_uring_setup(2) fail with ENOSYS in this process, as on a host that has none."""
    def statement(code, jump_true, jump_false, value):
        return struct.pack("<HBBI", code, jump_true, jump_false, value)
    io_uring_setup, enosys = 425, 38
    program = b"".join([statement(0x20, 0, 0, 0), statement(0x15, 0, 1, io_uring_setup),
                        statement(0x06, 0, 0, 0x00050000 | enosys),
                        statement(0x06, 0, 0, 0x7fff0000)])
    buffer = ctypes.create_string_buffer(program)
    filter_program = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter_program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def test_a_host_without_io_uring_refuses_the_async_engine_at_once(tmp_path):
    body = drive(empty_disk(tmp_path / "disk"))
    with mayfly.Mayfly(before_exec=without_io_uring) as vm:
        status, _, answer = vm.request("PUT", "/drives/disk", {**body, "io_engine": "Async"})
        assert status == 400 and "io_uring" in answer["fault_message"], answer
        assert "Function not implemented (os error 38)" in answer["fault_message"]
        assert vm.ok("GET", "/vm/config")["drives"] == []
        vm.ok("PUT", "/drives/disk", {**body, "io_engine": "Sync"})
