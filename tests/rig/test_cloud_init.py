"""Debian's own cloud-init configures a guest from each place that mayfly can offer: what
examples/cloud-init/prepare writes, on the root disk that ./devtool rootfs debian makes.

tests/run starts these beside other tests, because a whole systemd in the rig takes a minute.
"""

import base64
import json
import os
import pathlib
import subprocess

import pytest

from conftest import HERE, KERNEL_VERSION, ROOT, choose_host, find, last_line
from host import Host

HOSTNAME = "myhost"
KEY_BYTES = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)
KEY = f"ssh-ed25519 {base64.b64encode(KEY_BYTES).decode()} me\n"
STOCK = ["--kernel", "vmlinuz", "--initrd", "initrd"] # has vfat and DMI
SMALL = ["--kernel", "vmlinux"]
is_long = bool(os.environ.get("MAYFLY_LONG"))

# The datasource that cloud-init names, what is booted, and mayfly's arguments.
SOURCES = {
    "nocloud": ("DataSourceNoCloudNet [seed=cmdline,http://169.254.169.254/latest/]", SMALL,
                "--metadata nocloud.json"),
    "seed": ("DataSourceNoCloud [seed=/dev/vdb]", STOCK, ""),
    "ec2": ("DataSourceEc2", SMALL, "--metadata ec2.json"),
    "ec2-v2": ("DataSourceEc2", STOCK, "--metadata ec2.json"),
}
RUN = list(SOURCES) if is_long else ["nocloud"]


def write_initrd(path, initrd, work):
    """With what a seed disk needs of Debian's kernel beside a root disk."""
    modules = ["vfat", "nls_cp437", "nls_ascii"]
    subprocess.run([HERE / "debian-kernel", "modules", work / "modules", *modules], check=True)
    more = subprocess.run("find . | cpio --quiet -o -H newc -R 0:0", shell=True, check=True,
                          cwd=work, stdout=subprocess.PIPE).stdout
    path.write_bytes(initrd.read_bytes() + more)


def build_files(directory):
    """What guests boot, and mayfly, by name."""
    guest = pathlib.Path(last_line(HERE / "guest" / "build"))
    kernel = last_line(ROOT / "guest-kernel-configs" / "build", KERNEL_VERSION, "acpi")
    mayfly = os.environ.get("MAYFLY", ROOT / "build" / "release" / "mayfly")
    initrd = directory / "initrd"
    write_initrd(initrd, guest / "initrd", directory / "initramfs")
    return {"mayfly": os.path.realpath(mayfly), "vmlinux": f"{kernel}/vmlinux",
            "vmlinuz": guest / "vmlinuz", "initrd": initrd}


def prepare(name, place, disk, key, made):
    _, kernel, _ = SOURCES[name]
    kernel = [word if word.startswith("--") else f"{place}/{word}" for word in kernel]
    subprocess.run([ROOT / "examples" / "cloud-init" / "prepare", *kernel, "--root", disk,
                    "--hostname", HOSTNAME, "--ssh-key", key, made], check=True)
    # Where the host has it.
    vm = made / f"vm-{name}.json"
    vm.write_text(vm.read_text().replace(str(made.parent), place))


@pytest.fixture(name="host", scope="module")
def a_host(tmp_path_factory):
    """Like conftest's, with a disk for each guest: /dev/vda is the first, in RUN's order."""
    directory = tmp_path_factory.mktemp("host")
    image = last_line(ROOT / "guest-kernel-configs" / "rootfs", "debian")
    files = build_files(directory)
    (directory / "key.pub").write_text(KEY)
    is_direct = choose_host().startswith("direct")
    place = str(directory) if is_direct else "/mayfly"
    argv = [HERE / "rig", "--stdin", "--timeout", "7200", "--log", directory / "console",
            "--file", f"{find('debugfs')}:/bin/debugfs"]
    for i, name in enumerate(RUN):
        disk = f"{directory}/{name}.ext4" if is_direct else f"/dev/vd{'abcdef'[i]}"
        prepare(name, place, disk, directory / "key.pub", directory / name)
        if is_direct:
            subprocess.run(["cp", "--sparse=always", image, disk], check=True)
        argv += ["--disk", image, "--file", f"{directory / name}:/mayfly/{name}"]
    for name, path in files.items():
        if is_direct and path != directory / name:
            (directory / name).symlink_to(path)
        argv += ["--file", f"{path}:/mayfly/{name}"]
    if is_direct:
        argv = ["unshare", "--net", *(["--map-root-user"] if os.getuid() else [])]
    else:
        argv += ["--"]
    host = Host(argv, place, directory / "errors")
    host.run("busybox tunctl -t tap0 && busybox ip link set tap0 up &&"
             " busybox ip address add 172.30.0.1/24 dev tap0 && >leases && printf '%s\\n'"
             " 'start 172.30.0.2' 'end 172.30.0.2' 'interface tap0' 'lease_file leases'"
             " 'pidfile dhcp.pid' 'opt subnet 255.255.255.0' 'opt router 172.30.0.1' >dhcp &&"
             " busybox udhcpd dhcp")
    yield host
    host.run("kill $(cat dhcp.pid)", check=False)
    host.close()


def boot(host, name):
    """The guest's console, once it has ended its VMM by itself."""
    arguments = SOURCES[name][-1]
    status, console = host.run(
        f"(cd {name} && timeout 1500 ../mayfly --no-api --config-file vm-{name}.json {arguments})",
        timeout=1600, check=False)
    assert status == 0, console
    return console.replace("\r", "")


def on_disk(host, name, path):
    config = json.loads(host.run(f"cat {name}/vm-{name}.json"))
    return host.run(f"debugfs -R 'cat {path}' {config['drives'][0]['path_on_host']} 2>/dev/null")


@pytest.mark.parametrize("name", RUN)
def test_cloud_init_configures_a_guest(host, name):
    console = boot(host, name)
    result = json.loads(on_disk(host, name, "/var/lib/cloud/data/result.json"))["v1"]
    assert result["errors"] == [], console
    assert result["datasource"].startswith(SOURCES[name][0])
    assert on_disk(host, name, "/etc/hostname").strip() == HOSTNAME
    assert on_disk(host, name, "/etc/motd") == "This guest was configured by cloud-init.\n"
    assert on_disk(host, name, "/root/result") == f"work done by {HOSTNAME}\n"
    assert f"work done by {HOSTNAME}\n" in console
    assert KEY in on_disk(host, name, "/home/debian/.ssh/authorized_keys")
