"""Guests that are saved and go on as others: in the rig, which has a TSC of its own for each guest,
and in which Linux runs."""

import json
import os
import re
import shlex

import pytest

from host import boot_args, said

LONG = "MAYFLY_LONG" in os.environ
HOUR_S = 3600
HOST, GUEST, MAC = "172.31.0.1", "172.31.0.2", "06:00:ac:1f:00:02"


def ask(guest, *requests):
    """Requests by one client, which takes the emulated host long to start."""
    each = [
        f"-sS --unix-socket {guest.socket} -X {method} -d {shlex.quote(json.dumps(body))}"
        f" -H 'Content-Type: application/json' -w '\\n%{{http_code}}\\n' http://localhost{path}"
        for method, path, body in requests
    ]
    answers = guest.host.run("curl " + " --next ".join(each))
    codes = re.findall(r"^\d{3}$", answers, re.M)
    assert codes == ["204"] * len(requests), f"{requests}: {answers}\n{guest.errors()}"


def boot_micro(guest, kernel, arguments="", vcpus=1):
    ask(guest.launch(),
        ("PUT", "/machine-config", {"vcpu_count": vcpus, "mem_size_mib": 32}),
        ("PUT", "/boot-source", {"kernel_image_path": kernel, "boot_args": arguments}),
        ("PUT", "/actions", {"action_type": "InstanceStart"}))
    return guest


def patch(state):
    return "PATCH", "/vm", {"state": state}


def save(guest, kind="Full", memory=None):
    """Pauses it and leaves it so; its files."""
    files = f"{guest.dir}/saved", memory or f"{guest.dir}/memory"
    ask(guest, patch("Paused"), ("PUT", "/snapshot/create", {
        "snapshot_type": kind, "snapshot_path": files[0], "mem_file_path": files[1]}))
    return files


def load(guest, files, **members):
    ask(guest.launch(), ("PUT", "/snapshot/load", {
        "snapshot_path": files[0], "resume_vm": True,
        "mem_backend": {"backend_type": "File", "backend_path": files[1]}, **members}))
    return guest


def wait_for(host, what, condition):
    assert host.wait_for(condition), what


def grows(host, path, lines=5):
    """A condition of the shell: that there are so many lines more in a file than now."""
    now = int(host.run(f"wc -l <{path}"))
    return f"[ $(wc -l <{path}) -ge {now + lines} ]"


def numbers_from(text):
    """What the guest prints that prints numbers, from the first whole line of a text on."""
    whole = text[text.index("\n") + 1:]
    first = int(whole[:whole.index("\n")])
    wanted = "".join(f"{i}\n" for i in range(first, first + whole.count("\n") + 1))
    return whole, wanted[:len(whole)]


def test_no_byte_of_a_console_is_doubled_or_lost(new_guest, host):
    """A guest stops anywhere, in the rig mostly at an access to the port that has not ended."""
    first = boot_micro(new_guest(), "counter")
    wait_for(host, first, f"[ $(wc -c <{first.dir}/console) -gt 500 ]")
    for i in range(20 if LONG else 5):
        files = save(first)
        printed = host.run(f"tail -c 500 {first.dir}/console")
        second = load(new_guest(), files)
        wait_for(host, second, f"[ $(wc -c <{second.dir}/console) -gt 100 ]")
        whole, wanted = numbers_from(printed + host.run(f"head -c 500 {second.dir}/console"))
        assert whole == wanted, f"round {i}"
        second.stop()
        second.remove()
        more = grows(host, f"{first.dir}/console")
        ask(first, patch("Resumed"))
        wait_for(host, first, more)


def assert_good(console):
    assert "not ok" not in console and console.endswith("done\n"), console


@pytest.mark.parametrize("rounds", [10 if LONG else 2])
def test_the_tsc_of_a_young_guest_does_not_go_back(new_guest, rounds):
    """KVM takes a TSC that is less than a second from what a new machine has for an attempt to
    bring vCPUs together, and ignores it."""
    first = boot_micro(new_guest(), "clocks", "young")
    first.wait_console("ready")
    for _ in range(rounds):
        files = save(first)
        second = load(new_guest(), files)
        assert_good(second.wait_end())
        ask(first, patch("Resumed"))


def tsc_offsets(guest):
    """Of each vCPU, as KVM tells them."""
    debug = "/sys/kernel/debug"
    return guest.host.run(
        f"[ -d {debug}/kvm ] || mount -t debugfs debug {debug};"
        f" cat {debug}/kvm/$(cat {guest.dir}/pid)-*/vcpu*/tsc-offset").split()


@pytest.fixture
def wall_clock(host):
    """Sets the clock of the emulated host on by some seconds, and back in the end."""
    if "QEMU TCG" not in host.run("cat /proc/cpuinfo"):
        pytest.skip("the clock of this host is not for tests")
    on = 0

    def set_on(seconds):
        nonlocal on
        host.run(f"busybox date -s @$(($(date +%s) + {seconds}))")
        on += seconds

    yield set_on
    set_on(-on)


def test_clocks_timers_and_msrs_go_on_for_three_generations(new_guest, host, wall_clock):
    machine = boot_micro(new_guest(), "clocks", "vcpus=2 rounds=3", vcpus=2)
    machine.wait_console("ready")
    for i, realtime in enumerate((False, True, False), 1):
        files = save(machine)
        wall_clock(HOUR_S)
        clone = load(new_guest(), files, clock_realtime=realtime)
        offsets = tsc_offsets(clone)
        assert len(offsets) == 2 and len(set(offsets)) == 1
        clone.wait_console(f"generation {i}")
        console = clone.console()
        assert "not ok" not in console, console
        jump = int(said(console, "kvmclock went on by up to ").split()[0])
        # What sets the clock leaves out the part of a second.
        assert (jump > (HOUR_S - 1) * 1000) == realtime and jump < HOUR_S * 2000, console
        machine.stop()
        machine.remove()
        machine = clone
    machine.wait_console("waiting end")
    machine.type("x")
    assert_good(machine.wait_end())


# Linux.

@pytest.fixture
def tap(host):
    host.run(f"busybox tunctl -t tap31 && busybox ip link set tap31 up &&"
             f" busybox ip address add {HOST}/24 dev tap31")
    yield "tap31"
    host.run("busybox tunctl -d tap31")


def boot_linux(guest, tap, kernel, **machine):
    guest.host.run(
        f"cp root.ext4 {guest.dir}/data; debugfs -w -R 'write snapshot.sh root/snapshot.sh'"
        f" {guest.disk}; (./vsock listen {guest.dir}/v_9 sh -c 'cat >>{guest.dir}/received'"
        f" >/dev/null 2>&1 & echo $! >{guest.dir}/listener); >{guest.dir}/received")
    arguments = boot_args(f"ip={GUEST}::{HOST}:255.255.255.0::eth0:off", "sh /root/snapshot.sh")
    initrd = {"initrd_path": "initrd"} if kernel == "vmlinuz" else {}
    data = {"drive_id": "data", "path_on_host": f"{guest.dir}/data", "is_root_device": False,
            "io_engine": "Async", "cache_type": "Writeback"}
    ask(guest.launch(),
        ("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 128, **machine}),
        ("PUT", "/boot-source", {"kernel_image_path": kernel, "boot_args": arguments, **initrd}),
        ("PUT", "/drives/rootfs", {**guest.drive(), "cache_type": "Writeback"}),
        ("PUT", "/drives/data", data),
        ("PUT", "/network-interfaces/eth0",
         {"iface_id": "eth0", "host_dev_name": tap, "guest_mac": MAC}),
        ("PUT", "/vsock", {"guest_cid": 42, "uds_path": f"{guest.dir}/v"}),
        ("PUT", "/actions", {"action_type": "InstanceStart"}))
    guest.wait_console("all at work")
    # One connection for all generations: what it sends comes back.
    guest.host.run(
        f"(i=0; while [ ! -e {guest.dir}/stop ]; do i=$((i + 1)); echo $i; usleep 20000; done |"
        f" busybox nc {GUEST} 9001 >{guest.dir}/echoed 2>/dev/null; echo >{guest.dir}/ended) &"
        f" >{guest.dir}/echoed")
    return guest


def wait_until_all_goes_on(machine, first):
    """Both disks, both ways of TCP and vsock: each more than once in this generation."""
    host = machine.host
    for name in "root", "data":
        wait_for(host, name, f"[ $(grep -c 'round {name} ' {machine.dir}/console) -ge 2 ]")
    for name, lines in ("echoed", 5), ("received", 2):
        wait_for(host, name, grows(host, f"{first.dir}/{name}", lines))
    assert host.run(f"echo there and back | timeout 600 ./vsock dial {first.dir}/v 7") == (
        "there and back\n")


def save_next(machine, before):
    """Memory whole, or what has changed into a copy of what it was loaded from."""
    if not before:
        return save(machine)
    machine.host.run(f"cp {before[1]} {machine.dir}/memory")
    return save(machine, "Diff")


def end_linux(machine, first):
    machine.host.run(f"touch {first.dir}/stop")
    wait_for(machine.host, "the connection's end", f"[ -e {first.dir}/ended ]")
    machine.type("\n")
    console = machine.wait_end()
    assert "command ended with status 0" in console and "\nwrong" not in console, console
    echoed = machine.host.run(f"cat {first.dir}/echoed").split()
    assert echoed == [str(i) for i in range(1, len(echoed) + 1)]
    for disk in first.disk, f"{first.dir}/data":
        machine.host.run(f"e2fsck -fn {disk}")


@pytest.mark.parametrize(
    "kernel, track", [("acpi.vmlinux", True), *([("vmlinuz", False)] if LONG else [])])
def test_linux_goes_on_with_all_that_it_does(tap, new_guest, host, kernel, track):
    """A chain of processes, each made of the snapshot of the one before, under I/O."""
    first = machine = boot_linux(new_guest(), tap, kernel, track_dirty_pages=track)
    files, consoles, saved = None, "", first
    wait_until_all_goes_on(first, first)
    for i in range(20 if LONG else 3):
        # To copy memory takes the emulated host longer than all else.
        files = save_next(machine, files if i % 2 else None)
        machine.stop()
        host.run(f"rm {first.dir}/v")
        consoles += machine.console()
        if saved is not first:
            saved.remove() # the next one has been made of its memory
        saved, machine = machine, load(new_guest(), files, track_dirty_pages=track)
        wait_until_all_goes_on(machine, first)
    assert "\nwrong" not in consoles
    end_linux(machine, first)
    host.run(f"kill $(cat {first.dir}/listener)")
