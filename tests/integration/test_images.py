"""The files of kernel and initrd: what a running guest has to do with them, and where they may lie."""

import contextlib
import os
import random
import re
import shutil
import subprocess

import pytest

import mayfly
from faults import UNFILTERED, needs_strace, traced
from guests import Machine, drive, make_disk, needs_kvm, printed
from test_block import loop_device
from test_guests import make_bzimage

pytestmark = needs_kvm
INITRD_BYTES = (9 << 20) + 1000 # more than is copied because the guest will write to it


def make_initrd(path, seed):
    path.write_bytes(random.Random(seed).randbytes(INITRD_BYTES))
    return path


def sum_of(path):
    total = 0
    for word in memoryview(path.read_bytes()).cast("I")[::1024]: # one a page
        total = (total * 31 + word) & 0xffffffff
    return f"0x{total:x}"


class Summing(Machine):
    """A guest that says what its initrd adds up to."""

    def __init__(self, initrd, **more):
        super().__init__("image", "x", initrd=initrd, stdin=subprocess.PIPE, **more)

    def boot(self):
        super().boot()
        self.wait_for_output("ready\n")
        return self

    def sum(self):
        before = self.output().count("\nsum ")
        self.send(b"s")
        mayfly.wait_until(lambda: self.output().count("\nsum ") > before and
                          self.output().endswith("\n"), self.output)
        return self.output().split()[-1]

    def is_mapped(self, path):
        with open(f"/proc/{self.process.pid}/maps", encoding="utf-8") as maps:
            return f" {path}\n" in maps.read()

    def wait_until_parted_from(self, path):
        mayfly.wait_until(lambda: not self.is_mapped(path), f"{path} to be mapped no more")

    def end(self):
        self.send(b"q")
        self.finish()


def copy_over(path, other):
    """As cp does it: truncated, then written."""
    with open(other, "rb") as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target)


def write_over(path, other):
    with open(other, "rb") as source, open(path, "r+b") as target:
        shutil.copyfileobj(source, target)


def truncate(path, _):
    os.truncate(path, 0)


CHANGES = [copy_over, write_over, truncate]


@pytest.fixture
def initrds(tmp_path):
    return make_initrd(tmp_path / "initrd", 1), make_initrd(tmp_path / "other", 2)


@pytest.mark.parametrize("change", CHANGES)
def test_who_changes_a_file_waits_until_running_guests_do_not_need_it(initrds, change):
    """Two of them share it until then."""
    initrd, other = initrds
    before = sum_of(initrd)
    with Summing(initrd) as one, Summing(initrd) as two:
        guests = [one.boot(), two.boot()]
        if not all(guest.is_mapped(initrd) for guest in guests):
            pytest.skip("NO LEASES: not on this file system")
        assert all(guest.sum() == before for guest in guests)
        change(initrd, other)
        assert not any(guest.is_mapped(initrd) for guest in guests)
        for guest in guests:
            assert guest.sum() == before
            guest.end()
            assert "depending" not in guest.log()


@pytest.mark.parametrize("change", CHANGES)
def test_a_guest_parts_from_a_file_that_cannot_be_leased(initrds, change):
    """Here because somebody has it open for writing; in a jail because it is another user's."""
    initrd, other = initrds
    before = sum_of(initrd)
    with open(initrd, "r+b"), Summing(initrd) as guest:
        guest.boot()
        guest.wait_until_parted_from(initrd)
        change(initrd, other)
        assert guest.sum() == before
        guest.end()


def test_a_guest_parts_from_its_files_also_while_it_is_paused(initrds):
    initrd, other = initrds
    before = sum_of(initrd)
    with Summing(initrd) as guest:
        guest.boot()
        guest.ok("PATCH", "/vm", {"state": "Paused"})
        copy_over(initrd, other)
        guest.ok("PATCH", "/vm", {"state": "Resumed"})
        assert guest.sum() == before
        guest.end()


def test_a_disk_may_be_the_image_of_a_guest_that_runs(initrds, tmp_path):
    """Of another VM, or of the one that the disk is given to."""
    one, two = initrds
    sums = sum_of(one), sum_of(two)
    disk = make_disk(tmp_path / "disk", 8)
    with Summing(one) as guest, Summing(two, drives=[drive(disk)]) as owner:
        guest.boot()
        owner.boot()
        owner.ok("PATCH", "/drives/disk", {"drive_id": "disk", "path_on_host": str(two)})
        with mayfly.Mayfly() as other:
            other.ok("PUT", "/drives/disk", drive(one))
        assert not guest.is_mapped(one) and not owner.is_mapped(two)
        truncate(one, None)
        truncate(two, None)
        assert (guest.sum(), owner.sum()) == sums
        guest.end()
        owner.end()


@contextlib.contextmanager
def squashfs_of(path, tmp_path):
    """The path of that file in a squashfs that is mounted."""
    if os.geteuid() != 0 or not shutil.which("mksquashfs"):
        pytest.skip("NO SQUASHFS: that takes root and squashfs-tools")
    image, mount = tmp_path / "image.squashfs", tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mksquashfs", path, image, "-quiet", "-no-progress", "-noI", "-noD", "-noF"], check=True,
                   stdout=subprocess.DEVNULL)
    done = mayfly.complete("mount", "-t", "squashfs", "-o", "loop,ro", image, mount)
    if done.returncode:
        pytest.skip(f"NO SQUASHFS: {done.stderr}")
    try:
        yield mount / path.name
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_file_of_a_file_system_that_cannot_write_stays_shared(initrds, tmp_path):
    initrd, _ = initrds
    with squashfs_of(initrd, tmp_path) as packed, Summing(packed) as guest:
        guest.boot()
        assert guest.sum() == sum_of(initrd)
        with open("/proc/locks", encoding="ascii") as locks: # the kernel is on ext4, say
            assert len(re.findall(rf"LEASE .* {guest.process.pid} ", locks.read())) <= 1
        assert guest.is_mapped(packed)
        guest.end()


@pytest.mark.parametrize("image", ["elf", "bzimage"])
def test_a_kernel_on_a_block_device_boots(tmp_path, image):
    kernel = tmp_path / "kernel"
    if image == "elf":
        shutil.copy(os.path.join(mayfly.GUESTS, "boot"), kernel)
    else:
        make_bzimage(os.path.join(mayfly.GUESTS, "boot-1m"), kernel)
    os.truncate(kernel, 200 << 20) # as large as a disk: more than the guest's memory
    with loop_device(kernel) as device, Machine("boot", "x") as machine:
        machine.kernel = device
        assert printed(machine.boot().finish(), "protocol") == "linux64"


def test_an_initrd_on_a_block_device_is_all_of_it(initrds):
    os.truncate(initrds[0], 9 << 20)
    with loop_device(initrds[0]) as device, Summing(device) as guest:
        guest.boot()
        guest.wait_until_parted_from(device)
        assert guest.sum() == sum_of(initrds[0])
        guest.end()


HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB"


@pytest.fixture
def forty_huge_pages():
    try:
        with open(f"{HUGE_PAGES}/nr_hugepages", "r+", encoding="ascii") as number:
            before = int(number.read())
            number.write("40")
    except OSError:
        pytest.skip("NO HUGE PAGES: their number takes root")
    try:
        with open(f"{HUGE_PAGES}/free_hugepages", encoding="ascii") as free:
            if before or int(free.read()) != 40:
                pytest.skip("NO HUGE PAGES: others use them, or the host has too few")
        yield
    finally:
        with open(f"{HUGE_PAGES}/nr_hugepages", "w", encoding="ascii") as number:
            number.write(str(before))


@pytest.mark.usefixtures("forty_huge_pages")
def test_huge_pages_are_reserved_at_the_start():
    """No guest touches all of its memory, so nobody would miss them before."""
    with Machine("image", "x", stdin=subprocess.PIPE) as first, Machine("image", "x") as second:
        for machine in first, second:
            machine.configure()
            machine.ok("PATCH", "/machine-config", {"mem_size_mib": 64, "huge_pages": "2M"})
        assert first.instance_start()[0] == 204
        status, _, answer = second.instance_start()
        assert status == 400
        assert answer["fault_message"] == (
            "Start microvm error: Invalid Memory Configuration: Cannot create mmap region: Out of "
            "memory (os error 12): 32 huge pages of 2 MiB are needed, 8 are free")
        first.send(b"q")
        first.finish()
        assert second.instance_start()[0] == 204


@needs_strace
def test_guest_memory_has_a_name(tmp_path):
    with Machine("exit", "reset", mem_mib=3073) as machine:
        machine.configure()
        with traced(machine, tmp_path) as log:
            machine.instance_start()
            machine.wait()
        named = re.findall(r'prctl\(PR_SET_VMA, PR_SET_VMA_ANON_NAME, \w+, (\d+), "guest memory"\)',
                           log.read_text())
        assert {3 << 30, 1 << 20} <= {int(size) for size in named}


@needs_strace
def test_the_state_of_amx_is_asked_for_before_the_first_vcpu(tmp_path):
    """As on a host that has it: bit 18 of what the kernel can give."""
    with Machine("exit", "reset", flags=UNFILTERED) as machine:
        machine.configure()
        with traced(machine, tmp_path,
                    "arch_prctl:retval=0:poke_exit=@arg2=0000060000000000:when=1") as log:
            machine.instance_start()
            machine.wait()
        calls = log.read_text()
        assert "(INJECTED" in calls
        asked = calls.index("arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM, 0x12")
        assert asked < calls.index("KVM_CREATE_VCPU")
        assert asked < calls.index("KVM_GET_SUPPORTED_CPUID")
