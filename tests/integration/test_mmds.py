"""The metadata service as guests find it. The guest relays frames, so that this host's own TCP
speaks to the service through real virtqueues; others send frames of their own making."""

import contextlib
import socket

import pytest

import mayfly
from guests import needs_kvm
from mmds_requests import STORE, TOKEN_CHARACTERS, exchanges, unescape
from snapshots import Clone, pair, resume, save
from taps import (HOST, TYPE_END, Counted, Wire, ip, mac_bytes, make_frame, make_tap, needs_taps,
                  ops)

pytestmark = [needs_kvm, needs_taps]

ADDRESS = "169.254.169.254"
OURS = "169.254.1.9"
SERVICE = "06:01:23:45:67:01"
ETH_P_ARP, ETH_P_ALL = 0x0806, 3


class Relay(Counted):
    """A microVM that relays between eth0, which has the service, and tap1."""

    group = "mmds"

    def __init__(self, data, boot_args="", eth0=None, **config):
        super().__init__("relay", boot_args)
        self.data, self.eth0 = data, eth0 or {}
        self.config = {"network_interfaces": ["eth0"], **config}

    def configure(self):
        super().configure()
        for i in range(2):
            self.ok("PUT", f"/network-interfaces/eth{i}", {
                "iface_id": f"eth{i}", "host_dev_name": make_tap(f"tap{i}"),
                **(self.eth0 if i == 0 else {})})
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


MODES = ["", "eventidx", "offload", "offload eventidx"]


@pytest.mark.parametrize("mode", MODES if mayfly.IS_LONG else MODES[::3])
def test_values_about_the_length_of_segments_arrive(own_namespace, mode):
    head = len("HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
               "Content-Type: text/plain\r\nContent-Length: 1460\r\n\r\n")
    sizes = [1, *(n * 1460 - head + more for n in (1, 2, 3) for more in (-2, -1, 0, 1)), 45000]
    values = {str(n): "v" * n for n in sizes}
    with Relay(None, mode) as vm:
        for n, value in values.items():
            vm.ok("PUT", "/mmds", {n: value})
            assert get(f"/{n}")[1] == value.encode()
        with connected() as client:  # and from one connection
            vm.ok("PUT", "/mmds", STORE)
            for path, value in [("/big", STORE["big"]), ("/d", "data")] * 3:
                client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
                assert read_answer(client)[1] == value.encode()
        vm.end()


@pytest.mark.parametrize("lost", [2, 7])
def test_every_byte_arrives_though_the_guest_loses_every_nth_frame(own_namespace, lost):
    with Relay(STORE, f"drop={lost}") as vm:
        for _ in range(2):
            assert get("/big", "Connection: close")[1] == STORE["big"].encode()
        vm.end()


def test_a_request_may_come_a_byte_at_a_time(own_namespace):
    with Relay(STORE) as vm:
        with connected() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"GET /d HTTP/1.1\r\n\r\n":
                client.sendall(bytes([byte]))
            assert read_answer(client)[1] == b"data"
        vm.end()


def test_other_ports_and_the_31st_connection_are_refused_at_once(own_namespace):
    with Relay(STORE) as vm, contextlib.ExitStack() as stack:
        for port in 81, 443, 22:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((ADDRESS, port), timeout=mayfly.DEADLINE_S)
        clients = [stack.enter_context(connected()) for _ in range(30)]
        with pytest.raises(ConnectionRefusedError), connected():
            pass
        for client in clients:
            client.sendall(b"GET /d HTTP/1.0\r\n\r\n")
        for client in clients:
            assert read_answer(client)[1] == b"data"
            assert client.recv(1) == b""
            client.close()
        vm.wait_for_metric("connections_destroyed", 30)
        assert get("/d")[1] == b"data"
        assert vm.metrics()["rx_accepted_err"] == 3
        vm.end()


def test_what_answers_hold_is_bounded_and_beyond_it_connections_are_reset(own_namespace):
    with Relay(STORE) as vm:
        vm.ok("PUT", "/mmds", {"big": "b" * 45000})
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048) # takes next to nothing
                client.settimeout(mayfly.DEADLINE_S)
                client.connect((ADDRESS, 80))
                client.sendall(b"GET /big HTTP/1.1\r\n\r\n")
                clients.append(client)
            with pytest.raises(ConnectionResetError):
                clients[3].recv(1)
                clients[2].recv(1)
                raise AssertionError("more was kept than there may be")
            assert len(read_answer(clients[0])[1]) == 45000
        vm.end()


def test_a_guest_that_asks_for_ecn_connects_at_its_first_try(own_namespace):
    with open("/proc/sys/net/ipv4/tcp_ecn", "w", encoding="ascii") as ecn:
        ecn.write("1")
    with Relay(STORE) as vm:
        assert get("/d")[1] == b"data"
        assert vm.metrics()["rx_accepted_unusual"] == 0
        vm.end()


def arp_request(target=ADDRESS):
    return (b"\xff" * 6 + mac_bytes(HOST) + b"\x08\x06\0\1\x08\0\6\4\0\1" + mac_bytes(HOST) +
            socket.inet_aton(OURS) + bytes(6) + socket.inet_aton(target))


def test_padded_arp_is_answered_and_nothing_for_the_service_reaches_the_tap(own_namespace):
    other = arp_request("169.254.169.253")
    with Relay(STORE) as vm, Wire("tap1", ETH_P_ARP) as wire, Wire("tap0", ETH_P_ALL) as tap:
        for padding in 0, 18:
            wire.send(arp_request() + bytes(padding))
            answer = wire.receive()
            assert answer[:14] == mac_bytes(HOST) + mac_bytes(SERVICE) + b"\x08\x06"
            assert answer[20:32] == b"\0\2" + mac_bytes(SERVICE) + socket.inet_aton(ADDRESS)
        assert get("/d")[1] == b"data"
        wire.send(other)
        while (frame := tap.receive()) != other:
            assert socket.inet_aton(ADDRESS) not in frame, frame.hex()
        found = vm.metrics("net_eth0")
        assert found["tx_packets_count"] == found["tx_count"]
        assert found["rx_packets_count"] >= 5
        vm.end()


def test_requests_cost_the_transmit_limiter_nothing(own_namespace):
    with Relay(STORE, eth0={"tx_rate_limiter": ops(1)}) as vm:
        for _ in range(5):
            assert get("/d")[1] == b"data"
        assert vm.metrics("net_eth0")["tx_rate_limiter_throttled"] == 0
        vm.end()


def test_a_paused_guest_hears_nothing_and_then_what_was_put_meanwhile(own_namespace):
    with Relay({"a": "before"}) as vm, connected() as client:
        client.sendall(b"GET /a HTTP/1.1\r\n\r\n")
        assert read_answer(client)[1] == b"before"
        vm.ok("PATCH", "/vm", {"state": "Paused"})
        client.sendall(b"GET /a HTTP/1.1\r\n\r\n")
        vm.ok("PUT", "/mmds", {"a": "after"})
        vm.ok("PATCH", "/vm", {"state": "Resumed"})
        assert read_answer(client)[1] == b"after"
        vm.end()


def test_two_interfaces_have_one_store_and_one_key(own_namespace):
    """tap0's frames come to the service of eth1, tap1's to that of eth0."""
    with Relay(STORE, network_interfaces=["eth0", "eth1"], version="V2",
               ipv4_address="169.254.170.2") as vm:
        ip("address add 169.254.1.8/16 dev tap0")
        bodies = []
        requests = ["PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60",
                    "GET /d HTTP/1.1\r\nX-metadata-token: "]
        for i, request in enumerate(requests):
            with socket.socket() as client:
                client.settimeout(mayfly.DEADLINE_S)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap%d" % i)
                client.connect(("169.254.170.2", 80))
                client.sendall(request.encode() + b"".join(bodies) + b"\r\n\r\n")
                bodies.append(read_answer(client)[1])
        assert bodies[1] == b"data"
        vm.end()


def test_a_clone_has_the_service_and_neither_data_nor_tokens_nor_connections(own_namespace, tmp_path):
    ask_token = "X-metadata-token-ttl-seconds: 60"
    config = {"network_interfaces": ["eth0"], "ipv4_address": ADDRESS, "version": "V2",
              "imds_compat": True}
    with Relay({"old": "secret"}, **config) as vm:
        token = "X-metadata-token: " + get("/latest/api/token", ask_token, method="PUT")[1].decode()
        with connected() as client:
            files = save(vm, pair(tmp_path))
            assert vm.ok("GET", "/vm/config")["mmds-config"] == config
            resume(vm)
            assert get("/old", token)[1] == b"secret" # the source goes on
            vm.stop()
            with Clone(files) as clone:
                clone.ok("PUT", "/mmds", {"new": "identity"})
                clone.load(resume_vm=True)
                assert clone.ok("GET", "/vm/config")["mmds-config"] == config
                assert clone.ok("GET", "/mmds") == {"new": "identity"}
                with pytest.raises(ConnectionResetError):
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    client.recv(1)
                assert get("/new", token)[0].startswith("HTTP/1.1 401")
                token = "X-metadata-token: " + get("/latest/api/token", ask_token,
                                                   method="PUT")[1].decode()
                assert get("/old", token)[0].startswith("HTTP/1.1 404")
                assert get("/new", token)[1] == b"identity"


def test_a_clone_without_data_says_so(own_namespace, tmp_path):
    with Relay({"old": "secret"}) as vm:
        files = save(vm, pair(tmp_path))
        vm.stop()
        with Clone(files) as clone:
            clone.load(resume_vm=True)
            assert get("/", "Accept: application/json")[1] == b"null"
            assert get("/")[0].startswith("HTTP/1.1 501")
            assert get("/old")[0].startswith("HTTP/1.1 404")
            assert clone.request("PATCH", "/mmds", {"a": 1})[0] == 400
