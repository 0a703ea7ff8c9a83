"""The metadata service as guests find it. The guest relays frames, so that this host's own TCP
speaks to the service through real virtqueues; others send frames of their own making."""

import contextlib
import json
import os
import socket

import pytest

import mayfly
from guests import Machine, needs_kvm
from mmds_requests import STORE, TOKEN_CHARACTERS, exchanges, unescape
from taps import TYPE_END, Wire, ip, make_frame, make_tap, needs_taps

pytestmark = [needs_kvm, needs_taps]

ADDRESS = "169.254.169.254"
OURS = "169.254.1.9"


class Relay(Machine):
    """A microVM that relays between eth0, which has the service, and tap1."""

    def __init__(self, data, boot_args="", eth0=None, **config):
        super().__init__("relay", boot_args)
        self.data, self.eth0 = data, eth0 or {}
        self.config = {"network_interfaces": ["eth0"], **config}
        self.metrics_path = os.path.join(self.directory, "metrics")

    def configure(self):
        super().configure()
        for i in range(2):
            self.ok("PUT", f"/network-interfaces/eth{i}", {
                "iface_id": f"eth{i}", "host_dev_name": make_tap(f"tap{i}"),
                **(self.eth0 if i == 0 else {})})
        self.ok("PUT", "/metrics", {"metrics_path": self.metrics_path})
        self.ok("PUT", "/mmds/config", self.config)
        if self.data is not None:
            self.ok("PUT", "/mmds", self.data)

    def __enter__(self):
        super().__enter__()
        self.boot()
        self.wait_for_output("relaying")
        ip(f"address add {OURS}/16 dev tap1")
        return self

    def end(self):
        with Wire("tap1") as wire:
            wire.send(make_frame(bytes(46), kind=TYPE_END))
        return self.finish()

    def metrics(self, group="mmds"):
        self.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
        total = {}
        with open(self.metrics_path, encoding="utf-8") as lines:
            for line in lines:
                for name, value in json.loads(line)[group].items():
                    if isinstance(value, int):
                        total[name] = total.get(name, 0) + value
        return total

    def wait_for_metric(self, name, least):
        mayfly.wait_until(lambda: self.metrics()[name] >= least,
                          lambda: f"{name} of {least}: {self.metrics()}")
        return self.metrics()


@contextlib.contextmanager
def connected():
    with socket.create_connection((ADDRESS, 80), timeout=mayfly.DEADLINE_S) as client:
        yield client


def read_answer(client):
    """(head, body) of the next answer."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = client.recv(1)
        assert piece, f"the end after {got!r}"
        got += piece
    head = got.decode()
    length = int(head.rsplit("Content-Length: ", 1)[1])
    body = b""
    while len(body) < length:
        piece = client.recv(length - len(body))
        assert piece, f"the end after {len(body)} of {length} bytes"
        body += piece
    return head, body


def get(path, *headers, method="GET"):
    with connected() as client:
        client.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode())
        return read_answer(client)


def test_a_guest_reads_its_metadata(own_namespace):
    with Relay({"latest": {"meta-data": {"ami-id": "ami-12345678"}}}) as vm:
        assert get("/latest/meta-data/ami-id") == (
            "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
            "Content-Type: text/plain\r\nContent-Length: 12\r\n\r\n", b"ami-12345678")
        vm.end()


def read_exactly(client, n):
    got = b""
    while len(got) < n:
        piece = client.recv(n - len(got))
        if not piece:
            break
        got += piece
    return got


@pytest.mark.parametrize("version", [1, 2])
def test_a_guest_is_answered_as_by_firecracker(own_namespace, version):
    token = b""
    with Relay(STORE, version=f"V{version}") as vm:
        for each in exchanges(version):
            with connected() as client:
                client.sendall(unescape(each.request, token))
                for answer in each.answers:
                    got = read_exactly(client, len(answer.bytes(bytes(TOKEN_CHARACTERS))))
                    token = answer.token_of(got) or token
                    assert got == answer.bytes(token), each.name
                if each.answers[-1].closes:
                    assert client.recv(1) == b"", each.name
                else:
                    client.sendall(b"PATCH / HTTP/1.1\r\n\r\n")
                    assert read_answer(client)[1] == b"Not allowed HTTP method.", each.name
        found = vm.wait_for_metric("connections_destroyed", len(exchanges(version)))
        vm.end()
    # They are counted in both versions, as in Firecracker.
    bodies = [answer.body for each in exchanges(2) for answer in each.answers]
    assert found["rx_no_token"] == bodies.count(r"\N")
    assert found["rx_invalid_token"] == bodies.count("MMDS token not valid.")
    assert found["connections_created"] == len(exchanges(version))
    assert found["rx_accepted_err"] == found["tx_errors"] == found["rx_bad_eth"] == 0
