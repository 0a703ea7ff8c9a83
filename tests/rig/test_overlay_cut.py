"""What an overlay has when its host dies, at each write that the host's disk got."""

import json
import os
import pathlib
import shutil
import struct
import sys

import pytest

from cuts import LoggedDisk

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))
from overlays import read_disk # pylint: disable=wrong-import-position

IS_LONG = "MAYFLY_LONG" in os.environ
DISK_MIB, FREE_MIB = 33, 1
SECTORS = 4096
ROUNDS = 8
FLUSHED = "round %d is flushed\n"


def script(engine):
    """Each flush that returned is written to the disk at once, past the file system; what was written
    but not flushed gets there in two rounds of three before the flush."""
    config = {"boot-source": {"kernel_image_path": "block_model", "boot_args": f"rounds={ROUNDS}"},
              "machine-config": {"vcpu_count": 1, "mem_size_mib": 32},
              "drives": [{"drive_id": "disk", "path_on_host": "base", "overlay_path": "/mnt/top",
                          "is_root_device": False, "cache_type": "Writeback",
                          "io_engine": engine}]}
    return f"""
        mkdir /mnt; mount -t ext4 /dev/vda /mnt || exit 1
        mkfifo in; exec 3<>in; echo '{json.dumps(config)}' >config
        ./mayfly --no-api --config-file config <in >out 2>&1 &
        wait_for() {{ until [ $(grep -c "waiting $1" out) = $2 ]; do
            kill -0 $! || {{ cat out; exit 1; }}; done; }}
        for i in $(seq {ROUNDS}); do
            wait_for written $i; [ $((i % 3)) = 0 ] || sync; echo >&3
            wait_for flushed $i
            printf '{FLUSHED.strip()}\\n' $i | dd of=/dev/vda bs=512 conv=sync,fsync \
                seek={(DISK_MIB - FREE_MIB) * 2048} || exit 1
            echo >&3
        done
        wait $!"""


def sectors_of(written):
    """Those that the guest writes in a round (tests/guests/block_model.c)."""
    for i in range(8):
        at = (written * 131 + i * 977) % (SECTORS - 16)
        yield from range(at, at + 1 + (written + i * 5) % 16)


def content(sector, written):
    """What a sector has from a round on; 0: what the base has."""
    word = (sector << 32 | written) * 0x9e3779b97f4a7c15 % 2**64 if written else ~sector % 2**64
    return struct.pack("<Q", word) * 64


def wrong_sectors(disk, promised):
    """Those that have neither what was promised nor what may have been written since."""
    last = [0] * SECTORS
    for written in range(1, promised + 1):
        for sector in sectors_of(written):
            last[sector] = written
    may_be = set(sectors_of(promised + 1))
    return [n for n in range(SECTORS) if disk[n * 512:n * 512 + 512] not in
            (content(n, last[n]), content(n, promised + 1 if n in may_be else last[n]))]


@pytest.mark.skipif(not IS_LONG, reason="only with --long")
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="NOT TRIED: QEMU is missing")
@pytest.mark.parametrize("engine", ["Sync", "Async"])
def test_an_overlay_has_what_a_flush_promised_and_nothing_torn(tmp_path, engine):
    mayfly = pathlib.Path(os.environ.get("MAYFLY", HERE.parent.parent / "build/release/mayfly"))
    base = tmp_path / "base"
    base.write_bytes(b"".join(content(n, 0) for n in range(SECTORS)))
    disk = LoggedDisk(tmp_path, DISK_MIB, FREE_MIB)
    disk.run(script(engine), f"{mayfly}:/root/mayfly", f"{base}:/root/base",
             f"{mayfly.parent / 'guests' / 'block_model'}:/root/block_model")
    promises = [disk.place((FLUSHED % n).encode()) for n in range(1, ROUNDS + 1)]
    for count in range(promises[0] + 1, len(disk.writes) + 1):
        promised = sum(at < count for at in promises)
        disk.recover(count)
        wrong = wrong_sectors(read_disk(base, disk.file("top"), recent=False), promised)
        assert not wrong, f"after {count} writes, of which {promises} tell of flushes"
    print(f"{len(disk.writes) - promises[0]} cuts")
