"""examples/net makes a network and takes it away: in a network namespace of the test's own."""

import json
import os
import shutil
import socket

import pytest

import mayfly
from mayfly import Mayfly
from taps import apart, inside, tun_for_all

NET = os.path.join(mayfly.ROOT, "examples", "net")
NOBODY, SOMEBODY = 65534, 65533
GUEST, GATEWAY = "172.30.0.2", "172.30.0.1"

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("nft") or not shutil.which("ip"),
    reason="THE NETWORK'S EXAMPLE WAS NOT RUN: that takes root, iproute2 and nftables")


def new_network():
    """A descriptor of an empty network; the network goes with the last one that holds it."""
    try:
        with apart():
            run("ip", "link", "set", "lo", "up")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    except OSError:
        pytest.skip("THE NETWORK'S EXAMPLE WAS NOT RUN: this root may make no network namespace")


@pytest.fixture(name="host")
def a_host():
    """The test is in an empty network."""
    network = new_network()
    with inside(network):
        yield network
    os.close(network)


def run(*command, **more):
    done = mayfly.complete(*command, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def up(*arguments, **environment):
    run(f"{NET}/up", *arguments, env={**os.environ, **environment})


def down(*arguments, **environment):
    run(f"{NET}/down", *arguments, env={**os.environ, **environment})


def links():
    return {each["ifname"]: each for each in json.loads(run("ip", "-j", "-d", "link"))}


def forwarding():
    # The namespace is the thread's that reads.
    return run("cat", "/proc/sys/net/ipv4/ip_forward").strip()


def everything():
    return set(links()), run("nft", "list", "ruleset"), forwarding()


def test_up_makes_a_bridge_a_tap_for_its_user_and_nat(host):
    up("tap0", str(NOBODY))
    found = links()
    assert found["tap0"]["master"] == "mayfly0"
    assert found["tap0"]["linkinfo"]["info_data"]["user"] in (NOBODY, "nobody")
    assert found["mayfly0"]["linkinfo"]["info_kind"] == "bridge"
    assert f"{GATEWAY}/24" in run("ip", "address", "show", "mayfly0")
    assert "masquerade" in run("nft", "list", "table", "inet", "mayfly0")
    assert forwarding() == "1"


def test_up_twice_is_as_good_as_once(host):
    up()
    before = everything()
    up()
    assert everything() == before


@pytest.mark.parametrize("forwards", ["0", "1"])
def test_down_leaves_nothing_and_may_be_repeated(host, forwards):
    run("sh", "-c", f"echo {forwards} >/proc/sys/net/ipv4/ip_forward")
    before = everything()
    for _ in range(2):
        up("tap0")
        up("tap1")
        assert {"tap0", "tap1", "mayfly0"} <= set(links())
        down("tap1")
        down("tap1")
        assert "tap0" in links() and "tap1" not in links()
        down()
        assert everything() == before
        down()
        assert everything() == before


def test_two_bridges_live_beside_each_other(host):
    before = everything()
    up("tap0")
    alone = everything()
    up("tap1", BRIDGE="other", NETWORK="172.31.0")
    assert links()["tap1"]["master"] == "other"
    down(BRIDGE="other")
    assert everything() == alone
    down()
    assert everything() == before


def test_down_leaves_what_is_not_its_own(host):
    run("ip", "link", "add", "mayfly0", "type", "veth", "peer", "name", "eth7")
    down()
    down("eth7")
    assert {"mayfly0", "eth7"} <= set(links())


def test_who_was_named_and_nobody_else_opens_the_tap(host):
    up("tap0", str(NOBODY))
    interface = {"iface_id": "eth0", "host_dev_name": "tap0"}
    with tun_for_all(), Mayfly(user=SOMEBODY) as vm:
        status, _, answer = vm.request("PUT", "/network-interfaces/eth0", interface)
        assert status == 400
        assert "Operation not permitted (os error 1)" in answer["fault_message"]
    with tun_for_all(), Mayfly(user=NOBODY) as vm:
        vm.ok("PUT", "/network-interfaces/eth0", interface)
    assert "tap0" in links()


def test_the_configuration_file_fits_the_network(host, tmp_path):
    """Its interface is taken: the start fails only for want of a kernel that is one."""
    with open(f"{NET}/vm.json", encoding="utf-8") as file:
        text = file.read()
    arguments = json.loads(text)["boot-source"]["boot_args"]
    assert f"ip={GUEST}::{GATEWAY}:255.255.255.0::eth0:off" in arguments
    assert json.loads(text)["network-interfaces"][0]["guest_mac"] == "06:00:" + ":".join(
        f"{int(byte):02x}" for byte in GUEST.split("."))
    for name in ("vmlinuz", "initrd", "root.ext4"):
        (tmp_path / name).write_bytes(bytes(4096))
    config = tmp_path / "vm.json"
    config.write_text(text.replace("/srv/vm", str(tmp_path)))
    up("tap0")
    done = mayfly.complete(mayfly.BINARY, "--no-api", "--config-file", str(config))
    assert done.returncode == 1
    assert "Network" not in done.stdout + done.stderr
    assert "ernel" in done.stdout + done.stderr


@pytest.fixture(name="world")
def a_world(host):
    """Networks of a guest on the bridge and of somebody out there, beside the host's."""
    guest, outside = new_network(), new_network()
    up()
    for network, link, peer in (guest, "guest", "eth0"), (outside, "uplink", "eth0"):
        run("ip", "link", "add", link, "type", "veth", "peer", "name", peer, "netns",
            f"/proc/self/fd/{network}", pass_fds=[network])
    run("ip", "link", "set", "guest", "master", "mayfly0", "up")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "uplink")
    run("ip", "link", "set", "uplink", "up")
    for network, address, gateway in (guest, GUEST, GATEWAY), (outside, "192.0.2.2", "192.0.2.1"):
        with inside(network):
            run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "link", "set", "eth0", "up")
            run("ip", "route", "add", "default", "via", gateway)
    yield guest, outside
    os.close(guest)
    os.close(outside)


def udp(network, address=None):
    with inside(network):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(10)
    if address:
        made.bind((address, 7))
    return made


def test_a_guest_reaches_the_world_by_the_hosts_address(world):
    guest, outside = world
    with udp(guest) as inner, udp(outside, "192.0.2.2") as outer:
        inner.sendto(b"question", ("192.0.2.2", 7))
        data, sender = outer.recvfrom(100)
        assert (data, sender[0]) == (b"question", "192.0.2.1")
        outer.sendto(b"answer", sender)
        assert inner.recvfrom(100) == (b"answer", ("192.0.2.2", 7))


def test_the_world_does_not_reach_a_guest_that_has_not_asked(world):
    guest, outside = world
    with udp(guest, GUEST) as inner, udp(outside) as outer:
        outer.sendto(b"hello", (GUEST, 7))
        inner.settimeout(0.5)
        with pytest.raises(TimeoutError):
            inner.recvfrom(100)
