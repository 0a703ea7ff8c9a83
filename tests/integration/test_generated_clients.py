"""Clients that openapi-generator makes of api/openapi.yaml compile, and drive a microVM.

Needs Java, and what each language needs; what is not there is skipped with a word. The generator
comes by Maven, once, into $MAYFLY_CACHE; so do what the Python and Rust clients depend on. Rust, whose
dependencies take a minute to compile, is for --long.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import mayfly
from guests import make_files, needs_kvm

GENERATOR = "7.14.0"
ROOT = pathlib.Path(mayfly.ROOT)
PROGRAMS = ROOT / "tests" / "clients" / "generated"
DEADLINE_S = 1200


def needs(*programs):
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"NO CLIENT WAS GENERATED: {' and '.join(missing)} is not here")


def run(*argv, **more):
    return subprocess.run([*map(str, argv)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=DEADLINE_S, check=False, **more)


def fetched(path, *argv, **more):
    """Makes a path of the cache by a command that needs the network; without it there is no test."""
    if not path.exists():
        done = run(*argv, **more)
        if done.returncode or not path.exists():
            pytest.skip(f"{path.name} can't be had: {(done.stdout + done.stderr).strip()[-300:]}")
    return path


@pytest.fixture(scope="module")
def generator():
    needs("java")
    jar = mayfly.CACHE / "openapi-generator" / f"openapi-generator-cli-{GENERATOR}.jar"
    if not jar.exists():
        needs("mvn")
    return fetched(jar, "mvn", "-q", "-B", "dependency:copy", f"-DoutputDirectory={jar.parent}",
                   f"-Dartifact=org.openapitools:openapi-generator-cli:{GENERATOR}")


def generate(generator, language, directory):
    """The client's directory."""
    done = run("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-jar", generator, "generate",
               "-i", ROOT / "api" / "openapi.yaml", "-g", language, "-o", directory,
               "--package-name", "mayfly", "--global-property="
               "apiTests=false,modelTests=false,apiDocs=false,modelDocs=false")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "ERROR" not in said and "Exception" not in said, said[-3000:]
    return directory


def without_nulls(value):
    """Clients leave out what is null, or not."""
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return value


def check_drives_a_microvm(*command, fault):
    """The program's account of what it did is that of the server."""
    with mayfly.Mayfly() as vm:
        files = make_files(vm.directory)
        done = run(*command, vm.socket_path, files["kernel"], files["disk"])
        assert done.returncode == 0, done.stderr[-3000:]
        said = json.loads(done.stdout)
        assert [said[name] for name in ("before", "after", "afterPaused", "afterResumed")] == [
            "Not started", "Running", "Paused", "Running"]
        assert said["fault"] == fault
        assert said["mmds"] == {"a": [1, "b", None]}
        config = vm.ok("GET", "/vm/config")
        assert config["drives"][0]["rate_limiter"]["bandwidth"]["size"] == 1 << 40
        assert without_nulls(said["config"]) == without_nulls(config)
        timeline = vm.ok("GET", "/boot-timeline")
        assert timeline["guest_mark_us"] is None and timeline["started_us"] > 0
        assert without_nulls(said["timeline"]) == without_nulls(timeline)
        assert said["metrics"].endswith("# EOF\n")


@needs_kvm
def test_a_go_client_compiles_and_drives_a_microvm(generator, tmp_path):
    needs("go")
    client = generate(generator, "go", tmp_path / "client")
    shutil.copytree(PROGRAMS / "go", tmp_path / "program")
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off", "GOTOOLCHAIN": "local"}
    (client / "go.mod").write_text("module mayfly\n\ngo 1.18\n")
    (tmp_path / "program" / "go.mod").write_text(
        "module program\n\ngo 1.18\n\nrequire mayfly v0.0.0\n\nreplace mayfly => ../client\n")
    done = run("go", "build", "-o", tmp_path / "run", ".", cwd=tmp_path / "program", env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    check_drives_a_microvm(
        tmp_path / "run", fault="Machine config error: The number of vCPUs must be greater than 0, "
        "less than 32 and must be 1 or an even number if SMT is enabled.")


@needs_kvm
def test_a_python_client_drives_a_microvm(generator, tmp_path):
    client = generate(generator, "python", tmp_path / "client")
    venv = mayfly.CACHE / "openapi-generator" / f"venv-{GENERATOR}-{sys.version_info[1]}"
    if not (venv / "complete").exists():
        shutil.rmtree(venv, ignore_errors=True)
    fetched(venv / "complete", "sh", "-ec", 'python=$1 venv=$2 list=$3; "$python" -m venv "$venv"; '
            '"$venv/bin/pip" install -q -r "$list"; touch "$venv/complete"', "sh",
            sys.executable, venv, client / "requirements.txt")
    check_drives_a_microvm(
        "env", f"PYTHONPATH={client}", venv / "bin" / "python", PROGRAMS / "python" / "main.py",
        fault="Boot source error: The kernel file cannot be opened: No such file or directory "
        "(os error 2) /none")


@pytest.mark.skipif(not os.environ.get("MAYFLY_LONG"), reason="compiles a hundred crates: --long")
def test_a_rust_client_compiles(generator, tmp_path):
    needs("cargo")
    client = generate(generator, "rust", tmp_path / "client")
    environment = {**os.environ, "CARGO_TARGET_DIR": str(mayfly.CACHE / "openapi-generator" / "cargo")}
    fetched(client / "Cargo.lock", "cargo", "fetch", "-q", cwd=client)
    done = run("cargo", "check", "-q", "--offline", cwd=client, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
