"""Starts and stops microVMs for as long as told, many at once: random configurations, good and bad
requests, disks, taps with frames, vsocks with clients, in jails and without, guests that end by
themselves, SIGTERM, SIGKILL and closed connections. At the end it shows that nothing is left: no
process, socket, tap, cgroup, mount, shared memory; no memory of the host's.

With --evil the guests live up to five minutes each and attack their VMMs (tests/guests/evil.c; a
disk, a network interface, a vsock and the ports at once), while frames and clients come, files and
limits are exchanged, and the VM is paused. Each VMM lives, answers, keeps its memory, threads and
descriptors, and at the end the guest says that its other disk worked all the while.

Taps are in a network namespace of its own. They and jails take root. What a jailer leaves for its
caller to remove, the cell and the cgroup, is removed after each microVM: nothing may hold it.

usage: soak.py [--evil] [--seconds N] [--at-once N] [--seed N]
"""

import argparse
import collections
import contextlib
import glob
import itertools
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import mayfly  # noqa: E402
import taps  # noqa: E402
import vsock  # noqa: E402
from guests import Machine, at_rest, drive, make_disk  # noqa: E402
from jail import EXEC_FILE, UID, Jail, mayfly_ended, remove_cgroup  # noqa: E402
from mayfly import DEADLINE_S, wait_until  # noqa: E402
from unix_http import encode  # noqa: E402

ENDS = ["guest", "ctrl-alt-del", "SIGTERM", "SIGKILL", "never started", "paused"]
SHORT = ["smp", "memory", "cpuid"] # guests that end by themselves; "counter" does not
NAME = f"soak-{os.getpid()}" # in that of each jail and of their cgroups
IS_ROOT = os.geteuid() == 0
numbers = itertools.count()
EVIL_KIB = 10 * 1024 # what an attack may make a VMM hold
SLACK_KIB = 64 * 1024 # of the kernel's memory, which comes and goes for other reasons as well


TERMINATED = {0, -signal.SIGTERM} # what the process's end by SIGTERM looks like


class Failure(Exception):
    """Something that must not happen did."""


class Results:
    """Of all workers."""

    def __init__(self):
        self.ends, self.cgroups = collections.Counter(), collections.Counter()
        self.strikes, self.seconds = 0, 0.0


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
        self.cgroup = "--cgroup" in flags and (2 if "--cgroup-version" in flags else 1)

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for path in glob.glob(f"/sys/fs/cgroup/{NAME}/{self.id}"): # where there is version 2 alone
            remove_cgroup(path)

    def configure(self):
        self.kernel = self.give(self.kernel)
        for d in self.drives:
            d["path_on_host"] = self.give(d["path_on_host"])
        super().configure()


def cgroup_flags(rng):
    """Of a version that the host has, with a limit that it has."""
    choices = [["--cgroup", "pids.max=64"]] * os.path.exists("/sys/fs/cgroup/pids/tasks")
    for root in "", "unified/":
        controllers = " ".join(lines_of(f"/sys/fs/cgroup/{root}cgroup.controllers")).split()
        for controller, value in ("pids", "pids.max=64"), ("hugetlb", "hugetlb.2MB.max=0"):
            if controller in controllers:
                choices.append(["--cgroup-version", "2", "--cgroup", value])
    return [*rng.choice(choices), "--parent-cgroup", NAME] if choices else []


def jail_flags(rng):
    wanted = [cgroup_flags(rng), ["--exec-method", "bind"], ["--new-pid-ns"], ["--daemonize"],
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


def evil_machine(directory, rng):
    """The honest disk is its first device; disk, interface and vsock behind it suffer."""
    disks = [make_disk(directory / name, 256) for name in ("other", "victim", "spare")]
    drives = [drive(disks[0], "other"),
              drive(disks[1], "victim", io_engine=rng.choice(["Sync", "Async"]),
                    cache_type=rng.choice(["Unsafe", "Writeback"]))]
    flags = [flag for flag in jail_flags(rng) if flag not in ("--daemonize", "--new-pid-ns")]
    is_jailed = IS_ROOT and EXEC_FILE == mayfly.BINARY and rng.random() < 0.5
    machine = (Jailed if is_jailed else Machine)(
        "evil", f"everything writable victim=1 victims={2 + taps.CAN_MAKE_TAPS} "
        f"queue={rng.randrange(2)} seed={rng.randrange(1 << 30)}", vcpus=3, drives=drives,
        stdin=subprocess.PIPE, **({"flags": flags} if is_jailed else {}))
    machine.kind, machine.is_jailed, machine.spare = "evil", is_jailed, disks[2]
    return machine


def limits_of(rng):
    return {kind: {"size": rng.choice([0, 1, 1000, 1 << 20]), "refill_time": rng.choice([1, 100])}
            for kind in ("ops", "bandwidth")}


def limit(machine, tap, limits):
    machine.ok("PATCH", "/drives/victim", {"drive_id": "victim", "rate_limiter": limits})
    if tap:
        machine.ok("PATCH", "/network-interfaces/eth0", {
            "iface_id": "eth0", "rx_rate_limiter": limits, "tx_rate_limiter": limits})


def send_frames(tap, rng):
    with taps.Wire(tap) as wire, contextlib.suppress(OSError): # a full queue takes no more
        for _ in range(200):
            wire.socket.send(taps.make_frame(rng.randbytes(rng.randrange(46, 1501)),
                                             to=rng.choice([taps.GUEST, "ff:ff:ff:ff:ff:ff"])))


def call_deaf(place, rng):
    with contextlib.suppress(OSError), \
            vsock.dial(place, b"CONNECT %d\n" % rng.randrange(60)) as client:
        client.sendall(rng.randbytes(rng.randrange(1, 50000)))


def annoy(machine, files, place, tap, rng):
    """What a client and the network do meanwhile, once."""
    step = rng.randrange(7)
    if step == 0:
        limit(machine, tap, limits_of(rng))
    elif step == 1:
        machine.ok("PATCH", "/drives/victim",
                   {"drive_id": "victim", "path_on_host": rng.choice(files)})
    elif step == 2 and tap:
        send_frames(tap, rng)
    elif step == 3:
        call_deaf(place, rng)
    elif step == 4:
        machine.ok("PATCH", "/vm", {"state": "Paused"})
        machine.ok("PATCH", "/vm", {"state": "Resumed"})
    elif step == 5:
        abuse(machine, rng)
    elif step == 6:
        machine.ok("GET", "/metrics")
    if machine.ok("GET", "/")["state"] != "Running":
        raise Failure("it does not run")


def expect_no_more(machine, before):
    """Than it held at first; connections take their time to end."""
    wait_until(lambda: at_rest(machine)[1:] == before[1:],
               lambda: f"(threads, descriptors) of {before[1:]}: {at_rest(machine)[1:]}")
    grown = at_rest(machine)[0] - before[0]
    if grown > EVIL_KIB and "sanitize" not in mayfly.BINARY: # which keeps what is freed for a while
        raise Failure(f"it holds {grown} KiB more than at first")


def play_evil(machine, deadline, rng):
    """One life of an attacker; returns how often it struck."""
    machine.configure()
    spare = machine.give(machine.spare) if machine.is_jailed else str(machine.spare)
    files = [machine.drives[1]["path_on_host"], spare]
    with contextlib.ExitStack() as stack:
        tap = stack.enter_context(tap_for(machine, rng)) if taps.CAN_MAKE_TAPS else None
        place = open_vsock(machine)
        start(machine, rng, is_short=True)
        machine.wait_for_output("attacking")
        limit(machine, tap, {"ops": {"size": 1000, "refill_time": 1}}) # whose timers stay
        before, end = at_rest(machine), min(deadline, time.monotonic() + rng.randrange(10, 300))
        while time.monotonic() < end:
            annoy(machine, files, place, tap, rng)
        expect_no_more(machine, before)
        limit(machine, tap, {kind: {"size": 0, "refill_time": 0} for kind in ("ops", "bandwidth")})
        machine.send(b"x")
        try:
            machine.finish()
        except pytest.fail.Exception as hung:
            raise Failure(str(hung)) from None
    return sum(map(int, re.search(r"(\d+) and (\d+) strikes", machine.output()).groups()))


def live(machine, deadline, rng, results):
    begin = time.monotonic()
    if machine.kind == "evil":
        results.strikes += play_evil(machine, deadline, rng)
        how = f"evil{' in a jail' if machine.is_jailed else ''}, guest"
    else:
        how = play(machine, rng)
    results.ends[how] += 1
    results.cgroups[machine.is_jailed and machine.cgroup] += 1
    results.seconds += time.monotonic() - begin


def worker(seed, deadline, make, results, failures):
    rng = random.Random(seed)
    while time.monotonic() < deadline:
        try:
            with tempfile.TemporaryDirectory() as directory, \
                    make(pathlib.Path(directory), rng) as machine:
                live(machine, deadline, rng, results)
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
    total = sum(results.ends.values())
    for how, count in sorted(results.ends.items()):
        print(f"{count:8d} ended by: {how}")
    for version in 1, 2:
        print(f"{results.cgroups[version]:8d} were in a cgroup of version {version}")
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
    strikes = f", which struck {results.strikes} times" if results.strikes else ""
    print(f"soak: {total} microVMs{strikes}, {results.seconds / 3600:.2f} VM-hours in "
          f"{seconds:.0f} s, {len(failures)} failures")


def main():
    parser = argparse.ArgumentParser(prog="./devtool soak")
    parser.add_argument("--evil", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--at-once", type=int, default=4 * os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        sys.exit("soak needs /dev/kvm")
    results, failures = Results(), []
    with tempfile.TemporaryDirectory(prefix="mayfly-soak-") as root, contextlib.ExitStack() as stack:
        if IS_ROOT:
            os.chmod(root, 0o711) # for the users of the jails
        if taps.CAN_MAKE_TAPS:
            stack.enter_context(taps.network_namespace())
        tempfile.tempdir = root
        before, memory, begin = left_overs(root), memory_kib(), time.monotonic()
        threads = [threading.Thread(target=worker, args=(
            f"{options.seed}-{i}", begin + options.seconds,
            evil_machine if options.evil else random_machine, results, failures))
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
    return 1 if failures or not results.ends else 0


if __name__ == "__main__":
    sys.exit(main())
