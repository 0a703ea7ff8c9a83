"""Linux guests: how they start, what they find, how they end. See host.py for where they run."""

import json
import re
import subprocess

from conftest import LONG, ROOT
from host import boot_args, said
import pytest

# /proc/sys/kernel/bootloader_type: what the kernel was told by its loader.
PVH_LOADER = 0xB0

DISK_PATH = "echo disk at $(readlink -f /sys/block/vda)"
LOADER = "echo loader $(cat /proc/sys/kernel/bootloader_type)"


def boot_stock(guest, **options):
    return guest.boot("vmlinuz", initrd="initrd", **options)


def interrupt_line(console, device):
    """The line of /proc/interrupts for a device."""
    lines = [line for line in console.splitlines() if line.rstrip().endswith(" " + device)]
    assert lines, f"no interrupt of {device!r} in:\n{console}"
    return lines[0]


def test_debians_kernel_finds_its_root_disk_through_acpi(guest):
    run = f"cat /proc/cmdline; {DISK_PATH}; dmesg | grep ACPI:; grep ' / ' /proc/mounts"
    console = boot_stock(guest, run=run).wait_end()
    assert "root=/dev/vda rw" in console
    assert "/LNRO0005:" in said(console, "disk at")
    assert "ACPI: Interpreter enabled" in console
    assert "/dev/vda / ext4 rw" in console
    assert "command ended with status 0" in console


def test_debians_kernel_has_the_identity_that_it_was_given(guest):
    """Both as cloud-init wants them of a machine of EC2."""
    identity = "ec2e1916-9099-7caf-fd21-012345abcdef"
    run = "cd /sys/class/dmi/id; for f in product_uuid product_serial; do echo $f $(cat $f); done"
    console = boot_stock(guest, run=run, smbios={"uuid": identity, "serial": identity}).wait_end()
    assert said(console, "product_uuid") == identity
    assert said(console, "product_serial") == identity


def test_a_kernel_without_acpi_finds_its_disk_by_the_command_line(guest):
    run = f"{DISK_PATH}; dmesg; nproc"
    console = guest.boot("noacpi.vmlinux", run=run, vcpus=2).wait_end()
    assert "virtio-mmio-cmdline/virtio-mmio.0" in said(console, "disk at")
    assert "Intel MultiProcessor Specification" in console
    assert "ACPI" not in console
    assert said(console, "  CPUs") == "2"


def test_acpi_off_leaves_the_mptable_and_the_command_line(guest):
    run = f"{DISK_PATH}; dmesg; cat /proc/interrupts"
    console = guest.boot("acpi.vmlinux", "acpi=off", run=run, vcpus=2).wait_end()
    assert "virtio-mmio-cmdline/virtio-mmio.0" in said(console, "disk at")
    assert "Intel MultiProcessor Specification" in console
    assert "IO-APIC" in console
    assert said(console, "  CPUs") == "2"


def test_our_kernel_can_be_a_guest_of_katas(files):
    config = files["acpi.vmlinux"].with_name("config")
    subprocess.run([ROOT / "guest-kernel-configs" / "check", config, "--for", "kata"], check=True)


# With ACPI, "noapic" is not for Linux: hardware-reduced ACPI promises that there is no PIC.
@pytest.mark.parametrize(
    "kernel, arguments", [("noacpi.vmlinux", "noapic"), ("acpi.vmlinux", "acpi=off noapic")]
)
def test_noapic_leaves_the_interrupts_to_the_pic(guest, kernel, arguments):
    console = guest.boot(kernel, arguments, run="cat /proc/interrupts").wait_end()
    assert "XT-PIC" in interrupt_line(console, "virtio0")
    assert "IO-APIC" not in console


def test_a_small_kernel_with_acpi_prefers_it(guest):
    console = guest.boot("acpi.vmlinux", run=f"{DISK_PATH}; cat /proc/interrupts").wait_end()
    assert "/LNRO0005:" in said(console, "disk at")
    assert "IO-APIC" in interrupt_line(console, "virtio0")


def test_vmlinux_starts_by_pvh(guest):
    console = guest.boot("noacpi.vmlinux", run=LOADER).wait_end()
    assert int(said(console, "loader")) == PVH_LOADER


def test_vmlinux_without_its_pvh_note_starts_by_the_64_bit_protocol(guest):
    console = guest.boot("no-note.vmlinux", run=LOADER).wait_end()
    assert int(said(console, "loader")) not in (0, PVH_LOADER)


@pytest.mark.parametrize("kernel", ["acpi.bzImage", "noacpi.bzImage"])
def test_bzimage_starts(guest, kernel):
    console = guest.boot(kernel, run=LOADER).wait_end()
    assert int(said(console, "loader")) not in (0, PVH_LOADER)


def test_an_initrd_reaches_a_kernel_started_by_pvh(guest):
    console = guest.boot("acpi.vmlinux", run="dmesg", initrd="initrd").wait_end()
    assert "RAMDISK: [mem" in console
    assert "Run /init as init process" in console
    assert "/dev/vda ext4 rw" in said(console, "  root")


@pytest.mark.parametrize("kernel", ["acpi.vmlinux", "noacpi.vmlinux"])
@pytest.mark.parametrize("vcpus", [2, 4])
def test_every_vcpu_is_seen_and_runs(guest, kernel, vcpus):
    run = f"for i in $(seq 0 {vcpus - 1}); do taskset $((1 << i)) echo runs on $i; done"
    console = guest.boot(kernel, run=run, vcpus=vcpus).wait_end()
    assert said(console, "  CPUs") == str(vcpus)
    assert [line for line in console.splitlines() if line.startswith("runs on")] == [
        f"runs on {i}" for i in range(vcpus)
    ]


def test_debians_kernel_runs_on_two_vcpus(guest):
    console = boot_stock(guest, run="grep -c ^processor /proc/cpuinfo", vcpus=2).wait_end()
    assert said(console, "  CPUs") == "2"


def test_a_paused_guest_stands_still_and_goes_on_when_resumed(guest, host):
    count = "i=0; while :; do i=$((i + 1)); echo count $i; usleep 1000; done"
    guest.boot("acpi.vmlinux", run=count, vcpus=2).wait_console("count 20")
    guest.do("PATCH", "/vm", {"state": "Paused"})
    assert json.loads(guest.request("GET", "/")[1])["state"] == "Paused"
    size = guest.console_size()
    host.run("sleep 1")
    assert guest.console_size() == size
    guest.do("PATCH", "/vm", {"state": "Resumed"})
    assert json.loads(guest.request("GET", "/")[1])["state"] == "Running"
    assert host.wait_for(f"[ $(wc -c <{guest.dir}/console) -gt {size} ]")
    guest.do("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    # Whole lines: the kernel says in the middle of one that it restarts.
    numbers = [int(n) for n in re.findall(r"^count (\d+)$", guest.wait_end(), re.M)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("kernel", ["vmlinuz", "acpi.vmlinux", "noacpi.vmlinux"])
def test_ctrl_alt_del_reboots_the_guest(guest, kernel):
    initrd = "initrd" if kernel == "vmlinuz" else None
    guest.boot(kernel, run="echo asleep; sleep 1000", initrd=initrd).wait_console("asleep")
    guest.do("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    assert "mayfly guest: reboot" not in guest.wait_end()


@pytest.mark.parametrize("kernel", ["vmlinuz", "acpi.vmlinux"])
def test_the_power_button_is_heard_and_the_guest_switches_itself_off(guest, kernel):
    """With reboot=k, which says how a guest restarts. An event has a time of 16 bytes, type, code
    and a value: the key KEY_POWER (116) goes down."""
    run = (
        "for m in /modules/*.ko; do insmod $m; done 2>/dev/null;"
        " button=$(grep -l Power.Button /sys/class/input/event*/device/name | cut -d / -f 5);"
        " exec 3</dev/input/$button; echo armed; dd bs=24 count=1 <&3 2>/dev/null |"
        " od -A n -t u2 -j 16 | sed s/^/event/; poweroff -f"
    )
    initrd = "initrd" if kernel == "vmlinuz" else None
    guest.boot(kernel, run=run, initrd=initrd).wait_console("armed")
    guest.do("PUT", "/actions", {"action_type": "SendPowerButton"})
    console = guest.wait_end()
    assert said(console, "event").split() == ["1", "116", "1", "0"]
    assert "mayfly guest: reboot" not in console
    assert "The guest has powered off." in guest.errors()


@pytest.mark.skipif(not LONG, reason="only with --long")
def test_systemd_shuts_down_in_order_when_the_power_button_is_pressed(guest, host):
    guest.disk = "debian.ext4"
    told = "systemd.journald.forward_to_console=1 systemd.show_status=1"
    guest.boot("acpi.vmlinux", f"cloud-init=disabled {told}", mem_mib=512)
    guest.wait_console("Watching system buttons on")
    guest.wait_console("login:")
    guest.do("PUT", "/actions", {"action_type": "SendPowerButton"})
    console = guest.wait_end()
    assert "Power key pressed" in console
    assert "Reached target" in console.partition("Power key pressed")[2]
    assert "The guest has powered off." in guest.errors()
    host.run(f"e2fsck -fn {guest.disk}")


def test_a_file_written_in_the_guest_is_on_the_disk(guest, host):
    run = "echo kept on disk >/root/note; seq 1 20000 >/root/numbers; md5sum /root/numbers"
    console = boot_stock(guest, run=run).wait_end()
    assert host.run(f"debugfs -R 'cat /root/note' {guest.disk} 2>/dev/null") == "kept on disk\n"
    sums = host.run(f"debugfs -R 'cat /root/numbers' {guest.disk} 2>/dev/null | md5sum")
    assert sums.split()[0] in console
    host.run(f"e2fsck -fn {guest.disk}")


def test_a_read_only_disk_is_not_written(guest, host):
    before = host.run("md5sum <root.ext4")
    run = "touch /root/note; mount -o remount,rw / ; touch /root/note"
    console = guest.boot("acpi.vmlinux", run=run, read_only=True).wait_end()
    assert "/dev/root ext4 ro" in said(console, "  root")
    assert "command ended with status 1" in console
    assert host.run(f"md5sum <{guest.disk}") == before


def test_memory_above_4_gib_is_used(guest):
    run = (
        "dmesg | grep usable; cd /tmp; dd if=/dev/urandom of=a bs=1M count=4;"
        " cat a a a a >b; cat a a a a >c; cmp b c && echo same"
    )
    console = guest.boot("noacpi.vmlinux", run=run, mem_mib=5120, vcpus=2).wait_end(120)
    assert "[mem 0x0000000100000000-0x000000017fffffff] usable" in console
    assert int(said(console, "  memory").split()[0]) > 4700
    assert "\nsame\n" in console


def test_the_serial_port_is_a_shell_with_a_terminal(guest):
    guest.boot("acpi.vmlinux", "mayfly.shell").wait_console("# ")
    guest.type("echo $((6 * 7)) on $(tty); sleep 1000\n")
    guest.wait_console("42 on /dev/ttyS0")
    guest.type("\x03")
    guest.type("echo interrupted with $?\n")
    guest.wait_console("interrupted with 130")
    guest.type("exit\n")
    assert "mayfly guest: reboot" in guest.wait_end()


def test_a_configuration_file_boots_without_the_api(new_guest, host):
    guest = new_guest("--no-api", "--config-file", "config.json")
    config = {
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "boot-source": {"kernel_image_path": "acpi.vmlinux", "boot_args": boot_args(run="id -u")},
        "drives": [guest.drive()],
    }
    host.run(f"echo '{json.dumps(config)}' >config.json")
    console = guest.launch().wait_end()
    assert "command ended with status 0" in console
