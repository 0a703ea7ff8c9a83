"""The tools beside the guest kernels: what packs an image, and what checks a configuration."""

import pathlib
import runpy
import struct
import subprocess

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "guest-kernel-configs"
BOOTS = ["VIRTIO_MMIO", "VIRTIO_BLK", "KVM_GUEST", "SERIAL_8250_CONSOLE", "BINFMT_ELF"]
PAGE = 4096
LOAD, NOTE = 1, 4


def make_elf(path, data, memory_bytes, note_at):
    """An image of one segment at 16 MiB, and a note in it."""
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0x1000000, 64, 0, 0,
                         64, 56, 2, 64, 0, 0)
    header += struct.pack("<IIQQQQQQ", LOAD, 7, PAGE, 1 << 24, 1 << 24, len(data), memory_bytes, PAGE)
    header += struct.pack("<IIQQQQQQ", NOTE, 4, PAGE + note_at, (1 << 24) + note_at,
                          (1 << 24) + note_at, 16, 16, 4)
    path.write_bytes(header.ljust(PAGE, b"\0") + data)


def segments(path):
    """(type, address, bytes in the file, bytes in memory) of each segment."""
    image = path.read_bytes()
    table, size, count = (struct.unpack_from(f, image, at)[0]
                          for f, at in (("<Q", 32), ("<H", 54), ("<H", 56)))
    found = []
    for i in range(count):
        kind, _, offset, _, address, length, memory, _ = struct.unpack_from(
            "<IIQQQQQQ", image, table + i * size)
        assert kind != LOAD or offset % PAGE == address % PAGE
        found.append((kind, address, image[offset : offset + length], memory))
    return found


def test_a_packed_image_loads_the_same_memory_without_the_filler(tmp_path):
    code, more = b"\x01\x02" * PAGE, b"\x03note of sixteen" * PAGE
    data = code + bytes(64 * PAGE) + more
    make_elf(tmp_path / "whole", data, len(data) + 5 * PAGE, len(code) + 64 * PAGE)
    subprocess.run([TOOLS / "pack", tmp_path / "whole", tmp_path / "packed"], check=True)
    assert (tmp_path / "packed").stat().st_size < len(data) - 60 * PAGE
    memory, last = bytearray(len(data) + 5 * PAGE), 1 << 24
    *loads, note = segments(tmp_path / "packed")
    for kind, address, content, size in loads:
        assert kind == LOAD and address == last, "a loader zeroes every gap"
        memory[address - (1 << 24) : address - (1 << 24) + len(content)] = content
        last = address + size
    assert bytes(memory) == data + bytes(5 * PAGE)
    assert last == (1 << 24) + len(memory)
    assert note[0] == NOTE and note[2] == b"\x03note of sixteen"


def check(tmp_path, options, *arguments):
    config = tmp_path / "config"
    config.write_text("".join(f"CONFIG_{name}={value}\n" for name, value in options.items()))
    return subprocess.run([TOOLS / "check", config, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_configuration_with_all_that_is_needed_boots(tmp_path):
    done = check(tmp_path, dict.fromkeys([*BOOTS, "ACPI"], "y"))
    assert done.returncode == 0
    assert "it boots on mayfly" in done.stdout


def test_each_option_that_is_needed_is_missed(tmp_path):
    for name in BOOTS:
        done = check(tmp_path, dict.fromkeys([n for n in [*BOOTS, "ACPI"] if n != name], "y"))
        assert done.returncode == 1
        assert f"  {name}:" in done.stdout.split("missing, needed only")[0]


def test_a_kernel_must_find_its_devices_one_way_or_the_other(tmp_path):
    by_command_line = dict.fromkeys([*BOOTS, "VIRTIO_MMIO_CMDLINE_DEVICES", "X86_MPPARSE"], "y")
    assert check(tmp_path, by_command_line).returncode == 0
    assert check(tmp_path, dict.fromkeys(BOOTS, "y")).returncode == 1
    assert check(tmp_path, dict.fromkeys([*BOOTS, "ACPI"], "y"), "--acpi-off").returncode == 1


def test_modules_and_what_is_too_much_are_named(tmp_path):
    done = check(tmp_path, dict.fromkeys([*BOOTS, "ACPI"], "y") | {"VIRTIO_BLK": "m", "DRM": "m"})
    assert done.returncode == 0
    assert "  VIRTIO_BLK: disks" in done.stdout.split("modules, an initramfs")[1]
    assert "  DRM: there is no display" in done.stdout.split("could be dropped")[1]


def test_what_a_version_has_always_or_calls_otherwise_is_known(tmp_path):
    config = tmp_path / "config"
    options = "".join(f"CONFIG_{name}=y\n" for name in [*BOOTS, "ACPI", "MICROCODE", "CRYPTO_MANAGER"])

    def said(version, more=""):
        config.write_text(f"#\n# Linux/x86 {version}.7 Kernel Configuration\n{options}{more}")
        return subprocess.check_output([TOOLS / "check", config], text=True)

    assert "RANDOM_TRUST_CPU" in said("6.1") and "MICROCODE" in said("6.1")
    assert "RANDOM_TRUST_CPU" not in said("6.12") and "MICROCODE" not in said("6.12")
    assert "CRYPTO_SELFTESTS" in said("6.12")
    assert "CRYPTO_SELFTESTS" not in said("6.12", "CONFIG_CRYPTO_MANAGER_DISABLE_TESTS=y\n")


def test_what_kata_needs_is_missed_only_for_kata(tmp_path):
    """A guest of Kata's has no ACPI and no initramfs."""
    kata = [name for name, _ in runpy.run_path(str(TOOLS / "check"))["KATA"]]
    options = dict.fromkeys([*BOOTS, "VIRTIO_MMIO_CMDLINE_DEVICES", "X86_MPPARSE", *kata], "y")
    assert check(tmp_path, options, "--for", "kata").returncode == 0
    without = {name: "y" for name in options if name not in kata}
    for values in without, options | dict.fromkeys(kata, "m"):
        done = check(tmp_path, values, "--for", "kata")
        assert done.returncode == 1
        named = done.stdout.split("it can't be a guest of Kata's:")[1]
        assert all(f"  {name}: " in named for name in kata)
        assert check(tmp_path, values).returncode == 0
    assert check(tmp_path, options | {kata[-1]: "m"}, "--for", "kata").returncode == 1
    assert check(tmp_path, options | {"VIRTIO_BLK": "m"}, "--for", "kata").returncode == 1
    by_acpi = options | {"ACPI": "y", "X86_MPPARSE": "n"}
    assert check(tmp_path, by_acpi, "--for", "kata").returncode == 1
    assert check(tmp_path, by_acpi).returncode == 0
