"""The machine as its guest sees it: boots the test guests (tests/guests) on the real /dev/kvm.

Each guest reports by itself what it checked; here is what it is started with and what only the host
can know.
"""

import array
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time

import pytest

import mayfly
from guests import SECTOR, Machine, drive, make_disk, needs_kvm, printed, run

pytestmark = needs_kvm


# What the guest is handed.

def expected_map(mem_mib):
    low = min(mem_mib, 3072) << 20
    ranges = [(0, 0x9fc00, 1), (0x9fc00, 0x40400, 2), (0x100000, low - 0x100000, 1),
              (0xeec00000, 0x10000000, 2)]
    if mem_mib > 3072:
        ranges.append((1 << 32, (mem_mib - 3072) << 20, 1))
    return sorted(ranges)


def printed_map(lines):
    ranges = [line.split()[1:] for line in lines if line.startswith("range ")]
    return sorted((int(start, 16), int(size, 16), int(kind)) for start, size, kind in ranges)


@pytest.mark.parametrize("guest, protocol", [("boot", "linux64"), ("boot-pvh", "pvh")])
@pytest.mark.parametrize("mem_mib", [128, 3072, 3584])
def test_a_guest_is_entered_by_its_protocol_and_sees_its_memory(guest, protocol, mem_mib):
    lines = run(guest, mem_mib=mem_mib)
    assert printed(lines, "protocol") == protocol
    assert printed_map(lines) == expected_map(mem_mib)


DEFAULT_ARGS = ("reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux "
                "i8042.dumbkbd swiotlb=noforce")


@pytest.mark.parametrize("guest", ["boot", "boot-pvh"])
@pytest.mark.parametrize("given, seen", [
    (None, DEFAULT_ARGS + " pci=off"),
    ("a=1", "a=1 pci=off"),
    ("a=1 pci=off", "a=1 pci=off pci=off"),
    ("a=1 -- -b c", "a=1 pci=off -- -b c"),
])
def test_the_command_line_is_the_clients_and_what_is_added(guest, given, seen):
    assert printed(run(guest, given), "command line:").strip() == seen


@pytest.mark.parametrize("root, seen", [
    ({}, "root=/dev/vda rw"),
    ({"is_read_only": True}, "root=/dev/vda ro"),
    ({"partuuid": "0eaa91a0-01"}, "root=PARTUUID=0eaa91a0-01 rw"),
])
def test_the_command_line_names_the_root_and_each_device(tmp_path, root, seen):
    small = make_disk(tmp_path / "small", 8)
    drives = [drive(small, "first"), drive(small, "top", **{**root, "is_root_device": True})]
    devices = "virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6"
    line = printed(run("boot", "x", drives=drives), "command line:")
    assert line == f"x pci=off {seen} {devices}"


@pytest.mark.parametrize("guest", ["boot", "boot-pvh"])
@pytest.mark.parametrize("size", [1, 4096, 20001])
def test_the_initrd_is_at_the_top_of_low_ram(tmp_path, guest, size):
    content = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "initrd").write_bytes(content)
    digest = 0
    for byte in content:
        digest = (digest * 31 + byte) % 2**32
    lines = run(guest, initrd=tmp_path / "initrd")
    start = (128 << 20) - (size + 4095) // 4096 * 4096
    assert printed(lines, "initrd") == f"{start:#x} {size} {digest:#x}"


def test_a_guest_without_initrd_is_told_of_none():
    assert printed(run("boot"), "initrd") == "0x0 0 0x0"


# The machine.

@pytest.mark.parametrize("guest", ["memory", "memory-pvh"])
@pytest.mark.parametrize("mem_mib", [17, 128, 3072, 3584, 5121])
def test_ram_is_where_the_map_says(guest, mem_mib):
    run(guest, f"mem_mib={mem_mib}", mem_mib=mem_mib)


@pytest.mark.parametrize("huge_pages", ["None", "Transparent"])
def test_ram_works_with_each_page_size(huge_pages):
    with Machine("memory", "mem_mib=256", mem_mib=256) as machine:
        machine.configure()
        machine.ok("PUT", "/machine-config",
                   {"vcpu_count": 1, "mem_size_mib": 256, "huge_pages": huge_pages})
        assert machine.instance_start()[0] == 204
        machine.finish()


@pytest.mark.parametrize("vcpus", [1, 2, 4, 32])
def test_each_vcpu_starts(vcpus):
    run("smp", f"vcpus={vcpus}", vcpus=vcpus)


@pytest.mark.parametrize("vcpus", [1, 3, 32])
def test_the_first_vcpu_knows_the_processors(vcpus):
    run("cpuid", f"vcpus={vcpus}", vcpus=vcpus)


@pytest.mark.parametrize("guest", ["tables", "tables-pvh"])
@pytest.mark.parametrize("vcpus, drives", [(1, 0), (4, 2), (32, 17)])
def test_the_firmware_tables_are_found_and_whole(tmp_path, guest, vcpus, drives):
    small = make_disk(tmp_path / "small", 8)
    run(guest, f"vcpus={vcpus} drives={drives}", vcpus=vcpus,
        drives=[drive(small, f"d{i}") for i in range(drives)])


def test_accesses_that_nobody_answers_or_expects_are_survived(disk):
    assert "a string in one instruction" in run("ports", drives=[drive(disk)])


def test_halts_end_by_interrupts():
    run("interrupts")


# The legacy devices.

def test_the_serial_port_has_its_registers():
    run("serial")


def test_serial_input_comes_back_from_an_echoing_guest():
    with Machine("serial", "echo", stdin=subprocess.PIPE) as machine:
        machine.boot().wait_for_output("ready\n")
        machine.send(b"hello\n")
        machine.wait_for_output("hello\n")
        text = b"".join(b"line %d of many\n" % i for i in range(500))
        machine.send(text + b"q")
        machine.finish()
        assert text.decode() in machine.output()


def unread(stdin):
    count = array.array("i", [0])
    fcntl.ioctl(stdin, termios.FIONREAD, count)
    return count[0]


def test_serial_input_goes_on_after_the_guest_clears_a_full_fifo():
    with Machine("serial", "late", stdin=subprocess.PIPE) as machine:
        machine.send(b"x" * 1000)
        machine.boot().wait_for_output("waiting\n")
        mayfly.wait_until(lambda: unread(machine.process.stdin) == 1000 - 64, "a full FIFO")
        machine.ok("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        machine.send(b"q")
        machine.finish()


def test_a_terminal_is_raw_while_the_guest_runs_and_restored_after():
    ours, theirs = pty.openpty()
    with Machine("serial", "echo", stdin=theirs, stdout=theirs) as machine:
        before = termios.tcgetattr(theirs)
        machine.boot()
        seen = b""
        while b"ready" not in seen:
            seen += os.read(ours, 4096)
        assert termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ECHO | termios.ISIG) == 0
        os.write(ours, b"\x03\rq")  # Ctrl-C and a carriage return are the guest's
        assert machine.wait() == 0
        assert termios.tcgetattr(theirs) == before
        os.set_blocking(ours, False)
        assert b"\x03\rq" in seen + os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)


def test_a_guest_outlives_the_end_of_its_input():
    with Machine("serial", "echo", stdin=subprocess.PIPE) as machine:
        machine.boot().wait_for_output("ready\n")
        machine.send(b"abc")
        machine.process.stdin.close()
        machine.wait_for_output("abc")
        assert machine.ok("GET", "/")["state"] == "Running"


def test_output_that_nobody_reads_does_not_stop_the_guest():
    with Machine("serial", "flood flood_kib=512", stdout=subprocess.PIPE) as machine:
        machine.boot()
        assert machine.wait() == 0
        assert machine.process.stdout.read(1024).endswith(b"x\n")


def test_the_keyboard_controller_answers():
    run("keyboard")


def test_ctrl_alt_del_reaches_the_guest():
    with Machine("keyboard", "keys") as machine:
        machine.boot().wait_for_output("ready\n")
        machine.ok("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        machine.finish()


def test_ctrl_alt_del_is_refused_once_the_buffer_is_full():
    with Machine("keyboard", "ignore") as machine:
        machine.boot().wait_for_output("ready\n")
        for _ in range(4):
            machine.ok("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        status, _, body = machine.request("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        assert status == 400 and "I8042 error" in body["fault_message"]


def test_ctrl_alt_del_is_refused_where_the_guest_masked_the_keyboard():
    with Machine("keyboard", "masked") as machine:
        machine.boot().wait_for_output("ready\n")
        status, _, body = machine.request("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        assert status == 400 and "I8042 error" in body["fault_message"]


def press(machine):
    machine.ok("PUT", "/actions", {"action_type": "SendPowerButton"})


@pytest.mark.parametrize("guest", ["button", "button-pvh"])
def test_each_press_of_the_power_button_interrupts_the_guest(guest):
    with Machine(guest, "presses=3") as machine:
        machine.boot().wait_for_output("ready\n")
        for count in range(1, 4):
            press(machine)
            mayfly.wait_until(lambda: machine.output().count("pressed\n") == count, "an interrupt")
        machine.finish()


def test_the_power_button_of_a_paused_guest_is_heard_when_it_goes_on():
    with Machine("button", "presses=2") as machine:
        machine.boot().wait_for_output("ready\n")
        press(machine)
        machine.wait_for_output("pressed\n")
        machine.ok("PATCH", "/vm", {"state": "Paused"})
        press(machine)
        press(machine) # which one interrupt stands for
        assert machine.output().count("pressed\n") == 1
        machine.ok("PATCH", "/vm", {"state": "Resumed"})
        machine.finish()


def test_the_power_button_does_nothing_to_a_guest_that_does_not_listen():
    with Machine("button", "masked") as machine:
        machine.boot().wait_for_output("ready\n")
        press(machine)
        assert machine.ok("GET", "/")["state"] == "Running"


@pytest.mark.parametrize("flags, lines", [(["--boot-timer"], 1), ([], 0)])
def test_the_boot_timer_logs_its_byte_once(flags, lines):
    with Machine("boot_timer", flags=flags) as machine:
        machine.boot().finish()
        pattern = r"Guest-boot-time = +\d+ us \d+ ms, +\d+ CPU us \d+ CPU ms"
        assert len(re.findall(pattern, machine.log())) == lines
        assert machine.log().count("Guest-boot-time") == lines


def test_a_guest_that_marks_without_end_writes_a_line_a_second():
    began = time.monotonic()
    with Machine("boot_timer", "marks=20000", flags=["--boot-timer"]) as machine:
        machine.boot().finish()
        lines = re.findall(r"Guest-boot-time.*", machine.log())
        left_out = re.findall(r"\((\d+) more were left out\)", "\n".join(lines))
        assert 1 <= len(lines) <= 1 + time.monotonic() - began
        assert len(lines) + sum(map(int, left_out)) <= 20000


# How it ends.

@pytest.mark.parametrize("mode, vcpus, code", [
    ("reset", 1, 0), ("reset second", 2, 0), ("off", 1, 0), ("off second", 2, 0),
    ("triple_fault", 1, 1), ("triple_fault second", 2, 1)])
def test_the_guest_ends_the_process(mode, vcpus, code):
    with Machine("exit", mode, vcpus=vcpus) as machine:
        assert machine.boot().wait() == code
        assert "ending" in machine.output()
        assert machine.log().count("The guest has powered off.") == mode.startswith("off")


def test_a_halted_guest_stays_until_a_signal():
    with Machine("exit") as machine:
        machine.boot().wait_for_output("ending")
        assert machine.ok("GET", "/")["state"] == "Running"
        machine.process.send_signal(signal.SIGTERM)
        assert machine.wait() == -signal.SIGTERM


# The disk.

@pytest.mark.parametrize("mode, members", [
    ("", {}), ("writeback", {"cache_type": "Writeback"}), ("readonly", {"is_read_only": True}),
    ("readonly writeback", {"is_read_only": True, "cache_type": "Writeback"})])
def test_a_driver_gets_its_disk(disk, mode, members):
    before = disk.read_bytes()
    lines = run("block", f"sectors=32768 {mode}", drives=[drive(disk, **members)])
    stat = disk.stat()
    assert printed(lines, "id") == f"{stat.st_dev}{stat.st_rdev}{stat.st_ino}"[:20]
    written = bytes((i * 7 + i // SECTOR) % 256 for i in range(4 * SECTOR))
    if "readonly" not in mode:
        before = before[:20 * SECTOR] + written + before[24 * SECTOR:]
    assert disk.read_bytes() == before


def test_a_disk_works_without_the_ioapic(disk):
    run("block", "sectors=32768 noapic", drives=[drive(disk)])


def test_an_empty_disk_has_no_sectors(tmp_path):
    (tmp_path / "empty").touch()
    run("block", "sectors=0 empty", drives=[drive(tmp_path / "empty")])


def test_a_partial_sector_at_the_end_is_out_of_reach(tmp_path):
    make_disk(tmp_path / "disk", 32768)
    with open(tmp_path / "disk", "ab") as disk:
        disk.write(b"behind the last sector")
    run("block", "sectors=32768", drives=[drive(tmp_path / "disk")])


def test_a_disk_that_shrinks_gives_errors_not_a_crash(disk):
    with Machine("block", "sectors=32768 shrinks", drives=[drive(disk)],
                 stdin=subprocess.PIPE) as machine:
        machine.boot().wait_for_output("waiting shrink\n")
        os.truncate(disk, 4096)
        machine.send(b"\n")
        machine.finish()


def test_the_transport_follows_its_status_machine(disk):
    run("transport", "sectors=32768", drives=[drive(disk)])


@pytest.mark.parametrize("mode, vcpus", [("", 1), ("storm", 2)])
def test_a_hostile_driver_harms_only_its_own_disk(tmp_path, disk, mode, vcpus):
    other = make_disk(tmp_path / "other", 256)
    before = disk.read_bytes()
    drives = [drive(disk, is_read_only=True), drive(other, "other")]
    run("hostile", mode, vcpus=vcpus, drives=drives)
    assert disk.read_bytes() == before


# Pause and resume.

def read_available(pipe):
    """What is in the pipe now."""
    os.set_blocking(pipe.fileno(), False)
    chunks = []
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(pipe.fileno(), 65536):
            chunks.append(chunk)
    return b"".join(chunks)


@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_paused_guest_stands_still_and_goes_on_where_it_was(vcpus):
    with Machine("counter", vcpus=vcpus, stdout=subprocess.PIPE) as machine:
        machine.boot()
        os.set_blocking(machine.process.stdout.fileno(), True)
        text = os.read(machine.process.stdout.fileno(), 16)
        for _ in range(20):
            machine.ok("PATCH", "/vm", {"state": "Paused"})
            assert machine.ok("GET", "/")["state"] == "Paused"
            text += read_available(machine.process.stdout)
            machine.ok("PATCH", "/vm", {"state": "Paused"})
            assert read_available(machine.process.stdout) == b""
            machine.ok("PATCH", "/vm", {"state": "Resumed"})
            os.set_blocking(machine.process.stdout.fileno(), True)
            text += os.read(machine.process.stdout.fileno(), 65536)
        numbers = text.decode().split("\n")[:-1]
        assert numbers == [str(i) for i in range(len(numbers))]


def test_pauses_at_any_moment_do_not_disturb_a_disk(disk):
    with Machine("block", "sectors=32768", drives=[drive(disk)]) as machine:
        machine.boot()
        pauses = 0
        while machine.process.poll() is None:
            with contextlib.suppress(OSError, AssertionError):  # the guest ends meanwhile
                for state in ("Paused", "Resumed"):
                    machine.ok("PATCH", "/vm", {"state": state})
                pauses += 1
        machine.finish()
        assert pauses > 0


def test_a_paused_guest_can_be_killed():
    with Machine("counter", stdout=subprocess.PIPE) as machine:
        machine.boot()
        machine.ok("PATCH", "/vm", {"state": "Paused"})
        machine.process.send_signal(signal.SIGTERM)
        assert machine.wait() == -signal.SIGTERM


def test_each_vcpu_has_a_thread_by_its_name():
    with Machine("exit", vcpus=3) as machine:
        machine.boot()
        tasks = f"/proc/{machine.process.pid}/task"
        names = []
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/comm", encoding="utf-8") as comm:
                names.append(comm.read().strip())
        assert sorted(name for name in names if name.startswith("fc_vcpu")) == [
            "fc_vcpu 0", "fc_vcpu 1", "fc_vcpu 2"]


# Starts that fail.

def test_a_machine_starts_once():
    with Machine("exit") as machine:
        machine.boot()
        status, _, body = machine.instance_start()
        assert status == 400
        assert body["fault_message"].startswith(
            "The requested operation is not supported after starting the microVM")


def test_a_machine_without_kernel_does_not_start():
    with Machine("exit") as machine:
        status, _, body = machine.instance_start()
        assert status == 400
        assert "Cannot start microvm without kernel configuration." in body["fault_message"]
        machine.boot().wait_for_output("ending")


def bad_kernels(good, directory):
    yield "a directory", directory
    for name, content in {
            "an empty file": b"",
            "text": b"#!/bin/sh\n" * 100,
            "an ELF header cut short": good[:63],
            "program headers cut off": good[:64 + 56],
            "segments cut off": good[:8192],
            "a 32-bit ELF": good[:4] + b"\x01" + good[5:],
            "another machine": good[:18] + b"\xb7\0" + good[20:],
            "too many program headers": good[:56] + b"\xff\xff" + good[58:],
            "program headers far off": good[:32] + b"\xff" * 8 + good[40:],
            "a segment of all memory": good[:64 + 40] + b"\xff" * 8 + good[64 + 48:],
            "a segment behind the memory": good[:64 + 24] + b"\0\0\0\0\x40\0\0\0" + good[64 + 32:],
    }.items():
        path = directory / name.replace(" ", "-")
        path.write_bytes(content)
        yield name, path


@pytest.mark.parametrize("guest", ["exit", "exit-pvh"])
def test_a_failed_start_leaves_the_machine_to_be_configured_anew(tmp_path, guest):
    with open(os.path.join(mayfly.GUESTS, guest), "rb") as kernel:
        good = kernel.read()
    with Machine(guest, "reset") as machine:
        machine.configure()
        for name, path in bad_kernels(good, tmp_path):
            machine.put_kernel(path)
            status, _, body = machine.instance_start()
            assert status == 400, f"{name} was started: {machine.output()}"
            assert body["fault_message"].strip(), name
            assert machine.ok("GET", "/")["state"] == "Not started", name
        machine.put_kernel(machine.kernel)
        assert machine.instance_start()[0] == 204
        assert machine.wait() == 0


def test_a_start_that_asks_for_too_much_memory_fails_and_can_be_mended():
    with Machine("exit", "reset") as machine:
        machine.configure()
        machine.ok("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 2**64 - 1})
        assert machine.instance_start()[0] == 400
        machine.ok("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
        assert machine.instance_start()[0] == 204
        assert machine.wait() == 0


# bzImage.

def make_bzimage(elf_path, path):
    """A bzImage (Linux, Documentation/arch/x86/boot.rst) of a guest linked for 1 MiB: one sector of
    set-up code that nobody runs, then the image, entered 0x200 bytes in."""
    with open(elf_path, "rb") as file:
        elf = file.read()
    headers, count = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<H", elf, 56)[0]
    payload, end = bytearray(), 0
    for i in range(count):
        kind, _, offset, _, addr, size, in_memory, _ = struct.unpack_from(
            "<IIQQQQQQ", elf, headers + i * 56)
        if kind == 1:
            payload.extend(bytes(addr - 0x100000 + size - len(payload)))
            payload[addr - 0x100000:] = elf[offset:offset + size]
            end = max(end, addr + in_memory)
    setup = bytearray(1024)
    setup[0x1f1] = 1                                        # setup_sects
    struct.pack_into("<I", setup, 0x1f4, (len(payload) + 15) // 16)  # syssize
    struct.pack_into("<H", setup, 0x1fe, 0xaa55)            # boot_flag
    setup[0x200:0x206] = b"\xeb\x66HdrS"                    # jump, header
    struct.pack_into("<H", setup, 0x206, 0x020f)            # version
    setup[0x211] = 1                                        # loadflags: LOADED_HIGH
    struct.pack_into("<I", setup, 0x214, 0x100000)          # code32_start
    struct.pack_into("<I", setup, 0x22c, 0x7fffffff)        # initrd_addr_max
    struct.pack_into("<I", setup, 0x230, 0x1000)            # kernel_alignment
    struct.pack_into("<H", setup, 0x236, 3)                 # xloadflags: 64-bit, above 4 GiB
    struct.pack_into("<I", setup, 0x238, 2047)              # cmdline_size
    struct.pack_into("<Q", setup, 0x258, 0x100000)          # pref_address
    struct.pack_into("<I", setup, 0x260, end - 0x100000)    # init_size
    path.write_bytes(bytes(setup) + bytes(payload) + bytes(-len(payload) % 16))
    return path


@pytest.mark.parametrize("guest, protocol", [("boot-low", "linux64"), ("boot-low-pvh", "pvh")])
def test_a_kernel_below_1_mib_boots(guest, protocol):
    assert printed(run(guest), "protocol") == protocol


def test_a_bzimage_is_entered_by_the_64_bit_protocol(tmp_path):
    bzimage = make_bzimage(os.path.join(mayfly.GUESTS, "boot-1m"), tmp_path / "bzImage")
    with Machine("boot", "from a bzImage") as machine:
        machine.kernel = bzimage
        lines = machine.boot().finish()
    assert printed(lines, "protocol") == "linux64"
    assert printed(lines, "command line:") == "from a bzImage pci=off"
