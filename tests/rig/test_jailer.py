"""A jail on a host that runs from its initramfs: the rig."""

import pytest


def test_a_jail_can_be_on_an_initramfs(host):
    """Nothing is mounted below it, so that it can't be pivoted away."""
    if " / / rw - rootfs " not in host.run("cat /proc/self/mountinfo"):
        pytest.skip("NO JAIL WAS TRIED ON AN INITRAMFS: this host's root is none")
    cell = "/srv/jailer/mayfly/initramfs"
    flags = "--id initramfs --exec-file ./mayfly --uid 1000 --gid 1000 --daemonize"
    host.run(f"mkdir -p /srv/jailer && ./mayfly-jailer {flags}")
    pid = host.run(f"cat {cell}/root/mayfly.pid")
    try:
        mounts = host.run(f"cat /proc/{pid}/mountinfo").splitlines()
        assert [line.split()[3:5] for line in mounts] == [[f"{cell}/root", "/"]]
        assert host.run(f"ls /proc/{pid}/root/..").split() == ["dev", "mayfly", "mayfly.pid", "run"]
    finally:
        host.run(f"kill -KILL {pid}; rm -r {cell}")
