"""The host that the Linux tests share, and what they boot."""

import os
import pathlib
import shutil
import struct
import subprocess

import pytest

import oci
from host import Guest, Host

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNEL_VERSION = os.environ.get("MAYFLY_KERNEL_VERSION", "6.1")
LONG = "MAYFLY_LONG" in os.environ
NET_TOOLS = ["iperf3", "ethtool", "socat"]


def find(program):
    return shutil.which(program, path=os.environ["PATH"] + ":/sbin:/usr/sbin")


def last_line(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]


def without_notes(image):
    """The ELF image with its PT_NOTE program headers made PT_NULL."""
    image = bytearray(image)
    table, size, count = (struct.unpack_from(f, image, at)[0]
                          for f, at in (("<Q", 32), ("<H", 54), ("<H", 56)))
    for at in range(table, table + size * count, size):
        if struct.unpack_from("<I", image, at)[0] == 4:
            struct.pack_into("<I", image, at, 0)
    return bytes(image)


def put_python(directory):
    """What examples/functions needs on a host without Python: arguments for the rig."""
    program = ROOT / "examples" / "functions"
    listing = ("import sys; sys.path.append(sys.argv[1]);"
               "import functions, concurrent.futures.thread, encodings.idna, sysconfig;"
               "print(sysconfig.get_path('stdlib'));"
               "[print(f) for m in list(sys.modules.values())"
               " for f in (getattr(m, '__file__', 0), getattr(m, '__cached__', 0)) if f]")
    python = os.path.realpath("/usr/bin/python3")
    lines = subprocess.run([python, "-c", listing, program], check=True, capture_output=True,
                           text=True).stdout.splitlines()
    for path in map(pathlib.Path, lines[1:]):
        if path.is_relative_to(lines[0]) and path.exists():
            copy = directory / path.relative_to(lines[0])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy) # with its time, by which Python finds what it has compiled
    return ["--file", f"{python}:/bin/python3", "--file", f"{directory}:{lines[0]}",
            "--file", f"{find('ip')}:/mayfly/bin/ip"]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """What the tests need on the host, by name."""
    guest = pathlib.Path(last_line(HERE / "guest" / "build"))
    mayfly = pathlib.Path(os.environ.get("MAYFLY", ROOT / "build" / "release" / "mayfly"))
    files = {"mayfly": mayfly.resolve()}
    files["mayfly-jailer"] = mayfly.resolve().parent / "mayfly-jailer"
    for name in ("button", "clocks", "counter", "cpuid"):
        files[name] = mayfly.resolve().parent / "guests" / name
    files["examples"] = ROOT / "examples"
    files["apparmor"] = ROOT / "packaging" / "apparmor"
    files["snapshot.sh"] = HERE / "guest" / "snapshot.sh"
    for name in ("vmlinuz", "initrd", "root.ext4", "vsock"):
        files[name] = guest / name
    for name, programs, config in ("fio", ["fio"], "fio.ini"), ("net", NET_TOOLS, "net.sh"):
        if all(find(program) for program in programs):
            build = [HERE / "guest" / "build-tools", name, *programs, "--", config]
            files[f"{name}.ext4"] = pathlib.Path(last_line(*build))
    files.update(oci.make(tmp_path_factory.mktemp("oci"), mayfly.resolve().parent / "guest-init"))
    build = ROOT / "guest-kernel-configs" / "build"
    for variant in ("acpi", "noacpi"):
        directory = pathlib.Path(last_line(build, KERNEL_VERSION, variant))
        files[f"{variant}.vmlinux"] = directory / "vmlinux"
        files[f"{variant}.bzImage"] = directory / "bzImage"
    # Without the note that names the PVH entry, the image starts by the 64-bit boot protocol.
    no_note = tmp_path_factory.mktemp("kernels") / "no-note.vmlinux"
    no_note.write_bytes(without_notes(files["acpi.vmlinux"].read_bytes()))
    files["no-note.vmlinux"] = no_note
    return files


@pytest.fixture(scope="session")
def net_tools(files):
    """Programs that nobody here wrote are on the host and in net.ext4."""
    if "net.ext4" not in files:
        pytest.skip(f"NOT TRIED WITH LINUX: one of {', '.join(NET_TOOLS)} is missing")


def choose_host():
    return subprocess.check_output([HERE / "choose-host"], text=True).strip()


def pytest_report_header():
    return "Linux guests: " + choose_host()


@pytest.fixture(scope="session")
def host(files, tmp_path_factory):
    """With --long, it has a disk debian.ext4."""
    directory = tmp_path_factory.mktemp("host")
    log = directory / "errors"
    debian = last_line(ROOT / "guest-kernel-configs" / "rootfs", "debian") if LONG else None
    if choose_host().startswith("direct"):
        for name, path in files.items():
            (directory / name).symlink_to(path)
        # A network of its own, in which taps may be made.
        unshare = ["unshare", "--net", *(["--map-root-user"] if os.getuid() else [])]
        host = Host(unshare, str(directory), log)
        host.run("busybox ip link set lo up")
        if debian:
            host.run(f"cp --sparse=always {debian} debian.ext4")
    else:
        argv = [HERE / "rig", "--stdin", "--memory", "3072", "--timeout", "3600"]
        argv += ["--log", directory / "console"]
        for name, path in files.items():
            argv += ["--file", f"{path}:/mayfly/{name}"]
        for tool in ("curl", "debugfs", "e2fsck", *filter(find, NET_TOOLS)):
            argv += ["--file", f"{find(tool)}:/bin/{tool}"]
        if debian:
            argv += ["--disk", debian]
        if parser := find("apparmor_parser"):
            argv += ["--file", f"{parser}:/bin/apparmor_parser"]
            for path in ("/etc/apparmor", "/etc/apparmor.d/abi", "/etc/apparmor.d/tunables",
                         "/usr/share/apparmor-features"):
                argv += ["--file", path]
        argv += put_python(directory / "python")
        host = Host([*argv, "--"], "/mayfly", log)
        if debian:
            host.run("ln -s /dev/vda debian.ext4")
    yield host
    host.close()


@pytest.fixture
def new_guest(host):
    """Makes guests that are gone when the test ends."""
    guests = []

    def make(*arguments):
        guests.append(Guest(host, *arguments))
        return guests[-1]

    yield make
    for guest in guests:
        guest.remove()


@pytest.fixture
def guest(new_guest):
    return new_guest()
