"""What a Linux guest finds of its machine, in a form that two VMMs can be compared by.

A guest prints sections, each behind a line "== NAME": files of /proc and /sys as they are. Kept is
what the VMM decides; counts, addresses of the kernel and what other drivers add are left out.
"""

import base64
import re

# For the shell of a guest: no double quotes.
DUMP = (
    "echo == cmdline; cat /proc/cmdline; echo == dmesg; dmesg | grep BIOS-e820;"
    " echo == interrupts; cat /proc/interrupts; echo == iomem; cat /proc/iomem;"
    " echo == ioports; cat /proc/ioports; echo == virtio;"
    " for d in /sys/bus/virtio/devices/*; do echo $(basename $d) dev=$(cat $d/device)"
    " features=$(cat $d/features) path=$(readlink -f $d); done;"
    " for b in vda vdb; do echo /sys/block/$b ro=$(cat /sys/block/$b/ro)"
    " cache=$(cat /sys/block/$b/queue/write_cache); done 2>/dev/null;"
    " echo /sys/class/net/eth0 mac=$(cat /sys/class/net/eth0/address)"
    " mtu=$(cat /sys/class/net/eth0/mtu);"
    " echo == acpi; cd /sys/firmware/acpi/tables 2>/dev/null &&"
    " for t in APIC DSDT FACP MCFG; do echo $t $(base64 $t | tr -d '\\n'); done;"
    " echo == platform; ls /sys/bus/platform/devices; echo == end"
)


def sections(text):
    found = {}
    for part in re.split(r"^== ", text, flags=re.M)[1:]:
        name, _, body = part.partition("\n")
        found[name.strip()] = body.splitlines()
    return found


def e820(lines):
    pattern = re.compile(r"BIOS-e820: \[mem 0x0*([0-9a-f]+)-0x0*([0-9a-f]+)\] (.*)")
    return [" ".join(m.groups()) for line in lines if (m := pattern.search(line))]


def arguments(lines):
    """What the VMM adds to the command line."""
    return lines[0].split(" pci=off", 1)[-1].split()


def interrupts(lines):
    """Input of the interrupt controller, trigger and device."""
    pattern = re.compile(r"IO-APIC +(\d+)-(\w+) +(virtio\d+|ACPI:Ged|ttyS0|i8042)$")
    return [" ".join(m.groups()) for line in lines if (m := pattern.search(line.rstrip()))]


def memory(lines):
    """Ranges of RAM, devices and firmware; not what the kernel claims for itself or probes."""
    own = re.compile(r" : (Kernel \w+|System ROM|Video ROM|LNRO0005:\d+ LNRO0005:\d+)$|virtio")
    return [line.strip() for line in lines if line.strip() and not own.search(line)]


def virtio(lines):
    pattern = re.compile(r"dev=(0x\w+) .*features=([01]+) path=\S*?([^/\s]+)/virtio\d+$")
    return [list(m.groups()) for line in lines if (m := pattern.search(line))]


def nodes(lines):
    """Disks and interfaces as their drivers show them."""
    disk = re.compile(r"/sys/block/(vd\w) .*ro=(\d) .*(write \w+)")
    net = re.compile(r"/sys/class/net/(eth\d) mac=(\S+) mtu=(\d+)")
    found = [disk.search(line) or net.search(line) for line in lines]
    return [" ".join(m.groups()) for m in found if m]


def platform(lines):
    names = {word for line in lines for word in line.split()}
    return sorted(name for name in names if re.match(r"(ACPI|AMZN|LNRO|VMGENCTR|i8042)", name))


def parse(text):
    s = sections(text)
    tables = dict(line.split() for line in s.get("acpi", []) if len(line.split()) == 2)
    return {
        "arguments": arguments(s["cmdline"]),
        "e820": e820(s["dmesg"]),
        "interrupts": interrupts(s["interrupts"]),
        "iomem": memory(s["iomem"]),
        "ioports": [line.strip() for line in s["ioports"] if line.strip()],
        "virtio": virtio(s["virtio"]),
        "nodes": nodes(s["virtio"]),
        "acpi": tables,
        "platform": platform(s.get("platform", s.get("msr-ish", []))),
        "cpuid": [line for line in s.get("cpuid", []) if line.startswith("cpu")],
    }


def sealed(table):
    """An ACPI table with its length and checksum as they must be, in base64."""
    table[4:8] = len(table).to_bytes(4, "little")
    table[9] = 0
    table[9] = -sum(table) % 256
    return base64.b64encode(table).decode()


def without_button(dsdt):
    """Takes the button out of the Generic Event Device, and from each length around it."""
    interrupt = bytes.fromhex("89 06 00 03 01 03 00 00 00")
    notify = bytes.fromhex("a0 12 93 68 0a 03 86 5c 2e") + b"_SB_PWRB\x0a\x80"
    ged = dsdt.index(b"_SB_GED_")
    crs, evt = dsdt.index(b"_CRS\x11", ged), dsdt.index(b"_EVT", ged)
    size = (dsdt[ged - 3] & 0xF | dsdt[ged - 2] << 4) - len(interrupt) - len(notify)
    dsdt[ged - 3], dsdt[ged - 2] = 0x40 | size & 0xF, size >> 4
    dsdt[crs + 5] -= len(interrupt)
    dsdt[crs + 7] -= len(interrupt)
    dsdt[evt - 1] -= len(notify)
    for part in notify, interrupt:
        at = dsdt.index(part, ged)
        del dsdt[at : at + len(part)]


def without_power(seen):
    """What a guest with ACPI found, without all that Firecracker's does not have: soft off, at the
    end of the DSDT together with the power button, its registers in the FADT, and the button's
    interrupt and notification in the device for events."""
    dsdt, fadt = (bytearray(base64.b64decode(seen["acpi"][name])) for name in ("DSDT", "FACP"))
    del dsdt[dsdt.index(b"\x08_S5_"):]
    without_button(dsdt)
    assert any(fadt[244:268])
    fadt[244:268] = bytes(24)
    seen["acpi"].update(DSDT=sealed(dsdt), FACP=sealed(fadt))
    seen["interrupts"].remove("3 edge ACPI:Ged")
    return seen
