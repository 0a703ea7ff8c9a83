"""Linux on a network: every byte arrives, with and without offloads, by IPv4 and IPv6."""

import pytest

from host import boot_args

HOST4, HOST6 = "172.30.0.1", "fd00:30::1"
MAC = "06:00:ac:1e:00:%02x"
PINGS = 0, 56, 1472, 1473, 20000

pytestmark = pytest.mark.usefixtures("net_tools")


def ip_argument(n, gateway=HOST4):
    return f"ip=172.30.0.{n}::{gateway}:255.255.255.0::eth0:off"


def boot(guest, n, run, drives=()):
    """Debian's kernel as guest n of tap<n>; it has booted when this returns."""
    guest.launch()
    guest.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
    guest.do("PUT", "/boot-source", {"kernel_image_path": "vmlinuz", "initrd_path": "initrd",
                                     "boot_args": boot_args(ip_argument(n), run)})
    guest.do("PUT", "/drives/rootfs", guest.drive())
    for drive in drives:
        guest.do("PUT", f"/drives/{drive['drive_id']}", drive)
    guest.do("PUT", "/network-interfaces/eth0",
             {"iface_id": "eth0", "host_dev_name": f"tap{n}", "guest_mac": MAC % n})
    guest.do("PUT", "/actions", {"action_type": "InstanceStart"})
    return guest


@pytest.fixture
def network(host):
    """A shell's functions for the host's side; what they made is gone in the end."""
    host.run(
        "serve() { port=$1; shift; busybox nc -ll -p $port -e \"$@\" & servers=\"$servers $!\"; };"
        " make_tap() { busybox tunctl -t $1 >/dev/null && busybox ip link set $1 up &&"
        " taps=\"$taps $1\"; }; servers= taps="
    )
    yield host
    host.run("[ -z \"$servers\" ] || kill $servers; for tap in $taps; do busybox tunctl -d $tap;"
             " done; busybox ip link set br0 down; busybox brctl delbr br0; true", check=False)


def results(console):
    return [line.removeprefix("result ") for line in console.splitlines()
            if line.startswith("result ")]


def test_every_byte_arrives_with_and_without_offloads(guest, network):
    network.run(
        f"make_tap tap2; busybox ip address add {HOST4}/24 dev tap2;"
        " echo 0 >/proc/sys/net/ipv6/conf/tap2/dad_transmits;"
        f" busybox ip address add {HOST6}/64 dev tap2;"
        " head -c 500001 /dev/urandom >data; serve 9001 sha256sum; serve 9002 cat data;"
        " iperf3 -s >/dev/null & servers=\"$servers $!\""
    )
    sum_ = network.run("busybox sha256sum <data").split()[0]
    boot(guest, 2, f"mkdir /mnt; mount -o ro /dev/vdb /mnt && sh /mnt/net.sh {HOST4} {HOST6}",
         [{"drive_id": "tools", "path_on_host": "net.ext4", "is_root_device": False,
           "is_read_only": True}])
    guest.wait_console("ready on")
    # The host connects, too; and from now on it computes checksums and cuts up segments itself.
    assert network.run("busybox nc 172.30.0.2 9003 <data").split()[0] == sum_
    network.run("ethtool -K tap2 tx off sg off tso off gso off")
    guest.type("\n")
    guest.wait_console("ready off")
    assert network.run("busybox nc fd00:30::2 9003 <data").split()[0] == sum_
    guest.type("\n")
    console = guest.wait_end()
    found = results(console)
    for address in HOST4, HOST6:
        for size in PINGS:
            assert f"ping {address} {size}" in found
        for offloads in "on", "off":
            assert f"sent {offloads} {address}" in found
            assert f"got {offloads} {address} {sum_} -" in found
    assert found.count("tso tcp-segmentation-offload: on") == 1
    assert found.count("tso tcp-segmentation-offload: off") == 1
    assert [each for each in found if each.startswith("iperf3")] == [
        "iperf3 tcp", "iperf3 udp", "iperf3 tcp -R", "iperf3 udp -R"], console


def test_two_guests_on_a_bridge_talk_to_each_other(new_guest, network):
    network.run("busybox brctl addbr br0 && busybox ip link set br0 up; for tap in tap3 tap4; do"
                " make_tap $tap; busybox brctl addif br0 $tap; done")
    server = boot(new_guest(), 3, "nc -ll -p 9001 -e sha256sum & echo serving; read go")
    server.wait_console("serving")
    client = boot(
        new_guest(), 4,
        "head -c 500001 /dev/urandom >/tmp/data; ping -q -c 2 -s 1472 172.30.0.3 && echo result ping;"
        " sha256sum </tmp/data >/tmp/a; nc 172.30.0.3 9001 </tmp/data >/tmp/b; cmp /tmp/a /tmp/b && echo result same")
    assert results(client.wait_end()) == ["ping", "same"]
    server.type("\n")
    server.wait_end()


def test_a_small_kernel_has_disk_net_and_vsock(guest, network):
    network.run(f"make_tap tap9; busybox ip address add {HOST4}/24 dev tap9")
    guest.launch()
    guest.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
    run = (f"grep ' / ' /proc/mounts; ping -c 3 -w 20 {HOST4} >/dev/null && echo result pinged;"
           " vsock serve 7 cat & read go")
    guest.do("PUT", "/boot-source", {"kernel_image_path": "acpi.vmlinux",
                                     "boot_args": boot_args(ip_argument(9), run)})
    guest.do("PUT", "/drives/rootfs", guest.drive())
    guest.do("PUT", "/network-interfaces/eth0",
             {"iface_id": "eth0", "host_dev_name": "tap9", "guest_mac": MAC % 9})
    guest.do("PUT", "/vsock", {"guest_cid": 42, "uds_path": f"{guest.dir}/v"})
    guest.do("PUT", "/actions", {"action_type": "InstanceStart"})
    guest.wait_console("result pinged")
    dial = f"echo there and back | timeout 600 ./vsock dial {guest.dir}/v 7"
    assert network.run(dial) == "there and back\n"
    guest.type("\n")
    assert "/dev/root / ext4 rw" in guest.wait_end()
