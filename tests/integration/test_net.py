"""Network interfaces as client, guest and host see them; taps.py has the host's side."""

import itertools
import random
import re
import select
import socket
import subprocess
import struct
import threading
import time

import pytest

import mayfly
from guests import drive, make_disk, needs_kvm, printed
from taps import (GUEST, SEED, SMALL, SO_RCVBUFFORCE, TYPE_END, Guest, Wire, echo_of, flood, ip,
                  make_frame, make_tap, needs_taps, ops, put, random_frames, tun_for_all,
                  unshare_network)

pytestmark = [needs_kvm, needs_taps]

UDP_SEGMENT = 103
OTHER = "02:00:00:00:00:03"
MTU_MAX = 65521
# 0: each chain has the same shape, as in the other tests.
SEEDS = [0, SEED] if mayfly.IS_LONG else [SEED]

# Frames.

MODES = ["", "eventidx", "mrg", "mrg eventidx", "offload", "mrg offload eventidx"]
LARGE = sorted({*range(1515, 65536, 1499), *range(4080, 4088), *range(65530, 65536)})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", MODES)
def test_frames_of_many_sizes_come_back(mode, seed):
    make_tap()
    with Guest(f"{mode} seed={seed}") as guest, Wire() as wire:
        guest.serve()
        wire.exchange(random_frames(SMALL))
        guest.end()


@pytest.mark.skipif(not mayfly.IS_LONG, reason="only some sizes were tried: see ./devtool test --long")
def test_frames_of_every_plain_size_come_back():
    make_tap()
    with Guest(f"mrg offload eventidx seed={SEED}") as guest, Wire() as wire:
        guest.serve()
        wire.exchange(random_frames(range(14, 1515)))
        guest.end()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["mrg", "long", "offload", "mrg offload eventidx"])
def test_frames_of_up_to_64_kib_come_back(mode, seed):
    make_tap(mtu=MTU_MAX)
    with Guest(f"{mode} seed={seed}", members={"mtu": MTU_MAX}) as guest, Wire() as wire:
        guest.serve()
        wire.exchange(random_frames(LARGE), window=2)
        guest.end()


def test_frames_longer_than_the_guests_buffers_are_lost_and_no_others():
    make_tap(mtu=MTU_MAX)
    with Guest("eventidx") as guest, Wire() as wire:
        guest.serve()
        for long in random_frames([2037, 9014, 65535]):  # its chains are of 2048 bytes
            wire.send(long)
        wire.exchange(random_frames([2036, 60]))
        assert guest.metrics()["rx_fails"] == 3
        guest.end()


def test_frames_wait_for_a_guest_that_has_no_buffers():
    make_tap()
    frames = random_frames(range(60, 660))
    with Guest("mrg lazy", stdin=subprocess.PIPE) as guest, Wire() as wire:
        guest.boot().wait_for_output("waiting buffers")
        for frame in frames:
            wire.send(frame)
        guest.wait_for_metric("no_rx_avail_buffer")
        guest.go_on()
        for frame in frames:
            wire.expect(echo_of(frame))
        guest.end()


@pytest.mark.parametrize("mode", MODES)
def test_a_full_ring_is_sent_in_order(mode):
    make_tap()
    with Guest(f"{mode} burst=4 quiet") as guest, Wire() as wire:
        guest.boot()
        for number in range(4 * 256):
            assert struct.unpack_from("<I", wire.receive(), 14) == (number,)
        guest.finish()


# IP.

def talk_ip(name="tap0"):
    """The host is 10.0.0.1 and fd00::1; the guest answers for .2, without being asked who has it."""
    with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as off:
        off.write("0")
    ip(f"address add 10.0.0.1/24 dev {name}")
    ip(f"address add fd00::1/64 dev {name} nodad")
    for address in ("10.0.0.2", "fd00::2"):
        ip(f"neighbour add {address} lladdr {GUEST} dev {name}")


def udp(family):
    """A socket that is connected to the guest."""
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    client.settimeout(mayfly.DEADLINE_S)
    client.connect(("10.0.0.2" if family == socket.AF_INET else "fd00::2", 7777))
    return client


FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])


@FAMILIES
@pytest.mark.parametrize("mode", MODES)
def test_datagrams_come_back(mode, family):
    """The kernel checks the sums: where there are offloads it leaves them to the guest, which
    leaves them to the kernel."""
    make_tap()
    talk_ip()
    with Guest(f"{mode} seed={SEED}") as guest:
        guest.serve()
        with udp(family) as client:
            for size in [*range(0, 1453, 33), 1452]:
                message = random.Random(size).randbytes(size)
                client.send(message)
                assert client.recv(1 << 16) == message
        guest.end()


@pytest.mark.parametrize("mode", ["mrg", "mrg offload"])
def test_datagrams_in_fragments_come_back(mode):
    make_tap()
    talk_ip()
    with Guest(mode) as guest:
        guest.serve()
        with udp(socket.AF_INET) as client:
            for size in (1473, 3000, 9000, 30000):
                message = random.Random(size).randbytes(size)
                client.send(message)
                assert client.recv(1 << 16) == message
        guest.end()


@FAMILIES
@pytest.mark.parametrize("mode", ["", "mrg eventidx", "offload", "mrg offload eventidx"])
def test_segmented_datagrams_come_back(mode, family):
    """With offloads the segments cross as one frame both ways, and else are what the kernel makes
    of it."""
    make_tap()
    talk_ip()
    with Guest(mode) as guest:
        guest.serve()
        with udp(family) as client:
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
            messages = [random.Random(i).randbytes(28000) for i in range(10)]
            for message in messages:
                client.send(message)
                assert b"".join(client.recv(1 << 16) for _ in range(20)) == message
        has_uso = int(printed(guest.output().splitlines(), "features"), 16) >> 54 & 1
        count = guest.metrics()["rx_packets_count"]
        if "offload" in mode and has_uso:
            assert count < 20 * len(messages)
        else:
            assert count >= 20 * len(messages)
        guest.end()


# More than one.

def test_two_guests_on_a_bridge_talk_to_each_other():
    ip("link add bridge0 type bridge forward_delay 0")
    ip("link set bridge0 up")
    for name in ("tap1", "tap2"):
        make_tap(name)
        ip(f"link set {name} master bridge0")
    with Guest(f"mrg offload eventidx seed={SEED}", tap="tap1") as answers, \
         Guest("eventidx peer=0x020000000001 count=300", tap="tap2",
               members={"guest_mac": OTHER}) as asks:
        answers.serve()
        asks.boot().finish()
        answers.finish()


def test_a_guest_has_several_interfaces_and_a_disk(tmp_path):
    """The second interface is the one that is driven."""
    for name in ("tap0", "tap1"):
        make_tap(name)
    with Guest("mrg", tap="tap0", drives=[drive(make_disk(tmp_path / "disk", 64))]) as guest, \
         Wire("tap1") as wire:
        guest.boot_args = "slot=2 mrg"
        guest.configure()
        guest.ok("PUT", "/network-interfaces/eth1",
                 {"iface_id": "eth1", "host_dev_name": "tap1", "guest_mac": OTHER})
        assert guest.instance_start()[0] == 204
        guest.wait_for_output("serving")
        wire.exchange([make_frame(bytes(50), to=OTHER)] * 20)
        assert guest.metrics("net_eth1")["rx_packets_count"] == 20
        assert guest.metrics("net_eth0")["rx_packets_count"] == 0
        assert guest.metrics("net")["rx_packets_count"] == 20
        guest.end("tap1", OTHER)


# What goes wrong.

@pytest.mark.parametrize("change, error", [
    ("delete", "(read from|write to) the tap tap0: File descriptor in bad state "),
    ("set down dev", "write to the tap tap0: (Input/output|I/O) error "),
])
def test_a_tap_that_goes_is_told_and_leaves_the_machine_alive(change, error):
    make_tap()
    with Guest("mrg late burst=1 quiet", stdin=subprocess.PIPE) as guest:
        guest.boot().wait_for_output("waiting start")
        ip(f"link {change} tap0")
        guest.go_on()
        guest.finish()
        fails = guest.written_metrics()["tap_write_fails"]
        told = re.findall("Cannot " + error, guest.log())
        assert fails >= 256 > len(told) > 0 # at most one line a second


def test_a_tap_that_goes_costs_one_error_and_no_busy_loop():
    make_tap()
    with Guest() as guest:
        guest.serve()
        ip("link delete tap0")
        fails = guest.wait_for_metric("tap_read_fails")["tap_read_fails"]
        for _ in range(100):
            guest.ok("GET", "/vm/config")
        assert guest.metrics()["tap_read_fails"] == fails
        guest.ok("PATCH", "/vm", {"state": "Paused"})
        guest.ok("PATCH", "/vm", {"state": "Resumed"})
        assert guest.process.poll() is None


def settle(wire):
    """Returns once nothing is under way any more. A tap whose queue is full drops what comes, so
    that there is one frame after the other until the last one is back."""
    end = time.monotonic() + mayfly.DEADLINE_S
    for number in itertools.count():
        frame = make_frame(b"settled?" + number.to_bytes(4) + bytes(40))
        wire.send(frame)
        while select.select([wire.socket], [], [], 0.1)[0]:
            if wire.receive() == echo_of(frame):
                return
        assert time.monotonic() < end, "no frame comes back"


@pytest.mark.parametrize("mode", ["", "mrg offload eventidx"])
def test_a_hostile_driver_harms_neither_its_disk_nor_the_host(tmp_path, mode):
    make_tap()
    disk = drive(make_disk(tmp_path / "disk", 1024))
    with Guest(f"{mode} seed={SEED} hostile", drives=[disk]) as guest, Wire() as wire:
        with Wire(kind=TYPE_END + 1) as noise, \
             flood(noise, make_frame(bytes(100), to=OTHER, kind=TYPE_END + 1)):
            guest.boot()
            end = time.monotonic() + mayfly.DEADLINE_S
            while "serving" not in guest.output():
                assert time.monotonic() < end and guest.process.poll() is None, guest.output()
                guest.ok("GET", "/vm/config")
        counts = guest.metrics()
        assert counts["tap_write_fails"] > 0 and counts["event_fails"] > 0
        assert counts["tx_malformed_frames"] > 0
        settle(wire)
        wire.exchange(random_frames(range(60, 160)))
        guest.end()


def test_a_foreign_source_address_is_counted_and_passes():
    make_tap()
    with Guest() as guest, Wire() as wire:
        guest.serve()
        wire.exchange([make_frame(bytes(50))] * 5)
        assert guest.metrics()["tx_spoofed_mac_count"] == 0
        guest.end()
    with Guest("spoof") as guest, Wire() as wire:
        guest.serve()
        for _ in range(5):
            wire.send(make_frame(bytes(50)))
            assert wire.receive()[6:12] == b"\x02\0\0\0\0\x66"
        assert guest.metrics()["tx_spoofed_mac_count"] == 5
        guest.end()


def test_the_api_answers_under_a_flood_and_pauses_lose_no_frame():
    make_tap()
    with Guest() as guest, Wire() as wire:
        guest.serve()
        frames = random_frames([60 + i % 1400 for i in range(500)])
        thread = threading.Thread(target=wire.exchange, args=(frames,))
        failures = []
        hook, threading.excepthook = threading.excepthook, failures.append
        try:
            thread.start()
            while thread.is_alive():
                guest.ok("PATCH", "/vm", {"state": "Paused"})
                guest.ok("PATCH", "/vm", {"state": "Resumed"})
        finally:
            thread.join()
            threading.excepthook = hook
        assert not failures, failures[0].exc_value
        guest.end()


# Limits.

@pytest.mark.parametrize("direction", ["rx", "tx"])
def test_a_limit_holds_frames_until_a_patch_lifts_it(direction):
    make_tap()
    frames = random_frames(range(60, 80))
    limiter = f"{direction}_rate_limiter"
    with Guest(members={limiter: ops(5)}) as guest, Wire() as wire:
        guest.serve()
        for frame in frames:
            wire.send(frame)
        counts = guest.wait_for_metric(f"{direction}_rate_limiter_throttled")
        assert counts[f"{direction}_packets_count"] == 5
        guest.ok("PATCH", "/network-interfaces/eth0", {"iface_id": "eth0", limiter: ops(0)})
        assert guest.ok("GET", "/vm/config")["network-interfaces"][0][limiter] is None
        for frame in frames:
            wire.expect(echo_of(frame))
        guest.end()


@pytest.mark.parametrize("direction", ["rx", "tx"])
def test_a_patch_sets_a_limit(direction):
    make_tap()
    limiter = f"{direction}_rate_limiter"
    with Guest() as guest, Wire() as wire:
        guest.serve()
        wire.exchange(random_frames(range(60, 80)))
        guest.ok("PATCH", "/network-interfaces/eth0", {"iface_id": "eth0", limiter: ops(3)})
        for frame in random_frames(range(60, 70)):
            wire.send(frame)
        counts = guest.wait_for_metric(f"{direction}_rate_limiter_throttled")
        assert counts[f"{direction}_packets_count"] == 23
        shown = guest.ok("GET", "/vm/config")["network-interfaces"][0][limiter]
        assert shown["ops"]["size"] == 3


# What the client sees.

def test_the_guest_is_told_address_and_mtu():
    make_tap()
    with Guest("quiet", members={"guest_mac": "aA:bB:0c:Dd:0e:fF", "mtu": 9000}) as guest:
        lines = guest.boot().finish()
    assert printed(lines, "mac") == "aa:bb:c:dd:e:ff"
    assert printed(lines, "mtu") == "9000"
    with Guest("quiet", members={"guest_mac": None, "mtu": None}) as guest:
        features = int(printed(guest.boot().finish(), "features"), 16)
    assert not features & (1 << 3 | 1 << 5)


def test_metrics_count_what_was_moved():
    make_tap()
    frames = random_frames(range(60, 160))
    with Guest() as guest, Wire() as wire:
        guest.serve()
        wire.exchange(frames)
        for group in ("net", "net_eth0"):
            counts = guest.metrics(group)
            size = sum(len(frame) + 12 for frame in frames)
            assert counts["rx_packets_count"] == counts["tx_packets_count"] == len(frames)
            assert counts["rx_bytes_count"] == counts["tx_bytes_count"] == size
            assert counts["tx_queue_event_count"] > 0 and counts["rx_tap_event_count"] > 0
            fails = [name for name, value in counts.items() if name.endswith("fails") and value]
            assert not fails
        guest.end()


OPEN = "Network config error: Could not create the network device: Open tap device failed: "


def taken(error, name):
    return (f"{OPEN}Error while creating ifreq structure: {error}. Invalid TUN/TAP Backend "
            f"provided by {name}. Check our documentation on setting up the network devices.")


def test_the_configuration_shows_what_was_put():
    make_tap()
    limits = {"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100},
              "ops": {"size": 10, "one_time_burst": None, "refill_time": 10}}
    with mayfly.Mayfly() as vm:
        assert put(vm) == (204, None)
        shown = vm.ok("GET", "/vm/config")["network-interfaces"]
        assert len(shown) == 1
        assert shown[0]["iface_id"] == "eth0" and shown[0]["host_dev_name"] == "tap0"
        assert shown[0].get("guest_mac") is None
        # The same again replaces it, though the tap has but one place.
        assert put(vm, guest_mac=GUEST.upper(), mtu=1400, rx_rate_limiter=limits,
                   tx_rate_limiter={}) == (204, None)
        shown = vm.ok("GET", "/vm/config")["network-interfaces"]
        assert [i["guest_mac"] for i in shown] == [GUEST]
        assert shown[0]["mtu"] == 1400
        assert shown[0]["rx_rate_limiter"] == limits
        assert shown[0].get("tx_rate_limiter") is None
        # What is shown can be put.
        assert vm.request("PUT", "/network-interfaces/eth0", shown[0])[0] == 204
        assert vm.ok("GET", "/vm/config")["network-interfaces"] == shown


def test_what_cannot_be_an_interface_is_refused_and_changes_nothing():
    make_tap()
    make_tap("busy")
    with mayfly.Mayfly() as vm, mayfly.Mayfly() as other:
        assert put(vm, guest_mac=GUEST) == (204, None)
        before = vm.ok("GET", "/vm/config")
        assert put(other, host_dev_name="busy") == (204, None)
        for members, error in [
                ({"host_dev_name": "busy"}, taken("Resource busy (os error 16)",
                                                  "busy")),
                ({"host_dev_name": "lo"}, taken("Invalid argument (os error 22)", "lo")),
                ({"host_dev_name": "sixteen__letters"},
                 f"{OPEN}Invalid network interface name: sixteen__letters: longer than 15 bytes"),
                ({"mtu": 67}, "Network config error: Could not create the network device: "
                              "MTU 67 is out of range [68, 65535]")]:
            assert put(vm, **members) == (400, error)
        for mac in ("", "02:00:00:00:00", GUEST + ":", "02-00-00-00-00-01", "0g:00:00:00:00:01"):
            status, text = put(vm, guest_mac=mac)
            assert status == 400 and "The provided MAC address is invalid." in text
        for mtu in (-1, 65536, "1500", 1.5):
            assert put(vm, mtu=mtu)[0] == 400
        assert put(vm, iface="eth1")[0] == 400  # the body has another id
        assert vm.request("PUT", "/network-interfaces/eth1", {
            "iface_id": "eth1", "host_dev_name": "new", "guest_mac": GUEST})[2] == {
                "fault_message": "Network config error: The MAC address is already in use: "
                                 + GUEST}
        assert vm.ok("GET", "/vm/config") == before


def test_without_permission_no_tap_is_made():
    with tun_for_all(), mayfly.Mayfly(user=65534) as vm:
        assert put(vm, host_dev_name="new") == (
            400, taken("Operation not permitted (os error 1)", "new"))


def test_a_patch_wants_an_interface_that_is_there():
    make_tap()
    with Guest() as guest:
        guest.configure()
        patch = {"iface_id": "eth0", "rx_rate_limiter": ops(1)}
        assert guest.request("PATCH", "/network-interfaces/eth0", patch)[0] == 400
        assert guest.instance_start()[0] == 204
        guest.wait_for_output("serving")
        status, _, body = guest.request("PATCH", "/network-interfaces/no", {"iface_id": "no"})
        assert status == 400 and "Device not found" in body["fault_message"]
        assert put(guest)[0] == 400
        guest.end()


def test_taps_are_those_of_the_process_s_namespace():
    make_tap()
    with mayfly.Mayfly() as here, mayfly.Mayfly(before_exec=unshare_network) as there:
        assert put(here) == (204, None)
        # Its own tap0, which goes with it; here there would be no second place.
        assert put(there) == (204, None)
        with mayfly.Mayfly() as second:
            assert put(second) == (400, taken("Resource busy (os error 16)", "tap0"))


def test_a_tap_of_several_queues_serves_a_guest():
    ip("tuntap add tap0 mode tap multi_queue")
    ip("link set tap0 up")
    with Guest() as guest, Wire() as wire:
        guest.serve()
        wire.exchange(random_frames(range(60, 160)))
        guest.end()


def test_a_tap_that_the_machine_makes_goes_with_it():
    with Guest(tap="made0") as guest:
        guest.configure()
        ip("link set made0 up")
        assert guest.instance_start()[0] == 204
        guest.wait_for_output("serving")
        with Wire("made0") as wire:
            wire.exchange(random_frames([60]))
        guest.end("made0")
    assert subprocess.run(["ip", "link", "show", "made0"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode == 1
