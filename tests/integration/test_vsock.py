"""virtio-vsock as the host's programs see it; the test guest is tests/guests/vsock.

MAYFLY_VSOCK_MIB sets how much the random streams move altogether (8), MAYFLY_SEED which.
"""

import array
import fcntl
import os
import random
import re
import selectors
import socket
import termios
import threading

import pytest

import mayfly
from guests import needs_kvm
from vsock import (COUNT, DEAF, ECHO, REFUSED, SILENT, SLAM, SOURCE, Guest, is_closed, read_all,
                   read_bytes, read_line)

pytestmark = needs_kvm

MIB = int(os.environ.get("MAYFLY_VSOCK_MIB", "8"))
SEED = int(os.environ.get("MAYFLY_SEED", "1"))
CONNECTIONS_MAX = 1023
WINDOW = 64 << 10  # what the device takes from the guest for a host that does not read


@pytest.fixture(name="guest")
def a_guest():
    with Guest() as guest:
        yield guest.serve()


@pytest.mark.parametrize("boot_args", ["eventidx", ""])
def test_bytes_go_both_ways(boot_args):
    with Guest(boot_args) as guest:
        with guest.serve().stream(ECHO) as client:
            client.sendall(b"hello")
            assert client.recv(64) == b"hello"
        guest.end()


def unread(client):
    """Whether the other side has bytes to read that this one has sent."""
    return array.array("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0] > 0


class Stream:
    """Random bytes in random pieces to the echo port, compared with what comes back."""

    def __init__(self, guest, number, size):
        self.random = random.Random(SEED * 1000 + number)
        self.client = guest.stream(ECHO)
        self.client.setblocking(False)
        self.data = self.random.randbytes(size)
        self.sent = self.back = 0

    def want(self):
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.sent < len(self.data) else 0)

    def serve(self, events):
        if events & selectors.EVENT_WRITE:
            n = self.random.choice((1, 7, 100, 4052, 4053, 20000, 65536))
            self.sent += self.client.send(self.data[self.sent:self.sent + n])
        if events & selectors.EVENT_READ:
            part = self.client.recv(self.random.choice((1, 64, 4096, 1 << 17)))
            assert part, f"the stream ended after {self.back} bytes"
            assert part == self.data[self.back:self.back + len(part)], f"at byte {self.back}"
            self.back += len(part)
        return self.back == len(self.data)


@pytest.mark.parametrize("boot_args", ["eventidx", ""])
def test_many_streams_of_random_pieces_come_back_byte_by_byte(boot_args):
    count = 40
    with Guest(boot_args) as guest, selectors.DefaultSelector() as selector:
        guest.serve()
        for i in range(count):
            stream = Stream(guest, i, MIB * (1 << 20) // count)
            selector.register(stream.client, stream.want(), stream)
        while selector.get_map():
            events = selector.select(mayfly.DEADLINE_S)
            assert events, "the streams stand still"
            for key, ready in events:
                if key.data.serve(ready):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                else:
                    selector.modify(key.fileobj, key.data.want(), key.data)
        guest.end()


def test_the_guest_connects_to_sockets_of_the_host():
    count, size = 20, 70000
    with Guest(f"eventidx connect=1234 count={count} bytes={size}") as guest:
        guest.configure()
        with guest.listen(1234) as listener:
            def echo(client):
                with client:
                    while part := client.recv(5000):
                        client.sendall(part)
            assert guest.instance_start()[0] == 204
            threads = []
            for _ in range(count):
                threads.append(threading.Thread(target=echo, args=(listener.accept()[0],)))
                threads[-1].start()
            assert f"ended {count}" in guest.finish()
            for thread in threads:
                thread.join()


def test_the_guest_is_reset_where_nobody_listens():
    with Guest("eventidx connect=1234 count=3 bytes=0") as guest:
        # A reset is the end that such a connection has, after no byte.
        assert "ended 3" in guest.boot().finish()


@pytest.mark.parametrize("command", [
    b"CONNECT 52\n", b"connect 52\n", b"CoNnEcT   52\n", b"CONNECT\t52\n", b"CONNECT +52\n",
    b"CONNECT 0000000000000000000052\n"[:31], b"CONNECT 52 more\n",
])
def test_a_command_is_understood(guest, command):
    with guest.dial(command) as client:
        assert read_line(client).startswith(b"OK ")


@pytest.mark.parametrize("command", [
    b"CONNECT\n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 4294967296\n",
    b"CONNECT 52x\n", b"CONNECT52\n\n\n\n", b"GET / HTTP/1.1\r\n", b"\n" * 20,
    b"CONNECT 00000000000000000000000052\n", b"x" * 5000, b"\0" * 64,
])
def test_another_command_is_answered_by_the_end_and_silence(guest, command):
    with guest.dial(command) as client:
        assert is_closed(client)
    with guest.stream(ECHO) as client:
        client.sendall(b"on")
        assert client.recv(2) == b"on"


def test_a_command_in_pieces_is_waited_for(guest):
    with guest.dial() as client:
        for piece in (b"C", b"ONNECT 5", b"2"):
            client.sendall(piece)
            while unread(client):
                assert not guest.has_ended()
        client.sendall(b"\n")
        assert read_line(client).startswith(b"OK ")


@pytest.mark.parametrize("port", [REFUSED, 0, 4294967295])
def test_a_port_that_refuses_ends_the_connection_in_silence(guest, port):
    with guest.dial(b"CONNECT %d\n" % port) as client:
        assert is_closed(client)


def test_a_guest_that_does_not_answer_is_given_up(guest):
    with guest.dial(b"CONNECT %d\n" % SILENT) as client:
        assert is_closed(client)


def test_what_follows_the_command_at_once_is_for_the_guest(guest):
    with guest.dial(b"CONNECT %d\nthe first bytes" % ECHO) as client:
        assert read_line(client).startswith(b"OK ")
        assert client.recv(64) == b"the first bytes"


def test_who_connects_before_the_driver_is_there_waits():
    with Guest() as guest:
        guest.configure()
        with guest.dial(b"CONNECT %d\n" % ECHO) as client:
            assert guest.instance_start()[0] == 204
            assert read_line(client).startswith(b"OK ")


def test_a_reset_by_the_guest_closes_the_socket(guest):
    with guest.stream(SLAM) as client:
        assert is_closed(client)


def test_the_end_of_the_guest_s_stream_is_the_end_of_the_socket_s():
    size = 3 << 20
    with Guest(f"eventidx bytes={size}") as guest:
        with guest.serve().stream(SOURCE) as client:
            pattern = bytes(i % 251 for i in range(4096 + 251))
            data = read_all(client)
            assert len(data) == size
            assert all(data[i:i + 251] == pattern[:len(data[i:i + 251])]
                       for i in range(0, size, 251))


def test_a_host_that_has_sent_all_still_gets_the_answer(guest):
    """Half-close: the guest counts to the end, and only then says how much it was."""
    size = 500000
    with guest.stream(COUNT) as client:
        client.sendall(bytes(size))
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == size.to_bytes(8, "little")


def test_a_host_that_does_not_read_stops_nobody_else():
    size = 4 << 20
    with Guest(f"eventidx bytes={size}") as guest:
        guest.serve()
        with guest.stream(SOURCE) as idle:
            for _ in range(3):
                with guest.stream(SOURCE) as client:
                    assert len(read_all(client)) == size
            assert len(read_all(idle)) == size


def test_a_guest_that_does_not_read_stops_nobody_else(guest):
    with guest.stream(DEAF) as deaf:
        deaf.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                deaf.send(bytes(1 << 16))
        with guest.stream(ECHO) as client:
            client.sendall(b"x" * 1000)
            assert len(client.recv(1000, socket.MSG_WAITALL)) == 1000
        assert guest.ok("GET", "/")["state"] == "Running"


def test_hosts_that_vanish_are_noticed_and_sigpipe_counted():
    with Guest(f"eventidx bytes={1 << 30}") as guest:
        guest.configure()
        guest.put_metrics()
        assert guest.instance_start()[0] == 204
        guest.wait_for_output("serving")
        for _ in range(50):
            with guest.stream(SOURCE) as client:
                client.recv(1000)
        with guest.stream(ECHO) as client:
            client.sendall(b"on")
            assert client.recv(2) == b"on"
        while (metrics := guest.metrics())["conns_removed"] < 51:
            assert guest.process.poll() is None
        assert metrics["conns_added"] == 51
        assert metrics["sigpipe"] > 0
        assert metrics["tx_write_fails"] > 0
        guest.end()


def test_a_host_that_vanishes_with_bytes_held_back_for_it_is_noticed():
    with Guest(f"eventidx bytes={1 << 20}") as guest:
        guest.configure()
        guest.put_metrics()
        assert guest.instance_start()[0] == 204
        guest.wait_for_output("serving")
        with guest.stream(SOURCE):
            while guest.metrics()["tx_bytes_count"] < WINDOW:  # more than the socket holds
                assert guest.process.poll() is None
        while guest.metrics()["tx_flush_fails"] == 0:
            assert guest.process.poll() is None
        with guest.stream(ECHO) as client:
            client.sendall(b"on")
            assert client.recv(2) == b"on"
        guest.end()


def test_as_many_connections_as_promised_and_then_one_more(guest):
    clients = [guest.stream(ECHO) for _ in range(CONNECTIONS_MAX)]
    with guest.dial(b"CONNECT %d\n" % ECHO) as late:
        assert is_closed(late)
    for i, client in enumerate(clients):
        client.sendall(b"%d" % i)
    for i, client in enumerate(clients):
        assert client.recv(64) == b"%d" % i
    clients[500].close()
    while True:  # its place is free once the guest has confirmed the end
        with guest.dial(b"CONNECT %d\n" % ECHO) as again:
            if not is_accepted(again):
                continue
            again.sendall(b"again")
            assert again.recv(64) == b"again"
            break
    for client in clients:
        client.close()


WIDE, HELD = 16, 8 << 20 # connections with room for a host that reads, and bytes for all


def own_kib(guest):
    """The VMM's memory beside the guest's, which is one large mapping."""
    with open(f"/proc/{guest.process.pid}/smaps", encoding="ascii") as text:
        sizes = re.findall(r"^Size: *(\d+) kB\n(?:.*\n)*?Rss: *(\d+) kB$", text.read(), re.M)
    return sum(int(rss) for size, rss in sizes if int(size) < 16 << 10)


def stream_at_last(guest, port):
    """A guest on a busy host may be too slow with its answer."""
    while not is_accepted(client := guest.dial(b"CONNECT %d\n" % port)):
        client.close()
    return client


@pytest.mark.skipif("sanitize" in mayfly.BINARY, reason="a sanitizer keeps what is freed")
def test_a_guest_that_fills_what_is_held_for_it_costs_the_vmm_some_mib():
    """Those whose hosts have been seen to read have the widest windows; then more than can be held.
    What the kernel holds is counted in tests/unit/vsock_hostile_test.c."""
    with Guest("eventidx bytes=10000000") as guest:
        guest.serve()
        before = own_kib(guest)
        clients = [stream_at_last(guest, SOURCE) for _ in range(WIDE)]
        for client in clients:
            read_bytes(client, 1 << 18)
        clients += [stream_at_last(guest, SOURCE) for _ in range(HELD // WINDOW)]
        while (own_kib(guest) - before) << 10 < 0.9 * HELD:
            assert not guest.has_ended()
        with guest.stream(ECHO) as client: # whatever it has sent before is taken care of
            client.sendall(b"on")
            assert client.recv(2) == b"on"
        grown = (own_kib(guest) - before) << 10
        assert 0.9 * HELD <= grown <= HELD + (2 << 20)
        for client in clients:
            client.close()
        guest.end()


def is_accepted(client):
    """Whether the answer is OK; else there is none."""
    try:
        return read_line(client).startswith(b"OK ")
    except ConnectionResetError:
        return False


def test_clients_without_a_command_make_room(guest):
    idle = [guest.dial() for _ in range(CONNECTIONS_MAX + 20)]
    with guest.stream(ECHO) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    for client in idle:
        client.close()


def test_streams_stand_still_and_go_on_with_the_vm(guest):
    with guest.stream(ECHO) as client:
        guest.ok("PATCH", "/vm", {"state": "Paused"})
        client.sendall(b"while paused")
        with guest.dial(b"CONNECT %d\n" % ECHO) as other:
            assert guest.ok("GET", "/")["state"] == "Paused"
            guest.ok("PATCH", "/vm", {"state": "Resumed"})
            assert client.recv(64) == b"while paused"
            assert read_line(other).startswith(b"OK ")


def test_a_paused_vm_costs_nothing_however_much_waits_for_it(guest):
    """Sockets with something to read are not looked at again and again."""
    clients = [guest.stream(ECHO) for _ in range(20)]
    guest.ok("PATCH", "/vm", {"state": "Paused"})
    for client in clients:
        client.sendall(b"x" * 1000)
    for client in clients[:10]:
        client.shutdown(socket.SHUT_WR)
    for client in clients[10:15]:
        client.close()
    guest.ok("GET", "/")
    before = switches(guest)
    for _ in range(20):
        guest.ok("GET", "/version")
    # Each request takes a few turns of the loop; a loop that spins takes thousands.
    assert switches(guest) - before < 20 * 50
    guest.ok("PATCH", "/vm", {"state": "Resumed"})
    for client in clients[:10]:
        assert read_all(client) == b"x" * 1000


def switches(guest):
    """System calls that waited would do; what can be had is the time spent, in ticks."""
    with open(f"/proc/{guest.process.pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_the_api_answers_while_streams_are_moved(guest):
    stop = threading.Event()

    def stream():
        with guest.stream(ECHO) as client:
            client.settimeout(0.01)
            while not stop.is_set():
                try:
                    client.send(bytes(1 << 16))
                    client.recv(1 << 16)
                except TimeoutError:
                    pass
    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            guest.ok("GET", "/vm/config")
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_relative_paths_are_those_of_the_process():
    with Guest("eventidx connect=7 count=1 bytes=10000") as guest, guest.listen(7) as listener:
        guest.uds_path = os.path.basename(guest.uds_path)
        guest.boot()
        with listener.accept()[0] as client:
            while part := client.recv(4096):
                client.sendall(part)
        guest.finish()


def test_the_socket_stays_when_the_process_ends(guest):
    guest.end()
    assert os.path.exists(guest.uds_path)


def test_the_configuration_shows_it_and_a_second_one_replaces_it(tmp_path):
    with mayfly.Mayfly() as vm:
        assert vm.ok("GET", "/vm/config")["vsock"] is None
        first, second = tmp_path / "1", tmp_path / "2"
        vm.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": str(first)})
        assert first.is_socket()
        vm.ok("PUT", "/vsock", {"guest_cid": 4, "uds_path": str(first)})
        vm.ok("PUT", "/vsock", {"guest_cid": 5, "uds_path": str(second)})
        assert not first.exists() and second.is_socket()
        (tmp_path / "file").touch()
        for path, text in ((tmp_path / "file", f"Address in use (os error 98) {tmp_path}/file"),
                           (tmp_path / "none" / "x",
                            f"No such file or directory (os error 2) {tmp_path}/none/x"),
                           ("x" * 108, "path must be shorter than SUN_LEN")):
            status, _, body = vm.request("PUT", "/vsock", {"guest_cid": 6, "uds_path": str(path)})
            assert (status, body["fault_message"]) == (
                400, "Vsock config error: Cannot create backend for vsock device: Error binding "
                f"to the host-side Unix socket: {text}")
        assert second.is_socket()
        assert vm.ok("GET", "/vm/config")["vsock"] == {"guest_cid": 5, "uds_path": str(second)}


def test_a_socket_file_that_was_removed_is_made_again(tmp_path):
    path, config = tmp_path / "v", {"guest_cid": 3, "uds_path": str(tmp_path / "v")}
    with mayfly.Mayfly() as vm:
        vm.ok("PUT", "/vsock", config)
        path.unlink()
        vm.ok("PUT", "/vsock", config)
        assert path.is_socket()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        vm.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": f"{tmp_path}/./v"}) # it is the same
        assert path.is_socket()


def test_a_file_that_took_the_place_of_the_socket_is_nobody_s_business(tmp_path):
    path, config = tmp_path / "v", {"guest_cid": 3, "uds_path": str(tmp_path / "v")}
    with mayfly.Mayfly() as vm:
        vm.ok("PUT", "/vsock", config)
        path.unlink()
        path.write_text("precious")
        status, _, body = vm.request("PUT", "/vsock", config)
        assert status == 400 and "Address in use" in body["fault_message"]
        vm.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": str(tmp_path / "w")})
        assert path.read_text() == "precious"
        path.rename(tmp_path / "kept")
        (tmp_path / "w").rename(path) # and ours is somewhere else
        vm.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": str(tmp_path / "w")})
        assert path.is_socket() and (tmp_path / "w").is_socket()


def test_an_id_is_taken_and_deprecated(tmp_path):
    with mayfly.Mayfly() as vm:
        status, headers, _ = vm.request("PUT", "/vsock", {
            "guest_cid": 3, "uds_path": str(tmp_path / "v"), "vsock_id": "guest-agent"})
        assert status == 204 and headers["deprecation"] == "true"
        assert "vsock_id" not in vm.ok("GET", "/vm/config")["vsock"]
        status, headers, _ = vm.request("PUT", "/vsock", {
            "guest_cid": 3, "uds_path": str(tmp_path / "v"), "vsock_id": None})
        assert status == 204 and "deprecation" not in headers
