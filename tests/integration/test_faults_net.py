"""What the host refuses a network interface: as test_faults.py, for the calls that configure a tap and
those that move frames. The guest's traffic goes on."""

import re

import pytest

import mayfly
from faults import (STRERROR, UNFILTERED, descriptors, injected, needs_strace, traced,
                    wait_for_fault)
from guests import needs_kvm, printed
from taps import Guest, Wire, make_frame, make_tap, needs_taps, ops, put

pytestmark = [needs_kvm, needs_taps, needs_strace]

FRAMES = [make_frame(b"%d" % i + bytes(50)) for i in range(3)]


# TUNSETIFF, TUNSETVNETHDRSZ; the third asks whether there is segmentation of UDP, and any answer
# will do; TUNSETOFFLOAD.
@pytest.mark.parametrize("call, which, error", [
    ("openat", 1, "EMFILE"), ("openat", 1, "ENOENT"), ("openat", 1, "EINTR"),
    ("ioctl", 1, "EBUSY"), ("ioctl", 1, "EPERM"), ("ioctl", 1, "ENOMEM"), ("ioctl", 2, "EINVAL"),
    ("ioctl", 4, "EINVAL"),
])
def test_a_tap_that_cannot_be_had_is_refused_whole(tmp_path, call, which, error):
    make_tap()
    with mayfly.Mayfly(*UNFILTERED) as vm:
        before = descriptors(vm)
        with traced(vm, tmp_path, f"{call}:error={error}:when={which}") as log:
            status, text = put(vm)
        assert len(injected(log)) == 1
        assert status == 400 and STRERROR[error] in text
        assert vm.ok("GET", "/vm/config")["network-interfaces"] == []
        assert descriptors(vm) == before
        assert put(vm) == (204, None) # the tap's only place is free


def test_a_tap_without_segmentation_of_udp_will_do(tmp_path):
    make_tap()
    with Guest(flags=UNFILTERED) as guest, Wire() as wire:
        with traced(guest, tmp_path, "ioctl:error=EINVAL:when=3") as log:
            guest.configure()
        assert len(injected(log)) == 1
        assert guest.instance_start()[0] == 204
        guest.wait_for_output("serving")
        assert not int(printed(guest.output().splitlines(), "features"), 16) >> 54 & 7
        wire.exchange(FRAMES)
        guest.end()


def test_a_limit_that_cannot_be_kept_is_refused(tmp_path):
    make_tap()
    limit = {"iface_id": "eth0", "rx_rate_limiter": ops(2), "tx_rate_limiter": ops(2)}
    with Guest(flags=UNFILTERED) as guest, Wire() as wire:
        guest.serve()
        for fault in ("timerfd_create:error=EMFILE:when=1", "timerfd_create:error=ENOMEM:when=2",
                      "epoll_ctl:error=ENOSPC:when=2"): # behind the API's connection
            with traced(guest, tmp_path, fault) as log:
                status, _, body = guest.request("PATCH", "/network-interfaces/eth0", limit)
            assert len(injected(log)) == 1, log.read_text()
            error = re.search("E[A-Z]+", fault)[0]
            assert status == 400 and STRERROR[error] in body["fault_message"]
        wire.exchange(FRAMES) # more than two
        shown = guest.ok("GET", "/vm/config")["network-interfaces"][0]
        assert shown.get("rx_rate_limiter") is None and shown.get("tx_rate_limiter") is None
        guest.end()


@pytest.fixture(name="served")
def a_served_guest():
    make_tap()
    with Guest(flags=UNFILTERED) as guest, Wire() as wire:
        guest.serve()
        wire.exchange(FRAMES)
        before = descriptors(guest)
        yield guest, wire
        wire.exchange(FRAMES)
        assert descriptors(guest) == before
        guest.end()


def send_with_fault(served, tmp_path, fault):
    """The first of the frames meets the fault; what comes back of them in the end."""
    guest, wire = served
    with traced(guest, tmp_path, fault) as log:
        wire.send(FRAMES[0])
        wait_for_fault(log)
        for frame in FRAMES[1:]:
            wire.send(frame)
        back = [wire.receive()]
        while back[-1][14:] != FRAMES[-1][14:]:
            back.append(wire.receive())
    return [frame[14:] for frame in back]


PAYLOADS = [frame[14:] for frame in FRAMES]


@pytest.mark.parametrize("fault, metric", [
    ("readv:error=EIO", "tap_read_fails"), ("readv:error=ENOMEM", "tap_read_fails"),
    ("readv:error=EAGAIN", None), ("readv:error=EINTR", None), ("readv:retval=0", "rx_fails"),
    ("readv:retval=11", "rx_fails"), ("epoll_wait:error=EINTR", None),
    ("writev:error=EINTR", None),
])
def test_a_fault_costs_no_frame(served, tmp_path, fault, metric):
    """One that was not read is with those that come next."""
    assert send_with_fault(served, tmp_path, fault + ":when=1") == PAYLOADS
    if metric:
        assert served[0].metrics()[metric] == 1


@pytest.mark.parametrize("fault, metric", [
    ("writev:error=EIO", "tap_write_fails"), ("writev:error=EAGAIN", "tap_write_fails"),
    ("writev:error=ENOBUFS", "tap_write_fails"), ("writev:error=EINVAL", "tap_write_fails"),
    ("writev:retval=20", None),
])
def test_a_frame_that_the_host_does_not_take_is_lost_and_no_other(served, tmp_path, fault, metric):
    assert send_with_fault(served, tmp_path, fault + ":when=1") == PAYLOADS[1:]
    if metric:
        assert served[0].metrics()[metric] == 1


@pytest.mark.parametrize("error", ["EAGAIN", "EINTR"])
def test_a_timer_that_cannot_be_read_holds_nothing_up(tmp_path, error):
    make_tap()
    limits = {"rx_rate_limiter": ops(1, 20), "tx_rate_limiter": ops(1, 20)}
    with Guest(members=limits, flags=UNFILTERED) as guest, Wire() as wire:
        guest.serve()
        with traced(guest, tmp_path, f"read:error={error}:when=1..3") as log:
            wire.exchange(FRAMES * 3)
        assert len(injected(log)) == 3
        guest.end()
