"""snapshot-editor, and what the VMM says of a state file."""

import fcntl
import os
import struct

import pytest

import mayfly
from guests import Machine, needs_kvm
from snapshots import MARK, create_body, loaded, mark, pair, pause, resume, save, until_output

EDITOR = os.path.join(os.path.dirname(mayfly.BINARY), "snapshot-editor")
OLD = "00000000-0000-4000-8000-000000000001 "
NEW = "00000000-0000-4000-8000-000000000002 "
MIB = 1 << 20


def edit(*words):
    """Exit code, stdout and stderr."""
    done = mayfly.complete(EDITOR, *words)
    return done.returncode, done.stdout, done.stderr


def rebase(memory, diff):
    return edit("edit-memory", "rebase", "--memory-path", memory, "--diff-path", diff)


def make(path, its_mark=None, data=(), size=MIB):
    with open(path, "wb") as file:
        file.truncate(size)
        for at, text in data:
            os.pwrite(file.fileno(), text, at)
    if its_mark:
        os.setxattr(path, MARK, its_mark.encode())
    return path


@pytest.fixture(name="halves")
def _halves(tmp_path):
    """Memory of which every page is there, and a Diff of two pages, one of them zero."""
    return (make(tmp_path / "memory", OLD + "whole", [(0, b"m" * MIB)]),
            make(tmp_path / "diff", NEW + "layer", [(8192, b"d" * 4096), (65536, bytes(4096))]))


def test_a_rebase_puts_pages_and_zeroes_but_no_holes(halves):
    assert rebase(*halves) == (0, "", "")
    expected = bytearray(b"m" * MIB)
    expected[8192:12288], expected[65536:69632] = b"d" * 4096, bytes(4096)
    assert halves[0].read_bytes() == expected
    assert mark(halves[0]) == NEW + "whole"


def test_of_a_diff_without_a_mark_comes_memory_without_one(halves):
    os.removexattr(halves[1], MARK)
    assert rebase(*halves) == (0, "", "")
    assert mark(halves[0]) is None


def test_a_rebase_that_was_cut_off_can_be_completed_by_the_same_only(halves, tmp_path):
    os.setxattr(halves[0], MARK, (NEW + "whole merging").encode())
    other = make(tmp_path / "other", OLD + "layer")
    assert rebase(halves[0], other) == (
        1, "", "Error: Another diff was not written to its end into the memory file\n")
    assert rebase(*halves) == (0, "", "")
    assert mark(halves[0]) == NEW + "whole"


@pytest.mark.parametrize("name,why", [
    ("same", "The diff file is in use by a microVM"), # its own lock comes first
    ("short", f"The memory file has {MIB} bytes, and the diff file {MIB - 1}"),
    ("torn", "The diff file was not written to its end"),
    ("strange", "The mark of the diff file is none that mayfly makes"),
    ("none", "Could not open diff file: No such file or directory (os error 2)"),
    ("directory", "Could not open diff file: it is no regular file"),
    ("used", "The memory file is in use by a microVM"),
])
def test_a_rebase_that_is_refused_changes_nothing(halves, tmp_path, name, why):
    memory, diff = halves[0], tmp_path / name
    before = memory.read_bytes()
    if name == "same":
        os.link(memory, diff)
    elif name == "directory":
        diff.mkdir()
    elif name != "none":
        make(diff, NEW + {"torn": "layer merging", "strange": "?"}.get(name, "layer"),
             size=MIB - (name == "short"))
    with open(memory, "rb") as user:
        if name == "used":
            fcntl.flock(user, fcntl.LOCK_SH)
        code, text, error = rebase(memory, diff)
    assert (code, text) == (1, "") and error == f"Error: {why}\n"
    assert memory.read_bytes() == before and mark(memory) == OLD + "whole"


def test_what_it_can_t_do_it_says():
    assert edit("--version")[1].startswith("snapshot-editor v")
    assert edit("--help")[0] == 0 and "--diff-path" in edit("--help")[1]
    assert edit()[0] == edit("edit-memory", "paint")[0] == 2
    assert edit("edit-memory", "rebase", "--memory-path", "x")[0] == 1


@needs_kvm
def test_a_machine_is_described_and_a_diff_rebased_loads(tmp_path):
    with Machine("counter", vcpus=2) as first:
        first.ok("PATCH", "/machine-config", {"track_dirty_pages": True})
        first.boot()
        until_output(first, lambda text: text.count("\n") > 20)
        base = save(first, pair(tmp_path, "base"))
        resume(first)
        until_output(first, lambda text: text.count("\n") > 40)
        pause(first)
        diff = pair(tmp_path, "diff")
        first.ok("PUT", "/snapshot/create", create_body(diff, snapshot_type="Diff"))
        printed = first.output()
    version = mayfly.complete(mayfly.BINARY, "--snapshot-version").stdout.splitlines()[0]
    assert mayfly.complete(mayfly.BINARY, "--describe-snapshot",
                           base[0]).stdout.splitlines()[0] == version
    assert edit("info-vmstate", "version", "--vmstate-path", base[0]) == (0, version + "\n", "")
    code, text, _ = edit("info-vmstate", "vcpu-states", "--vmstate-path", base[0])
    assert code == 0 and text.startswith("vcpu 0:\n") and "vcpu 1:\n" in text
    assert "kvm clock" in edit("info-vmstate", "vm-state", "--vmstate-path", base[0])[1]
    assert rebase(base[1], diff[1]) == (0, "", "")
    with loaded((diff[0], base[1])) as second:
        until_output(second, lambda text: text.count("\n") > 20)
        pause(second)
        joined = printed + second.output()
    assert joined == "".join(f"{i}\n" for i in range(len(joined)))[:len(joined)]


def test_the_version_of_another_format_is_read(tmp_path):
    """Of which nothing but the header is known."""
    header = struct.pack("<8sHHHH12sI16sQI", b"MAYFLYS\0", 7, 3, 62, 0, b"9.9.9", 0, bytes(16),
                         MIB, 0)
    crc = 0xffffffff
    for byte in header:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    path = tmp_path / "future"
    path.write_bytes(header + struct.pack("<I", crc ^ 0xffffffff))
    assert mayfly.complete(mayfly.BINARY, "--describe-snapshot",
                           path).stdout.splitlines()[0] == "v7.3.0"
