"""What a guest touches after a load, recorded once and prefetched later: `working_set` of
PUT /snapshot/load."""

import contextlib
import ctypes
import mmap
import os
import re
import shutil
import stat
import struct
import subprocess
import time

import pytest

import mayfly
from guests import Machine, drive, needs_kvm, thread_names
from jail import Jail, needs_root
from overlays import Overlay, read_disk
from snapshots import (FAILED, Clone, crc32c, create_body, load_body, loaded, pair, pause, resume,
                       save, until_output)
from uffd import needs_uffd

pytestmark = [needs_kvm, needs_uffd]
PAGE = 4096
TOUCHED_MIB, RUNS = 24, 100
FIRST = (18 << 20) // PAGE # as benchmarks/snapshot_guest.c has it
HEADER = struct.Struct("<8sHxxxxxx16sQI12xII")
RUN = struct.Struct("<QII")


def visited():
    """{page: whether it is written} of what the guest's pass touches."""
    apart, share, pages = (TOUCHED_MIB << 20) // PAGE // RUNS, 0, {}
    for run in range(RUNS):
        share = (share + 9) % 20
        pages |= {FIRST + run * apart + n: share < 9 for n in range(8)}
    return pages


def visit(machine):
    """One pass."""
    before = len(machine.output())
    machine.send(b"x")
    until_output(machine, lambda text: text[before:] == "<>")


def record(files, path, **members):
    """Loads, lets the guest make its pass, and pauses it."""
    with loaded(files, working_set={"path": str(path), "record": True}, **members) as clone:
        visit(clone)
        pause(clone)
        pages, = re.findall(rf"The working set is in {path}: (\d+) pages\n", clone.log())
    return int(pages)


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory):
    with Machine("snapshot", f"touched={TOUCHED_MIB} runs={RUNS}", mem_mib=64,
                 stdin=subprocess.PIPE) as first:
        first.boot()
        until_output(first, lambda text: text == "ready\n")
        return save(first, pair(tmp_path_factory.mktemp("saved")))


@pytest.fixture(name="recorded", scope="module")
def _recorded(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "set"
    record(files, path)
    return path


def runs_of(data):
    count = HEADER.unpack_from(data)[4]
    return [RUN.unpack_from(data, HEADER.size + i * RUN.size) for i in range(count)]


def test_the_record_has_what_the_guest_touched(tmp_path, files):
    count = record(files, tmp_path / "set")
    data, memory = (tmp_path / "set").read_bytes(), open(files[1], "rb").read()
    magic, version, name, pages, runs, runs_crc, crc = HEADER.unpack_from(data)
    assert (magic, version, pages) == (b"MAYFLYW\0", 1, len(memory) // PAGE)
    with open(files[0], "rb") as state:
        assert name == state.read()[32:48]
    assert runs_crc == crc32c(data[64:64 + runs * RUN.size]) and crc == crc32c(data[:60])
    found = {page + n: written == 1 for page, length, written in runs_of(data)
             for n in range(length)}
    assert len(found) == count
    wanted = visited()
    assert {page: found.get(page) for page in wanted} == wanted
    assert len(found) - len(wanted) < 64 # its code, stack and tables; generation devices
    at = -(-(64 + runs * RUN.size) // PAGE) * PAGE
    assert data[at:] == b"".join(memory[page * PAGE:(page + 1) * PAGE] for page in sorted(found))
    assert os.listdir(tmp_path) == ["set"]


def faults_of_vcpu(clone):
    """(minor, major) page faults that the host has taken for the guest."""
    for task in os.listdir(f"/proc/{clone.process.pid}/task"):
        with open(f"/proc/{clone.process.pid}/task/{task}/stat", encoding="ascii") as f:
            fields = f.read().rpartition(") ")
            if "(fc_vcpu 0" in fields[0]:
                numbers = fields[2].split()
                return int(numbers[7]), int(numbers[9])
    return None


def drop_from_cache(path):
    """False: the file has no disk. It is not asked by reads, which would begin to bring it back."""
    libc = ctypes.CDLL(None)
    with open(path, "r+b") as file:
        os.fsync(file)
        pages = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
        resident = (ctypes.c_ubyte * -(-len(pages) // PAGE))()
        begin = ctypes.byref(ctypes.c_char.from_buffer(pages))
        for _ in range(100): # the kernel lets go of some a little later
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert libc.mincore(begin, ctypes.c_size_t(len(pages)), resident) == 0
            if not any(resident):
                return True
            time.sleep(0.05)
    return False


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_its_pages_are_there_before_the_guest_runs(tmp_path, files, recorded, cache):
    """Without a set each page that is written faults, and each that has to be read waits."""
    if cache == "warm":
        shutil.copyfile(files[1], "/dev/null")
    elif not drop_from_cache(files[1]):
        pytest.skip("nothing is ever out of the page cache here")
    with loaded(files, resume_vm=False, working_set={"path": str(recorded)}) as clone:
        source = "the page cache" if cache == "warm" else "its file"
        assert f"pages of the working set from {source}\n" in clone.log()
        before = faults_of_vcpu(clone)
        resume(clone)
        visit(clone)
        minor, major = (now - then for now, then in zip(faults_of_vcpu(clone), before))
        assert minor < 100 and major == 0
        with open(f"/proc/{clone.process.pid}/maps", encoding="ascii") as maps:
            assert (str(recorded) in maps.read()) == (cache == "cold")
        again = save(clone, pair(tmp_path))
    differ = pages_that_differ(files[1], again[1])
    wrote = {page for page, written in visited().items() if written}
    assert wrote <= differ and len(differ - wrote) < 16
    with loaded(files) as clone:
        before = faults_of_vcpu(clone)
        visit(clone)
        assert sum(faults_of_vcpu(clone)) - sum(before) > len(wrote)


def pages_that_differ(one, other):
    with open(one, "rb") as a, open(other, "rb") as b:
        return {at // PAGE for at in range(0, os.path.getsize(one), PAGE)
                if a.read(PAGE) != b.read(PAGE)}


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


def test_one_that_can_not_be_used_costs_a_line_in_the_log(tmp_path, files, recorded):
    good, bad = recorded.read_bytes(), tmp_path / "set"
    other = bytearray(flipped(good, 16)) # of another snapshot
    struct.pack_into("<I", other, 60, crc32c(bytes(other[:60])))
    os.mkfifo(tmp_path / "fifo")
    for path, content, why in (
            (tmp_path / "none", None, "cannot be opened: No such file or directory (os error 2)"),
            (tmp_path, None, "cannot be read: Is a directory (os error 21)"),
            (tmp_path / "fifo", None, "cannot be read: Invalid seek (os error 29)"),
            (bad, b"", "it ends too early"),
            (bad, b"x" * 100, "it is none"),
            (bad, bytes(other), "it is of snapshot "),
            (bad, flipped(good, 70), "its runs have another checksum"),
            (bad, good[:-1], f"it has {len(good) - 1} bytes, not {len(good)}")):
        if content is not None:
            bad.write_bytes(content)
        with loaded(files, working_set={"path": str(path)}) as clone:
            line, = [line for line in clone.log().splitlines() if " working set" in line
                     and "body" not in line]
            assert f"The working set {path} is not used: {why}" in line
            visit(clone)


def test_a_microvm_that_records_can_be_saved(tmp_path, files):
    """What it has not touched is in the file that it was loaded from."""
    path = tmp_path / "set"
    with loaded(files, working_set={"path": str(path), "record": True}) as clone:
        visit(clone)
        full = save(clone, pair(tmp_path))
        old = path.read_bytes()
        resume(clone)
        visit(clone)
        diff = save(clone, pair(tmp_path, "diff"), snapshot_type="Diff")
        assert path.read_bytes() == old # the first pause counts
        assert "fc_pager" in "".join(thread_names(f"/proc/{clone.process.pid}"))
    for name in (full, diff):
        assert os.path.getsize(name[1]) == os.path.getsize(files[1])
    assert len(pages_that_differ(files[1], full[1])) < len(visited())
    with loaded(full, working_set={"path": str(path)}) as clone: # it is of the first
        assert " is not used: it is of snapshot " in clone.log()
        visit(clone)


def test_a_guest_that_ends_leaves_its_record(tmp_path):
    with Machine("clone", stdin=subprocess.PIPE) as first:
        first.boot()
        until_output(first, lambda text: "waiting save\n" in text)
        files = save(first, pair(tmp_path))
    with loaded(files, working_set={"path": str(tmp_path / "set"), "record": True}) as clone:
        clone.send(b"x")
        clone.finish()
    assert (tmp_path / "set").read_bytes().startswith(b"MAYFLYW\0")


def test_what_can_not_be_recorded_is_refused(tmp_path, files):
    with Clone(files) as clone:
        body = load_body(files, working_set={"path": "set"})
        body["mem_backend"]["backend_type"] = "Uffd"
        status, _, answer = clone.request("PUT", "/snapshot/load", body)
        assert (status, answer["fault_message"]) == (
            400, "Load snapshot error: A working set is for the backend File: which pages come "
            "first is the page fault handler's to choose.")
        path = tmp_path / "none" / "set"
        body = load_body(files, working_set={"path": str(path), "record": True})
        status, _, answer = clone.request("PUT", "/snapshot/load", body)
        assert (status, answer["fault_message"]) == (
            400, f"{FAILED}Failed to load guest memory: Error creating guest memory from file: the "
            f"working set can't be recorded: {path}.mayfly-new can't be written: No such file or "
            "directory (os error 2)")
        assert clone.wait() == 1
    two = {"path": str(tmp_path / "set"), "record": True}
    with loaded(files, working_set=two), Clone(files) as clone:
        status, _, answer = clone.request("PUT", "/snapshot/load",
                                          load_body(files, working_set=two))
        assert status == 400 and "set.mayfly-new can't be locked" in answer["fault_message"]
        assert clone.wait() == 1
        assert os.path.exists(two["path"] + ".mayfly-new") # the first one's


def test_a_record_takes_the_place_of_no_other_file(tmp_path, files):
    path, temporary = str(tmp_path / "set"), str(tmp_path / "set.mayfly-new")
    copy = pair(tmp_path)
    for old, new in zip(files, copy):
        shutil.copyfile(old, new)
    os.mknod(tmp_path / "null", stat.S_IFIFO | 0o600)
    os.symlink(copy[1], tmp_path / "link")
    for other in (copy[0], copy[1], str(tmp_path), str(tmp_path / "null"), str(tmp_path / "link")):
        before = os.lstat(other)
        with Clone(copy) as clone:
            status, _, answer = clone.request("PUT", "/snapshot/load", load_body(
                copy, working_set={"path": other, "record": True}))
            assert status == 400, other
            assert answer["fault_message"].endswith(f": {other} is there, and no working set")
        assert os.lstat(other)[:3] == before[:3] and os.lstat(other).st_mtime == before.st_mtime
    os.mkfifo(temporary)
    with Clone(copy) as clone:
        status, _, answer = clone.request("PUT", "/snapshot/load", load_body(
            copy, working_set={"path": path, "record": True}))
        assert status == 400
        assert answer["fault_message"].endswith(f": {temporary} is no regular file")
    assert stat.S_ISFIFO(os.lstat(temporary).st_mode)


def test_a_memory_file_that_is_cut_off_ends_who_records(tmp_path, files):
    """As it ends a guest that is mapped from it: by SIGBUS."""
    copy = pair(tmp_path)
    for old, new in zip(files, copy):
        shutil.copyfile(old, new)
    with loaded(copy, working_set={"path": str(tmp_path / "set"), "record": True}) as clone:
        until_output(clone, lambda text: True)
        os.truncate(copy[1], PAGE)
        with contextlib.suppress(BrokenPipeError): # it may have noticed already
            clone.send(b"x")
        assert clone.wait() == 149
    assert not (tmp_path / "set").exists()


@contextlib.contextmanager
def hugetlbfs(directory):
    os.mkdir(directory)
    if subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", directory],
                      check=False).returncode:
        pytest.skip("this kernel has no hugetlbfs")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def copy_by_mapping(old, new):
    """What has no write(2). False: there are too few pages."""
    with open(old, "rb") as source, open(new, "wb+") as target:
        size = os.fstat(source.fileno()).st_size
        target.truncate(size)
        try:
            with mmap.mmap(target.fileno(), size) as memory:
                memory[:] = source.read()
        except OSError:
            return False
    return True


def refusal(files, **members):
    with Clone(files) as clone:
        status, _, answer = clone.request("PUT", "/snapshot/load", load_body(files, **members))
        assert status == 400
        return answer["fault_message"]


@needs_root
def test_memory_can_be_huge_pages_of_a_file(tmp_path, files):
    """Where there are some; else what lacks is said. They have no working set."""
    with hugetlbfs(tmp_path / "huge") as directory:
        huge = files[0], str(directory / "memory")
        if not copy_by_mapping(files[1], huge[1]):
            assert "(os error 12): 32 huge pages of 2 MiB are needed, " in refusal(
                huge, huge_pages="2M")
            return
        with loaded(huge, huge_pages="2M") as clone:
            visit(clone)
            again = save(clone, pair(tmp_path))
        assert "the memory file has huge pages" in refusal(huge)
        assert "the working set of huge pages of 2 MiB can't be recorded" in refusal(
            huge, huge_pages="2M", working_set={"path": f"{tmp_path}/set", "record": True})
    wrote = {page for page, written in visited().items() if written}
    assert wrote <= pages_that_differ(files[1], again[1])
    with loaded(again, huge_pages="None") as clone:
        visit(clone)


@needs_root
def test_it_works_in_a_jail(tmp_path):
    """Memory and set are somebody else's there, who can't be asked what is cached of them."""
    with Machine("counter") as first:
        first.boot()
        until_output(first, lambda text: text.count("\n") > 40)
        files = save(first, pair(tmp_path))
    os.chmod(files[1], 0o444)
    with Jail() as clone:
        clone.give(files[0], "saved")
        os.link(files[1], clone.inside("memory"))
        os.mkdir(clone.inside("sets"))
        os.chown(clone.inside("sets"), clone.uid, clone.gid)
        clone.ok("PUT", "/snapshot/load", load_body(
            ("/saved", "/memory"), resume_vm=True,
            working_set={"path": "/sets/set", "record": True}))
        mayfly.wait_until(lambda: clone.output().count("\n") > 40, clone.output)
        pause(clone)
        shutil.copyfile(clone.inside("sets/set"), tmp_path / "set")
    with Jail() as clone:
        for path, name in ((files[0], "saved"), (tmp_path / "set", "set")):
            clone.give(path, name)
        os.link(files[1], clone.inside("memory"))
        clone.ok("PUT", "/snapshot/load", load_body(("/saved", "/memory"), resume_vm=True,
                                                    working_set={"path": "/set"}))
        mayfly.wait_until(lambda: clone.output().count("\n") > 40, clone.output)
        assert "pages of the working set from the page cache\n" in clone.output()


def layered(base, *layers):
    return {"backend_type": "File", "backend_path": base, "layers": list(layers)}


def merged(base, layer):
    """What is mapped of a chain; and the pages that are the layer's."""
    with open(base, "rb") as file:
        memory = bytearray(file.read())
    at, pages = 0, set()
    with open(layer, "rb") as file:
        while at < len(memory):
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            memory[at:end] = os.pread(file.fileno(), end - at, at)
            pages |= set(range(at // PAGE, end // PAGE))
            at = end
    return bytes(memory), pages


def has_cached(path, pages):
    with open(path, "rb") as file:
        for page in pages:
            try:
                os.preadv(file.fileno(), [bytearray(1)], page * PAGE, os.RWF_NOWAIT)
            except BlockingIOError:
                return False
    return True


def test_that_of_a_chain_has_what_its_layers_have(tmp_path, files):
    """Whether it is cached is a question to that file which has a page."""
    with loaded(files) as clone:
        visit(clone)
        layer = save(clone, pair(tmp_path), snapshot_type="Diff")
    chain = layer[0], files[1]
    backend = layered(files[1], layer[1])
    path = tmp_path / "set"
    record(chain, path, mem_backend=backend)
    memory, pages = merged(files[1], layer[1])
    data = path.read_bytes()
    runs = runs_of(data)
    at = -(-(64 + len(runs) * RUN.size) // PAGE) * PAGE
    assert data[at:] == b"".join(memory[page * PAGE:(page + count) * PAGE]
                                 for page, count, _ in runs)
    for source in ("the page cache", "its file"):
        with open(layer[1], "rb") as file:
            if source == "its file":
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if has_cached(layer[1], pages):
                    pytest.skip("nothing is ever out of the page cache here")
            else:
                file.read()
        shutil.copyfile(files[1], "/dev/null")
        with loaded(chain, resume_vm=False, mem_backend=backend,
                    working_set={"path": str(path)}) as clone:
            assert f"pages of the working set from {source}\n" in clone.log()
            full = save(clone, pair(tmp_path, "full"))
            resume(clone)
            visit(clone)
        with open(full[1], "rb") as file:
            found = file.read()
        differ = [at // PAGE for at in range(0, len(found), PAGE)
                  if found[at:at + PAGE] != memory[at:at + PAGE]]
        assert len(differ) <= 4, differ # generation devices


def test_a_microvm_that_records_can_be_saved_live(tmp_path, files):
    """Which touches nothing, for all that the record knows."""
    path, one, two = tmp_path / "set", pair(tmp_path, "live"), pair(tmp_path, "still")
    with loaded(files, working_set={"path": str(path), "record": True}) as clone:
        visit(clone)
        clone.ok("PUT", "/snapshot/create", create_body(one, live=True))
        assert not path.exists()
        save(clone, two)
        count, = re.findall(r"The working set is in .*: (\d+) pages\n", clone.log())
        assert int(count) < len(visited()) + 64
        assert len(pages_that_differ(one[1], two[1])) < 8
        resume(clone)
        visit(clone)
    with loaded(one) as clone:
        visit(clone)


LIMITS = {"ops": {"size": 4, "refill_time": 200}}


def finish(machine):
    """The guest block_model.c, which waits for its slow disk, says that it is what it knows."""
    machine.ok("PATCH", "/drives/disk", {
        "drive_id": "disk", "rate_limiter": {"ops": {"size": 0, "refill_time": 0}}})
    machine.wait()
    assert "the_whole_disk_is_as_the_model_says" in machine.output()
    assert "not ok" not in machine.output()


def until_changed(path, was):
    mayfly.wait_until(lambda: path.read_bytes() != was, "writes")
    return path.read_bytes()


class Tenant(Jail):
    """One that has a chain of memory files and a base that are root's, and an overlay."""

    def load(self, directory, **how):
        os.chown(self.root, self.uid, self.gid)
        self.give(directory / "layer", "saved")
        for name in ("full.mem", "layer.mem", "base"):
            os.link(directory / name, self.inside(name))
        self.ok("PUT", "/snapshot/load", {
            "snapshot_path": "/saved", "mem_backend": layered("/full.mem", "/layer.mem"),
            "resume_vm": True, "working_set": {"path": "/set", **how},
            "drive_overrides": [{"drive_id": "disk", "path_on_host": "/base",
                                 "overlay_path": "/own"}]})


@needs_root
def test_jailed_it_goes_with_layers_overlays_and_live_snapshots(tmp_path):
    base = tmp_path / "base"
    base.write_bytes(bytes(4096 * 512))
    with Machine("block_model", "requests=600 seed=1", mem_mib=32,
                 drives=[drive(base, rate_limiter=LIMITS)]) as source:
        source.configure()
        source.ok("PATCH", "/machine-config", {"track_dirty_pages": True})
        source.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        was = until_changed(base, bytes(4096 * 512))
        save(source, pair(tmp_path, "full"))
        resume(source)
        until_changed(base, was)
        save(source, pair(tmp_path, "layer"), snapshot_type="Diff")
        source.stop()
    for name in ("base", "full.mem", "layer.mem"):
        os.chmod(tmp_path / name, 0o444)
    with Tenant() as first, Tenant() as second, Tenant() as third:
        first.load(tmp_path, record=True)
        mayfly.wait_until(lambda: Overlay(first.inside("own")).count(), "writes")
        first.ok("PUT", "/snapshot/create", create_body(
            ("/live", "/live.mem"), live=True,
            drive_overlays=[{"drive_id": "disk", "overlay_path": "/own2"}]))
        pause(first)
        second.give(first.inside("set"))
        second.load(tmp_path)
        assert "pages of the working set from the page cache\n" in second.output()
        for name in ("live", "live.mem"):
            third.give(first.inside(name))
        for name in ("base", "own"):
            os.link(first.inside(name), third.inside(name))
        os.chmod(third.inside("own"), 0o444)
        os.chown(third.root, third.uid, third.gid)
        third.ok("PUT", "/snapshot/load", load_body(
            ("/live", "/live.mem"), resume_vm=True,
            drive_overrides=[{"drive_id": "disk", "overlay_path": "/own3"}]))
        resume(first)
        for each in (first, second, third):
            finish(each)
        layer = first.inside("own")
        disks = [read_disk(base, layer, first.inside("own2")),
                 read_disk(base, second.inside("own")),
                 read_disk(base, layer, third.inside("own3"))]
        assert disks[0] == disks[1] == disks[2]
