"""Drives with an overlay of their own above a base that others share; the test guest is
tests/guests/block_model.c."""

import os
import shutil
import signal
import struct
import subprocess

import pytest

import mayfly
from guests import Machine, drive, needs_kvm, tmpfs
from jail import Jail, needs_root
from overlays import Overlay, read_disk, taken
from snapshots import Clone, create_body, load_body, loaded, pair, pause, resume, save

pytestmark = needs_kvm

ENGINES = ["Sync", "Async"]
CACHES = ["Unsafe", "Writeback"]
SECTORS = 4096
REQUESTS = 2000 if mayfly.IS_LONG else 700  # of a guest, which PVM emulates: a millisecond each
REFUSED = "Drive config error: Unable to create the virtio block device: Virtio backend error: "
LIMITS = {"ops": {"size": 2000, "refill_time": 20}}


@pytest.fixture(name="base")
def make_base(tmp_path):
    """A disk of zeroes, with which the guest's model begins; nobody may write it."""
    path = tmp_path / "base"
    path.write_bytes(bytes(SECTORS * 512))
    path.chmod(0o444)
    yield str(path)
    assert path.read_bytes() == bytes(SECTORS * 512)


def model(disk, requests=REQUESTS):
    return Machine("block_model", f"requests={requests} seed=1", drives=[disk], mem_mib=32,
                   stdin=subprocess.PIPE)


def until_written(top):
    mayfly.wait_until(lambda: Overlay(top).count() > 20, f"writes to {top}")


def put(vm, disk):
    return vm.request("PUT", "/drives/disk", disk)


def refusal(vm, disk):
    status, _, body = put(vm, disk)
    assert status == 400, body
    return body["fault_message"].removeprefix(REFUSED)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("engine", ENGINES)
def test_random_requests_find_what_the_model_says(tmp_path, base, engine, cache):
    top = str(tmp_path / "top")
    disk = drive(base, overlay_path=top, io_engine=engine, cache_type=cache)
    with model({**disk, "rate_limiter": LIMITS}) as machine:
        machine.boot().finish()
    overlay = Overlay(top, recent=False)
    assert 0 < overlay.count() < SECTORS and overlay.count() == Overlay(top).count()
    assert taken(top) < SECTORS * 512
    # What was there is there the next time.
    before = read_disk(base, top, recent=False)
    with model(disk, 0) as machine:
        machine.boot().wait_for_output("done")
    assert read_disk(base, top, recent=False) == before


def test_an_overlay_is_made_and_takes_no_space(tmp_path):
    base, top = tmp_path / "base", tmp_path / "top"
    with open(base, "wb") as file:
        file.truncate(1 << 40)
    disk = drive(base, overlay_path=str(top))
    with mayfly.Mayfly() as vm:
        vm.ok("PUT", "/drives/disk", disk)
        shown = vm.ok("GET", "/vm/config")["drives"][0]
        assert shown["overlay_path"] == str(top) and "layers" not in shown
        vm.ok("PUT", "/drives/disk", disk)  # once more: it is the same drive's
        assert taken(top) <= 65536
        assert os.stat(top).st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_no_overlay_of_that_drive_is_refused_and_nothing_is_made(tmp_path, base):
    top = str(tmp_path / "top")
    disk = drive(base, overlay_path=top)
    with mayfly.Mayfly() as vm:
        vm.ok("PUT", "/drives/disk", disk)
    with open(top, "rb") as file:
        good = bytearray(file.read())
    offsets = {0: "it is none: it does not begin with MAYFLYO",
               8: "its format has a version that this mayfly does not know",
               13: "its header says neither that it is frozen nor that it is not",
               12: "it is frozen: it can only be one of the layers",
               33: "it was made above something else than what is below it here",
               48: "it is of a disk of another size"}
    bad = str(tmp_path / "bad")
    for at, why in offsets.items():
        other = bytearray(good)
        other[at] ^= 1
        with open(bad, "wb") as file:
            file.write(other)
        with mayfly.Mayfly() as vm:
            assert refusal(vm, {**disk, "overlay_path": bad}) == f"Overlay {bad}: {why}"
    link = str(tmp_path / "link")
    os.symlink(top, link)
    os.truncate(bad, len(good) - 1)
    with open(bad, "r+b") as file:
        file.write(good[:4096])
    small = tmp_path / "small"
    small.write_bytes(bytes(512))
    with mayfly.Mayfly() as vm, mayfly.Mayfly() as other:
        vm.ok("PUT", "/drives/disk", disk)
        for path, why in ((bad, "it is too short"), (base, "it is the drive's base"),
                          (str(tmp_path), "it can't be opened: Is a directory (os error 21)"),
                          ("/dev/null", "it is no regular file"),
                          (link, "it can't be opened: Symbolic link loop (os error 40)"),
                          (f"{tmp_path}/no/top",
                           "it can't be opened: No such file or directory (os error 2)"),
                          (top, "it is in use, by another drive or as a layer")):
            if path == base:
                os.chmod(base, 0o644)
            assert refusal(other, {**disk, "overlay_path": path}) == f"Overlay {path}: {why}"
        other_drive = {**disk, "drive_id": "other"}
        status, _, body = vm.request("PUT", "/drives/other", other_drive)
        assert status == 400 and "it is in use" in body["fault_message"]
        new = str(tmp_path / "new")
        assert refusal(vm, {**disk, "overlay_path": new, "is_read_only": True}) == (
            "An overlay is not supported with read-only drives.")
        assert refusal(vm, {**drive(base), "layers": [top]}) == (
            "There are layers, and no overlay above them.")
        assert refusal(vm, {**disk, "overlay_path": new, "layers": [top] * 9}) == (
            "There are 9 layers, and at most 8 are possible.")
        assert refusal(other, {**disk, "overlay_path": new, "layers": [bad]}) == (
            f"Overlay {bad}: it is not frozen, and can't be one of the layers")
        assert not os.path.exists(new)
        assert refusal(other, drive(small, overlay_path=bad)) == (
            f"Overlay {bad}: it is of a disk of another size")
        assert vm.ok("GET", "/vm/config")["drives"][0]["overlay_path"] == top


def test_the_file_below_an_overlay_stays(tmp_path, base):
    disk = drive(base, overlay_path=str(tmp_path / "top"))
    with Machine("counter", drives=[disk], stdin=subprocess.PIPE) as vm:
        vm.boot()
        status, _, body = vm.request("PATCH", "/drives/disk",
                                     {"drive_id": "disk", "path_on_host": base})
        assert status == 400 and "The file below an overlay can't be replaced." in \
            body["fault_message"]
        vm.ok("PATCH", "/drives/disk", {"drive_id": "disk", "rate_limiter": LIMITS})


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_written_survives_a_kill(tmp_path, base, engine, cache):
    """With a cache type that promises nothing, too: only the host's end loses something."""
    top = str(tmp_path / "top")
    disk = drive(base, overlay_path=top, io_engine=engine, cache_type=cache)
    with Machine("block_model", "flushes", drives=[disk]) as machine:
        factor = 0x9e3779b97f4a7c15
        machine.boot().wait_for_output(f"flushed {factor}\n")
        machine.process.send_signal(signal.SIGKILL)
        machine.wait()
        with mayfly.Mayfly() as vm: # at once: its ring may still have the file
            vm.ok("PUT", "/drives/disk", disk)
        words = [int(line.split()[1]) for line in machine.output().splitlines(True)
                 if line.startswith("flushed ") and line.endswith("\n")]
        for recent in [True] + [False] * (cache == "Writeback"):
            first = struct.unpack("<Q", read_disk(base, top, recent=recent)[:8])[0]
            assert first in (words[-1], *((len(words) + 1 + n) * factor % 2**64 for n in range(3)))


@pytest.mark.parametrize("engine", ENGINES if mayfly.IS_LONG else ["Async"])
def test_clones_of_a_frozen_disk_go_their_own_ways(tmp_path, base, engine):
    """Each finds what the model says, from the snapshot on; the source as well, twice."""
    top = str(tmp_path / "top0")
    disk = drive(base, overlay_path=top, io_engine=engine)
    layers = []
    with model(disk, 2 * REQUESTS) as source:
        source.boot()
        for i in range(1, 3):
            files = pair(tmp_path, f"snap{i}")
            until_written(top)
            layers.append(top)
            top = str(tmp_path / f"top{i}")
            save(source, files, drive_overlays=[{"drive_id": "disk", "overlay_path": top}])
            shown = source.ok("GET", "/vm/config")["drives"][0]
            assert (shown["layers"], shown["overlay_path"]) == (layers, top)
            assert Overlay(layers[-1]).is_frozen and not Overlay(top).count()
            resume(source)
        source.finish()
    own = str(tmp_path / "own")
    with loaded(files, drive_overrides=[{"drive_id": "disk", "overlay_path": own}]) as clone:
        shown = clone.ok("GET", "/vm/config")["drives"][0]
        assert (shown["layers"], shown["overlay_path"]) == (layers, own)
        clone.finish()
    assert read_disk(base, *layers, own) == read_disk(base, *layers, top)
    # A configuration file or PUT has it all again.
    with model(drive(base, overlay_path=top, layers=layers), 0) as machine:
        machine.boot()


@pytest.mark.parametrize("engine", ENGINES if mayfly.IS_LONG else ["Sync"])
def test_clones_have_overlays_above_a_disk_that_had_none(tmp_path, engine):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(SECTORS * 512))
    with model(drive(disk, io_engine=engine)) as source:
        source.boot()
        mayfly.wait_until(lambda: any(disk.read_bytes()), "a write")
        files = save(source, pair(tmp_path))
        source.stop()
    before = disk.read_bytes()
    for i in range(2):
        own = str(tmp_path / f"own{i}")
        with loaded(files, drive_overrides=[{"drive_id": "disk", "overlay_path": own}]) as clone:
            clone.finish()
        assert Overlay(own).count()
    assert disk.read_bytes() == before


def test_a_create_that_fails_freezes_nothing(tmp_path, base):
    top, new = str(tmp_path / "top"), str(tmp_path / "new")
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(512))
    with Machine("block_model", f"requests={REQUESTS} seed=1", stdin=subprocess.PIPE,
                 drives=[drive(base, overlay_path=top),
                         drive(plain, "plain")]) as vm:
        vm.boot()
        config = vm.ok("GET", "/vm/config")
        pause(vm)
        for name, path, why in (
                ("none", new, "Cannot freeze drive none: There is no such drive."),
                ("plain", new, "Cannot freeze drive plain: It has no overlay."),
                ("disk", top, "Cannot freeze drive disk: Virtio backend error: Overlay "
                 f"{top}: it is in use, by another drive or as a layer"),
                ("disk", base, "Cannot freeze drive disk: Virtio backend error: Overlay "
                 f"{base}: it can't be opened"),
                ("disk", f"{tmp_path}", "Cannot freeze drive disk: Virtio backend error: Overlay "
                 f"{tmp_path}: it can't be opened: Is a directory (os error 21)")):
            if path == base and os.getuid() == 0:
                continue
            overlays = [{"drive_id": "disk", "overlay_path": new + "2"}] * (name != "disk")
            overlays.append({"drive_id": name, "overlay_path": path})
            status, _, body = vm.request("PUT", "/snapshot/create", create_body(
                pair(tmp_path), drive_overlays=overlays))
            assert status == 400 and body["fault_message"].startswith(
                "Create snapshot error: " + why), body
        status, _, body = vm.request("PUT", "/snapshot/create", create_body(
            (f"{tmp_path}/no/state", f"{tmp_path}/memory"),
            drive_overlays=[{"drive_id": "disk", "overlay_path": new}]))
        assert status == 400
        assert vm.ok("GET", "/vm/config") == config
        assert not os.path.exists(new) and not os.path.exists(new + "2")
        assert not Overlay(top).is_frozen
        resume(vm)
        vm.finish()


@pytest.mark.parametrize("live", [False, True])
def test_a_snapshot_takes_the_place_of_no_file_of_a_drive(tmp_path, base, live):
    top, new = str(tmp_path / "top"), str(tmp_path / "new")
    other = str(tmp_path / "other")
    with model(drive(base, overlay_path=top)) as vm:
        vm.boot()
        config = vm.ok("GET", "/vm/config")
        pause(vm)
        for name in (top, base, new):
            for files in ((name, other), (other, name)):
                status, _, body = vm.request("PUT", "/snapshot/create", create_body(
                    files, live=live, drive_overlays=[{"drive_id": "disk", "overlay_path": new}]))
                assert (status, body["fault_message"]) == (
                    400, f"Create snapshot error: {name} is a file of drive disk")
                assert vm.ok("GET", "/vm/config") == config
                assert not os.path.exists(new) and not os.path.exists(other)
        resume(vm)
        vm.finish()
    assert Overlay(top).count() > 0


@needs_root
def test_a_live_create_that_fails_late_says_that_the_drives_are_frozen(tmp_path, base):
    top, new = str(tmp_path / "top"), str(tmp_path / "new")
    with tmpfs(tmp_path / "small", "size=4k") as small:
        (small / "filler").write_bytes(bytes(4096))
        with model(drive(base, overlay_path=top)) as vm:
            vm.boot()
            status, _, body = vm.request("PUT", "/snapshot/create", create_body(
                (str(small / "snap"), str(tmp_path / "memory")), live=True,
                drive_overlays=[{"drive_id": "disk", "overlay_path": new}]))
            assert status == 400 and body["fault_message"].startswith(
                "Create snapshot error: The drives were frozen, and go on in their new overlays, "
                "but: "), body
            shown = vm.ok("GET", "/vm/config")["drives"][0]
            assert (shown["overlay_path"], shown["layers"]) == (new, [top])
            vm.finish()
    assert Overlay(top).is_frozen and not Overlay(new).is_frozen


def test_an_overlay_that_was_not_frozen_is_not_made_anew(tmp_path, base):
    top, copy, empty = (str(tmp_path / name) for name in ("top", "copy", "empty"))
    with model(drive(base, overlay_path=top)) as vm:
        vm.boot()
        files = save(vm, pair(tmp_path))
        resume(vm)
        vm.finish()
    os.rename(top, copy)
    open(empty, "wb").close()
    said = ("Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from "
            "file: Drive disk: its overlay ")
    for overrides, why in ([], f"{top}: No such file or directory (os error 2)"), (
            [{"drive_id": "disk", "overlay_path": empty}], f"{empty} is empty, and was not frozen."):
        with Clone(files) as clone:
            status, _, body = clone.request("PUT", "/snapshot/load",
                                            load_body(files, drive_overrides=overrides))
            assert (status, body["fault_message"]) == (400, said + why)
            assert not os.path.exists(top) and os.path.getsize(empty) == 0
    with loaded(files, drive_overrides=[{"drive_id": "disk", "overlay_path": copy}]):
        pass


@pytest.mark.parametrize("live", [False, True])
def test_a_frozen_disk_needs_a_new_overlay(tmp_path, base, live):
    top, new = str(tmp_path / "top"), str(tmp_path / "new")
    with model(drive(base, overlay_path=top)) as source:
        source.boot()
        files = save(source, pair(tmp_path), live=live,
                     drive_overlays=[{"drive_id": "disk", "overlay_path": new}])
        P = "Load snapshot error: Failed to restore from snapshot: "
        B = P + ("Failed to build microVM from snapshot: Failed to restore devices: Error "
                 "restoring MMIO devices: Block: Virtio backend error: Overlay ")
        resume(source)
        source.finish()
    for overrides, why in (
            ([], P + "Failed to get snapshot state from file: Drive disk was frozen: it needs a "
             "new overlay_path by drive_overrides."),
            ([{"drive_id": "disk", "overlay_path": new}],
             f"{B}{new}: it has to be a new one, since its drive was frozen"),
            ([{"drive_id": "disk", "overlay_path": top}],
             f"{B}{top}: it is in use, by another drive or as a layer")):
        with Clone(files) as vm:
            status, _, body = vm.request("PUT", "/snapshot/load",
                                         load_body(files, drive_overrides=overrides))
            assert (status, body["fault_message"]) == (400, why)
            assert vm.wait() == 1


def test_layers_have_a_bound(tmp_path, base):
    with Machine("counter", drives=[drive(base, overlay_path=str(tmp_path / "top"))],
                 stdin=subprocess.PIPE) as vm:
        vm.boot()
        pause(vm)
        for i in range(9):
            status, _, body = vm.request("PUT", "/snapshot/create", create_body(
                pair(tmp_path),
                drive_overlays=[{"drive_id": "disk", "overlay_path": f"{tmp_path}/top{i}"}]))
            assert status == (204 if i < 8 else 400)
        assert body["fault_message"] == (
            "Create snapshot error: Cannot freeze drive disk: Virtio backend error: It has 8 "
            "layers, and no more are possible before they are folded, which is done while it runs.")
        assert not os.path.exists(tmp_path / "top8")
        resume(vm)
        mayfly.wait_until(lambda: not layers_of(vm), "the fold")
        save(vm, pair(tmp_path),
             drive_overlays=[{"drive_id": "disk", "overlay_path": f"{tmp_path}/top8"}])
        assert layers_of(vm) == [f"{tmp_path}/top7"]


def layers_of(vm):
    return vm.ok("GET", "/vm/config")["drives"][0].get("layers", [])


def allow(vm, requests):
    """Lets the guest do so many more, or (0) all."""
    vm.ok("PATCH", "/drives/disk", {"drive_id": "disk", "rate_limiter": {
        "ops": {"size": requests, "refill_time": 3600000 if requests else 0}}})


@pytest.mark.parametrize("engine", ENGINES if mayfly.IS_LONG else ["Async"])
def test_layers_are_folded_and_each_clone_has_its_own_generation(tmp_path, base, engine):
    """The guest's requests go on meanwhile."""
    top = str(tmp_path / "top0")
    limit = {"ops": {"size": 60, "refill_time": 3600000}}
    disk = drive(base, overlay_path=top, io_engine=engine, rate_limiter=limit)
    generations, folds = [], 0
    with model(disk, 1000) as source:
        source.boot()
        for i in range(1, 13):
            until_written(top)
            layers = layers_of(source) + [top]
            top = str(tmp_path / f"top{i}")
            files = save(source, pair(tmp_path, f"snap{i}"),
                         drive_overlays=[{"drive_id": "disk", "overlay_path": top}])
            assert layers_of(source) == layers
            generations.append((files, layers))
            resume(source)
            allow(source, 60)
            if len(layers) > 4:
                mayfly.wait_until(lambda: not layers_of(source), "the fold")
                assert Overlay(top).below == bytes(16)
                folds += 1
        assert folds == 2
        until_written(top)
        layers = layers_of(source)
        allow(source, 0)
        source.finish()
    last = read_disk(base, *layers, top)
    for i, (files, layers) in enumerate(generations[2::3]):
        own = str(tmp_path / f"own{i}")
        with loaded(files, drive_overrides=[{"drive_id": "disk", "overlay_path": own}]) as clone:
            assert layers_of(clone) == layers
            allow(clone, 0)
            clone.finish()
        assert read_disk(base, *layers, own) == last


def test_what_was_folded_is_opened_without_layers(tmp_path, base):
    tops = [str(tmp_path / f"top{i}") for i in range(6)]
    with Machine("counter", drives=[drive(base, overlay_path=tops[0])],
                 stdin=subprocess.PIPE) as vm:
        vm.boot()
        for top in tops[1:]:
            save(vm, pair(tmp_path), drive_overlays=[{"drive_id": "disk", "overlay_path": top}])
            if top != tops[-1]:
                resume(vm)
        assert layers_of(vm) == tops[:-1]  # it is paused
        resume(vm)
        mayfly.wait_until(lambda: not layers_of(vm), "the fold")
        assert f"Drive disk: 5 layers are folded into {tops[-1]}" in vm.log()
    disk = drive(base, overlay_path=tops[-1])
    with mayfly.Mayfly() as vm:
        assert refusal(vm, {**disk, "layers": tops[:-1]}) == (
            f"Overlay {tops[-1]}: it has no layers below it, or they were folded into it: its "
            "base is right below")
        vm.ok("PUT", "/drives/disk", disk)


@needs_root
def test_a_full_host_stops_a_fold_and_not_the_guest(tmp_path, base):
    """The next freeze begins it anew."""
    with tmpfs(tmp_path / "tiny", "size=256k") as mount:
        top = str(tmp_path / "top0")
        with model({**drive(base, overlay_path=top), "rate_limiter": {
                "ops": {"size": 1500, "refill_time": 3600000}}}, 2000) as vm:
            vm.boot()
            mayfly.wait_until(lambda: Overlay(top).count() > 1000, "writes")
            for i in range(1, 6):
                top = str((mount if i == 5 else tmp_path) / f"top{i}")
                save(vm, pair(tmp_path),
                     drive_overlays=[{"drive_id": "disk", "overlay_path": top}])
                resume(vm)
            mayfly.wait_until(lambda: "can't be folded" in vm.log(), "the full host")
            assert f"Drive disk goes on with its layers, which can't be folded into {top}: No " \
                "space left on device" in vm.log()
            assert len(layers_of(vm)) == 5
            save(vm, pair(tmp_path), drive_overlays=[
                {"drive_id": "disk", "overlay_path": str(tmp_path / "top6")}])
            resume(vm)
            mayfly.wait_until(lambda: not layers_of(vm), "the fold")
            allow(vm, 0)
            vm.finish()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_host_file_system_is_an_io_error(tmp_path, base, engine):
    """Wherever it strikes: at the data, or at what is known of them."""
    with tmpfs(tmp_path / "tiny", "size=256k") as mount:
        disk = drive(base, overlay_path=str(mount / "top"), io_engine=engine)
        with Machine("block_model", "full", drives=[disk]) as machine:
            machine.boot().finish()
        shutil.copy(mount / "top", tmp_path / "top")
    assert 0 < Overlay(tmp_path / "top").count() < 512


@needs_root
def test_disks_of_jailed_clones_are_their_own(base):
    """The base and the frozen layer are root's, and shared; each overlay is its user's."""
    with Jail() as first, Jail() as second:
        for each in (first, second):
            os.chown(each.root, each.uid, each.gid)
            os.link(base, each.inside("base"))
        kernel = first.give(os.path.join(mayfly.GUESTS, "block_model"))
        first.ok("PUT", "/boot-source", {"kernel_image_path": kernel,
                                         "boot_args": f"requests={REQUESTS} seed=1"})
        first.ok("PUT", "/drives/disk", drive("/base", overlay_path="/top", io_engine="Async",
                                              cache_type="Writeback"))
        first.ok("PUT", "/drives/disk", drive("/base", overlay_path="/top", io_engine="Async",
                                              cache_type="Writeback"))
        first.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        until_written(first.inside("top"))
        pause(first)
        first.ok("PUT", "/snapshot/create",
                 create_body(("/saved", "/memory"),
                             drive_overlays=[{"drive_id": "disk", "overlay_path": "/top2"}]))
        for name in ("saved", "memory"):
            second.give(first.inside(name))
        os.link(first.inside("top"), second.inside("top"))
        os.chown(first.inside("top"), 0, 0)
        os.chmod(first.inside("top"), 0o444)
        second.ok("PUT", "/snapshot/load", load_body(
            ("/saved", "/memory"), resume_vm=True,
            drive_overrides=[{"drive_id": "disk", "overlay_path": "/own"}]))
        resume(first)
        for each in (first, second):
            each.wait()
            assert "the_whole_disk_is_as_the_model_says" in each.output()
            assert "not ok" not in each.output()
        layers = [first.inside("top")]
        assert (read_disk(base, *layers, first.inside("top2")) ==
                read_disk(base, *layers, second.inside("own")))
