"""The packages on a fresh Debian 12 with systemd: installed, upgraded, removed and purged, with a
microVM that the unit starts and that goes on through it."""

import os
import pathlib
import shutil
import subprocess

import pytest

from conftest import make_root, run
from mayfly import BINARY, DEADLINE_S

HERE = pathlib.Path(__file__).resolve().parent
UNIT = """\
[Service]
Type=oneshot
ExecStart=/steps.sh
ExecStopPost=systemctl poweroff --force
StandardOutput=journal+console
StandardError=inherit

[Install]
WantedBy=multi-user.target
"""


def next_version(package, directory):
    """The same files as version 99-1."""
    run("dpkg-deb", "-R", package, directory / "tree")
    control = directory / "tree/DEBIAN/control"
    own = run("dpkg-deb", "-f", package, "Version").strip()
    control.write_text(control.read_text().replace(own, "99-1"))
    run("dpkg-deb", "--root-owner-group", "-b", directory / "tree", directory)
    shutil.rmtree(directory / "tree")


@pytest.fixture(name="root")
def a_root_with_packages(release, tmp_path):
    root = make_root(tmp_path / "root", "systemd-sysv", "dbus", "python3", "curl")
    (root / "release").mkdir()
    (root / "upgrade").mkdir()
    for package in release.glob("*.deb"):
        shutil.copy(package, root / "release")
        next_version(package, root / "upgrade")
    shutil.copy(pathlib.Path(BINARY).parent / "guests" / "button", root / "guest")
    shutil.copy(HERE / "steps.sh", root / "steps.sh")
    unit = root / "etc/systemd/system/steps.service"
    unit.write_text(UNIT)
    wants = unit.parent / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit.name).symlink_to(f"../{unit.name}")
    return root


@pytest.mark.skipif(not shutil.which("systemd-nspawn") or not os.path.exists("/dev/kvm"),
                    reason="THE PACKAGES WERE NOT INSTALLED: systemd-nspawn or /dev/kvm is missing")
def test_packages_live_and_go_without_ending_a_microvm(root):
    argv = ["systemd-nspawn", "--quiet", f"--directory={root}", "--register=no",
            "--keep-unit", "--private-network", "--capability=all", "--bind=/dev/kvm",
            "--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
    tried = subprocess.run([*argv, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           check=False)
    if tried.returncode != 0:
        pytest.skip(f"THE PACKAGES WERE NOT INSTALLED: no systemd-nspawn here: {tried.stderr}")
    done = subprocess.run([*argv, "--boot"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=4 * DEADLINE_S, check=False, env={
                              **os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})
    text = done.stdout.decode("utf-8", "replace")
    assert (root / "result").exists(), text
    assert (root / "result").read_text() == "passed\n", text
