"""Guests made of OCI images by ./devtool rootfs oci: what guest-kernel-configs/init.c does for their
process."""

import os

import pytest

from host import said

only_long = pytest.mark.skipif("MAYFLY_LONG" not in os.environ,
                               reason="tried another way: see ./devtool test --long")

ARGUMENTS = "quiet panic=1 reboot=k console=ttyS0 init=/.mayfly/init"
IP = "ip=172.30.5.2::172.30.5.1:255.255.255.0:a-host:eth0:off:192.0.2.53:192.0.2.54"


def boot(guest, name, arguments="rootfstype=squashfs", read_only=True, **more):
    """more: requests before the start."""
    guest.launch()
    guest.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
    guest.do("PUT", "/boot-source", {"kernel_image_path": "acpi.vmlinux",
                                     "boot_args": f"{ARGUMENTS} {arguments}"})
    guest.do("PUT", "/drives/rootfs", {
        "drive_id": "rootfs", "path_on_host": f"oci-{name}", "is_root_device": True,
        "is_read_only": read_only})
    for path, body in more.items():
        guest.do("PUT", "/" + path.replace("__", "/").replace("_", "-"), body)
    guest.do("PUT", "/actions", {"action_type": "InstanceStart"})
    return guest


def last(console):
    return console.rstrip("\n").splitlines()[-1]


def check_show(console):
    assert said(console, "args") == "2 [one  two] []"
    assert said(console, "env") == ('a "b"\tc /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
                                    " /srv")
    assert said(console, "user") == "33:34 34 50"
    assert said(console, "directory") == "/work"
    assert said(console, "root") == "0 second"
    assert "to stdout" in console.splitlines()
    assert said(console, "file") == "written"
    assert last(console) == "mayfly: status 7"


@only_long
def test_the_process_has_what_the_image_says_and_its_status_comes_out(guest):
    console = boot(guest, "show", "", read_only=False).wait_end()
    check_show(console)
    assert "/ ext4 rw" in console


def test_a_read_only_root_is_shared_and_written_to_in_memory(guest):
    console = boot(guest, "squashed").wait_end()
    check_show(console)
    assert "/ overlay rw" in console


@pytest.mark.parametrize("action", [
    "SendPowerButton", pytest.param("SendCtrlAltDel", marks=only_long)])
def test_buttons_end_the_process_in_order(guest, action):
    boot(guest, "wait").wait_console("ready")
    guest.do("PUT", "/actions", {"action_type": action})
    console = guest.wait_end()
    assert "asked" in console.splitlines() and last(console) == "mayfly: status 3"


def test_the_network_is_set_up_and_the_host_is_told(guest, host):
    """With a status of a command that is not there."""
    host.run("busybox tunctl -t oci0 && ip link set oci0 up && ip address add 172.30.5.1/24 dev oci0")
    host.run(f"(echo hello | nc -l -p 9000) >/dev/null 2>&1 &"
             f" ./vsock listen {guest.dir}/v_1000 sh -c 'cat >{guest.dir}/told' >/dev/null 2>&1 &"
             f" echo $! >{guest.dir}/listener")
    console = boot(guest, "network", f"rootfstype=squashfs {IP}",
                   network_interfaces__eth0={"iface_id": "eth0", "host_dev_name": "oci0"},
                   vsock={"guest_cid": 3, "uds_path": f"{guest.dir}/v"}).wait_end()
    assert "inet 172.30.5.2/24" in console and "default via 172.30.5.1 dev eth0" in console
    assert "a-host" in console.splitlines()
    assert "nameserver 192.0.2.53\nnameserver 192.0.2.54\n" in console
    assert said(console, "heard") == "hello"
    assert last(console) == "mayfly: status 127"
    assert "mayfly: /bin/none" not in console # the shell's
    assert host.run(f"cat {guest.dir}/told") == "status 127\n"
    host.run(f"kill $(cat {guest.dir}/listener); ip link delete oci0")
