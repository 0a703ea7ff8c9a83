"""What the host refuses a vsock: as test_faults.py, for the calls that make its socket, those that
take and make connections, and those that move bytes. No descriptor is lost and other streams go on."""

import pytest

import mayfly
from faults import STRERROR, UNFILTERED, injected, needs_strace, traced, wait_for_fault
from guests import at_rest, needs_kvm
from vsock import COUNT, ECHO, Guest, is_closed, read_bytes

pytestmark = [needs_kvm, needs_strace]


def descriptors(machine):
    return at_rest(machine)[2]


@pytest.mark.parametrize("call, error", [
    ("socket", "EMFILE"), ("socket", "ENOMEM"), ("bind", "EACCES"), ("bind", "ENOSPC"),
    ("listen", "ENOMEM"),
])
def test_a_socket_that_cannot_be_made_is_refused_whole(tmp_path, call, error):
    path = tmp_path / "v"
    config = {"guest_cid": 3, "uds_path": str(path)}
    with mayfly.Mayfly(*UNFILTERED) as vm:
        before = descriptors(vm)
        with traced(vm, tmp_path, f"{call}:error={error}:when=1") as log:
            status, _, body = vm.request("PUT", "/vsock", config)
        assert len(injected(log)) == 1
        assert status == 400 and STRERROR[error] in body["fault_message"]
        assert vm.ok("GET", "/vm/config")["vsock"] is None
        assert descriptors(vm) == before and not path.exists()
        vm.ok("PUT", "/vsock", config)
        assert descriptors(vm) == before + 1


@pytest.fixture(name="served")
def a_served_guest():
    """One stream is there before, and after."""
    with Guest(flags=UNFILTERED) as guest:
        guest.serve()
        with guest.stream(ECHO) as other:
            echoes(other, b"before")
            before = descriptors(guest)
            yield guest
            with guest.stream(ECHO) as another:
                echoes(another, b"new")
            echoes(other, b"after")
            while descriptors(guest) > before: # until the guest has confirmed the ends
                assert not guest.has_ended()
            assert descriptors(guest) == before
        guest.end()


def echoes(client, data):
    client.sendall(data)
    assert read_bytes(client, len(data)) == data


@pytest.mark.parametrize("fault", [
    "accept4:error=EMFILE", "accept4:error=ENFILE", "accept4:error=ENOMEM", "accept4:error=EINTR",
    "accept4:error=ECONNABORTED", "accept4:error=EAGAIN", "epoll_wait:error=EINTR",
])
def test_a_client_that_could_not_be_taken_is_taken_later(served, tmp_path, fault):
    with traced(served, tmp_path, fault + ":when=1") as log:
        with served.stream(ECHO) as client:
            echoes(client, b"taken")
        assert len(injected(log)) == 1
    error = fault.removeprefix("accept4:error=")
    text = "vsock cannot take a host's connection: " + STRERROR.get(error, "")
    assert (text in served.log()) == (error in ("EMFILE", "ENFILE", "ENOMEM"))


@pytest.mark.parametrize("fault", [
    "epoll_ctl:error=ENOMEM", "epoll_ctl:error=ENOSPC", "recvfrom:error=EIO", "recvfrom:retval=12",
    "write:error=ENOBUFS", "write:retval=2",
])
def test_a_client_that_cannot_be_served_hears_the_end(served, tmp_path, fault):
    with traced(served, tmp_path, fault + ":when=1") as log, \
         served.dial(b"CONNECT %d\n" % ECHO) as client:
        wait_for_fault(log)
        assert is_closed(client)


@pytest.mark.parametrize("fault", ["readv:error=EINTR", "readv:error=EAGAIN",
                                   "writev:error=EINTR", "writev:error=EAGAIN"])
def test_a_stream_that_was_interrupted_is_whole(served, tmp_path, fault):
    with served.stream(ECHO) as client, traced(served, tmp_path, fault + ":when=1") as log:
        echoes(client, bytes(range(256)) * 20)
        assert len(injected(log)) == 1


def test_what_could_not_be_written_at_once_is_written_later(served, tmp_path):
    with served.stream(ECHO) as client, \
         traced(served, tmp_path, "writev:retval=3:when=1") as log:
        client.sendall(b"0123456789")
        assert read_bytes(client, 7) == b"3456789" # the fault took the first
        assert len(injected(log)) == 1


@pytest.mark.parametrize("error", ["EIO", "ECONNRESET"])
def test_a_stream_that_cannot_be_read_ends(served, tmp_path, error):
    """The guest takes it for the end, and says how much it got."""
    with served.stream(COUNT) as client:
        with traced(served, tmp_path, f"readv:error={error}:when=1") as log:
            client.sendall(b"lost")
            wait_for_fault(log)
            assert read_bytes(client, 8) == bytes(8)
            assert is_closed(client)


@pytest.mark.parametrize("call, error", [
    ("socket", "EMFILE"), ("connect", "EAGAIN"), ("connect", "ENOMEM"), ("connect", "EACCES"),
])
def test_a_connection_of_the_guest_s_that_fails_is_reset_and_no_other(tmp_path, call, error):
    with Guest("eventidx connect=1234 count=3 bytes=0", flags=UNFILTERED) as guest:
        guest.configure()
        with guest.listen(1234) as listener:
            with traced(guest, tmp_path, f"{call}:error={error}:when=1") as log:
                assert guest.instance_start()[0] == 204
                for _ in range(2):
                    listener.accept()[0].close()
                assert "ended 3" in guest.finish()
            assert len(injected(log)) == 1
            text = f"vsock cannot connect to a host's socket: {STRERROR[error]}"
            assert (text in guest.log()) == (error != "EAGAIN") # which is a backlog that is full
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
