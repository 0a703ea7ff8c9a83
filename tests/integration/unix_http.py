"""HTTP over a UNIX socket, as the API's clients speak it: for tests and benchmarks.

    with unix_http.connect(path) as client:
        status, headers, body = unix_http.ask(client, "PUT", "/machine-config", {"vcpu_count": 2, ...})
        version = unix_http.ok(client, "GET", "/version")["firecracker_version"]
"""

import json
import re
import socket
import time

DEADLINE_S = 180  # for whatever is waited for; a loaded host takes its time


def connect(path, has_ended=lambda: False, pause_s=0.001):
    """A connection, with a timeout, to a socket that may not be there yet. Raises the last OSError
    when it is too late, or has_ended(). pause_s: how long it waits before it tries again."""
    end = time.monotonic() + DEADLINE_S
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE_S)
        try:
            client.connect(path)
            return client
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            client.close()
            if has_ended() or time.monotonic() > end:
                raise
            time.sleep(pause_s)


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

    def _read(self):
        data = self.client.recv(65536)
        if not data:
            raise ConnectionResetError(f"closed after {self.pending!r}")
        self.pending += data

    def raw(self):
        """Head and body of the next answer, as bytes."""
        while (at := self.pending.find(b"\r\n\r\n") + 4) < 4:
            self._read()
        length = re.search(rb"\r\ncontent-length: *(\d+)", self.pending[:at], re.I)
        end = at + int(length[1]) if length else at
        while len(self.pending) < end:
            self._read()
        head, body = self.pending[:at], self.pending[at:end]
        self.pending = self.pending[end:]
        return head, body

    def next(self):
        """(status, headers, body) of the next answer, as ask() gives it."""
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


def ask(client, method, path, body=None):
    """(status, headers, body): header names in lower case; the body decoded where it is JSON, else
    text, None without one. A dict or list is sent as JSON, a str or bytes as it is."""
    client.sendall(encode(method, path, body))
    return Answers(client).next()


def ok(client, method, path, body=None):
    """As ask(), but the answer must be a success; returns its body."""
    status, _, answer = ask(client, method, path, body)
    assert status in (200, 204), f"{method} {path}: {status} {answer}"
    return answer
