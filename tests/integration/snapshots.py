"""Snapshots of microVMs: a machine is saved, and another is made of it."""

import contextlib
import os
import struct
import subprocess

import mayfly
from guests import Machine

MARK = "user.mayfly.snapshot"
FAILED = "Load snapshot error: Failed to restore from snapshot: "
HEADER = struct.Struct("<8sHHHH12sI16sQII")
SECTION = struct.Struct("<4sHHI")


def pair(directory, name="snap"):
    """The paths of a snapshot's two files."""
    return os.path.join(directory, name), os.path.join(directory, name + ".mem")


def pause(machine):
    machine.ok("PATCH", "/vm", {"state": "Paused"})


def resume(machine):
    machine.ok("PATCH", "/vm", {"state": "Resumed"})


def create_body(files, **members):
    return {"snapshot_path": files[0], "mem_file_path": files[1], **members}


def save(machine, files, **members):
    """Pauses it for that."""
    pause(machine)
    machine.ok("PUT", "/snapshot/create", create_body(files, **members))
    return files


def load_body(files, **members):
    return {"snapshot_path": files[0],
            "mem_backend": {"backend_type": "File", "backend_path": files[1]}, **members}


class Clone(Machine):
    """A process that is to load a snapshot."""

    def __init__(self, files, **options):
        super().__init__("", **options)
        self.files = files

    def load(self, **members):
        self.ok("PUT", "/snapshot/load", load_body(self.files, **members))
        return self


def count_in_a_jail(jail):
    """Boots a guest that counts, in a cell where files can be made."""
    os.chown(jail.root, jail.uid, jail.gid)
    kernel = jail.give(os.path.join(mayfly.GUESTS, "counter"))
    jail.ok("PUT", "/boot-source", {"kernel_image_path": kernel})
    jail.ok("PUT", "/actions", {"action_type": "InstanceStart"})
    until_output(jail, lambda text: "\n30\n" in text)


@contextlib.contextmanager
def loaded(files, options=None, **members):
    """A machine that was made of the snapshot, and runs unless told otherwise."""
    with Clone(files, **(options or {"stdin": subprocess.PIPE})) as clone:
        yield clone.load(**{"resume_vm": True, **members})


def until_output(machine, condition):
    """The output once the condition on it holds."""
    mayfly.wait_until(lambda: condition(machine.output()) or machine.process.poll() is not None,
                      lambda: f"output:\n{machine.output()[-2000:]}")
    assert condition(machine.output()), machine.output()[-2000:]
    return machine.output()


def sections(path):
    """{tag: (version, flags, data)} of a state file, as vmm/snapshot/format.h has it."""
    with open(path, "rb") as state:
        data = state.read()
    magic, major, _, machine, zero, _, length, *_ = HEADER.unpack_from(data)
    assert (magic, major, machine, zero) == (b"MAYFLYS\0", 1, 62, 0)
    assert HEADER.size == 64 and length == len(data) - HEADER.size
    found, at = {}, HEADER.size
    while at < len(data):
        tag, version, flags, length = SECTION.unpack_from(data, at)
        at += SECTION.size
        found[tag.decode()] = version, flags, data[at:at + length]
        at += length
    return found


def mark(path):
    """A memory file's, or None."""
    return os.getxattr(path, MARK).decode() if MARK in os.listxattr(path) else None


def numbers(length):
    """What the guest counter.c has printed by then; it and its clone print one sequence."""
    return "".join(f"{i}\n" for i in range(length // 2 + 1))[:length]


def _crc_of(byte):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82f63b78 if byte & 1 else 0)
    return byte


CRC_TABLE = [_crc_of(byte) for byte in range(256)]


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xffffffff


def mended(data):
    """A state file whose payload was changed, with checksums that say that it was not."""
    data = bytearray(data)
    struct.pack_into("<I", data, 56, crc32c(data[HEADER.size:]))
    struct.pack_into("<I", data, 60, crc32c(data[:60]))
    return bytes(data)
