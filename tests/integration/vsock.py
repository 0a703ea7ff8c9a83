"""A vsock's two sides: the test guest is tests/guests/vsock, the host's are UNIX sockets."""

import contextlib
import json
import os
import resource
import socket

import mayfly
from guests import Machine

OFF, ECHO, COUNT, SOURCE, DEAF, SILENT, SLAM, REFUSED = 9, 52, 53, 54, 55, 56, 57, 58


def many_files():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 8192), limit))


class Guest(Machine):
    """A microVM with the test guest, and the host's side of its vsock."""

    def __init__(self, boot_args="eventidx", cid=3, **options):
        many_files()
        super().__init__("vsock", f"cid={cid} {boot_args}", before_exec=many_files, **options)
        self.cid = cid
        self.uds_path = os.path.join(self.directory, "v.sock")

    def configure(self):
        super().configure()
        self.ok("PUT", "/vsock", {"guest_cid": self.cid, "uds_path": self.uds_path})

    def serve(self):
        self.boot()
        self.wait_for_output("serving")
        return self

    def dial(self, command=None):
        return dial(self.uds_path, command)

    def stream(self, port):
        """A stream to a port of the guest, behind the answer."""
        client = self.dial(b"CONNECT %d\n" % port)
        line = read_line(client)
        assert line.startswith(b"OK ") and int(line[3:]) >= 1 << 30, line
        return client

    def listen(self, port):
        """What the guest reaches as a port of the host."""
        return listen(f"{self.uds_path}_{port}")

    def end(self):
        with self.dial(b"CONNECT %d\n" % OFF):
            return self.finish()

    def metrics(self):
        path = os.path.join(self.directory, "metrics")
        self.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
        total = {}
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                for group in ("vsock", "signals"):
                    for name, value in json.loads(line)[group].items():
                        total[name] = total.get(name, 0) + value
        return total

    def put_metrics(self):
        path = os.path.join(self.directory, "metrics")
        self.ok("PUT", "/metrics", {"metrics_path": path})
        return self


def dial(path, command=None):
    """A connection to a vsock's listening socket, after `command`."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(mayfly.DEADLINE_S)
    client.connect(path)
    if command is not None:
        with contextlib.suppress(BrokenPipeError):  # closed already, as its reader will see
            client.sendall(command)
    return client


def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(mayfly.DEADLINE_S)
    listener.bind(path)
    listener.listen(64)
    return listener


def read_bytes(client, count):
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        assert part, f"the end after {data}"
        data += part
    return data


def read_line(client):
    line = b""
    while not line.endswith(b"\n"):
        data = client.recv(1)
        if not data:
            return line
        line += data
    return line


def read_all(client):
    data = b""
    while part := client.recv(1 << 16):
        data += part
    return data


def is_closed(client):
    """Closed by the other side, without a word."""
    try:
        return client.recv(64) == b""
    except ConnectionResetError:
        return True
