"""Reads overlays as virtio/block_overlay.h has their format, and not as it is written there."""

import os
import struct

HEADER = struct.Struct("<8sII16s16sQq")
BLOCK, SECTOR = 4096, 512


class Overlay:
    """One file; `recent`: the bits that count in this boot of the host, too."""

    def __init__(self, path, recent=True):
        with open(path, "rb") as file:
            self.data = file.read()
        magic, version, state, self.name, self.below, self.sectors, self.stamp = \
            HEADER.unpack_from(self.data)
        assert magic == b"MAYFLYO\0" and version == 1 and state in (0, 1)
        assert not any(self.data[HEADER.size:BLOCK])
        self.is_frozen = bool(state)
        size = (self.sectors + 8 * BLOCK - 1) // (8 * BLOCK) * BLOCK
        self.committed, self.recent = (self.data[at:at + size] for at in (BLOCK, BLOCK + size))
        self.at = BLOCK + 2 * size
        assert len(self.data) == self.at + self.sectors * SECTOR
        self.bits = self.committed
        if recent and not self.is_frozen:
            self.bits = bytes(a | b for a, b in zip(self.committed, self.recent))

    def has(self, sector):
        return self.bits[sector // 8] >> sector % 8 & 1

    def count(self):
        return sum(map(int.bit_count, self.bits))


def read_disk(base, *paths, recent=True):
    """All of a disk: of its base, and of overlays above it, the lowest first."""
    with open(base, "rb") as file:
        disk = bytearray(file.read())
    below = bytes(16)
    for path in paths:
        overlay = Overlay(path, recent)
        assert overlay.below == below and overlay.sectors == len(disk) // SECTOR
        below = overlay.name
        for sector in filter(overlay.has, range(overlay.sectors)):
            at = overlay.at + sector * SECTOR
            disk[sector * SECTOR:(sector + 1) * SECTOR] = overlay.data[at:at + SECTOR]
    return bytes(disk)


def make_layer(path, sectors):
    """A frozen overlay that has nothing, for disks of less than 32768 sectors."""
    with open(path, "wb") as file:
        file.write(HEADER.pack(b"MAYFLYO", 1, 1, b"a layer's name..", bytes(16), sectors, 0))
        file.truncate(3 * BLOCK + sectors * SECTOR)


def taken(path):
    """The bytes that a file takes from its file system."""
    return os.stat(path).st_blocks * 512
