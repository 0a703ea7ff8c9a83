"""What orchestrators send when they start, use and stop a microVM, in their order and with their
oddities, read from their sources:

  - Nomad's driver cneira/firecracker-task-driver: a terminal as standard input and output
  - Nomad's driver pigeon-as/nomad-driver-firecracker: the jailer, snapshots between its jobs
  - firecracker-containerd: relative sockets, FIFOs, drives that come later
  - flintlock: no API, metadata, a macvtap, SIGHUP

The first three speak by firecracker-go-sdk, which Sdk does here. tests/clients runs flintlock's and
the SDK's own code.
"""

import base64
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import threading
import time

import pytest

import mayfly
import unix_http
import vsock
from guests import make_disk, needs_kvm
from jail import EXEC_FILE, JAILER, UID, Jail, needs_root
from taps import ip, make_tap, needs_taps, own_namespace  # noqa: F401
from test_macvtap import DEVICE, make_macvtap
from test_mmds import SERVICE

pytestmark = needs_kvm

SDK_HEADERS = ["User-Agent: Go-http-client/1.1", "Accept: application/json",
               "Content-Type: application/json", "Accept-Encoding: gzip"]


class Sdk:
    """One connection that is kept, as Go's HTTP client has it."""

    def __init__(self, vm):
        """Asks until there is an answer, as the SDK does every 10 ms."""
        self.vm, self.client = vm, None
        mayfly.wait_until(lambda: os.path.exists(vm.socket_path), vm.socket_path)
        self.client = vm.connect()
        self.answers = unix_http.Answers(self.client)
        self.ok("GET", "/machine-config")

    def ask(self, method, path, body=None):
        self.client.sendall(unix_http.encode(method, path, body, SDK_HEADERS))
        return self.answers.next()

    def ok(self, method, path, body=None):
        status, _, answer = self.ask(method, path, body)
        assert status == (200 if method == "GET" else 204), f"{method} {path}: {status} {answer}"
        return answer

    def refused(self, method, path, body=None):
        status, _, answer = self.ask(method, path, body)
        assert status == 400, f"{method} {path}: {status} {answer}"
        return answer["fault_message"]

    def put_machine(self, machine):
        self.ok("PUT", "/machine-config", machine)
        self.ok("GET", "/machine-config")

    def put_drive(self, drive_id, path, root, read_only, **more):
        self.ok("PUT", f"/drives/{drive_id}", {
            "drive_id": drive_id, "is_read_only": read_only, "is_root_device": root,
            "path_on_host": str(path), **more})

    def start(self):
        self.ok("PUT", "/actions", {"action_type": "InstanceStart"})


def guest(name):
    return os.path.join(mayfly.GUESTS, name)


# cneira/firecracker-task-driver


LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\S+ \[[^\n]*\n")


class Terminal:
    """A pair: the VMM has the master, as that driver gives it; whoever attaches opens the slave. It
    echoes nothing, or the log, which goes to standard output too, would come back as input."""

    def __init__(self):
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "r+b", buffering=0)
        mode = termios.tcgetattr(slave)
        mode[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, mode)
        self.before = termios.tcgetattr(slave)

    def read_until(self, text):
        """What the guest says, without lines of the log, which come between any two of its bytes."""
        got = said = b""
        end = time.monotonic() + mayfly.DEADLINE_S
        while text not in said:
            assert select.select([self.file], [], [], end - time.monotonic())[0], got
            got += os.read(self.file.fileno(), 4096)
            said = LOG_LINE.sub(b"", got)
        return said


def test_a_nomad_driver_that_gives_a_terminal(tmp_path):
    terminal = Terminal()
    for name in ("root", "data"):
        make_disk(tmp_path / name, 64)
    with mayfly.Mayfly(stdin=terminal.master, stdout=terminal.master) as vm:
        sdk = Sdk(vm)
        sdk.put_machine({"mem_size_mib": 300, "smt": False, "vcpu_count": 1})
        sdk.ok("PUT", "/boot-source", {
            "boot_args": " console=ttyS0 reboot=k panic=1 pci=off nomodules echo",
            "kernel_image_path": guest("serial")})
        # The further drives come before the root.
        sdk.put_drive("2", tmp_path / "data", False, True)
        sdk.put_drive("1", tmp_path / "root", True, False)
        sdk.start()
        terminal.read_until(b"ready")
        assert termios.tcgetattr(terminal.file)[3] & (termios.ICANON | termios.ISIG) == 0
        terminal.file.write(b"\x03hello\x04\r")
        assert b"\x03hello\x04\r" in terminal.read_until(b"\x04\r")
        os.kill(vm.process.pid, signal.SIGTERM)
        assert vm.wait() == -signal.SIGTERM
        assert termios.tcgetattr(terminal.file) == terminal.before
    os.close(terminal.master)
    terminal.file.close()


# pigeon-as/nomad-driver-firecracker


@pytest.fixture(name="short_path")
def a_directory():
    """A socket's path, which a cell has far below it, is limited."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="nomad-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def pigeon_jail(base):
    """The driver builds the cell itself, with what the task names in it, before the jailer runs."""
    jail = Jail(base=str(base), jail_id="task-0123abcd", exec_file=str(base / "bin" / "firecracker"))
    jail.command = [JAILER, "--id", jail.id, "--uid", str(jail.uid), "--gid", str(jail.gid),
                    "--exec-file", jail.exec_file, "--cgroup-version", "2", "--chroot-base-dir", str(base),
                    "--netns", f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"]
    shutil.rmtree(os.path.dirname(jail.root), ignore_errors=True)
    jail.give(guest("counter"))
    return jail


def put_pigeon_logger(sdk, jail):
    """The file is made while the VMM runs already; its name has no directory."""
    path = jail.inside("firecracker.log")
    with open(path, "w", encoding="ascii"):
        os.chown(path, jail.uid, jail.gid)
    sdk.ok("PUT", "/logger", {"level": "Warning", "log_path": "firecracker.log", "show_level": True,
                              "show_log_origin": False})


def numbers(jail):
    return [int(line) for line in jail.output().splitlines()[:-1] if line.isdigit()]


@needs_root
@needs_taps
def test_a_nomad_driver_that_saves_its_task(short_path):
    with open("/proc/self/cgroup", encoding="ascii") as groups:
        if not any(line.startswith("0::") for line in groups):
            pytest.skip("NOT RUN: no cgroup v2 here")
    saved = short_path / "snapshots"
    saved.mkdir()
    (short_path / "bin").mkdir()
    shutil.copy(EXEC_FILE, short_path / "bin" / "firecracker")
    ip(f"tuntap add tap0 mode tap user {UID}")
    jail = pigeon_jail(short_path)
    make_disk(jail.inside("rootfs.ext4"), 64)
    os.chown(jail.inside("rootfs.ext4"), jail.uid, jail.gid)
    with jail:
        sdk = Sdk(jail)
        put_pigeon_logger(sdk, jail)
        sdk.ok("PUT", "/machine-config", {"mem_size_mib": 64, "vcpu_count": 1})
        sdk.ok("PUT", "/boot-source", {"kernel_image_path": "counter"})
        sdk.put_drive("drive0", "rootfs.ext4", True, False)
        sdk.ok("PUT", "/network-interfaces/eth0", {"host_dev_name": "tap0", "iface_id": "eth0"})
        assert sdk.refused("PUT", "/balloon", {"amount_mib": 8, "deflate_on_oom": True})
        sdk.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
        sdk.ok("PUT", "/mmds/config", {"network_interfaces": ["eth0"], "version": "V2"})
        sdk.start()
        sdk.ok("PUT", "/mmds", {"IPConfigs": [{"IP": "172.26.64.2", "Mask": 20}]})
        mayfly.wait_until(lambda: len(numbers(jail)) > 10, jail.output)
        # The job is stopped.
        sdk.ok("PATCH", "/vm", {"state": "Paused"})
        sdk.ok("PUT", "/snapshot/create", {"mem_file_path": "/memory", "snapshot_path": "/vmstate"})
        for name in ("vmstate", "memory"):
            os.rename(jail.inside(name), saved / name)
        disk = shutil.copy(jail.inside("rootfs.ext4"), saved)
        jail.process.terminate()
        assert jail.wait() == -signal.SIGTERM
        last = numbers(jail)[-1]
    # And started again, in a cell that is made anew.
    jail = pigeon_jail(short_path)
    shutil.copy(disk, jail.inside("rootfs.ext4"))
    os.chown(jail.inside("rootfs.ext4"), jail.uid, jail.gid)
    for name in ("vmstate", "memory"):
        os.link(saved / name, jail.inside(name))
    with jail:
        sdk = Sdk(jail)
        put_pigeon_logger(sdk, jail)
        sdk.ok("PUT", "/snapshot/load", {"mem_file_path": "/memory", "resume_vm": True,
                                         "snapshot_path": "/vmstate"})
        sdk.ok("PUT", "/mmds", {"IPConfigs": [{"IP": "172.26.64.3", "Mask": 20}]})
        mayfly.wait_until(lambda: len(numbers(jail)) > 10, jail.output)
        assert numbers(jail)[1] in range(last, last + 1000)
        assert sdk.ok("GET", "/mmds")["IPConfigs"][0]["IP"] == "172.26.64.3"
        sdk.ok("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        jail.process.terminate() # as the executor does when nothing comes of that
        assert jail.wait() == -signal.SIGTERM


# firecracker-containerd


AGENT_PORT = 10789


class Shim(mayfly.Mayfly):
    """In the shim's directory, with the socket named from there."""

    def start(self):
        self.socket_path = os.path.join(self.directory, "firecracker.sock")
        with open(self.output_path, "wb") as output:
            self.process = subprocess.Popen(
                [mayfly.BINARY, "--api-sock", "firecracker.sock", "--id", "vm-1"], cwd=self.directory,
                preexec_fn=self.prepare, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        return self


def fifo_lines(path):
    """What is read from it, by a thread as the SDK has one for each."""
    lines = []

    def read():
        with open(path, encoding="utf-8") as fifo:
            lines.extend(fifo)
    os.mkfifo(path, 0o700)
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return lines, thread


def put_stub(sdk, directory, name, **more):
    """A file for a drive that is to come: its drive's name with a mark in front, to a whole sector."""
    drive_id = base64.b32encode(name.encode()).decode().rstrip("=")
    path = os.path.join(directory, name)
    with open(path, "wb") as stub:
        stub.write((b"\xc3\xb0\xc3\xab" + bytes([len(drive_id)]) + drive_id.encode()).ljust(512, b"\0"))
    sdk.put_drive(drive_id, path, False, False, **more)
    return drive_id


def agent_is_there(path):
    with vsock.dial(path, b"CONNECT %d\n" % AGENT_PORT) as client:
        return vsock.read_line(client).startswith(b"OK ")


@needs_taps
def test_containerds_shim(tmp_path):
    make_tap()
    with Shim() as vm:
        log, log_thread = fifo_lines(os.path.join(vm.directory, "fc-logs.fifo"))
        metrics, metrics_thread = fifo_lines(os.path.join(vm.directory, "fc-metrics.fifo"))
        sdk = Sdk(vm)
        sdk.ok("PUT", "/logger", {
            "level": "Debug", "log_path": f"{vm.directory}/fc-logs.fifo", "show_level": True,
            "show_log_origin": False})
        sdk.ok("PUT", "/metrics", {"metrics_path": f"{vm.directory}/fc-metrics.fifo"})
        sdk.put_machine({"mem_size_mib": 128, "smt": False, "vcpu_count": 1})
        sdk.refused("PUT", "/balloon", {"amount_mib": 66, "deflate_on_oom": True,
                                        "stats_polling_interval_s": 1})
        sdk.ok("PUT", "/boot-source", {
            "boot_args": "console=ttyS0 noapic reboot=k panic=1 pci=off nomodules rw cid=0 slot=4",
            "kernel_image_path": guest("vsock")})
        make_disk(tmp_path / "root", 64)
        sdk.put_drive("root_drive", tmp_path / "root", True, True)
        container = put_stub(sdk, vm.directory, "ctrstub0")
        mount = put_stub(sdk, vm.directory, "drivemntstub0", rate_limiter={}, cache_type="Writeback")
        sdk.ok("PUT", "/network-interfaces/1", {
            "guest_mac": "02:00:00:00:00:01", "host_dev_name": "tap0", "iface_id": "1",
            "rx_rate_limiter": {}, "tx_rate_limiter": {"bandwidth": {"refill_time": 200, "size": 0}}})
        sdk.ok("PUT", "/vsock", {"guest_cid": 0, "uds_path": "firecracker.vsock", "vsock_id": "agent_api"})
        sdk.ok("PUT", "/mmds/config", {"network_interfaces": ["1"]})
        sdk.start()
        vm.wait_for_output("serving")
        path = f"{vm.directory}/firecracker.vsock"
        # No agent listens in this guest: asked again and again, it is away each time.
        assert not any(agent_is_there(path) for _ in range(20))
        with vsock.dial(path, b"CONNECT %d\n" % vsock.ECHO) as client:
            assert vsock.read_line(client).startswith(b"OK ")
            client.sendall(b"ttrpc")
            assert vsock.read_bytes(client, 5) == b"ttrpc"
        # A container's root comes and goes; the stub by a name without a directory.
        make_disk(tmp_path / "snapshot", 128)
        for drive in (container, mount):
            sdk.ok("PATCH", f"/drives/{drive}", {"drive_id": drive, "path_on_host": str(tmp_path / "snapshot")})
        sdk.ok("PATCH", f"/drives/{container}", {"drive_id": container, "path_on_host": "ctrstub0"})
        shown = {each["drive_id"]: each["path_on_host"] for each in sdk.ok("GET", "/vm/config")["drives"]}
        assert shown == {"root_drive": str(tmp_path / "root"), container: "ctrstub0",
                         mount: str(tmp_path / "snapshot")}
        for call in (("GET", "/balloon"), ("PATCH", "/balloon", {"amount_mib": 1}),
                     ("GET", "/balloon/statistics"),
                     ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 2})):
            assert sdk.refused(*call)
        for body in ({"state": "Paused"}, {"state": "Resumed"}):
            sdk.ok("PATCH", "/vm", body)
        sdk.ok("PUT", "/mmds", {"a": {"b": "c"}})
        sdk.ok("PATCH", "/mmds", {"a": {"d": "e"}})
        assert sdk.ok("GET", "/mmds") == {"a": {"b": "c", "d": "e"}}
        # The agent is told to shut down, the guest reboots, and the shim waits for that.
        with vsock.dial(path, b"CONNECT %d\n" % vsock.OFF):
            assert vm.wait() == 0
        for thread in (log_thread, metrics_thread):
            thread.join(mayfly.DEADLINE_S)
        assert any('The API server received a Put request on "/actions"' in line for line in log)
        assert all("vmm" in json.loads(line) for line in metrics) and metrics


# flintlock


def flintlock_config(directory, disk):
    return {
        "drives": [{"drive_id": "root", "path_on_host": str(disk), "is_root_device": True,
                    "is_read_only": False, "cache_type": "Unsafe"}],
        "boot-source": {
            "kernel_image_path": guest("relay"),
            "boot_args": "console=ttyS0 ds=nocloud-net;s=http://169.254.169.254/latest/ i8042.dumbkbd "
                         "i8042.noaux i8042.nomux i8042.nopnp network-config=dmVyc2lvbjogMgo= panic=1 "
                         "pci=off reboot=k slot=1"},
        "logger": {"log_path": f"{directory}/firecracker.log", "level": "Debug", "show_level": True,
                   "show_log_origin": True},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "smt": True, "track_dirty_pages": False},
        "metrics": {"metrics_path": f"{directory}/firecracker.metrics"},
        "mmds-config": {"version": "V1", "network_interfaces": ["eth0"]},
        "network-interfaces": [
            {"iface_id": "eth0", "host_dev_name": make_tap()},
            {"iface_id": "eth1", "host_dev_name": DEVICE, "guest_mac": SERVICE}],
        "vsock": {"vsock_id": "guest-agent", "guest_cid": 3, "uds_path": f"{directory}/agent.vsock"}}


def http_get(path):
    with socket.create_connection(("169.254.169.254", 80), timeout=mayfly.DEADLINE_S) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n".encode())
        return vsock.read_all(client)


@needs_taps
def test_flintlock(tmp_path):
    """By way of the macvtap, one gets what cloud-init gets on the guest's other interface."""
    make_macvtap(address=SERVICE)
    ip("address add 169.254.1.9/16 dev veth1")
    make_disk(tmp_path / "disk", 64)
    for name, content in {"firecracker.log": "", "firecracker.metrics": "",
                          "firecracker.cfg": json.dumps(flintlock_config(tmp_path, tmp_path / "disk")),
                          "metadata.json": json.dumps({"latest": {"user-data": "#cloud-config\n"}})}.items():
        (tmp_path / name).write_text(content)
    with open(tmp_path / "firecracker.stdout", "ab") as out, \
         open(tmp_path / "firecracker.stderr", "ab") as err:
        process = subprocess.Popen(
            [mayfly.BINARY, "--id", "01GQ9VG3ZC5ZQ8RY5W3AXJ5Z2F", "--boot-timer", "--no-api",
             "--config-file", str(tmp_path / "firecracker.cfg"),
             "--metadata", str(tmp_path / "metadata.json")],
            stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True)
        process.stdin.close() # Go copies an empty buffer into it
    try:
        said = tmp_path / "firecracker.stdout"
        mayfly.wait_until(lambda: "relaying" in said.read_text() or process.poll() is not None,
                          lambda: said.read_text() + (tmp_path / "firecracker.stderr").read_text())
        assert http_get("/latest/user-data").endswith(b"\r\n\r\n#cloud-config\n")
        process.send_signal(signal.SIGHUP)
        assert process.wait(mayfly.DEADLINE_S) == 156
    finally:
        process.kill()
        process.wait()
        ip("link delete veth0")
    last = json.loads((tmp_path / "firecracker.metrics").read_text().splitlines()[-1])
    assert last["signals"]["sighup"] == 1
    assert re.search(r"\[01GQ9VG3ZC5ZQ8RY5W3AXJ5Z2F:\w+:INFO:",
                     (tmp_path / "firecracker.log").read_text())
