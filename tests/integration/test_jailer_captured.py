"""What is left to a captured VMM: tests/captured.c in the place of the VMM tries it all."""

import contextlib
import os
import shutil
import signal
import socket

import pytest

import mayfly
from filters import LIBC, no_sanitizer
from jail import CAPTURED, UID, Jail, needs_root, reachable

pytestmark = needs_root
ROOT = mayfly.ROOT


def attempts_of(vm):
    """{what a captured VMM tried: what came of it}"""
    lines = vm.output().splitlines()
    assert lines and lines[-1] == "done", vm.output()
    return dict(line.split(": ", 1) for line in lines[:-1])


# What no other wall stops, and the version of Landlock that does. Here there is...
LANDLOCK_STOPS = {"read a file of a directory that was left open": 1,
                  "connect to an abstract socket with a full name": 6}
LANDLOCK = LIBC.syscall(444, None, 0, 1) # landlock_create_ruleset


@contextlib.contextmanager
def listening(address):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        yield


@pytest.fixture(name="captured")
def a_captured_vmm(tmp_path):
    return shutil.copy(CAPTURED, tmp_path / "mayfly")


# User 0 has a capability while it starts; it is the others that a guest can capture.
@no_sanitizer
@pytest.mark.parametrize("how, uid", [("process", UID), ("main", UID), ("vcpu", UID),
                                      ("pager", UID), ("main", 0), ("vcpu", 0)])
def test_whatever_a_captured_vmm_tries_fails(captured, tmp_path, how, uid):
    tenant = tmp_path / "other" / "root"
    tenant.mkdir(parents=True)
    (tenant / "secret").write_text("x")
    with open(os.path.join(ROOT, "docs", "security.md"), encoding="utf-8") as f:
        documented = f.read()
    secret = str(tenant / "secret")
    directory = os.open(tenant, os.O_RDONLY | os.O_DIRECTORY)
    with listening(b"\0" + secret.encode()), \
         listening((b"\0" + secret.encode()).ljust(108, b"\0")):
        vm = Jail("--resource-limit", "fsize=1048576", exec_file=captured, uid=uid,
                  stdin=directory, vmm_args=[how, secret])
        vm.give(tenant / "secret", "large")
        with open(vm.inside("closed"), "wb") as f:
            os.fchmod(f.fileno(), 0)
            os.fchown(f.fileno(), UID + 1, -1)
        vm.spawn()
        assert vm.process.wait(mayfly.DEADLINE_S) == 0, vm.output()
    os.close(directory)
    results = attempts_of(vm)
    assert len(results) >= 65
    its_own = {"overwrite its PID file"} if (how, uid) == ("main", 0) else set()
    succeeded = {name for name, result in results.items() if result == "SUCCEEDED"} - its_own
    assert succeeded <= {name for name, abi in LANDLOCK_STOPS.items() if abi > LANDLOCK}, results
    assert [name for name in results if f"| {name} |" not in documented] == []
    if how != "process":
        others = {name: result for name, result in results.items() if result != "SIGSYS"}
        assert set(others) <= {
            "read the host's /etc/passwd", "climb out of the root", "read another tenant's files",
            "read a file of a directory that was left open", "read /proc",
            "connect to an abstract socket with a full name",
            "overwrite its PID file", "open a file that its mode forbids", "overwrite its binary",
            "open files without end", "write a file without end"}, others
    shutil.rmtree(vm.directory)


@no_sanitizer
def test_another_abi_kills_at_once(captured):
    """Its numbers mean other calls."""
    vm = Jail(exec_file=captured, vmm_args=["process", "x32"])
    vm.spawn()
    assert vm.process.wait(mayfly.DEADLINE_S) == -signal.SIGSYS, "no handler has a say"
    shutil.rmtree(vm.directory)
