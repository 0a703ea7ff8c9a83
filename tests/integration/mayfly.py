"""A mayfly process under test: started on a socket of its own, spoken to over HTTP, and stopped.

    with Mayfly("--boot-timer") as vm:
        status, headers, body = vm.request("PUT", "/machine-config", {"vcpu_count": 2, ...})
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        assert vm.wait(5) == 0
        assert "text" in vm.output()

The binary is $MAYFLY, or build/release/mayfly of this checkout. The test guests are in
$MAYFLY_GUESTS, or in guests/ beside the binary.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.path.abspath(os.environ.get("MAYFLY", f"{ROOT}/build/release/mayfly"))
GUESTS = os.path.abspath(os.environ.get("MAYFLY_GUESTS", f"{os.path.dirname(BINARY)}/guests"))
DEADLINE_S = 10


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
        """Returns once the API accepts connections, or at once without an API."""
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
            self.connect().close()
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
        end = time.monotonic() + DEADLINE_S
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(DEADLINE_S)
            try:
                client.connect(self.socket_path)
                return client
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                client.close()
                if self.has_ended() or time.monotonic() > end:
                    raise AssertionError(f"no API; output:\n{self.output()}") from None
                time.sleep(0.001)

    def request(self, method, path, body=None):
        """(status, headers, body): header names in lower case; the body decoded where it is JSON,
        else text, None without one. A dict or list is sent as JSON, a str or bytes as it is."""
        with self.connect() as client:
            client.sendall(encode(method, path, body))
            return Answers(client).next()

    def ok(self, method, path, body=None):
        """As request(), but the answer must be a success; returns its body."""
        status, _, answer = self.request(method, path, body)
        assert status in (200, 204), f"{method} {path}: {status} {answer}"
        return answer

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

    def wait_for_output(self, text, timeout=DEADLINE_S):
        """Returns the output once it contains text."""
        end = time.monotonic() + timeout
        while text not in self.output():
            ended = self.process.poll() is not None or time.monotonic() > end
            assert not ended or text in self.output(), f"no {text!r} in:\n{self.output()}"
            time.sleep(0.001)
        return self.output()


def encode(method, path, body=None, headers=()):
    """The bytes of a request."""
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


class Answers:
    """The answers that arrive on a connection, one by one."""

    def __init__(self, client):
        self.client, self.pending = client, b""

    def _until(self, complete):
        while not complete():
            data = self.client.recv(65536)
            if not data:
                raise ConnectionResetError(f"closed after {self.pending!r}")
            self.pending += data

    def raw(self):
        """Head and body of the next answer, as bytes."""
        self._until(lambda: b"\r\n\r\n" in self.pending)
        end = self.pending.index(b"\r\n\r\n") + 4
        length = 0
        for line in self.pending[:end].split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self._until(lambda: len(self.pending) >= end + length)
        head, body = self.pending[:end], self.pending[end:end + length]
        self.pending = self.pending[end + length:]
        return head, body

    def next(self):
        """(status, headers, body) of the next answer, as Mayfly.request() gives it."""
        head, body = self.raw()
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        headers = {name.lower(): value for name, value in headers.items()}
        text = body.decode() if body else None
        try:
            text = json.loads(text) if text else None
        except ValueError:
            pass
        return int(status.split(" ")[1]), headers, text
