"""Starts and stops microVMs for as long as told, many at once: random configurations, good and bad
requests, guests that end by themselves, SIGTERM, SIGKILL and closed connections. At the end it shows
that nothing is left: no process, socket, tap, cgroup, mount, shared memory; no memory of the host's.

usage: soak.py [--seconds N] [--at-once N] [--seed N]
"""

import argparse
import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import mayfly  # noqa: E402
from test_guests import DEADLINE_S, GUESTS, Machine, drive, make_disk  # noqa: E402

ENDS = ["guest", "ctrl-alt-del", "SIGTERM", "SIGKILL", "never started", "paused"]
SHORT = ["smp", "memory", "cpuid"] # guests that end by themselves; "counter" does not
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
        mayfly.encode("PUT", "/machine-config", {"vcpu_count": 99, "mem_size_mib": -1}),
        mayfly.encode("PATCH", "/drives/none", {"drive_id": "none", "path_on_host": "/dev/null"}),
        mayfly.encode("GET", "/vm/config"), mayfly.encode("DELETE", "/" + "a" * 500)])


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


def random_machine(directory, rng):
    drives = [drive(make_disk(directory / f"disk{i}", rng.randrange(1, 64)), f"disk{i}",
                    io_engine=rng.choice(["Sync", "Async"]),
                    cache_type=rng.choice(["Unsafe", "Writeback"]),
                    is_read_only=rng.random() < 0.3) for i in range(rng.randrange(4))]
    return Machine("counter", vcpus=rng.choice([1, 1, 2, 4]),
                   mem_mib=rng.choice([64, 128, 1024]), drives=drives)


def expect_code(machine, codes):
    code = machine.wait(DEADLINE_S)
    if code not in codes:
        raise Failure(f"exit code {code}: {machine.log()[-400:]}")


def start(machine, rng):
    status, _, body = machine.instance_start()
    if status != 204:
        raise Failure(f"the start was refused: {body}")
    if machine.kernel.endswith("counter"): # the others may end at any moment
        abuse(machine, rng)


def play(machine, rng):
    """One life of a VM; returns how it ended."""
    end = rng.choice(ENDS)
    machine.kernel = os.path.join(GUESTS, rng.choice(SHORT) if end == "guest" else "counter")
    machine.configure()
    abuse(machine, rng)
    if end != "never started":
        start(machine, rng)
    if end == "paused":
        machine.ok("PATCH", "/vm", {"state": "Paused"})
    if end == "ctrl-alt-del": # which this guest does not hear
        machine.ok("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    if end == "guest":
        expect_code(machine, {0})
    elif end == "SIGKILL":
        machine.process.kill()
        expect_code(machine, {0, -signal.SIGKILL})
    else:
        machine.process.terminate()
        expect_code(machine, TERMINATED)
    return end


def worker(seed, deadline, results, failures):
    rng = random.Random(seed)
    while time.monotonic() < deadline:
        try:
            with tempfile.TemporaryDirectory() as directory, \
                    random_machine(pathlib.Path(directory), rng) as machine:
                results[play(machine, rng)] += 1
        except (ConnectionError, TimeoutError, OSError, AssertionError, Failure,
                subprocess.TimeoutExpired) as problem:
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
                      and root in "".join(lines_of(f"/proc/{entry}/cmdline"))},
        "sockets": {line for line in lines_of("/proc/net/unix") if root in line},
        "taps": {name for name in os.listdir("/sys/class/net")
                 if os.path.exists(f"/sys/class/net/{name}/tun_flags")},
        "cgroups": {str(p) for p in pathlib.Path("/sys/fs/cgroup").rglob("*soak*")},
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
    with tempfile.TemporaryDirectory(prefix="mayfly-soak-") as root:
        tempfile.tempdir = root
        before, memory, begin = left_overs(root), memory_kib(), time.monotonic()
        threads = [threading.Thread(target=worker, args=(
            f"{options.seed}-{i}", begin + options.seconds, results, failures))
            for i in range(options.at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report(results, failures, before, left_overs(root), grown_kib(memory),
               time.monotonic() - begin)
    return 1 if failures or not results else 0


if __name__ == "__main__":
    sys.exit(main())
