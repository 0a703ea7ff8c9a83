"""What a disk has of a snapshot when its host dies at any write of a create: all writes of an
emulated host are kept, and the disk is looked at as it was after so many of them."""

import json
import os
import pathlib
import shlex
import shutil
import struct
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))
from snapshots import HEADER, crc32c # pylint: disable=wrong-import-position

IS_LONG = "MAYFLY_LONG" in os.environ
CUTS = 20
MEM_MIB = 20
DISK_BYTES = 128 << 20
MARK = "user.mayfly.snapshot"
SECTOR = 512
DISCARDED, MARKED = 4, 8


def api(method, path, body):
    return (f"curl -sf --unix-socket /tmp/api -X {method} -d {shlex.quote(json.dumps(body))}"
            f" http://localhost{path} || exit 1")


def create(kind):
    """Once the guest has gone on, which its console shows; and what tells where that begins."""
    return [
        api("PATCH", "/vm", {"state": "Resumed"}),
        "n=$(wc -c </tmp/out); until [ $(wc -c </tmp/out) -gt $((n + 20)) ]; do :; done",
        api("PATCH", "/vm", {"state": "Paused"}),
        f"echo before-{kind} >/mnt/step; sync",
        api("PUT", "/snapshot/create", {"snapshot_type": kind, "snapshot_path": "/mnt/state",
                                        "mem_file_path": "/mnt/mem"}),
        f"echo after-{kind} >/mnt/step; sync",
    ]


def script():
    boot = [
        "mount -t ext4 /dev/vda /mnt || exit 1",
        "./mayfly --api-sock /tmp/api --log-path /tmp/log </dev/null >/tmp/out 2>&1 &",
        "until curl -sf -o /dev/null --unix-socket /tmp/api http://localhost/; do sleep 0.1; done",
        api("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": MEM_MIB,
                                       "track_dirty_pages": True}),
        api("PUT", "/boot-source", {"kernel_image_path": "snapshot",
                                    "boot_args": "touched=1 dirty=1"}),
        api("PUT", "/actions", {"action_type": "InstanceStart"}),
    ]
    first = [api("PATCH", "/vm", {"state": "Paused"}),
             api("PUT", "/snapshot/create", {"snapshot_path": "/mnt/state",
                                             "mem_file_path": "/mnt/mem"})]
    return "\n".join(["mkdir /mnt", *boot, "until grep -q ready /tmp/out; do :; done", *first,
                      *create("Full"), *create("Diff")])


def logged_writes(log):
    """(offset, bytes) of each."""
    data = log.read_bytes()
    _, _, count, sector = struct.unpack_from("<QQQI", data)
    at, found = sector, []
    for _ in range(count):
        to, sectors, flags, _ = struct.unpack_from("<QQQQ", data, at)
        at += sector
        if not flags & (DISCARDED | MARKED):
            found.append((to * sector, data[at:at + sectors * sector]))
            at += sectors * sector
    return found


def place(found, text):
    """The number of the first write that has the text at its start."""
    return next(i for i, (_, data) in enumerate(found) if data.startswith(text))


def read(path):
    return path.read_bytes() if path.exists() else b""


def look(image, directory):
    """(name in the state, mark, bytes of memory) of what is on a disk after its recovery."""
    recovery = subprocess.run(["e2fsck", "-fy", image], capture_output=True, check=False)
    assert recovery.returncode < 4, recovery.stdout
    for what in ("dump /state state", "dump /mem mem", f"ea_get -f mark /mem {MARK}"):
        path = directory / what.split(" ")[-1 if what[0] == "d" else 2]
        path.unlink(missing_ok=True)
        subprocess.run(["debugfs", "-R", what, image], cwd=directory, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    data = read(directory / "state")
    name = None
    if len(data) > HEADER.size and \
            crc32c(data[HEADER.size:]) == struct.unpack_from("<I", data, 56)[0]:
        name = HEADER.unpack_from(data)[7].hex()
    return name, read(directory / "mark").decode().replace("-", ""), read(directory / "mem")


def is_loaded(pair):
    """By what it says of itself; a memory file without a mark is loaded with any state."""
    name, mark, _ = pair
    return name and mark in ("", f"{name} whole")


def pairs_of(found, image, cut, directory):
    """For each create, those after so many writes, from its begin to its end. What is recovered is
    a copy of the disk."""
    done = 0
    with open(cut, "r+b", buffering=0) as file:
        for kind in ("Full", "Diff"):
            begin, end = (place(found, f"{when}-{kind}\n".encode()) for when in ("before", "after"))
            pairs = []
            for at in sorted({begin + 1 + (end - begin - 1) * i // CUTS for i in range(CUTS + 1)}):
                for to, data in found[done:at]:
                    os.pwrite(file.fileno(), data, to)
                done = at
                shutil.copy(cut, image)
                pairs.append(look(image, directory))
            yield pairs


@pytest.mark.skipif(not IS_LONG, reason="only with --long")
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="NOT TRIED: QEMU is missing")
def test_a_host_that_dies_leaves_the_old_pair_the_new_one_or_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.environ["PATH"] + ":/sbin:/usr/sbin")
    image, log, cut = tmp_path / "image", tmp_path / "log", tmp_path / "cut"
    mayfly = pathlib.Path(os.environ.get("MAYFLY", HERE.parent.parent / "build/release/mayfly"))
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
    shutil.copy(image, cut)
    subprocess.run([HERE / "rig", "--logged-disk", image, log, "--file", f"{mayfly}:/root/mayfly",
                    "--file", f"{mayfly.parent / 'guests' / 'snapshot'}:/root/snapshot",
                    "--file", shutil.which("curl"), "--timeout", "1200", "--",
                    "sh", "-c", script()], check=True)
    for pairs in pairs_of(logged_writes(log), image, cut, tmp_path):
        old, new = pairs[0], pairs[-1]
        assert is_loaded(old) and is_loaded(new) and old[0] != new[0] and old[2] != new[2]
        outcomes = ["refused" if not is_loaded(pair) else "old" if (pair[0], pair[2]) ==
                    (old[0], old[2]) else "new" if pair == new else "mixed" for pair in pairs]
        print(outcomes)
        assert set(outcomes) == {"old", "refused", "new"}
