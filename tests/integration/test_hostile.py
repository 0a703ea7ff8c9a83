"""A guest attacks its VMM (tests/guests/evil.c) while a client works with the API: the VMM lives,
answers, stays within its memory, descriptors and threads, sleeps when the guest is paused, and the
guest's other disk works throughout.

MAYFLY_ROUNDS sets how often the client goes round during each attack.
"""

import os
import subprocess
import time

import pytest

import mayfly
import vsock
from guests import Machine, at_rest, drive, make_disk, needs_kvm
from taps import Wire, flood, make_frame, make_tap, needs_taps

pytestmark = needs_kvm

ROUNDS = int(os.environ.get("MAYFLY_ROUNDS", "10"))
SECTORS = 256
MEMORY_KIB = 4096 # what an attack may make the VMM hold beyond what it held before
ATTACKS = ["garbage", "moving_rings", "resets", "statuses", "notifications", "acknowledgements",
           "configuration", "serial_ports", "keyboard_ports", "wrapping_indices"]


def main_thread_state(machine):
    with open(f"/proc/{machine.process.pid}/task/{machine.process.pid}/stat",
              encoding="ascii") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0]


def assert_sleeps(machine):
    """What an event loop that has something to do for ever does not."""
    mayfly.wait_until(lambda: all(main_thread_state(machine) == "S" for _ in range(20)),
                      "the paused VMM to come to rest")


def go_round(machine, change):
    assert machine.ok("GET", "/")["state"] == "Running"
    change()
    machine.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
    machine.ok("PATCH", "/vm", {"state": "Paused"})
    assert_sleeps(machine)
    machine.ok("PATCH", "/vm", {"state": "Resumed"})


def withstand(machine, change, victims=1):
    """From the start to the guest's end. change(i): what else a client does, in each round."""
    start = time.monotonic()
    machine.boot()
    machine.wait_for_output("attacking")
    go_round(machine, lambda: change(1))
    memory, threads, descriptors = at_rest(machine)
    for i in range(ROUNDS):
        go_round(machine, lambda i=i: change(i))
    after = at_rest(machine)
    # At either time one of the guest's connections may have been open; what leaks stays.
    mayfly.wait_until(lambda: at_rest(machine)[2] <= descriptors, machine.log)
    machine.send(b"x")
    machine.finish()
    complaints = machine.log().count("stops until the guest resets it")
    assert complaints <= victims * (time.monotonic() - start + 2) # one in each second that was begun
    assert after[0] <= memory + MEMORY_KIB
    assert after[1] == threads


@pytest.mark.parametrize("engine", ["Sync", "Async"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_harms_nobody_else(tmp_path, attack, engine):
    disk = make_disk(tmp_path / "disk", SECTORS)
    other = make_disk(tmp_path / "other", SECTORS)
    before = disk.read_bytes()
    drives = [drive(disk, "victim", is_read_only=True, io_engine=engine), drive(other, "other")]
    with Machine("evil", attack, vcpus=3, drives=drives, stdin=subprocess.PIPE) as machine:
        def limit(i):
            limits = {"ops": {"size": 1000 * (i % 2), "refill_time": 10}}
            machine.ok("PATCH", "/drives/victim", {"drive_id": "victim", "rate_limiter": limits})
        withstand(machine, limit)
    assert disk.read_bytes() == before


RX, TX = 0, 1
ON_QUEUES = [(attack, queue) for attack in ATTACKS for queue in (RX, TX)
             if not attack.endswith("_ports") and (attack, queue) != ("wrapping_indices", RX)]


def evil(attack, queue, tmp_path, **options):
    return Machine("evil", f"{attack} victim=1 queue={queue}", vcpus=3, stdin=subprocess.PIPE,
                   drives=[drive(make_disk(tmp_path / "other", SECTORS), "other")], **options)


@needs_taps
@pytest.mark.parametrize("attack, queue", ON_QUEUES)
def test_an_attack_on_a_network_interface_harms_nobody_else(tmp_path, attack, queue):
    """Frames come all the while."""
    make_tap()
    with evil(attack, queue, tmp_path) as machine, Wire() as wire, \
         flood(wire, make_frame(bytes(200))):
        machine.ok("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap0"})

        def limit(i):
            limits = {"ops": {"size": 1000 * (i % 2), "refill_time": 10}}
            machine.ok("PATCH", "/network-interfaces/eth0",
                       {"iface_id": "eth0", "rx_rate_limiter": limits, "tx_rate_limiter": limits})
        withstand(machine, limit)


@pytest.mark.parametrize("attack, queue", ON_QUEUES)
def test_an_attack_on_a_vsock_harms_nobody_else(tmp_path, attack, queue):
    """Clients come, ask for the guest and go."""
    with evil(attack, queue, tmp_path) as machine:
        path = os.path.join(machine.directory, "v")
        machine.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": path})

        withstand(machine, lambda _: vsock.dial(path, b"CONNECT 5\n").close())


@needs_taps
def test_attacks_on_all_devices_at_once_harm_nobody_else(tmp_path):
    """A vCPU's next strike is another attack, on another victim."""
    make_tap()
    drives = [drive(make_disk(tmp_path / name, SECTORS), name, io_engine="Async")
              for name in ("other", "victim")]
    with Machine("evil", "everything writable victim=1 victims=3", vcpus=3, drives=drives,
                 stdin=subprocess.PIPE) as machine, Wire() as wire, \
         flood(wire, make_frame(bytes(200))):
        path = os.path.join(machine.directory, "v")
        machine.ok("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap0"})
        machine.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": path})

        def change(i):
            machine.ok("PATCH", "/drives/victim", {
                "drive_id": "victim", "path_on_host": str(tmp_path / "victim")})
            vsock.dial(path, b"CONNECT %d\n" % i).close()
        withstand(machine, change, victims=3)
