"""The AppArmor profile that is installed, in the emulated host's kernel: what it confines works, and is
confined."""

import pytest

from conftest import choose_host, find

CELL = "/srv/jailer/mayfly/apparmor/root"
CONFIG = ('{"boot-source": {"kernel_image_path": "/kernel"}, "drives": [],'
          ' "machine-config": {"vcpu_count": 1, "mem_size_mib": 128}}')


@pytest.fixture(name="confined")
def a_host_with_the_profile(host):
    """Its programs in confined/ are those that the profile is for."""
    if not choose_host().startswith("rig"):
        pytest.skip("THE APPARMOR PROFILE WAS NOT LOADED: that is done in an emulated host only")
    if not find("apparmor_parser"):
        pytest.skip("THE APPARMOR PROFILE WAS NOT LOADED: apparmor_parser is missing")
    host.run("mkdir confined && cp mayfly mayfly-jailer confined"
             " && sed 's#/usr/local/bin/#/mayfly/confined/#' apparmor >profile"
             " && mount -t securityfs none /sys/kernel/security"
             " && apparmor_parser --replace --skip-cache profile")
    yield host
    host.run("apparmor_parser --remove profile; umount /sys/kernel/security;"
             " rm -rf confined /srv/jailer")


def denied(host):
    return host.run("dmesg | grep 'apparmor=\"DENIED\"' || true")


def test_a_jailed_guest_runs_under_both_profiles(confined):
    confined.run(f"mkdir -p {CELL} && cp button {CELL}/kernel && echo '{CONFIG}' >{CELL}/vm.json"
                 f" && chmod 644 {CELL}/*")
    confined.run("(confined/mayfly-jailer --id apparmor --exec-file confined/mayfly --uid 30001"
                 " --gid 30001 -- --config-file /vm.json >jailed 2>&1 & echo $! >pid; wait $!;"
                 " echo $? >status) >/dev/null 2>&1 &")
    assert confined.wait_for("grep -q ready jailed || [ -e status ]")
    assert confined.run("cat /proc/$(cat pid)/attr/current || cat jailed") == \
        "mayfly//&mayfly-jailer (enforce)\n"
    confined.run(f"curl -sS --unix-socket {CELL}/run/firecracker.socket -X PUT"
                 """ -d '{"action_type": "SendPowerButton"}' http://localhost/actions""")
    assert confined.wait_for("[ -e status ]")
    assert confined.run("cat status") == "0\n", confined.run("cat jailed")
    assert denied(confined) == ""


def test_a_confined_microvm_writes_nothing_of_the_host_s_system(confined):
    assert denied(confined) == ""
    for log, is_denied in ("/etc/log", True), ("/tmp/log", False):
        status, text = confined.run("confined/mayfly --no-api --config-file /none"
                                    f" --log-path {log}", check=False)
        assert (status, "Permission denied" in text) == (1, is_denied)
    assert 'profile="mayfly" name="/etc/log"' in denied(confined)
