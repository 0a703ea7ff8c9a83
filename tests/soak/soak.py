"""Starts and stops microVMs for as long as told, many at once: random configurations, good and bad
requests, disks, taps with frames, vsocks with clients, in jails and without, guests that end by
themselves, SIGTERM, SIGKILL and closed connections. At the end it shows that nothing is left: no
process, socket, tap, cgroup, mount, shared memory; no memory of the host's.

Taps are in a network namespace of its own. They and jails take root. What a jailer leaves for its
caller to remove, the cell and the cgroup, is removed after each microVM: nothing may hold it.

usage: soak.py [--seconds N] [--at-once N] [--seed N]
"""

import argparse
import collections
import contextlib
import glob
import itertools
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import mayfly  # noqa: E402
import taps  # noqa: E402
import vsock  # noqa: E402
from guests import Machine, drive, make_disk  # noqa: E402
from jail import UID, Jail, mayfly_ended, remove_cgroup  # noqa: E402
from mayfly import DEADLINE_S  # noqa: E402
from unix_http import encode  # noqa: E402

ENDS = ["guest", "ctrl-alt-del", "SIGTERM", "SIGKILL", "never started", "paused"]
SHORT = ["smp", "memory", "cpuid"] # guests that end by themselves; "counter" does not
NAME = f"soak-{os.getpid()}" # in that of each jail and of their cgroups
IS_ROOT = os.geteuid() == 0
numbers = itertools.count()
SLACK_KIB = 64 * 1024 # of the kernel's memory, which comes and goes for other reasons as well


TERMINATED = {0, -signal.SIGTERM} # what the process's end by SIGTERM looks like


class Failure(Exception):
    """Something that must not happen did."""


def rubbish(rng):
    """A request that is refused, or harmless, or no request."""
    return rng.choice([
        b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PUT /x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: 5\r\n\r\n{\"a\":",
        bytes(rng.randrange(256) for _ in range(rng.randrange(1, 3000))),
        encode("PUT", "/machine-config", {"vcpu_count": 99, "mem_size_mib": -1}),
        encode("PATCH", "/drives/none", {"drive_id": "none", "path_on_host": "/dev/null"}),
        encode("GET", "/vm/config"), encode("DELETE", "/" + "a" * 500)])


def abuse(machine, rng):
    """Connections that send rubbish; some wait for an answer, some do not, some send half."""
    for _ in range(rng.randrange(4)):
        with machine.connect() as client:
            text = rubbish(rng)
            client.send(text[:rng.randrange(len(text))] if rng.random() < 0.3 else text)
            if rng.random() < 0.5:
                client.settimeout(0.05)
                try:
                    client.recv(4096)
                except OSError:
                    pass


class Jailed(Machine, Jail):
    """A microVM in a jail. Its files are brought in when it is configured."""

    def __init__(self, *args, flags=(), **options):
        super().__init__(*args, flags=flags, jail_id=f"{NAME}-{next(numbers)}",
                         vmm_args=["--log-path", "/run/log"], **options)
        self.log_path = self.inside("run/log")

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for path in glob.glob(f"/sys/fs/cgroup/{NAME}/{self.id}"): # where there is version 2 alone
            remove_cgroup(path)

    def configure(self):
        self.kernel = self.give(self.kernel)
        for d in self.drives:
            d["path_on_host"] = self.give(d["path_on_host"])
        super().configure()


def cgroup_flags():
    if os.path.exists("/sys/fs/cgroup/pids/tasks"):
        return ["--cgroup", "pids.max=64", "--parent-cgroup", NAME]
    if "pids" in " ".join(lines_of("/sys/fs/cgroup/cgroup.controllers")):
        return ["--cgroup-version", "2", "--cgroup", "pids.max=64", "--parent-cgroup", NAME]
    return []


def jail_flags(rng):
    wanted = [cgroup_flags(), ["--exec-method", "bind"], ["--new-pid-ns"], ["--daemonize"],
              ["--new-ipc-ns", "--new-uts-ns"], ["--resource-limit", "no-file=1024"]]
    return [flag for flags in wanted if rng.random() < 0.5 for flag in flags]


def random_machine(directory, rng):
    """kind: what its guest does, when it is not one that ends at once."""
    kind = rng.choice(["counter", "vsock"] + ["net"] * taps.CAN_MAKE_TAPS)
    drives = [drive(make_disk(directory / f"disk{i}", rng.randrange(1, 64)), f"disk{i}",
                    io_engine=rng.choice(["Sync", "Async"]),
                    cache_type=rng.choice(["Unsafe", "Writeback"]),
                    is_read_only=rng.random() < 0.3)
              for i in range(0 if kind == "vsock" else rng.randrange(4))]
    jail = {"flags": jail_flags(rng)} if IS_ROOT and rng.random() < 0.5 else None
    machine = (Machine if jail is None else Jailed)(
        kind, f"slot={len(drives)} cid=3 mrg offload eventidx", vcpus=rng.choice([1, 1, 2, 4]),
        mem_mib=rng.choice([64, 128, 1024]), drives=drives, **(jail or {}))
    machine.kind, machine.is_jailed = kind, jail is not None
    return machine


@contextlib.contextmanager
def tap_for(machine, rng):
    """Made before and removed afterwards, or made by the VMM, and gone with it."""
    name = f"tap{next(numbers)}"
    is_kept = machine.is_jailed or rng.random() < 0.5
    if is_kept:
        taps.ip(f"tuntap add {name} mode tap user {UID if machine.is_jailed else 0}")
    try:
        machine.ok("PUT", "/network-interfaces/eth0", {
            "iface_id": "eth0", "host_dev_name": name, "guest_mac": taps.GUEST,
            "rx_rate_limiter": rng.choice([None, {"ops": {"size": 100, "refill_time": 10}}])})
        taps.ip(f"link set {name} up")
        yield name
    finally:
        if is_kept:
            taps.ip(f"link delete {name}")


def open_vsock(machine):
    """Where the host's programs find it."""
    inside = "/run/v" if machine.is_jailed else os.path.join(machine.directory, "v")
    machine.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": inside})
    return machine.inside("run/v") if machine.is_jailed else inside


def call_guest(path, rng):
    """Streams that are closed, or left, with bytes on their way, and one that is whole."""
    for _ in range(rng.randrange(5)):
        port = rng.choice([vsock.ECHO, vsock.SOURCE, vsock.DEAF, 1])
        with vsock.dial(path, b"CONNECT %d\n" % port) as c:
            if rng.random() < 0.5:
                c.recv(rng.randrange(1, 20000))
    with vsock.dial(path, b"CONNECT %d\n" % vsock.ECHO) as client:
        vsock.read_line(client)
        data = rng.randbytes(rng.randrange(1, 50000))
        client.sendall(data)
        if vsock.read_bytes(client, len(data)) != data:
            raise Failure("a stream came back changed")


def talk(machine, place, rng):
    """What the host says to a guest that serves."""
    if machine.kind == "net":
        with taps.Wire(place) as wire:
            wire.exchange(taps.random_frames(rng.sample(taps.SMALL, 20), rng.random()))
    if machine.kind == "vsock":
        call_guest(place, rng)


def ask_to_end(machine, place):
    if machine.kind == "net":
        with taps.Wire(place) as wire:
            wire.send(taps.make_frame(bytes(46), kind=taps.TYPE_END))
    if machine.kind == "vsock":
        vsock.dial(place, b"CONNECT %d\n" % vsock.OFF).close()


def expect_end(machine, codes, sign=None):
    """Of a VMM that is nobody's child here, only the end is seen."""
    if machine.is_jailed and machine.is_detached:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(machine.pid())
            if sign:
                signal.pidfd_send_signal(fd, signal.SIGKILL) # a namespace's first hears no other
            mayfly_ended(fd)
        return
    if sign:
        machine.process.send_signal(sign)
    code = machine.wait()
    if code not in codes:
        raise Failure(f"exit code {code}: {machine.log()[-400:]}")


def start(machine, rng, is_short):
    status, _, body = machine.instance_start()
    if status != 204:
        raise Failure(f"the start was refused: {body}")
    if not is_short: # which may be over at any moment
        abuse(machine, rng)


def play(machine, rng):
    """One life of a VM; returns how it ended."""
    end = rng.choice(ENDS)
    is_short = end == "guest" and machine.kind == "counter"
    if is_short:
        machine.kernel = os.path.join(mayfly.GUESTS, rng.choice(SHORT))
    machine.configure()
    abuse(machine, rng)
    with contextlib.ExitStack() as stack:
        place = None
        if machine.kind == "net":
            place = stack.enter_context(tap_for(machine, rng))
        elif machine.kind == "vsock":
            place = open_vsock(machine)
        if end != "never started":
            start(machine, rng, is_short)
            talk(machine, place, rng)
        if end == "paused":
            machine.ok("PATCH", "/vm", {"state": "Paused"})
        if end == "ctrl-alt-del": # which these guests do not hear
            machine.ok("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        if end == "guest":
            ask_to_end(machine, place)
            expect_end(machine, {0})
        elif end == "SIGKILL":
            expect_end(machine, {-signal.SIGKILL}, signal.SIGKILL)
        else:
            expect_end(machine, TERMINATED, signal.SIGTERM)
    return f"{machine.kind}{' in a jail' if machine.is_jailed else ''}, {end}"


def worker(seed, deadline, results, failures):
    rng = random.Random(seed)
    while time.monotonic() < deadline:
        try:
            with tempfile.TemporaryDirectory() as directory, \
                    random_machine(pathlib.Path(directory), rng) as machine:
                results[play(machine, rng)] += 1
        except (OSError, AssertionError, Failure, subprocess.SubprocessError) as problem:
            failures.append(f"{type(problem).__name__}: {problem}"[:600])


def lines_of(path):
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def memory_kib():
    """Of the kernel and of shared memory: a process that is gone holds no other."""
    fields = dict(line.split(":", 1) for line in lines_of("/proc/meminfo"))
    return sum(int(fields[name].split()[0]) for name in ("Shmem", "SUnreclaim"))


def grown_kib(before):
    """How much more it is, when the kernel has had time to give back what it does in peace."""
    end = time.monotonic() + DEADLINE_S
    while memory_kib() - before > SLACK_KIB and time.monotonic() < end:
        time.sleep(0.1)
    return memory_kib() - before


def left_overs(root):
    """What a VM may leave on the host, by kind. Everything of ours has a name below `root`."""
    return {
        "processes": {entry for entry in os.listdir("/proc") if entry.isdigit()
                      and any(word in "".join(lines_of(f"/proc/{entry}/cmdline"))
                              for word in (root, NAME))},
        "sockets": {line for line in lines_of("/proc/net/unix") if root in line},
        "interfaces": {name for _, name in socket.if_nameindex()},
        "cgroups": {str(p) for p in pathlib.Path("/sys/fs/cgroup").rglob(f"*{NAME}*")},
        "mounts": {line for line in lines_of("/proc/self/mountinfo") if root in line},
        "files": set(os.listdir(root)) | {n for n in os.listdir("/dev/shm") if "mayfly" in n},
        "descriptors of ours": set(os.listdir("/proc/self/fd")),
    }


def report(results, failures, before, after, grown, seconds):
    total = sum(results.values())
    for how, count in sorted(results.items()):
        print(f"{count:8d} ended by: {how}")
    for kind, was in before.items():
        new = after[kind] - was
        print(f"{len(new):8d} {kind} left{': ' + ', '.join(sorted(new)[:5]) if new else ''}")
        if new:
            failures.append(f"{kind} left")
    print(f"{grown:8d} KiB of the kernel's memory more than before (up to {SLACK_KIB} is noise)")
    if grown > SLACK_KIB:
        failures.append("memory left")
    for failure in failures[:10]:
        print(f"failure: {failure}")
    print(f"soak: {total} microVMs in {seconds:.0f} s, {len(failures)} failures")


def main():
    parser = argparse.ArgumentParser(prog="./devtool soak")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--at-once", type=int, default=4 * os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        sys.exit("soak needs /dev/kvm")
    results, failures = collections.Counter(), []
    with tempfile.TemporaryDirectory(prefix="mayfly-soak-") as root, contextlib.ExitStack() as stack:
        if IS_ROOT:
            os.chmod(root, 0o711) # for the users of the jails
        if taps.CAN_MAKE_TAPS:
            stack.enter_context(taps.network_namespace())
        tempfile.tempdir = root
        before, memory, begin = left_overs(root), memory_kib(), time.monotonic()
        threads = [threading.Thread(target=worker, args=(
            f"{options.seed}-{i}", begin + options.seconds, results, failures))
            for i in range(options.at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pattern in (NAME, f"*/{NAME}"):
            for path in glob.glob(f"/sys/fs/cgroup/{pattern}"):
                with contextlib.suppress(AssertionError): # it is counted as left
                    remove_cgroup(path)
        report(results, failures, before, left_overs(root), grown_kib(memory),
               time.monotonic() - begin)
    return 1 if failures or not results else 0


if __name__ == "__main__":
    sys.exit(main())
