"""Taps as host and guest have them; the test guest is tests/guests/net.

Each test has a network namespace of its own, so that neither its taps nor its frames meet anybody
else's. The other end of a tap is a packet socket, or the namespace's own IP.
"""

import contextlib
import ctypes
import json
import os
import random
import socket
import stat
import struct
import subprocess
import threading

import pytest

import mayfly
from guests import Machine

SEED = int(os.environ.get("MAYFLY_SEED", "1"))
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
SO_RCVBUFFORCE = 33
TYPE_TEST, TYPE_END = 0x88b5, 0x88b6
GUEST, HOST = "02:00:00:00:00:01", "02:00:00:00:00:02"
SMALL = [*range(14, 130), *range(130, 1500, 13), *range(1500, 1515)]
LIBC = ctypes.CDLL(None, use_errno=True)

CAN_MAKE_TAPS = os.geteuid() == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK)
needs_taps = pytest.mark.usefixtures("own_namespace")


def unshare_network():
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def enter(namespace):
    assert LIBC.setns(namespace, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def apart(go=unshare_network):
    """What is run or made here is in a network namespace of its own, or the one that go() enters."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        go()
        yield
    finally:
        enter(before)
        os.close(before)


def inside(namespace):
    return apart(lambda: enter(namespace))


@contextlib.contextmanager
def network_namespace():
    """IPv6 stays silent in it but where a test turns it on."""
    with apart():
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as off:
            off.write("1")
        yield


@pytest.fixture
def own_namespace():
    if not CAN_MAKE_TAPS:
        pytest.skip("NO FRAME WAS MOVED: a network namespace and /dev/net/tun take root")
    with network_namespace():
        yield


@contextlib.contextmanager
def tun_for_all():
    """/dev/net/tun as most hosts have it; on some it is root's alone."""
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    directory = os.getcwd()
    assert LIBC.unshare(CLONE_NEWNS) == 0
    try:
        assert LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
        assert LIBC.mount(b"none", b"/dev/net", b"tmpfs", 0, None) == 0
        os.mknod("/dev/net/tun", stat.S_IFCHR, os.makedev(10, 200))
        os.chmod("/dev/net/tun", 0o666)
        yield
    finally:
        assert LIBC.setns(before, CLONE_NEWNS) == 0
        os.close(before)
        os.chdir(directory)


def ip(command):
    subprocess.run(["ip", *command.split()], check=True)


def make_tap(name="tap0", mtu=1500):
    ip(f"tuntap add {name} mode tap")
    ip(f"link set {name} mtu {mtu} up")
    return name


def mac_bytes(text):
    return bytes.fromhex(text.replace(":", ""))


def make_frame(payload, to=GUEST, source=HOST, kind=TYPE_TEST):
    return mac_bytes(to) + mac_bytes(source) + struct.pack(">H", kind) + payload


def echo_of(frame):
    return frame[6:12] + frame[:6] + frame[12:]


class Wire:
    """What is sent to and comes from the interface, of one type."""

    def __init__(self, name="tap0", kind=TYPE_TEST):
        # Of no type until it is bound, or it would hear other interfaces in the meantime.
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.socket.bind((name, kind))
        self.socket.settimeout(mayfly.DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.socket.close()

    def send(self, frame):
        assert self.socket.send(frame) == len(frame)

    def receive(self):
        return self.socket.recv(1 << 17)

    def exchange(self, frames, window=48):
        """Sends all and expects each back, in order, with so many under way."""
        expected = []
        for frame in frames:
            if len(expected) == window:
                self.expect(expected.pop(0))
            self.send(frame)
            expected.append(echo_of(frame))
        for frame in expected:
            self.expect(frame)

    def expect(self, frame):
        got = self.receive()
        assert got == frame, f"{len(got)} bytes for {len(frame)}: {got[:64].hex()}"


class Counted(Machine):
    """A microVM with metrics, which are looked at as sums since the start."""

    group = "net_eth0"

    def configure(self):
        super().configure()
        self.metrics_path = os.path.join(self.directory, "metrics")
        self.ok("PUT", "/metrics", {"metrics_path": self.metrics_path})

    def metrics(self, group=None):
        self.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
        return self.written_metrics(group)

    def written_metrics(self, group=None):
        total = {}
        with open(self.metrics_path, encoding="utf-8") as lines:
            for line in lines:
                for name, value in json.loads(line)[group or self.group].items():
                    if isinstance(value, int):
                        total[name] = total.get(name, 0) + value
        return total

    def wait_for_metric(self, name, least=1):
        mayfly.wait_until(lambda: self.metrics()[name] >= least,
                          lambda: f"{name} of {least}: {self.metrics()}")
        return self.metrics()


class Guest(Counted):
    """A microVM with the test guest on a tap."""

    def __init__(self, boot_args="mrg offload eventidx", tap="tap0", members=None, **options):
        slot = len(options.get("drives", ()))
        super().__init__("net", f"slot={slot} {boot_args}", **options)
        self.interface = {"iface_id": "eth0", "host_dev_name": tap, "guest_mac": GUEST,
                          **(members or {})}

    def configure(self):
        super().configure()
        self.ok("PUT", "/network-interfaces/eth0", self.interface)

    def serve(self):
        self.boot()
        self.wait_for_output("serving")
        return self

    def go_on(self):
        """After the guest's "waiting"."""
        self.send(b"x")

    def end(self, tap="tap0", to=GUEST):
        with Wire(tap) as wire:
            wire.send(make_frame(bytes(46), to=to, kind=TYPE_END))
        return self.finish()


def random_frames(sizes, seed=SEED):
    source = random.Random(seed)
    return [make_frame(source.randbytes(size - 14)) for size in sizes]


@contextlib.contextmanager
def flood(wire, frame):
    """Sends until the end of the block."""
    stop = threading.Event()

    def send():
        while not stop.is_set():
            with contextlib.suppress(OSError):
                wire.socket.send(frame)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ops(size, refill_ms=3600 * 1000):
    return {"ops": {"size": size, "refill_time": refill_ms}}


def put(vm, iface="eth0", **members):
    status, _, body = vm.request("PUT", f"/network-interfaces/{iface}", {
        "iface_id": "eth0", "host_dev_name": "tap0", **members})
    return status, body and body["fault_message"]
