"""A macvtap in a tap's place: what it does as one, and what differs. The other end of its wire is
the interface veth1."""

import contextlib
import os
import random
import socket
import stat
import subprocess

import pytest

import mayfly
from guests import needs_kvm
from jail import Jail, needs_root
from taps import (GUEST, Guest, Wire, ip, make_frame, needs_taps, network_namespace, put,
                  random_frames, tun_for_all)
from test_net import UDP_SEGMENT, taken, talk_ip, udp

pytestmark = [needs_kvm, needs_taps]

# The number by which /dev names it, which the kernel gives anew in each network namespace: one that
# nobody else's has here.
INDEX = 1_000_000 + os.getpid() % 1_000_000
DEVICE = f"/dev/tap{INDEX}"


def make_macvtap(name="mvtap0", address=GUEST, index=INDEX):
    ip("link add veth0 type veth peer name veth1")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(DEVICE) # what a namespace leaves that goes as a whole
    made = subprocess.run(["ip", "link", "add", "link", "veth0", "name", name, "index", str(index),
                           "address", address, "type", "macvtap", "mode", "bridge"], check=False)
    if made.returncode:
        pytest.skip("NO FRAME WAS MOVED BY A MACVTAP: this kernel has none")
    for each in ("veth0", "veth1", name):
        ip(f"link set {each} up")
    return name


@pytest.fixture(name="macvtap")
def a_macvtap():
    yield make_macvtap()
    ip("link delete veth0")


@pytest.mark.parametrize("mode, name", [("", "mvtap0"), ("mrg offload eventidx", DEVICE)])
def test_frames_come_back(macvtap, mode, name):
    with Guest(mode, tap=name) as guest, Wire("veth1") as wire:
        guest.serve()
        wire.exchange(random_frames(range(60, 1515, 29)))
        assert guest.ok("GET", "/vm/config")["network-interfaces"][0]["host_dev_name"] == name
        guest.end("veth1")


@pytest.mark.parametrize("mode, family", [("", socket.AF_INET),
                                          ("mrg offload eventidx", socket.AF_INET),
                                          ("mrg offload eventidx", socket.AF_INET6)])
def test_segmented_datagrams_come_back(macvtap, mode, family):
    """With offloads one frame is many segments, and their sums are left to the other side."""
    talk_ip("veth1")
    with Guest(mode, tap=macvtap) as guest:
        guest.serve()
        with udp(family) as client:
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
            for i in range(5):
                message = random.Random(i).randbytes(28000)
                client.send(message)
                assert b"".join(client.recv(1 << 16) for _ in range(20)) == message
        guest.end("veth1")


def test_a_guest_hears_what_is_sent_to_the_macvtaps_address_only(macvtap):
    """Unlike on a tap, which gives everything."""
    frames = random_frames(range(60, 80))
    with Guest(tap=macvtap) as guest, Wire("veth1") as wire:
        guest.serve()
        wire.send(make_frame(bytes(50), to="02:00:00:00:00:03"))
        wire.exchange(frames)
        assert guest.metrics()["rx_packets_count"] == len(frames)
        guest.end("veth1")


def test_a_macvtap_that_goes_leaves_the_machine_alive_and_at_rest(macvtap):
    """Nothing tells so: frames are lost."""
    with Guest(tap=macvtap) as guest:
        guest.serve()
        ip(f"link delete {macvtap}")
        for _ in range(100):
            guest.ok("GET", "/vm/config")
        counts = guest.metrics()
        assert counts["rx_tap_event_count"] == guest.metrics()["rx_tap_event_count"]
        guest.ok("PATCH", "/vm", {"state": "Paused"})
        guest.ok("PATCH", "/vm", {"state": "Resumed"})
        assert guest.process.poll() is None


def test_an_interface_of_that_id_keeps_its_macvtap(macvtap):
    with mayfly.Mayfly() as vm:
        assert put(vm, host_dev_name=macvtap) == (204, None)
        assert put(vm, host_dev_name=macvtap, mtu=1400) == (204, None)
        assert put(vm, host_dev_name=DEVICE) == (204, None)
        assert vm.ok("GET", "/vm/config")["network-interfaces"][0]["host_dev_name"] == DEVICE


def test_the_device_of_another_namespaces_macvtap_is_refused():
    """By name, where both have the same name and number; /dev has only the first one's."""
    make_macvtap()
    with network_namespace():
        ip("link add veth0 type veth peer name veth1")
        ip(f"link add link veth0 name mvtap0 index {INDEX} type macvtap mode bridge")
        with mayfly.Mayfly() as vm:
            assert put(vm, host_dev_name="mvtap0") == (
                400, taken("Invalid argument (os error 22)", "mvtap0"))
    with mayfly.Mayfly() as vm:
        assert put(vm, host_dev_name="mvtap0") == (204, None)
    ip("link delete veth0")


def test_who_may_not_open_the_device_is_told(macvtap):
    refusal = ("Network config error: Could not create the network device: Open tap device failed: "
               f"Couldn't open the macvtap: Permission denied (os error 13) {DEVICE}")
    with tun_for_all(), mayfly.Mayfly(user=65534) as vm:
        for name in (macvtap, DEVICE):
            assert put(vm, host_dev_name=name) == (400, refusal)


@pytest.mark.parametrize("name", ["/dev/tap", "/dev/tap0x", "/dev/net/tun", "/dev/kvm", "/dev/tap1/.."])
def test_other_paths_name_nothing(name):
    with mayfly.Mayfly() as vm:
        assert put(vm, host_dev_name=name) == (400, taken("Invalid argument (os error 22)", name))


def test_a_device_that_is_no_macvtap_is_refused(tmp_path):
    """As /dev/tapN of a kernel before ours: opened by its name, it takes no such request."""
    path = f"/dev/tap{INDEX + 1}"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)) # /dev/null
    try:
        with mayfly.Mayfly() as vm:
            status, text = put(vm, host_dev_name=path)
            assert status == 400 and "Not a tty (os error 25)" in text
            status, text = put(vm, host_dev_name=f"/dev/tap{INDEX + 2}")
            assert status == 400 and text.endswith(
                f"Couldn't open the macvtap: No such file or directory (os error 2) /dev/tap{INDEX + 2}")
    finally:
        os.unlink(path)


@needs_root
def test_a_jailed_microvm_has_the_device_that_was_put_into_its_cell(macvtap):
    """By whoever prepares the cell: the jailer makes no node that nobody asked it for."""
    number = os.stat(DEVICE).st_rdev
    for name in (macvtap, DEVICE):
        jail = Jail()
        device = jail.inside(DEVICE[1:])
        os.makedirs(os.path.dirname(device))
        os.mknod(device, stat.S_IFCHR | 0o600, number)
        os.chown(device, jail.uid, jail.gid)
        with jail as vm:
            assert put(vm, host_dev_name=name, guest_mac=GUEST) == (204, None)
