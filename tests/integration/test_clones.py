"""Many clones of one snapshot at once: each is what it was told to be, and leaves nothing."""

import concurrent.futures
import contextlib
import glob
import os
import shutil
import socket

import pytest

import mayfly
import vsock
from guests import Machine, needs_kvm
from jail import UID, Jail, needs_root
from snapshots import load_body, pair, save
from taps import ip, make_tap, needs_taps

pytestmark = [needs_kvm, needs_taps]
PORT = 8000
CLONES = 20


def call(path, request):
    """What the guest's function answers, in words."""
    with vsock.dial(path, b"CONNECT %d\n" % PORT) as stream:
        assert vsock.read_line(stream).startswith(b"OK ")
        stream.sendall(request)
        stream.shutdown(socket.SHUT_WR)
        return vsock.read_all(stream).decode().split(" ", 3)


class Template(Machine):
    """The guest `function`, with a disk that is beside its process."""

    def __init__(self):
        super().__init__("function")
        with open(os.path.join(self.directory, "disk"), "wb") as disk:
            disk.truncate(1 << 16)
        self.drives = [{"drive_id": "disk", "path_on_host": "disk", "is_root_device": False}]

    def configure(self):
        super().configure()
        self.ok("PUT", "/network-interfaces/eth0",
                {"iface_id": "eth0", "host_dev_name": make_tap("tap0")})
        self.ok("PUT", "/mmds/config", {"network_interfaces": ["eth0"]})
        self.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"})


@pytest.fixture(name="template")
def a_template(tmp_path):
    """The files of its snapshot, and its disk, as all may read them."""
    with Template() as machine:
        machine.boot()
        machine.wait_for_output("serving")
        files = save(machine, pair(tmp_path))
        shutil.copy(os.path.join(machine.directory, "disk"), tmp_path)
    for path in (*files, tmp_path / "disk"):
        os.chmod(path, 0o444)
    return [*files, str(tmp_path / "disk")]


class PlainClone(mayfly.Mayfly):
    """It finds its disk where it runs."""

    def __init__(self, number):
        super().__init__()
        self.number, self.tap_user = number, 0

    def prepare_files(self, template):
        shutil.copy(template[2], self.directory)
        os.chmod(os.path.join(self.directory, "disk"), 0o600)
        return template[:2]

    def path_of(self, name):
        return os.path.join(self.directory, name)


class JailedClone(Jail):
    """With a user and a control group of its own; memory is a link, where it can be one."""

    def __init__(self, number):
        cgroup = ["--cgroup", "cpu.shares=77"] if os.path.exists("/sys/fs/cgroup/cpu/tasks") else []
        super().__init__("--exec-method", "bind", *cgroup, uid=UID + number)
        self.number, self.tap_user = number, self.uid

    def prepare_files(self, template):
        os.makedirs(self.root)
        os.chown(self.root, self.uid, self.gid)
        for path in template[:2]:
            inside = self.inside(os.path.basename(path))
            with contextlib.suppress(OSError):
                os.link(path, inside)
            if not os.path.exists(inside):
                shutil.copy(path, inside)
        self.give(template[2])
        return ["/" + os.path.basename(path) for path in template[:2]]

    def path_of(self, name):
        return self.inside(name)


def start_and_call(clone, files):
    """Of its own name, tap, vsock and disk; its answer, and its random part."""
    n = clone.number
    clone.start()
    clone.ok("PUT", "/mmds", {"name": f"clone-{n}"})
    clone.ok("PUT", "/snapshot/load", load_body(
        files, resume_vm=True, vsock_override={"uds_path": f"v{n}.sock"},
        network_overrides=[{"iface_id": "eth0", "host_dev_name": f"tap{n}"}]))
    name, random, writes, text = call(clone.path_of(f"v{n}.sock"), b"hello from %d" % n)
    assert (name, int(writes, 16), text) == (f"clone-{n}", 1, f"HELLO FROM {n}")
    return random


def is_left(clone):
    """Its process, its directory with what it was given, a mount there, or its control group."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        return (os.path.exists(f"/proc/{clone.process.pid}") or os.path.exists(clone.directory)
                or clone.directory in mounts.read()
                or isinstance(clone, Jail) and glob.glob(f"/sys/fs/cgroup/*/*/{clone.id}"))


@pytest.mark.parametrize("kind", [PlainClone, pytest.param(JailedClone, marks=needs_root)])
def test_clones_that_start_at_once_are_each_their_own(template, kind):
    with contextlib.ExitStack() as ends:
        clones = [kind(number) for number in range(1, CLONES + 1)]
        files = []
        for clone in clones:
            ends.push(clone)
            ip(f"tuntap add tap{clone.number} mode tap user {clone.tap_user}")
            ip(f"link set tap{clone.number} up")
            files.append(clone.prepare_files(template))
        with concurrent.futures.ThreadPoolExecutor(CLONES) as threads:
            randoms = list(threads.map(start_and_call, clones, files))
        assert len(set(randoms)) == CLONES
        assert all(clone.process.poll() is None for clone in clones)  # they lived at one time
    assert not any(is_left(clone) for clone in clones)
