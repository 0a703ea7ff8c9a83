"""What a machine was is what is made of its snapshot: /snapshot/create and /snapshot/load."""

import contextlib
import json
import os
import struct
import subprocess

import pytest

import mayfly
import vsock
from guests import Machine, drive, make_disk, needs_kvm
from jail import Jail, needs_root
from mayfly import AFTER, BEFORE
from snapshots import (FAILED, Clone, count_in_a_jail, create_body, load_body, loaded, mended,
                       numbers, pair, pause, resume, save, sections, until_output)
from taps import Guest as NetGuest
from taps import Wire, make_tap, needs_taps, random_frames
from vsock import ECHO, OFF, dial, read_bytes, read_line

pytestmark = needs_kvm
RUNNING = ("Create snapshot error: Cannot save the microVM state: Operation not allowed: "
           "save/restore unavailable while running")
NOT_AFTER = ("Load snapshot error: Loading a microVM snapshot not allowed after configuring "
             "boot-specific resources.")
STDIO = {"stdin": subprocess.PIPE}


def refused(machine, path, body):
    status, _, answer = machine.request("PUT", path, body)
    assert status == 400, answer
    return answer["fault_message"]


@pytest.mark.parametrize("rounds", [20 if mayfly.IS_LONG else 4])
def test_no_byte_of_a_console_is_doubled_or_lost(tmp_path, rounds):
    with Machine("counter") as first:
        first.boot()
        for i in range(rounds):
            until_output(first, lambda text, i=i: text.count("\n") > 40 * i)
            files = save(first, pair(tmp_path))
            printed = first.output()
            with loaded(files) as second:
                until_output(second, lambda text: text.count("\n") > 20)
                pause(second)
                joined = printed + second.output()
            assert joined == numbers(len(joined))
            resume(first)


def run_rounds(first, directory, rounds):
    """Saves and loads the guest clone.c from one process into the next; its state files."""
    files, machine, ends = [], first, contextlib.ExitStack()
    with ends:
        for i in range(rounds):
            until_output(machine, lambda text: "waiting save\n" in text)
            files.append(save(machine, pair(directory, f"round{i}")))
            machine.stop()
            machine = ends.enter_context(loaded(files[-1]))
            machine.send(b"x")
        machine.finish()
    return [state for state, _ in files]


def test_a_guest_finds_what_it_had_and_that_it_is_a_clone(tmp_path):
    with Machine("clone", "vcpus=2", vcpus=2, **STDIO) as first:
        run_rounds(first.boot(), tmp_path, 1)


def msrs(state):
    """The numbers of the MSRs of each vCPU."""
    data = sections(state)["VCPU"][2]
    at, found = 4, []

    def skip_padded(at):
        return at + 4 + struct.unpack_from("<I", data, at)[0]
    for _ in range(struct.unpack_from("<I", data)[0]):
        at += 4 + 28 * struct.unpack_from("<I", data, at)[0]  # CPUID
        at += 4 + 144 + 312  # mp_state, regs, sregs
        for _ in range(4):  # xsave, xcrs, debugregs, lapic
            at = skip_padded(at)
        at += 4 + 1 + 3 * 8  # the TSC
        count = struct.unpack_from("<I", data, at)[0]
        found.append({struct.unpack_from("<I", data, at + 4 + 12 * i)[0] for i in range(count)})
        at = skip_padded(at + 4 + 12 * count)  # events
    assert at == len(data)
    return found


@pytest.mark.parametrize("engine", ["Sync", "Async"])
def test_three_generations_have_all_of_the_first(tmp_path, engine):
    disk = drive(make_disk(tmp_path / "disk", 2048), io_engine=engine)
    with Machine("clone", "disk gsi=6 rounds=3", drives=[disk], **STDIO) as first:
        states = run_rounds(first.boot(), tmp_path, 3)
    first, second, third = map(msrs, states)
    assert len(first[0]) > 20 and first == second == third


# Devices that others are at the other end of.

@needs_taps
@pytest.mark.parametrize("mode", ["eventidx", "mrg offload eventidx"])
def test_a_network_interface_goes_on(tmp_path, mode):
    make_tap(mtu=9000)
    sizes = [60, 1514, *([9014] if "offload" in mode else [])] * 10
    with NetGuest(mode, members={"mtu": 9000}) as first, Wire() as wire:
        first.serve()
        wire.exchange(random_frames(sizes))
        files = save(first, pair(tmp_path))
        config = first.ok("GET", "/vm/config")
        first.stop()
        with loaded(files) as second:
            assert second.ok("GET", "/vm/config") == config
            wire.exchange(random_frames(sizes))
            NetGuest.end(second)


@needs_taps
def test_an_interface_can_have_another_tap(tmp_path):
    make_tap()
    make_tap("tap1")
    with NetGuest("eventidx") as first:
        files = save(first.serve(), pair(tmp_path))
        overrides = [{"iface_id": "eth0", "host_dev_name": "none"},
                     {"iface_id": "eth0", "host_dev_name": "tap1", "more": 1}]
        with loaded(files, network_overrides=overrides) as second, Wire("tap1") as wire:
            wire.exchange(random_frames([60, 1514]))
            config = second.ok("GET", "/vm/config")
            assert config["network-interfaces"][0]["host_dev_name"] == "tap1"
            NetGuest.end(second, "tap1")


@pytest.mark.parametrize("engine", ["Sync", "Async"])
def test_a_drive_can_have_another_file(tmp_path, engine):
    """The guest reads back there what it wrote here; its first disk is gone."""
    disk = drive(make_disk(tmp_path / "disk", 2048), io_engine=engine)
    with Machine("clone", "disk gsi=6 rounds=1", drives=[disk], **STDIO) as first:
        first.boot()
        until_output(first, lambda text: "waiting save" in text)
        files = save(first, pair(tmp_path))
        first.stop()
    own = str(tmp_path / "own")
    os.rename(tmp_path / "disk", own)
    overrides = [{"drive_id": "disk", "path_on_host": "none"},
                 {"drive_id": "disk", "path_on_host": own}]
    with loaded(files, drive_overrides=overrides) as second:
        assert second.ok("GET", "/vm/config")["drives"][0]["path_on_host"] == own
        second.send(b"x")
        second.finish()


@pytest.mark.parametrize("mode", ["", "eventidx"])
def test_a_guest_hears_that_its_vsock_connections_are_gone(tmp_path, mode):
    with vsock.Guest(mode) as first:
        old = first.serve().stream(ECHO)
        old.sendall(b"before")
        assert read_bytes(old, 6) == b"before"
        with first.dial(b"CONNECT %d\n" % ECHO) as client:
            port = int(read_line(client)[3:])
        files = save(first, pair(tmp_path))
        assert "reset" not in first.output()
        path = os.path.join(tmp_path, "v.sock")
        with loaded(files, vsock_override={"uds_path": path, "more": 1}) as second:
            with dial(path, b"CONNECT %d\n" % ECHO) as client:
                assert int(read_line(client)[3:]) == port + 1
                client.sendall(b"after")
                assert read_bytes(client, 5) == b"after"
            assert second.output() == "transport reset\n"
            assert second.ok("GET", "/vm/config")["vsock"]["uds_path"] == path
            with dial(path, b"CONNECT %d\n" % OFF):
                second.finish()
        # Nothing has changed for the one that was saved.
        resume(first)
        old.sendall(b"after")
        assert read_bytes(old, 5) == b"after"
        old.close()
        first.end()
        assert "reset" not in first.output()


# What a client is told.

def test_phases_and_refusals_of_create(tmp_path):
    files = pair(tmp_path)
    with Machine("counter") as vm:
        assert refused(vm, "/snapshot/create", create_body(files)) == BEFORE
        vm.boot()
        assert refused(vm, "/snapshot/create", create_body(files)) == RUNNING
        assert not os.path.exists(files[0]) and not os.path.exists(files[1])
        pause(vm)
        none = os.path.join(tmp_path, "none", "x")
        for body in (create_body((none, files[1])), create_body((files[0], none))):
            assert "(os error 2)" in refused(vm, "/snapshot/create", body)
        vm.ok("PUT", "/snapshot/create", create_body(files, sync_snapshot_files=False))
        assert refused(vm, "/snapshot/load", load_body(files)) == AFTER
        assert vm.ok("GET", "/")["state"] == "Paused"


IDENTITY = {"uuid": "5d1f1e70-93e5-4c3f-8e8b-7f3b1d0c9a42", "serial": "one"}


def saved_counter(directory, **options):
    with Machine("counter", **options) as vm:
        vm.ok("PUT", "/smbios", IDENTITY)
        vm.boot()
        return save(vm, pair(directory)), vm.ok("GET", "/vm/config")


def test_a_loaded_machine_is_as_it_was_configured(tmp_path):
    disk = drive(make_disk(tmp_path / "disk", 64), is_read_only=True,
                 rate_limiter={"ops": {"size": 9, "refill_time": 100}})
    files, config = saved_counter(tmp_path, drives=[disk], vcpus=2, mem_mib=96,
                                  boot_args="counts")
    with Clone(files) as vm:
        vm.load(track_dirty_pages=True)
        assert vm.ok("GET", "/")["state"] == "Paused"
        config["machine-config"]["track_dirty_pages"] = True
        assert config["smbios"] == IDENTITY
        assert vm.ok("GET", "/vm/config") == config
        assert refused(vm, "/actions", {"action_type": "InstanceStart"}) == AFTER
        vm.ok("PATCH", "/drives/disk", {"drive_id": "disk", "path_on_host": disk["path_on_host"]})
        vm.ok("PUT", "/snapshot/create", create_body(pair(tmp_path, "again")))
        resume(vm)
        until_output(vm, lambda text: text.count("\n") > 3)


@pytest.mark.parametrize("path, body", [
    ("/drives/x", {"drive_id": "x", "path_on_host": "none", "is_root_device": False}),
    ("/boot-source", {"kernel_image_path": "none"}),
    ("/machine-config", {"vcpu_count": 0, "mem_size_mib": 1}),
    ("/network-interfaces/x", {"iface_id": "x", "host_dev_name": "n" * 20}),
    ("/vsock", {"guest_cid": 3, "uds_path": "none/v"}),
    ("/mmds/config", {"network_interfaces": ["none"]}),
])
def test_nothing_is_loaded_where_a_boot_was_prepared(vm, path, body):
    files = pair(vm.directory)
    assert vm.request("PUT", path, "{")[0] == 400  # what is no request prepares nothing
    refused(vm, path, body)
    for _ in range(2):
        assert refused(vm, "/snapshot/load", load_body(files)) == NOT_AFTER
    assert vm.ok("GET", "/")["state"] == "Not started"


def test_log_metrics_and_console_are_the_process_s_own(tmp_path):
    files, _ = saved_counter(tmp_path)
    with Clone(files) as vm:
        vm.ok("PUT", "/logger", {"level": "Debug"})
        vm.ok("PUT", "/metrics", {"metrics_path": os.path.join(vm.directory, "metrics")})
        vm.ok("PUT", "/serial", {"serial_out_path": "console"})
        vm.ok("PUT", "/cpu-config", {})
        vm.load(resume_vm=True)
        vm.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
        with open(os.path.join(vm.directory, "metrics"), encoding="utf-8") as file:
            latencies = json.loads(file.readlines()[-1])["latencies_us"]
        assert 0 < latencies["vmm_load_snapshot"] <= latencies["load_snapshot"]
        console = os.path.join(vm.directory, "console")
        mayfly.wait_until(lambda: os.path.getsize(console) > 10, "the console")
        assert vm.output() == ""
        assert "'load snapshot' VMM action took " in vm.log()
        assert "'load snapshot' API request took " in vm.log()


def test_deprecated_members_are_told_of(tmp_path):
    files, _ = saved_counter(tmp_path)
    for members in ({"mem_file_path": files[1]},
                    {**load_body(files), "enable_diff_snapshots": True}):
        with Clone(files) as vm:
            status, headers, _ = vm.request("PUT", "/snapshot/load",
                                            {"snapshot_path": files[0], **members})
            assert status == 204 and headers.get("deprecation") == "true"
    with Clone(files) as vm:
        _, headers, _ = vm.request("PUT", "/snapshot/load",
                                   load_body(files, enable_diff_snapshots=False))
        assert "deprecation" not in headers


def test_what_cannot_be_loaded_ends_the_process_after_the_answer(tmp_path):
    files, _ = saved_counter(tmp_path, drives=[drive(make_disk(tmp_path / "disk", 64))])
    state, memory = files
    P = FAILED + "Failed to get snapshot state from file: "
    with open(state, "rb") as whole:
        data = whole.read()
    cases = [
        (load_body((f"{tmp_path}/none", memory)),
         P + "Failed to open snapshot file: No such file or directory (os error 2)"),
        (load_body((str(tmp_path), memory)),
         P + "Failed to load snapshot state from file: IO Error: Is a directory (os error 21)"),
        (load_body((state, f"{tmp_path}/none")),
         FAILED + "Failed to load guest memory: Error creating guest memory from file: Failed to "
         "load guest memory: No such file or directory (os error 2)"),
        (load_body((state, state)),
         FAILED + "Failed to load guest memory: Error creating guest memory from file: Failed to "
         "restore guest memory: Total sum of memory regions exceeds largest possible file offset"),
        (load_body(files, network_overrides=[{"iface_id": "x", "host_dev_name": "y"}]),
         P + "Unknown Network Device."),
        (load_body(files, drive_overrides=[{"drive_id": "x", "path_on_host": "y"}]),
         P + "Unknown Block Device."),
        (load_body(files, vsock_override={"uds_path": "v"}), P + "Unknown Vsock Device."),
        (load_body(files, huge_pages="2M"),
         FAILED + "Failed to load guest memory: Error creating guest memory from file: Cannot "
         "restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd."),
    ]
    for name, change in (("cut", data[:-1]), ("short", data[:7]), ("changed", data[:-9] + b"x" * 9),
                         ("newer", data[:8] + b"\2" + data[9:])):
        with open(tmp_path / name, "wb") as other:
            other.write(change)
        what = {"cut": "It has ", "short": "IO Error: File too short to contain CRC"}.get(
            name, "CRC64 validation failed")
        cases.append((load_body((str(tmp_path / name), memory)),
                      P + "Failed to load snapshot state from file: " + what))
    overrides = [{"drive_id": "disk", "path_on_host": str(tmp_path)}]
    cases.append((load_body(files, drive_overrides=overrides),
                  FAILED + "Failed to build microVM from snapshot: Failed to restore devices: Error "
                  "restoring MMIO devices: Block: Virtio backend error: Error manipulating the "
                  f"backing file: Is a directory (os error 21) {tmp_path}"))
    os.unlink(tmp_path / "disk")
    cases.append((load_body(files),
                  FAILED + "Failed to build microVM from snapshot: Failed to restore devices: Error "
                  "restoring MMIO devices: Block: Virtio backend error: Error manipulating the "
                  f"backing file: No such file or directory (os error 2) {tmp_path}/disk"))
    for body, why in cases:
        with Clone(files) as vm:
            assert refused(vm, "/snapshot/load", body).startswith(why), body
            assert vm.wait() == 1


def test_a_taken_vsock_path_is_refused(tmp_path):
    with vsock.Guest() as first:
        files = save(first.serve(), pair(tmp_path))
        with Clone(files) as vm:
            assert refused(vm, "/snapshot/load", load_body(files)) == (
                FAILED + "Failed to build microVM from snapshot: Failed to restore devices: Error "
                "restoring MMIO devices: VsockUnixBackend: Error binding to the host-side Unix "
                "socket: Address in use (os error 98) " + first.uds_path)
            assert vm.wait() == 1
        assert os.path.exists(first.uds_path)


# In a jail.

@needs_root
def test_an_ordinary_user_saves_and_loads_in_a_jail():
    """Under the filters of the process and of its threads, from one jail into another."""
    body = {"snapshot_path": "/saved", "mem_file_path": "/memory"}
    with Jail() as first, Jail() as second:
        count_in_a_jail(first)
        pause(first)
        for kind in ("Full", "Diff"):
            first.ok("PUT", "/snapshot/create", {**body, "snapshot_type": kind})
        for name in ("saved", "memory"):
            second.give(first.inside(name))
        resume(first)
        second.ok("PUT", "/snapshot/load", load_body(("/saved", "/memory"), resume_vm=True))
        until_output(second, lambda text: text.count("\n") > 30)


def test_a_guest_of_a_processor_that_had_more_is_refused(tmp_path):
    """The one that it was saved on is another by one bit, and so KVM is asked; and what the guest
    has seen is more than there is."""
    (state, memory), _ = saved_counter(tmp_path)
    with open(state, "rb") as whole:
        data = bytearray(whole.read())
    machine = data.index(b"MACH") + 12
    data[machine + 8] ^= 1
    other = str(tmp_path / "other")
    seen = data.index(b"VCPU") + 12 + 4 + 4
    leaf = next(at for at in range(seen, len(data), 28)
                if struct.unpack_from("<II", data, at) == (7, 0))
    for ecx, status in ((0, 204), (1 << 31, 400)):
        struct.pack_into("<I", data, leaf + 20, struct.unpack_from("<I", data, leaf + 20)[0] | ecx)
        with open(other, "wb") as file:
            file.write(mended(data))
        with Clone((other, memory)) as vm:
            got, _, body = vm.request("PUT", "/snapshot/load", load_body((other, memory)))
            assert got == status, body
            assert status == 204 or body["fault_message"].endswith(
                "this processor lacks what the guest has seen on another: pks")
