"""The metadata service as Linux's own TCP finds it: behind a default route, with its offloads."""

import base64
import hashlib
import io
import os
import pathlib
import sys
import tarfile

import pytest

from host import boot_args

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
from mmds_requests import STORE, TOKEN_CHARACTERS, exchanges, unescape  # noqa: E402

pytestmark = pytest.mark.usefixtures("net_tools")

GATEWAY = "172.30.0.1"
TOKEN = b"%TOKEN%"
LONG = 3000  # of longer answers only the digest comes over the console
# Each of them takes some tenths of a second on an emulated processor.
STEP = 1 if "MAYFLY_LONG" in os.environ else 12

# The guest's half. netcat ends its side behind the request, and the service then does the same.
RUNNER = f"""
token=none
for f in /tmp/r/*; do
    sed s@{TOKEN.decode()}@$token@ $f >/tmp/request
    cmp -s /tmp/request $f && cp $f /tmp/request
    nc 169.254.169.254 80 </tmp/request >/tmp/answer
    grep -q 'ttl-seconds: ' /tmp/answer &&
        token=$(sed '1,/^.$/d' /tmp/answer | head -c {TOKEN_CHARACTERS})
    [ $(wc -c </tmp/answer) -gt {LONG} ] && sum=$(sha256sum </tmp/answer) ||
        sum=$(base64 </tmp/answer | tr -d '\\n')
    echo result $(basename $f) $sum
done
"""


def chosen(version):
    """Some of the exchanges, or all; those that give a token before those that need one."""
    every = exchanges(version)
    tokens = [e for e in every if e.name == "PUT aws ttl"]
    return tokens + [e for e in every[::STEP] if e not in tokens]


def make_archive(version):
    """The requests, and what sends them, for a disk that the guest reads as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        members = [(f"r/{i:03}", unescape(e.request, TOKEN)) for i, e in enumerate(chosen(version))]
        for name, content in [("run.sh", RUNNER.encode()), *members]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()


def put_file(host, path, content):
    host.run(f": >{path}")
    text = base64.b64encode(content).decode()
    for at in range(0, len(text), 60000):
        host.run(f"busybox base64 -d >>{path} <<'END'\n{text[at:at + 60000]}\nEND")


@pytest.fixture
def tap(host):
    host.run(f"busybox tunctl -t tap7 >/dev/null && busybox ip link set tap7 up &&"
             f" busybox ip address add {GATEWAY}/24 dev tap7")
    yield "tap7"
    host.run("busybox tunctl -d tap7")


def expected(exchange):
    return b"".join(answer.bytes(b"") for answer in exchange.answers)


@pytest.mark.parametrize("version", [1, 2])
def test_linux_is_answered_as_by_firecracker(guest, host, tap, version):
    put_file(host, f"{guest.dir}/requests", make_archive(version))
    guest.launch()
    guest.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
    guest.do("PUT", "/boot-source", {
        "kernel_image_path": "vmlinuz", "initrd_path": "initrd",
        "boot_args": boot_args(f"ip=172.30.0.7::{GATEWAY}:255.255.255.0::eth0:off",
                               "tar xf /dev/vdb -C /tmp; sh /tmp/run.sh")})
    guest.do("PUT", "/drives/rootfs", guest.drive())
    guest.do("PUT", "/drives/requests", {
        "drive_id": "requests", "path_on_host": f"{guest.dir}/requests", "is_root_device": False,
        "is_read_only": True})
    guest.do("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": tap})
    guest.do("PUT", "/mmds/config", {"network_interfaces": ["eth0"], "version": f"V{version}"})
    guest.do("PUT", "/mmds", STORE)
    guest.do("PUT", "/actions", {"action_type": "InstanceStart"})
    lines = [line.split() for line in guest.wait_end().splitlines() if line.startswith("result ")]
    found = {int(line[1]): line[2] if len(line) > 2 else "" for line in lines}
    for i, exchange in enumerate(chosen(version)):
        if len(found[i]) == 64 and len(expected(exchange)) > LONG:
            assert found[i] == hashlib.sha256(expected(exchange)).hexdigest(), exchange.name
            continue
        got = base64.b64decode(found[i])
        for answer in exchange.answers:
            want = answer.bytes(bytes(TOKEN_CHARACTERS))
            part, got = got[:len(want)], got[len(want):]
            assert part == answer.bytes(answer.token_of(part)), exchange.name
        assert got == b"", exchange.name
