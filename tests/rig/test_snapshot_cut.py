"""What a disk has of a snapshot when its host dies at any write of a create: all writes of an
emulated host are kept, and the disk is looked at as it was after so many of them."""

import json
import os
import pathlib
import shlex
import shutil
import struct
import sys

import pytest

from cuts import LoggedDisk

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))
from snapshots import HEADER, crc32c # pylint: disable=wrong-import-position

IS_LONG = "MAYFLY_LONG" in os.environ
CUTS = 20
MEM_MIB = 20
DISK_MIB = 128
MARK = "user.mayfly.snapshot"


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


def read(path):
    return path.read_bytes() if path.exists() else b""


def look(disk):
    """(name in the state, mark, bytes of memory) of what is on a disk."""
    data = read(disk.file("state"))
    name = None
    if len(data) > HEADER.size and \
            crc32c(data[HEADER.size:]) == struct.unpack_from("<I", data, 56)[0]:
        name = HEADER.unpack_from(data)[7].hex()
    mark = read(disk.attribute("mem", MARK)).decode().replace("-", "")
    return name, mark, read(disk.file("mem"))


def is_loaded(pair):
    """By what it says of itself; a memory file without a mark is loaded with any state."""
    name, mark, _ = pair
    return name and mark in ("", f"{name} whole")


def pairs_of(disk):
    """For each create, those after so many writes, from its begin to its end."""
    for kind in ("Full", "Diff"):
        begin, end = (disk.place(f"{when}-{kind}\n".encode()) for when in ("before", "after"))
        pairs = []
        for at in sorted({begin + 1 + (end - begin - 1) * i // CUTS for i in range(CUTS + 1)}):
            disk.recover(at)
            pairs.append(look(disk))
        yield pairs


@pytest.mark.skipif(not IS_LONG, reason="only with --long")
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="NOT TRIED: QEMU is missing")
def test_a_host_that_dies_leaves_the_old_pair_the_new_one_or_none(tmp_path):
    mayfly = pathlib.Path(os.environ.get("MAYFLY", HERE.parent.parent / "build/release/mayfly"))
    disk = LoggedDisk(tmp_path, DISK_MIB)
    disk.run(script(), f"{mayfly}:/root/mayfly", shutil.which("curl"),
             f"{mayfly.parent / 'guests' / 'snapshot'}:/root/snapshot")
    for pairs in pairs_of(disk):
        old, new = pairs[0], pairs[-1]
        assert is_loaded(old) and is_loaded(new) and old[0] != new[0] and old[2] != new[2]
        outcomes = ["refused" if not is_loaded(pair) else "old" if (pair[0], pair[2]) ==
                    (old[0], old[2]) else "new" if pair == new else "mixed" for pair in pairs]
        print(outcomes)
        assert set(outcomes) == {"old", "refused", "new"}
