"""The two files of a snapshot: what they hold, and what a create that is cut off leaves of them."""

import os
import re
import resource
import shutil

import pytest

import mayfly
import vsock
from faults import needs_strace, traced
from guests import Machine, needs_kvm
from jail import Jail
from snapshots import (MARK, Clone, create_body, load_body, loaded, mark, pair, pause, resume,
                       save)
from vsock import ECHO, read_bytes

pytestmark = needs_kvm
MIB = 1 << 20


def memory(path):
    with open(path, "rb") as file:
        return file.read()


def allocated(path):
    return os.stat(path).st_blocks * 512


def resident_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"^RssAnon:\s+(\d+) kB$", status.read(), re.M)[1])


def track(machine):
    machine.ok("PATCH", "/machine-config", {"track_dirty_pages": True})


def boot_tracked(machine):
    machine.configure()
    track(machine)
    machine.ok("PUT", "/actions", {"action_type": "InstanceStart"})


def test_a_full_has_what_was_touched_and_touches_no_more(tmp_path):
    files = pair(tmp_path)
    with Machine("counter", mem_mib=128) as vm:
        vm.boot()
        mayfly.wait_until(lambda: len(vm.output()) > 100, vm.output)
        pause(vm)
        before = resident_kib(vm.process.pid)
        vm.ok("PUT", "/snapshot/create", create_body(files))
        assert resident_kib(vm.process.pid) < before + 1024
    assert os.path.getsize(files[1]) == 128 * MIB
    assert 0 < allocated(files[1]) < 16 * MIB
    assert mark(files[1]).endswith(" whole")
    assert not [name for name in os.listdir(tmp_path) if "mayfly-new" in name]


def test_the_first_diff_is_a_full(tmp_path):
    """Over both regions of memory."""
    diff, full = pair(tmp_path, "diff"), pair(tmp_path, "full")
    with Machine("counter", mem_mib=3 * 1024 + 2) as vm:
        boot_tracked(vm)
        mayfly.wait_until(lambda: len(vm.output()) > 100, vm.output)
        save(vm, diff, snapshot_type="Diff")
        vm.ok("PUT", "/snapshot/create", create_body(full))
    os.truncate(diff[1], 64 * MIB) # a guest of this kind has nothing behind that but zeros
    os.truncate(full[1], 64 * MIB)
    assert memory(diff[1]) == memory(full[1])
    assert mark(diff[1]).endswith(" whole")


def exchange(stream, data):
    stream.sendall(data)
    assert read_bytes(stream, len(data)) == data


@pytest.mark.parametrize("generation", ["booted", "restored"])
def test_a_diff_on_top_of_what_it_is_to_is_a_full(tmp_path, generation):
    """With what the guest wrote, and what a device wrote for it: its buffers, its rings."""
    base, full = pair(tmp_path, "base"), pair(tmp_path, "full")
    with vsock.Guest("") as first:
        exchange(first.serve().stream(ECHO), b"before" * 100)
        save(first, base)
        path = os.path.join(tmp_path, "v.sock")
        with loaded(base, vsock_override={"uds_path": path},
                    track_dirty_pages=generation == "booted") as vm:
            with vsock.dial(path, b"CONNECT %d\n" % ECHO) as client:
                vsock.read_line(client)
                exchange(client, b"after" * 1000)
                save(vm, base, snapshot_type="Diff")
                vm.ok("PUT", "/snapshot/create", create_body(full))
                assert memory(base[1]) == memory(full[1])
    assert mark(base[1]).endswith(" whole")


def test_a_diff_of_a_restored_machine_is_what_it_wrote(tmp_path):
    base, layer = pair(tmp_path, "base"), pair(tmp_path, "layer")
    with Machine("counter", mem_mib=128) as first:
        first.boot()
        mayfly.wait_until(lambda: len(first.output()) > 100, first.output)
        save(first, base)
        with Clone(base) as vm:
            vm.load()
            vm.ok("PUT", "/snapshot/create", create_body(layer, snapshot_type="Diff"))
            assert allocated(layer[1]) < 64 << 10, "it has not run"
            assert " layer on " in mark(layer[1])
            with Clone(layer) as other:
                status, _, answer = other.request("PUT", "/snapshot/load", load_body(layer))
                assert status == 400
                assert "only what changed since another snapshot" in answer["fault_message"]
                assert other.wait() == 1


def test_clones_keep_the_file_that_they_are_mapped_from(tmp_path):
    files = pair(tmp_path)
    with Machine("counter", mem_mib=128) as first:
        first.boot()
        save(first, files)
    before = memory(files[1])
    with loaded(files) as vm, loaded(files):
        pause(vm)
        status, _, answer = vm.request("PUT", "/snapshot/create",
                                       create_body(files, snapshot_type="Diff"))
        assert status == 400
        assert answer["fault_message"].endswith(
            "Cannot perform flock on the memory backing file: another microVM is mapped from it, "
            "or is writing it")
        assert memory(files[1]) == before
        vm.ok("PUT", "/snapshot/create", create_body(files)) # a new file of that name
        resume(vm)


@pytest.mark.parametrize("are_there", [True, False])
def test_files_behind_symbolic_links_are_written_where_they_are(tmp_path, are_there):
    files, links = pair(tmp_path), pair(tmp_path, "link")
    for name, link in zip(files, links):
        if are_there:
            open(name, "wb").close()
        os.symlink(name, link)
    with Machine("counter", mem_mib=128) as first:
        first.boot()
        save(first, links)
    assert all(map(os.path.islink, links)) and not any(map(os.path.islink, files))
    with loaded(files) as clone:
        mayfly.wait_until(clone.output, clone.log)


def test_names_are_as_long_as_may_be(tmp_path):
    """Too long for a temporary file beside them, and so the files themselves are made."""
    files = [str(tmp_path / (letter * os.pathconf(tmp_path, "PC_NAME_MAX"))) for letter in "sm"]
    with Machine("counter", mem_mib=128) as first:
        first.boot()
        save(first, files)
        resume(first)
        save(first, files)
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, files))
    with loaded(files) as clone:
        mayfly.wait_until(clone.output, clone.log)


KILLS = [("ftruncate", 2), ("fsetxattr", 1), ("pwritev", 1), ("pwritev", 2), ("fsync", 1),
         ("rename", 1), ("rename", 2), ("fsync", 3)]


@needs_strace
@pytest.mark.parametrize("kind", ["Full", "Diff"])
def test_a_create_that_is_killed_leaves_a_pair_or_none(tmp_path, kind):
    """That none of all calls leaves a mixture, tests/unit/snapshot_killed_test.c sees to; here, that
    the process goes this way."""
    outcomes = set()
    for call, which in KILLS if kind == "Full" else KILLS[1:5]:
        files = pair(tmp_path)
        with Machine("snapshot", "touched=1 dirty=1") as vm: # it goes on writing, at two places
            boot_tracked(vm)
            vm.wait_for_output("ready\n")
            save(vm, files)
            resume(vm)
            length = len(vm.output())
            mayfly.wait_until(lambda: len(vm.output()) > length + 1, vm.output)
            pause(vm)
            old = [memory(path) for path in files]
            with traced(vm, tmp_path, f"{call}:signal=KILL:when={which}"):
                with pytest.raises(ConnectionError):
                    vm.request("PUT", "/snapshot/create", create_body(files, snapshot_type=kind))
                vm.wait()
        is_old = [memory(path) for path in files] == old
        with Clone(files) as clone:
            status, _, answer = clone.request("PUT", "/snapshot/load", load_body(files))
            if status == 204:
                assert is_old or (call, which) == ("fsync", 3)
                outcomes.add("old")
            else:
                assert re.search("is of snapshot|unfinished", answer["fault_message"]), answer
                outcomes.add("refused")
    assert outcomes == {"old", "refused"}


@pytest.mark.parametrize("kind", ["Full", "Diff"])
def test_a_create_beyond_the_limit_of_files_leaves_the_old_pair(tmp_path, kind):
    """The process ends by the signal that is for this."""
    files = pair(tmp_path)
    with Machine("snapshot", "touched=1 dirty=1", mem_mib=32) as vm:
        boot_tracked(vm)
        vm.wait_for_output("ready\n")
        save(vm, files)
        resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE, (16 * MIB, 16 * MIB))
        layer = pair(tmp_path, "layer") if kind == "Diff" else files
        with pytest.raises(ConnectionError):
            vm.request("PUT", "/snapshot/create", create_body(layer, snapshot_type=kind))
        assert vm.wait() == 151
    with loaded(files) as clone:
        mayfly.wait_until(clone.output, clone.log)


def test_a_copy_without_a_mark_is_loaded_and_told_of(tmp_path):
    files, copy = pair(tmp_path), pair(tmp_path, "copy")
    with Machine("counter", mem_mib=128) as first:
        first.boot()
        save(first, files)
    shutil.copyfile(files[1], copy[1])
    with loaded((files[0], copy[1])) as vm:
        assert "has no mark" in vm.log()
    os.setxattr(copy[1], MARK, b"0" * 8)
    with Clone(files) as vm:
        status, _, answer = vm.request("PUT", "/snapshot/load", load_body((files[0], copy[1])))
        assert status == 400 and "is not one of ours" in answer["fault_message"]
        assert vm.wait() == 1


def test_what_a_jailed_machine_wrote_is_known_without_a_proc():
    body = {"snapshot_path": "/state", "mem_file_path": "/mem"}
    with Jail() as first, Jail() as second:
        for jail in (first, second):
            os.chown(jail.root, jail.uid, jail.gid)
        kernel = first.give(os.path.join(mayfly.GUESTS, "counter"))
        first.ok("PUT", "/boot-source", {"kernel_image_path": kernel})
        first.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        mayfly.wait_until(lambda: len(first.output()) > 100, first.output)
        pause(first)
        before = resident_kib(first.pid())
        first.ok("PUT", "/snapshot/create", body)
        assert resident_kib(first.pid()) < before + 1024
        assert 0 < allocated(first.inside("mem")) < 16 * MIB
        for name in ("state", "mem"): # the files as they are, with holes and mark
            os.link(first.inside(name), second.inside(name))
        second.ok("PUT", "/snapshot/load", load_body(("/state", "/mem")))
        layer = {"snapshot_path": "/state2", "mem_file_path": "/layer", "snapshot_type": "Diff"}
        second.ok("PUT", "/snapshot/create", layer)
        assert allocated(second.inside("layer")) < 64 << 10
        before = resident_kib(second.pid())
        second.ok("PUT", "/snapshot/create", {**body, "mem_file_path": "/full"})
        assert resident_kib(second.pid()) < before + 1024
        assert allocated(second.inside("full")) < 16 * MIB
        assert mark(second.inside("full")).endswith(" whole")
