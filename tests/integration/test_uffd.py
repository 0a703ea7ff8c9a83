"""Guest memory from a page fault handler: PUT /snapshot/load with the Uffd backend."""

import contextlib
import json
import os
import select
import signal
import subprocess

import pytest

import mayfly
from guests import Machine, needs_kvm
from jail import Jail, needs_root
from snapshots import (FAILED, Clone, create_body, numbers, pair, pause, resume, save,
                       until_output)
from uffd import Handler, load_body, needs_uffd

pytestmark = [needs_kvm, needs_uffd]
FROM_UFFD = FAILED + "Failed to load guest memory: Error creating guest memory from uffd: "
MIB = 1 << 20


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory):
    """A counter that was saved, and what it had printed."""
    with Machine("counter") as first:
        first.boot()
        until_output(first, lambda text: text.count("\n") > 40)
        files = save(first, pair(tmp_path_factory.mktemp("uffd")))
        return *files, first.output()


@contextlib.contextmanager
def loaded(files, handler, **members):
    with Clone(files[:2], stdin=subprocess.PIPE) as clone:
        clone.ok("PUT", "/snapshot/load", load_body(files, handler.path, **members))
        yield clone


@pytest.mark.parametrize("serves", ["page", "all"])
def test_a_guest_runs_from_pages_that_a_handler_serves(tmp_path, files, serves):
    with Handler(str(tmp_path / "uffd"), files[1], serves) as handler:
        with loaded(files, handler, resume_vm=True) as clone:
            until_output(clone, lambda text: text.count("\n") > 40)
            pause(clone)
            joined = files[2] + clone.output()
            assert f"(process {os.getpid()})" in clone.log()
    assert joined == numbers(len(joined))
    region, = handler.message
    assert region == {"base_host_virt_addr": region["base_host_virt_addr"],
                      "size": os.path.getsize(files[1]), "offset": 0, "page_size": 4096,
                      "page_size_kib": 4096}


def test_a_load_asks_for_two_pages_and_a_full_snapshot_for_all(tmp_path, files):
    with Handler(str(tmp_path / "uffd"), files[1]) as handler:
        with loaded(files, handler) as clone:
            assert handler.faults == [0xdf000, 0xde000]
            again = save(clone, pair(tmp_path))
    assert len(set(handler.faults)) == os.path.getsize(files[1]) // 4096
    with open(files[1], "rb") as old, open(again[1], "rb") as new:
        differ = {at // 4096 for at in range(0, os.path.getsize(files[1]), 4096)
                  if old.read(4096) != new.read(4096)}
    assert differ == {0xde, 0xdf}


def test_a_live_snapshot_asks_for_all_that_it_needs(tmp_path, files):
    layer, full = pair(tmp_path, "layer"), pair(tmp_path, "full")
    with Handler(str(tmp_path / "uffd"), files[1]) as handler:
        with loaded(files, handler, resume_vm=True) as clone:
            until_output(clone, lambda text: text.count("\n") > 40)
            clone.ok("PUT", "/snapshot/create",
                     create_body(layer, live=True, snapshot_type="Diff"))
            assert len(set(handler.faults)) < 1024
            clone.ok("PUT", "/snapshot/create", create_body(full, live=True))
            assert len(set(handler.faults)) == os.path.getsize(files[1]) // 4096
            printed = files[2] + clone.output()
    with Clone(full) as again:
        again.load(resume_vm=True)
        until_output(again, lambda text: text.count("\n") > 40)
        pause(again)
        goes_on = again.output()
    assert numbers(len(printed) + len(goes_on)).index(goes_on) > len(files[2])
    with Clone(layer) as again:
        body = {"snapshot_path": layer[0], "resume_vm": True,
                "mem_backend": {"backend_type": "File", "backend_path": files[1],
                                "layers": [layer[1]]}}
        again.ok("PUT", "/snapshot/load", body)
        until_output(again, lambda text: text.count("\n") > 40)


def test_a_handler_that_is_not_there_is_refused(tmp_path, files):
    for path, why in (("none", "No such file or directory (os error 2)"),
                      ("x" * 200, "path must be shorter than SUN_LEN")):
        with Clone(files[:2]) as clone:
            status, _, answer = clone.request("PUT", "/snapshot/load", load_body(files, path))
            assert (status, answer["fault_message"]) == (
                400, f"{FROM_UFFD}Failed to connect to UDS Unix stream: {why}")
            assert clone.wait() == 1


@needs_root
@pytest.mark.parametrize("options", [[], ["--new-pid-ns"]])
def test_a_jailed_guest_runs_from_a_handler_outside(files, options):
    """Which can't be seen from a PID namespace of the guest's own. Memory is not in the jail."""
    with Jail(*options) as clone:
        clone.give(files[0], "saved")
        with Handler(clone.inside("uffd"), files[1]) as handler:
            os.chown(handler.path, clone.uid, clone.gid)
            clone.ok("PUT", "/snapshot/load", load_body(("/saved",), "/uffd", resume_vm=True))
            mayfly.wait_until(lambda: clone.output().count("\n") > 40, clone.output)
            who = "" if options else f" (process {os.getpid()})"
            assert f"comes from the page fault handler at /uffd{who}\n" in clone.output()


@needs_root
def test_the_first_process_of_a_namespace_ends_by_sigterm_while_it_waits(files):
    """It has handlers of these signals; one thread always can run them."""
    with Jail("--new-pid-ns") as clone:
        clone.give(files[0], "saved")
        with Handler(clone.inside("uffd"), files[1], "nothing") as handler:
            os.chown(handler.path, clone.uid, clone.gid)
            with send_load(clone, ("/saved",), "/uffd"):
                mayfly.wait_until(lambda: handler.faults, "a fault")
                process = os.pidfd_open(clone.pid())
                signal.pidfd_send_signal(process, signal.SIGTERM)
                assert select.select([process], [], [], mayfly.DEADLINE_S)[0]
                os.close(process)


def send_load(clone, files, handler, **members):
    """A request whose answer is fetched later."""
    body = json.dumps(load_body(files, handler, **members)).encode()
    client = clone.connect()
    client.sendall(b"PUT /snapshot/load HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s"
                   % (len(body), body))
    return client


def test_a_handler_that_serves_nothing_costs_seconds_and_no_process(tmp_path, files):
    """Together, for these are ten seconds each."""
    with contextlib.ExitStack() as ends:
        silent, dying, killed, short = (
            ends.enter_context(Handler(str(tmp_path / name), files[1], serves, limit))
            for name, serves, limit in (("silent", "nothing", None), ("dying", "page", 0),
                                        ("killed", "nothing", None), ("short", "page", 2)))
        clones = {h: ends.enter_context(Clone(files[:2])) for h in (silent, dying, killed, short)}
        answers = {h: ends.enter_context(contextlib.closing(send_load(clones[h], files, h.path)))
                   for h in (silent, killed)}

        # SIGTERM ends a load that waits.
        mayfly.wait_until(lambda: killed.faults, "a fault")
        clones[killed].process.terminate()
        assert clones[killed].wait() == -signal.SIGTERM

        # A guest whose handler has gone: it stands still, the API doesn't.
        clones[short].ok("PUT", "/snapshot/load", load_body(files, short.path, resume_vm=True))
        short.has_gone.wait()
        status, _, answer = clones[short].request("PATCH", "/vm", {"state": "Paused"})
        if status == 400: # where KVM can't leave the page: else it is paused
            assert answer["fault_message"] == (
                "Internal VMM error: Failed to message the vCPUs.: one has waited for its memory "
                "for 10 seconds, which comes from the page fault handler at "
                f"{short.path} (process {os.getpid()})")
        state = clones[short].ok("GET", "/")["state"]
        assert state == ("Running" if status == 400 else "Paused")
        clones[short].process.terminate()
        assert clones[short].wait() == -signal.SIGTERM

        # A load ends by itself.
        answer = answers[silent].recv(4096).decode()
        assert answer.startswith("HTTP/1.1 400")
        assert (f"the page fault handler at {silent.path} (process {os.getpid()}) has served no "
                "page for 10 seconds: guest memory at 0xdf") in answer
        assert clones[silent].wait() == 1
        assert silent.path in clones[silent].log()
