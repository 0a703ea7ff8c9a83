"""A disk of an emulated host all of whose writes are kept, so that it can be looked at as it was after
any number of them: when the host died there."""

import os
import pathlib
import shutil
import struct
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
SECTOR = 512
DISCARDED, MARKED = 4, 8


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


class LoggedDisk:
    """Has an ext4 file system, which may leave some MiB at the end of the disk free."""

    def __init__(self, directory, mib, free_mib=0):
        os.environ["PATH"] += ":/sbin:/usr/sbin"
        self.directory = directory
        self.image, self.cut = directory / "image", directory / "cut"
        with open(self.image, "wb") as file:
            file.truncate(mib << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", self.image, f"{mib - free_mib}M"],
                       check=True)
        shutil.copy(self.image, self.cut)
        self.writes, self.done = [], 0

    def run(self, script, *files):
        """In the emulated host, which has it as /dev/vda."""
        log = self.directory / "log"
        options = [word for file in files for word in ("--file", file)]
        subprocess.run([HERE / "rig", "--logged-disk", self.image, log, *options,
                        "--timeout", "1200", "--", "sh", "-c", script], check=True)
        self.writes = logged_writes(log)

    def place(self, text):
        """The number of the first write that has the text at its start."""
        return next(i for i, (_, data) in enumerate(self.writes) if data.startswith(text))

    def recover(self, count):
        """The disk is what it is after so many writes, no fewer than before, and a recovery."""
        with open(self.cut, "r+b", buffering=0) as file:
            for to, data in self.writes[self.done:count]:
                os.pwrite(file.fileno(), data, to)
        self.done = count
        shutil.copy(self.cut, self.image)
        done = subprocess.run(["e2fsck", "-fy", self.image], capture_output=True, check=False)
        assert done.returncode < 4, done.stdout

    def _debug(self, what, path):
        path.unlink(missing_ok=True)
        subprocess.run(["debugfs", "-R", what, self.image], cwd=self.directory, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return path

    def file(self, name):
        """A copy of what it has by that name; it may be that it doesn't exist."""
        return self._debug(f"dump /{name} {name}", self.directory / name)

    def attribute(self, name, key):
        return self._debug(f"ea_get -f value /{name} {key}", self.directory / "value")
