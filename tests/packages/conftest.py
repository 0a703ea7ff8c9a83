"""A release of this checkout, and fresh roots of Debian 12 to put it on."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "integration"))
import debian_root  # noqa: E402  pylint: disable=wrong-import-position

SOURCES = ("CMakeLists.txt", "CMakePresets.json", "CHANGELOG.md", "LICENSE", "NOTICE", "api", "benchmarks",
           "examples", "guest-kernel-configs", "jailer", "mmds", "packaging", "tests", "virtio", "vmm")
DATE = "1800000000"


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_release(directory, *options, **environment):
    """What `./devtool release` does when the packages are there; the release's directory."""
    env = {**os.environ, "SOURCE_DATE_EPOCH": DATE, **environment}
    run("cmake", "--preset", "dist", cwd=directory, env=env)
    run("cmake", "--build", "--preset", "dist", cwd=directory, env=env)
    out = run(directory / "packaging" / "release", *options, cwd=directory, env=env)
    return pathlib.Path(out.splitlines()[-1])


def copy_sources(directory):
    directory.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, symlinks=True,
                            ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, directory / name)
    return directory


@pytest.fixture(name="release", scope="session")
def a_release():
    if not shutil.which("dh_apparmor"):
        pytest.skip("NOTHING WAS RELEASED: debhelper or dh-apparmor is missing")
    return make_release(ROOT)


def make_root(directory, *packages):
    """A fresh Debian 12 with these packages, from the cache where it has been made before."""
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        pytest.skip("NO FRESH ROOT: only root, with mmdebstrap, makes one")
    options = ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
               "--dpkgopt=force-unsafe-io", f"--include={','.join(packages)}"]
    digest = hashlib.sha256(" ".join(options).encode()).hexdigest()
    debian_root.unpack(directory, f"root-{digest[:16]}", *options)
    return directory
