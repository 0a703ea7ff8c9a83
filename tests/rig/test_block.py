"""Linux on its disks: what is left after a kill, and disks that change under its hands."""

import shutil

import pytest

from host import said

ENGINES = ["Sync", "Async"]
PLACEHOLDER = "placeholder"

# Writes files without end, and tells of each round that is on the disk.
WRITE = (
    "i=$(cat mark 2>/dev/null || echo 0);"
    " while :; do i=$((i + 1)); mkdir -p d$((i % 7)); rm -rf d$(((i + 3) % 7));"
    " cp /bin/busybox d$((i % 7))/copy; echo $i >mark; sync; echo synced $i; done"
)

# Reads a file again and again from the disk, until the placeholder becomes a disk.
READ = (
    "dd if=/dev/urandom of=f bs=64k count=30 2>/dev/null; md5sum f >sum; sync; i=0;"
    " while [ $(cat /sys/block/vdb/size) = 0 ]; do echo 3 >/proc/sys/vm/drop_caches;"
    " md5sum -c sum || exit 1; i=$((i + 1)); echo round $i; done;"
    " echo sectors $(cat /sys/block/vdb/size); echo sum $(md5sum </dev/vdb)"
)


def boot(guest, run, *drives, mem_mib=128, **root):
    """Debian's kernel, with members of the root drive and further drives."""
    plain, request = guest.drive, guest.do
    guest.drive = lambda read_only=False: {**plain(read_only), **root}

    def put_drives_too(method, path, body):
        if path == "/actions":
            for drive in drives:
                request("PUT", f"/drives/{drive['drive_id']}", drive)
        request(method, path, body)

    guest.do = put_drives_too
    return guest.boot("vmlinuz", run=run, initrd="initrd", mem_mib=mem_mib)


def data(guest, name, **members):
    path = f"{guest.dir}/{name}"
    return {"drive_id": name, "path_on_host": path, "is_root_device": False, **members}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_system_survives_kills_at_any_moment(new_guest, host, engine):
    disk = f"{host.directory}/{engine}.ext4"
    host.run(f"cp root.ext4 {disk}")
    synced = 0
    for rounds, delay in (2, 0.05), (3, 0.4):
        guest = new_guest()
        guest.disk = disk
        boot(guest, WRITE, io_engine=engine, cache_type="Writeback")
        guest.wait_console(f"synced {synced + rounds}")
        host.run(f"sleep {delay}; kill -KILL $(cat {guest.dir}/pid)")
        assert host.wait_for(f"[ -s {guest.dir}/status ]")
        told = [line.split()[1] for line in guest.console().splitlines()[:-1]
                if line.startswith("synced ")]
        # As the next mount does, then a check that changes nothing.
        host.run(f"e2fsck -E journal_only -y {disk} || [ $? = 1 ]; e2fsck -fn {disk}")
        synced = int(host.run(f"debugfs -R 'cat /root/mark' {disk} 2>/dev/null"))
        assert synced >= int(told[-1]), "what was synced is on the disk"
    host.run(f"rm {disk}")


@pytest.mark.skipif(not shutil.which("fio"), reason="FIO WAS NOT RUN: it is not installed")
@pytest.mark.parametrize("engine, cache", [("Sync", "Writeback"), ("Async", "Unsafe")])
def test_fio_reads_back_what_it_wrote(guest, host, engine, cache):
    host.run(f"truncate -s 16M {guest.dir}/data")
    tools = {"drive_id": "tools", "path_on_host": f"{host.directory}/fio.ext4",
             "is_root_device": False, "is_read_only": True}
    run = (
        "mkdir -p /mnt; mount -o ro /dev/vdb /mnt && mount -o bind /dev /mnt/dev &&"
        " mount -t tmpfs t /mnt/tmp && mount -t proc p /mnt/proc && mount -t sysfs s /mnt/sys &&"
        " chroot /mnt fio --minimal --aux-path=/tmp fio.ini >/tmp/terse; status=$?;"
        " cut -d ';' -f 3,5,6,47 /tmp/terse; (exit $status)"
    )
    boot(guest, run, tools, data(guest, "data", io_engine=engine, cache_type=cache), mem_mib=512)
    console = guest.wait_end(timeout=600)
    assert "command ended with status 0" in console, console
    jobs = [line.split(";") for line in console.splitlines() if line.count(";") == 3]
    assert len(jobs) == 6 and all(error == "0" for _, error, _, _ in jobs), console
    assert all(int(read_kib) > 0 and int(written_kib) > 0 for _, _, read_kib, written_kib in jobs)


@pytest.mark.parametrize("engine", ENGINES)
def test_drives_change_under_load_without_a_lost_request(guest, host, engine):
    host.run(f"touch {guest.dir}/{PLACEHOLDER}; seq 1 40000 | head -c 131072 >{guest.dir}/late")
    boot(guest, READ, data(guest, PLACEHOLDER, io_engine=engine), io_engine=engine)
    guest.wait_console("round 1")
    for i in range(6):
        limits = {"ops": {"size": i % 3 * 40, "refill_time": 20}}
        guest.do("PATCH", "/drives/rootfs", {"drive_id": "rootfs", "path_on_host": guest.disk,
                                             "rate_limiter": limits})
    rounds = guest.console().count("round")
    guest.wait_console(f"round {rounds + 2}")
    guest.do("PATCH", f"/drives/{PLACEHOLDER}",
             {"drive_id": PLACEHOLDER, "path_on_host": f"{guest.dir}/late"})
    console = guest.wait_end()
    assert "command ended with status 0" in console
    assert said(console, "sectors") == "256"
    assert said(console, "sum").split()[0] == host.run(f"md5sum <{guest.dir}/late").split()[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_thin_disk_becomes_thin_again(guest, host, engine):
    host.run(f"truncate -s 8M {guest.dir}/thin")
    run = (
        "dd if=/dev/urandom of=/dev/vdb bs=64k count=64 2>/dev/null; sync; echo written;"
        " read go; blkdiscard /dev/vdb && sync && md5sum </dev/vdb"
    )
    boot(guest, run, data(guest, "thin", io_engine=engine))
    guest.wait_console("written")
    allocated = f"stat -c %b {guest.dir}/thin"
    assert int(host.run(allocated)) >= 64 * 128
    guest.type("\n")
    assert "command ended with status 0" in guest.wait_end()
    assert int(host.run(allocated)) == 0
