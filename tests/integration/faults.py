"""System calls that fail: strace makes one of a running process return an error, or do less than it
was asked. Errors are injected by ptrace at the real calls, so it is the binary as it is that is
tested."""

import contextlib
import errno
import os
import re
import shutil
import subprocess

import pytest

import mayfly

# strace puts an invalid call in the place of one that it makes fail: to a filter, an attack.
UNFILTERED = ["--no-seccomp"]
# The words for an error are musl's (vmm/base/error.h).
MUSL = {"EIO": "I/O error", "ENOMEM": "Out of memory", "EBUSY": "Resource busy",
        "EMFILE": "No file descriptors available", "ELOOP": "Symbolic link loop",
        "EOPNOTSUPP": "Not supported", "ENOTSUP": "Not supported"}
STRERROR = {name: f"{MUSL.get(name, os.strerror(number))} (os error {number})"
            for number, name in errno.errorcode.items()}
needs_strace = pytest.mark.usefixtures("strace")


@pytest.fixture
def strace(monkeypatch):
    """LeakSanitizer does not work under ptrace."""
    if not shutil.which("strace"):
        pytest.skip("NO FAULTS: there is no strace")
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")


@contextlib.contextmanager
def traced(machine, tmp_path, *injections, thread=None):
    """Attaches strace to the main thread, or another one; yields the path of what it writes."""
    log = tmp_path / "strace"
    expressions = [word for i in injections for word in ("-e", f"inject={i}")]
    with subprocess.Popen(["strace", "-p", str(thread or machine.process.pid), "-o", log,
                           *expressions], stderr=subprocess.PIPE) as strace:
        assert b"attached" in strace.stderr.readline()
        try:
            yield log
        finally:
            strace.terminate()


def injected(log):
    return [line for line in log.read_text().splitlines() if line.endswith("(INJECTED)")]


def wait_for_fault(log):
    mayfly.wait_until(lambda: injected(log), log.read_text)


def descriptors(machine):
    """Without those of API connections, which may still be closing."""
    return sorted(re.sub(r"\d+", "N", link) for link in mayfly.open_files(machine.process.pid)
                  if not link.startswith("socket:"))
