"""A release of this checkout, and fresh roots of Debian 12 to put it on."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "integration"))
CACHE = pathlib.Path(os.environ.get("MAYFLY_CACHE") or pathlib.Path.home() / ".cache" / "mayfly")
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
    kept = CACHE / f"root-{'-'.join(packages)}.tar"[:200]
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}")
        excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale")]
        run("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", *excluded,
            "--dpkgopt=force-unsafe-io", f"--include={','.join(packages)}", "bookworm", new)
        new.rename(kept)
    directory.mkdir(parents=True)
    run("tar", "-C", directory, "--exclude=./dev/*", "-xf", kept)
    return directory
