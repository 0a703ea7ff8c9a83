"""A mayfly process under test: started on a socket of its own, spoken to over HTTP, and stopped.

    with Mayfly("--boot-timer") as vm:
        status, headers, body = vm.request("PUT", "/machine-config", {"vcpu_count": 2, ...})
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        assert vm.wait(5) == 0
        assert "text" in vm.output()

The binary is $MAYFLY, or build/release/mayfly of this checkout. The test guests are in
$MAYFLY_GUESTS, or in guests/ beside the binary.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import unix_http
from unix_http import DEADLINE_S

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.path.abspath(os.environ.get("MAYFLY", f"{ROOT}/build/release/mayfly"))
GUESTS = os.path.abspath(os.environ.get("MAYFLY_GUESTS", f"{os.path.dirname(BINARY)}/guests"))
BEFORE = "The requested operation is not supported before starting the microVM."
AFTER = "The requested operation is not supported after starting the microVM."
# What is expensive to make is kept there, as by ./devtool.
CACHE = pathlib.Path(os.environ.get("MAYFLY_CACHE") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mayfly")
IS_LONG = "MAYFLY_LONG" in os.environ  # ./devtool test --long: every variant of every test


def wait_until(condition, what):
    """The first true value of condition(). what: its description, or a function that makes one."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain for {what() if callable(what) else what}"
        time.sleep(0.001)
    return value


def complete(*command, **more):
    """A command that has come to its end: a subprocess.CompletedProcess with its texts."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=DEADLINE_S, check=False, **more)


def open_files(pid):
    """What each descriptor of a process leads to. One that is closed meanwhile is left out, as that
    of an API connection mostly is some time after its end."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return links


class Mayfly:
    """args are further arguments for the binary; api=False leaves the API out (--no-api). Without a
    stdout of the caller's, output goes to a file. user: a uid to run as, for root.
    before_exec is called in the new process. It runs in a directory of its own, which goes with it
    and with what it makes at relative paths."""

    def __init__(self, *args, api=True, stdin=subprocess.DEVNULL, stdout=None, user=None,
                 before_exec=lambda: None):
        self.args, self.api, self.user, self.before_exec = args, api, user, before_exec
        self.stdin, self.stdout = stdin, stdout
        self.directory = tempfile.mkdtemp(prefix="mayfly-test-")
        self.socket_path = os.path.join(self.directory, "api.sock")
        self.output_path = os.path.join(self.directory, "output")
        self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self):
        """Returns once the API serves connections, or at once without an API."""
        api = ["--api-sock", self.socket_path] if self.api else ["--no-api"]
        binary = BINARY
        if self.user is not None: # who may have no way to where the binary was built
            binary = shutil.copy(BINARY, self.directory)
            shutil.chown(self.directory, self.user)
        with open(self.output_path, "wb") as output:
            self.process = subprocess.Popen(
                [binary, *api, *self.args], cwd=self.directory, user=self.user,
                preexec_fn=self.prepare, stdin=self.stdin, stdout=self.stdout or output,
                stderr=output)
        if self.api:
            with self.connect() as client, contextlib.suppress(ConnectionError):
                if "--config-file" not in self.args:
                    # Whoever hears of a connection's end has made what it makes ahead.
                    client.shutdown(socket.SHUT_WR)
                    client.recv(1)
        return self

    def prepare(self):
        # What a shell runs in the background inherits that it ignores these two.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        self.before_exec()

    def has_ended(self):
        return self.process.poll() is not None

    def connect(self):
        """A new connection to the API, as a socket with a timeout."""
        try:
            return unix_http.connect(self.socket_path, self.has_ended)
        except OSError:
            raise AssertionError(f"no API; output:\n{self.output()}") from None

    def request(self, method, path, body=None):
        """unix_http.ask() on a connection of its own."""
        with self.connect() as client:
            return unix_http.ask(client, method, path, body)

    def ok(self, method, path, body=None):
        """unix_http.ok() on a connection of its own."""
        with self.connect() as client:
            return unix_http.ok(client, method, path, body)

    def wait(self, timeout=DEADLINE_S):
        """The exit code, negative for a signal; fails when the process still runs."""
        return self.process.wait(timeout)

    def stop(self):
        """Kills the process if it still runs; returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def output(self):
        """What the process has written to stdout and stderr so far."""
        with open(self.output_path, "rb") as output:
            return output.read().decode("utf-8", "replace")

    def wait_for_output(self, text):
        """Returns the output once it contains text."""
        wait_until(lambda: text in self.output() or self.process.poll() is not None,
                   lambda: f"{text!r} in:\n{self.output()}")
        assert text in self.output(), f"no {text!r} in:\n{self.output()}"
        return self.output()
