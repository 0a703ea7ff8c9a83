"""The machine that Linux finds, beside the one that it found under Firecracker with the same
configuration: firecracker/*.json, recorded in the rig from Firecracker 1.17.0."""

import json
import pathlib
import re
import shlex

from host import boot_args
import machine
import pytest

RECORDS = pathlib.Path(__file__).parent / "firecracker"

# Our kernel for each record, and what of it depends on the kernel's configuration, so that nothing
# can be compared: Debian's was recorded without its virtio modules; the other without an MPTable's
# driver, so that it found one vCPU and no IOAPIC when ACPI was off.
RECORDED = [
    ("elf-1vcpu-4g", "acpi.vmlinux", set()),
    ("elf-2vcpu-128m", "acpi.vmlinux", set()),
    ("elf-2vcpu-acpi-off", "acpi.vmlinux", {"virtio", "nodes", "interrupts", "iomem"}),
    ("debian-bzimage-2vcpu", "vmlinuz", {"virtio", "nodes", "interrupts", "iomem"}),
]


def record(name):
    return json.loads((RECORDS / f"{name}.json").read_text())


def boot_config(guest, config):
    """Runs a guest from a configuration file; its console."""
    path = f"{guest.dir}/vm.json"
    guest.host.run(f"echo {shlex.quote(json.dumps(config))} >{path}")
    guest.arguments = ["--config-file", path, "--no-api"]
    guest.launch()
    return guest.wait_end()


def boot_as(guest, config, kernel, run):
    """Boots a guest with a record's configuration, on disks and a tap of its own."""
    other = "acpi=off" if "acpi=off" in config["boot-source"]["boot_args"] else ""
    config["boot-source"] = {
        "kernel_image_path": kernel,
        "boot_args": boot_args(other, run),
        **({"initrd_path": "initrd"} if kernel == "vmlinuz" else {}),
    }
    for drive in config["drives"]:
        if drive["is_root_device"]:
            drive["path_on_host"] = guest.disk
        else:
            drive["path_on_host"] = f"{guest.dir}/{drive['drive_id']}"
            guest.host.run(f"truncate -s 1M {drive['path_on_host']}")
    config["vsock"]["uds_path"] = f"{guest.dir}/vsock"
    return boot_config(guest, config)


@pytest.mark.parametrize("name, kernel, incomparable", RECORDED)
def test_linux_finds_the_machine_it_found_under_firecracker(guest, name, kernel, incomparable):
    recorded = record(name)
    seen = machine.parse(boot_as(guest, recorded["config"], kernel, machine.DUMP))
    if recorded["acpi"]:
        seen = machine.without_power(seen)
    for part in recorded.keys() - incomparable - {"config", "cpuid", "virtio"}:
        assert seen[part] == recorded[part], part
    if "virtio" in incomparable:
        return
    assert len(seen["virtio"]) == len(recorded["virtio"])
    for ours, theirs in zip(seen["virtio"], recorded["virtio"]):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        lacking = [bit for bit, value in enumerate(theirs[1]) if value > ours[1][bit]]
        assert not lacking, f"device {ours[0]} lacks features {lacking}"


def leaves(text):
    """Lines "cpuN LEAF.SUBLEAF EAX EBX ECX EDX", with or without leading zeros, as a dict."""
    pattern = re.compile(r"^cpu(\d+) (\w+)\.(\d) (\w+) (\w+) (\w+) (\w+)", re.M)
    return {
        (int(cpu), int(leaf, 16), int(sub)): [int(register, 16) for register in registers]
        for cpu, leaf, sub, *registers in pattern.findall(text)
    }


def without_circumstances(cpuid):
    """Drops what neither VMM decides."""
    for (_, leaf, _), registers in cpuid.items():
        if leaf == 7:
            registers[2] &= ~(1 << 4)  # OSPKE: what the guest's kernel has switched on
        if leaf == 0x80000001:
            registers[2] &= ~(1 << 1)  # CmpLegacy, KVM's: the recording host had two CPUs
    return cpuid


@pytest.mark.parametrize("name, vcpus", [("elf-1vcpu-4g", 1), ("elf-2vcpu-128m", 2)])
def test_each_vcpu_has_the_cpuid_it_had_under_firecracker(guest, name, vcpus):
    if "QEMU TCG" not in guest.host.run("cat /proc/cpuinfo"):
        pytest.skip("the record is of the CPU that the rig emulates")
    config = {
        "boot-source": {"kernel_image_path": "cpuid", "boot_args": f"dump vcpus={vcpus}"},
        "drives": [],
        "machine-config": {"vcpu_count": vcpus, "mem_size_mib": 128},
    }
    seen = leaves(boot_config(guest, config))
    assert without_circumstances(seen) == without_circumstances(
        leaves("\n".join(record(name)["cpuid"]))
    )
