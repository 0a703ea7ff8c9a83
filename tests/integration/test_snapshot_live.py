"""Snapshots of a guest that goes on running: PUT /snapshot/create with "live"."""

import json
import os
import re
import subprocess
import threading

import pytest

import mayfly
import vsock
from faults import needs_strace, traced
from guests import Machine, drive, make_disk, needs_kvm, tmpfs
from jail import Jail, needs_root
from overlays import Overlay, read_disk
from snapshots import (Clone, count_in_a_jail, create_body, load_body, loaded, mark, numbers, pair,
                       pause, resume, save, until_output)

pytestmark = needs_kvm
MIB = 1 << 20
CREATE = "Create snapshot error: "
BUSY = CREATE + "Cannot save the microVM state: a live snapshot of it is being made"


def boot(machine, tracks=False):
    machine.configure()
    machine.ok("PATCH", "/machine-config", {"track_dirty_pages": tracks})
    machine.ok("PUT", "/actions", {"action_type": "InstanceStart"})
    return machine


def create(machine, files, **members):
    """(status, answer)"""
    status, _, answer = machine.request("PUT", "/snapshot/create",
                                        create_body(files, live=True, **members))
    return status, answer


def live(machine, files, **members):
    status, answer = create(machine, files, **members)
    assert status == 200, answer
    assert sorted(answer) == ["pages_while_paused", "passes", "paused_us"]
    assert answer["passes"] <= 9
    return answer


def write_more(machine, count=2):
    """Until the guest snapshot.c has been over what it writes to so often."""
    length = len(machine.output())
    until_output(machine, lambda text: len(text) > length + count * 16)


def memory(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("kind", ["Full", "Diff"])
@pytest.mark.parametrize("tracks", [False, True])
def test_a_clone_goes_on_where_the_guest_was_in_the_meantime(tmp_path, tracks, kind):
    """No byte of the console is doubled or lost, neither by the clone nor by its source."""
    files = pair(tmp_path)
    with Machine("counter", mem_mib=64) as first:
        boot(first, tracks)
        for i in range(20 if mayfly.IS_LONG else 4):
            until_output(first, lambda text, i=i: text.count("\n") > 40 * i + 40)
            before = len(first.output())
            live(first, files, snapshot_type=kind)
            pause(first)
            after = len(first.output())
            resume(first)
            with loaded(files) as second:
                until_output(second, lambda text: text.count("\n") > 20)
                pause(second)
                goes_on = second.output()
            at = numbers(after + len(goes_on)).index(goes_on, before)
            assert before <= at <= after
            assert not [name for name in os.listdir(tmp_path) if "mayfly-new" in name]
        pause(first)
        assert first.output() == numbers(len(first.output()))


@pytest.mark.parametrize("dirty", [1, 12])
def test_memory_is_of_one_moment(tmp_path, dirty):
    """The guest writes a number to one page after the other, for ever: in a snapshot all before
    some page have one number, and all from there on the one before."""
    files, layer = pair(tmp_path), pair(tmp_path, "layer")
    first_page = 18 * MIB
    with Machine("snapshot", f"touched=12 dirty={dirty}", mem_mib=32) as vm:
        boot(vm, True)
        vm.wait_for_output("ready\n")
        for i in range(20 if mayfly.IS_LONG else 5):
            write_more(vm)
            kind = "Diff" if i % 2 else "Full"
            live(vm, files, snapshot_type=kind, sync_snapshot_files=False)
            with open(files[1], "rb") as file:
                file.seek(first_page)
                data = file.read(dirty * MIB)
            values = [int.from_bytes(data[at:at + 8], "little") for at in range(0, len(data), 4096)]
            edge = next((i for i, value in enumerate(values) if value != values[0]), len(values))
            assert set(values[edge:]) <= {values[0] - 1}, values
        write_more(vm)
        live(vm, layer, snapshot_type="Diff")
        assert " layer on " in mark(layer[1])


def test_a_guest_that_writes_all_the_time_is_paused_in_the_end(tmp_path):
    with Machine("snapshot", "touched=100 dirty=100", mem_mib=128) as vm:
        boot(vm)
        vm.wait_for_output("ready\n")
        answer = live(vm, pair(tmp_path), sync_snapshot_files=False)
        assert 3 <= answer["passes"] <= 9
        write_more(vm)


def check_sum(machine, files, other):
    """That a Diff makes the first pair what a Full makes the other one."""
    save(machine, files, snapshot_type="Diff")
    machine.ok("PUT", "/snapshot/create", create_body(other))
    assert memory(files[1]) == memory(other[1])
    resume(machine)
    write_more(machine)


def test_diffs_are_relative_to_live_snapshots(tmp_path):
    """Live and other ones, of a guest that was booted, then of one that was loaded."""
    one, two = pair(tmp_path), pair(tmp_path, "other")
    with Machine("snapshot", "touched=8 dirty=1", mem_mib=32) as first:
        boot(first, True)
        first.wait_for_output("ready\n")
        live(first, one)
        check_sum(first, one, two)
        live(first, two, snapshot_type="Diff")
        check_sum(first, two, one)
    for tracks in (True, False):
        with loaded(one, track_dirty_pages=tracks) as vm:
            write_more(vm)
            live(vm, one, snapshot_type="Diff")
            write_more(vm)
            check_sum(vm, one, two)
            live(vm, two)
            check_sum(vm, two, one)


def test_a_paused_guest_stays_paused(tmp_path):
    files = pair(tmp_path)
    with Machine("counter", mem_mib=64) as vm:
        boot(vm)
        until_output(vm, lambda text: text.count("\n") > 40)
        pause(vm)
        printed = vm.output()
        answer = live(vm, files)
        assert vm.output() == printed and answer["pages_while_paused"] == 0
        assert vm.ok("GET", "/")["state"] == "Paused"
        with loaded(files) as second:
            until_output(second, lambda text: text.count("\n") > 20)
            pause(second)
            printed += second.output()
        assert printed == numbers(len(printed))


class Slowly:
    """A live create whose writes each wait, so that there is time for others; its answer."""

    def __init__(self, machine, files, **members):
        self.answer = None
        self.arguments = machine, files, members
        self.worker = threading.Thread(target=self.run)

    def run(self):
        machine, files, members = self.arguments
        try:
            self.answer = create(machine, files, **members)
        except ConnectionError as error:
            self.answer = error

    def __enter__(self):
        self.worker.start()
        new = self.arguments[1][1] + ".mayfly-new"
        mayfly.wait_until(lambda: os.path.exists(new), "the new file")
        return self

    def __exit__(self, *_):
        self.worker.join()


SLOWLY = "pwritev:delay_enter=20000"


@needs_strace
def test_requests_are_served_meanwhile(tmp_path):
    disk = drive(make_disk(tmp_path / "disk", 64))
    files, others = pair(tmp_path), pair(tmp_path, "others")
    with Machine("snapshot", "touched=12 dirty=1", mem_mib=32, drives=[disk]) as vm:
        boot(vm)
        vm.wait_for_output("ready\n")
        with traced(vm, tmp_path, SLOWLY), Slowly(vm, files) as first:
            assert create(vm, others) == (400, {"fault_message": BUSY})
            pause(vm)
            status, _, answer = vm.request("PUT", "/snapshot/create", create_body(others))
            assert (status, answer["fault_message"]) == (400, BUSY)
            assert vm.ok("GET", "/")["state"] == "Paused"
            resume(vm)
            vm.ok("PATCH", "/drives/disk", {"drive_id": "disk",
                                            "path_on_host": disk["path_on_host"]})
            pause(vm)
            assert first.answer is None
        assert first.answer[0] == 200
        assert vm.ok("GET", "/")["state"] == "Paused"
        assert not os.path.exists(others[0])
        resume(vm)
        write_more(vm)
        live(vm, others)
    with loaded(files) as clone:
        write_more(clone)


@needs_strace
def test_what_devices_write_meanwhile_is_in_it(tmp_path):
    """The buffers and rings of a vsock that echoes: the guest has nothing to do afterwards, so that
    all but its own variables stays what it was."""
    files, full = pair(tmp_path), pair(tmp_path, "full")
    with vsock.Guest("") as first:
        stream = first.serve().stream(vsock.ECHO)
        with traced(first, tmp_path, SLOWLY), Slowly(first, files) as creating:
            for _ in range(3):
                stream.sendall(b"meanwhile" * 1000)
                assert vsock.read_bytes(stream, 9000) == b"meanwhile" * 1000
            assert creating.answer is None
        assert creating.answer[0] == 200
        save(first, full)
        one, two = memory(files[1]), memory(full[1])
        differ = {at for at in range(0, len(one), 4096) if one[at:at + 4096] != two[at:at + 4096]}
        assert len(differ) < 8 and all(16 * MIB <= at < 17 * MIB for at in differ), differ
        path = os.path.join(tmp_path, "v.sock")
        with loaded(files, vsock_override={"uds_path": path}) as second:
            with vsock.dial(path, b"CONNECT %d\n" % vsock.ECHO) as client:
                vsock.read_line(client)
                client.sendall(b"after" * 100)
                assert vsock.read_bytes(client, 500) == b"after" * 100
        stream.close()


@needs_strace
def test_a_log_is_kept_for_it_alone(tmp_path):
    """Else the guest would be slow for ever."""
    files = pair(tmp_path)
    for tracks, flags in ((False, ["KVM_MEM_LOG_DIRTY_PAGES", "0"]), (True, [])):
        with Machine("counter", mem_mib=32) as vm:
            boot(vm, tracks)
            until_output(vm, lambda text: text.count("\n") > 40)
            with traced(vm, tmp_path, "fsync:delay_enter=1") as log:
                live(vm, files)
            said = re.findall(r"KVM_SET_USER_MEMORY_REGION, \{slot=0, flags=(\w+)", log.read_text())
            assert said == flags


@needs_strace
def test_a_client_that_goes_does_not_end_it(tmp_path):
    files = pair(tmp_path)
    with Machine("snapshot", "touched=12 dirty=1", mem_mib=32) as vm:
        boot(vm)
        vm.wait_for_output("ready\n")
        with traced(vm, tmp_path, SLOWLY), vm.connect() as client:
            body = json.dumps(create_body(files, live=True)).encode()
            client.sendall(b"PUT /snapshot/create HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b"
                           % (len(body), body))
            mayfly.wait_until(lambda: os.path.exists(files[1] + ".mayfly-new"), "the new file")
        mayfly.wait_until(lambda: os.path.exists(files[0]), vm.log)
        assert vm.ok("GET", "/")["state"] == "Running"
    with loaded(files) as clone:
        write_more(clone)


@needs_strace
@pytest.mark.parametrize("call, which", [("pwritev", 2), ("pwritev", 9), ("fsync", 1), ("fsync", 2),
                                         ("sync_file_range", 2), ("rename", 2), ("ftruncate", 3)])
def test_one_that_fails_leaves_the_old_pair_and_forgets_nothing(tmp_path, call, which):
    files, full = pair(tmp_path), pair(tmp_path, "full")
    with Machine("snapshot", "touched=8 dirty=1", mem_mib=32, flags=["--no-seccomp"]) as vm:
        boot(vm, True)
        vm.wait_for_output("ready\n")
        live(vm, files)
        old = [memory(path) for path in files]
        write_more(vm)
        with traced(vm, tmp_path, f"{call}:error=EIO:when={which}+"):
            status, answer = create(vm, files)
        assert status == 400 and answer["fault_message"].startswith("Create snapshot error: Cannot")
        assert "I/O error (os error 5)" in answer["fault_message"]
        if call != "rename":
            assert [memory(path) for path in files] == old
        assert not os.path.exists(files[1] + ".mayfly-new")
        write_more(vm)
        if call == "rename":
            live(vm, files)
        save(vm, files, snapshot_type="Diff")
        vm.ok("PUT", "/snapshot/create", create_body(full))
        assert memory(files[1]) == memory(full[1])


@needs_root
def test_a_full_disk_is_told_of(tmp_path):
    with tmpfs(tmp_path / "small", "size=4m") as small:
        with Machine("snapshot", "touched=8 dirty=1", mem_mib=32) as vm:
            boot(vm)
            vm.wait_for_output("ready\n")
            for _ in range(2):
                status, answer = create(vm, pair(small))
                assert (status, answer["fault_message"]) == (
                    400, CREATE + "Cannot write memory file: No space left on device (os error 28)")
                assert os.listdir(small) == []
                write_more(vm)
            live(vm, pair(tmp_path))


@needs_strace
def test_a_guest_that_ends_meanwhile_ends_it(tmp_path):
    files = pair(tmp_path)
    with Machine("requests", mem_mib=32, stdin=subprocess.PIPE,
                 drives=[drive(make_disk(tmp_path / "disk", 64))]) as vm:
        boot(vm)
        vm.wait_for_output("ready\n")
        with traced(vm, tmp_path, SLOWLY), Slowly(vm, files) as first:
            vm.send(b"q")
        assert vm.wait() == 0
        assert first.answer[0] == 400
        assert "The microVM has ended before its live snapshot" in first.answer[1]["fault_message"]
        assert sorted(os.listdir(tmp_path)) == ["disk", "strace"]


KILLS = [("pwritev", 1), ("pwritev", 3), ("sync_file_range", 1), ("fsync", 1), ("fsync", 2),
         ("fsetxattr", 1), ("rename", 1), ("rename", 2)]


@needs_strace
@pytest.mark.parametrize("kind", ["Full", "Diff"])
def test_one_that_is_killed_leaves_a_pair_or_none(tmp_path, kind):
    outcomes = set()
    for call, which in KILLS if kind == "Full" else KILLS[:6]:
        files = pair(tmp_path)
        with Machine("snapshot", "touched=2 dirty=1", mem_mib=32) as vm:
            boot(vm, True)
            vm.wait_for_output("ready\n")
            save(vm, files)
            resume(vm)
            write_more(vm)
            old = [memory(path) for path in files]
            with traced(vm, tmp_path, f"{call}:signal=KILL:when={which}"):
                with pytest.raises(ConnectionError):
                    create(vm, files, snapshot_type=kind)
                vm.wait()
        is_old = [memory(path) for path in files] == old
        with Clone(files) as clone:
            status, _, answer = clone.request("PUT", "/snapshot/load", load_body(files))
            if status == 204:
                assert is_old
                outcomes.add("old")
            else:
                assert "is of snapshot" in str(answer) or "unfinished" in str(answer), answer
                outcomes.add("refused")
    assert outcomes == {"old", "refused"}


@needs_root
def test_a_jailed_machine_is_saved_live():
    body = {"snapshot_path": "/saved", "mem_file_path": "/memory"}
    with Jail() as first, Jail() as second:
        count_in_a_jail(first)
        for kind in ("Full", "Diff"):
            first.ok("PUT", "/snapshot/create", {**body, "snapshot_type": kind, "live": True})
        for name in ("saved", "memory"):
            second.give(first.inside(name))
        second.ok("PUT", "/snapshot/load", load_body(("/saved", "/memory"), resume_vm=True))
        until_output(second, lambda text: text.count("\n") > 30)


SECTORS = 4096
SLOW, FAST = {"ops": {"size": 4, "refill_time": 200}}, {"ops": {"size": 0, "refill_time": 0}}


class Disk:
    """An overlay drive whose guest writes to disk and memory in step, and in the end compares
    them; it does so slowly until told otherwise."""

    def __init__(self, directory, engine="Sync"):
        base = directory / "base"
        base.write_bytes(bytes(SECTORS * 512))
        self.base, self.directory, self.layers = str(base), directory, []
        self.top = str(directory / "top0")
        self.drive = drive(base, overlay_path=self.top, io_engine=engine)

    def machine(self, **options):
        return Machine("block_model", "requests=600 seed=1", mem_mib=32, stdin=subprocess.PIPE,
                       drives=[{**self.drive, "rate_limiter": SLOW}], **options)

    def freeze(self):
        """Members of the create; it is one layer more from then on."""
        count = Overlay(self.top).count()
        mayfly.wait_until(lambda: Overlay(self.top).count() > count, "writes")
        self.layers.append(self.top)
        self.top = str(self.directory / f"top{len(self.layers)}")
        return {"drive_overlays": [{"drive_id": "disk", "overlay_path": self.top}]}

    def check_config(self, vm):
        shown = vm.ok("GET", "/vm/config")["drives"][0]
        assert (shown.get("layers", []), shown["overlay_path"]) == (self.layers, self.top)

    def finish(self, vm):
        """The guest says that the disk is what it knows."""
        vm.ok("PATCH", "/drives/disk", {"drive_id": "disk", "rate_limiter": FAST})
        vm.finish()

    def check_clone(self, files, layers):
        own = str(self.directory / "own")
        with loaded(files, drive_overrides=[{"drive_id": "disk", "overlay_path": own}]) as clone:
            assert clone.ok("GET", "/vm/config")["drives"][0]["layers"] == layers
            self.finish(clone)
        disk = read_disk(self.base, *layers, own)
        os.unlink(own)
        return disk


@pytest.mark.parametrize("engine", ["Sync", "Async"])
def test_the_disk_is_of_the_moment_at_which_memory_is(tmp_path, engine):
    """The guest writes to it all the time, and so do clones, each for itself."""
    disk, made = Disk(tmp_path, engine), []
    with disk.machine() as vm:
        vm.boot()
        for i in range(6 if mayfly.IS_LONG else 2):
            files = pair(tmp_path, f"snap{i}")
            live(vm, files, **disk.freeze())
            disk.check_config(vm)
            made.append((files, list(disk.layers)))
            assert all(Overlay(path).is_frozen for path in disk.layers)
        disk.finish(vm)
    after = read_disk(disk.base, *disk.layers, disk.top)
    for files, layers in made:
        assert disk.check_clone(files, layers) == after


@needs_strace
@pytest.mark.parametrize("fault", ["fdatasync:error=EIO:when=1+", "rename:error=ENOSPC:when=1+"])
@pytest.mark.parametrize("engine", ["Sync", "Async"])
def test_a_drive_stays_frozen_if_the_guest_went_on_before_it_failed(tmp_path, engine, fault):
    """A layer higher, as its configuration says; and the next create is as any other. Before that,
    it is what it was."""
    disk, files = Disk(tmp_path, engine), pair(tmp_path)
    with disk.machine(flags=["--no-seccomp"]) as vm:
        vm.boot()
        members = disk.freeze()
        more = [*members["drive_overlays"], {"drive_id": "none", "overlay_path": disk.top}]
        assert create(vm, files, drive_overlays=more) == (400, {
            "fault_message": CREATE + "Cannot freeze drive none: There is no such drive."})
        assert not os.path.exists(disk.top) and not Overlay(disk.layers[0]).is_frozen
        assert vm.ok("GET", "/vm/config")["drives"][0]["overlay_path"] == disk.layers[0]
        with traced(vm, tmp_path, fault):
            status, answer = create(vm, files, **members)
        assert status == 400 and answer["fault_message"].startswith(
            CREATE + "The drives were frozen, and go on in their new overlays, but: Cannot "), answer
        assert not os.path.exists(files[0])
        disk.check_config(vm)
        live(vm, files, **disk.freeze())
        disk.check_config(vm)
        disk.finish(vm)
    after = read_disk(disk.base, *disk.layers, disk.top)
    assert disk.check_clone(files, disk.layers) == after


@needs_strace
def test_a_disk_is_there_when_its_vmm_was_killed_before_its_layer_was_one(tmp_path):
    disk = Disk(tmp_path)
    with disk.machine(flags=["--no-seccomp"]) as vm:
        vm.boot()
        members = disk.freeze()
        with traced(vm, tmp_path, "fdatasync:signal=KILL"):
            with pytest.raises(ConnectionError):
                create(vm, pair(tmp_path), **members)
            vm.wait()
    assert not Overlay(disk.layers[0]).is_frozen
    before = read_disk(disk.base, *disk.layers, disk.top)
    new = {**disk.drive, "layers": disk.layers, "overlay_path": disk.top}
    with Machine("block_model", "requests=0", drives=[new], mem_mib=32) as vm:
        vm.ok("PUT", "/drives/disk", new)
        vm.boot().wait_for_output("done")
        vm.wait()
    assert Overlay(disk.layers[0]).is_frozen
    assert read_disk(disk.base, *disk.layers, disk.top) == before
