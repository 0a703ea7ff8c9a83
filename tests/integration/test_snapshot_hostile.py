"""State files that somebody has changed: a load answers 204 or 400, and nothing else happens."""

import random
import struct
import subprocess

import pytest

import mayfly
from guests import Machine, drive, make_disk, needs_kvm
from snapshots import HEADER, Clone, load_body, mended, pair, save, until_output

pytestmark = needs_kvm
FLIPS = None if mayfly.IS_LONG else 60


def load_changed(files, path, data):
    """How a load ends, of a guest that may then do what it likes: 204 or 400."""
    with open(path, "wb") as state:
        state.write(data)
    with Clone(files, stdin=subprocess.PIPE) as clone:
        status, _, answer = clone.request("PUT", "/snapshot/load",
                                          load_body((str(path), files[1]), resume_vm=True))
        if status == 400:
            assert answer["fault_message"].startswith("Load snapshot error: ")
            assert clone.wait() == 1
        else:
            assert status == 204
            clone.process.kill()
            assert clone.wait() in (-9, 0, 1), clone.log() # a guest may end by itself
        return status


def offsets(size):
    """Those of the normal run are other bytes each day, and named where one fails."""
    return range(size) if FLIPS is None else random.sample(range(size), FLIPS)


@pytest.fixture(name="saved", scope="module")
def _saved(tmp_path_factory):
    """A machine with active devices, and the bytes of its state."""
    directory = tmp_path_factory.mktemp("hostile")
    disk = drive(make_disk(directory / "disk", 2048))
    with Machine("clone", "disk gsi=6", drives=[disk], stdin=subprocess.PIPE) as first:
        first.boot()
        until_output(first, lambda text: "waiting save\n" in text)
        files = save(first, pair(directory))
        first.stop()
    with open(files[0], "rb") as state:
        return files, state.read()


def test_sums_are_mended(saved, tmp_path):
    files, data = saved
    assert mended(data) == data
    assert load_changed(files, tmp_path / "state", data) == 204


def test_a_changed_byte_is_a_refusal_or_a_guest(saved, tmp_path):
    files, data = saved
    for at in offsets(len(data)):
        changed = bytearray(data)
        changed[at] ^= random.choice((0xff, 1, 0x80, 0x10))
        try:
            load_changed(files, tmp_path / "state", mended(changed))
        except AssertionError as trouble:
            raise AssertionError(f"byte {at} became {changed[at]:#x}: {trouble}") from trouble


def test_a_state_cut_off_anywhere_is_refused(saved, tmp_path):
    files, data = saved
    for at in offsets(len(data))[:None if FLIPS is None else FLIPS // 4]:
        changed = bytearray(data[:at])
        if at >= HEADER.size:
            struct.pack_into("<I", changed, 28, at - HEADER.size)
            changed = mended(changed)
        assert load_changed(files, tmp_path / "state", changed) == 400, at
