"""The files of a release: what is in them, and that they are the same wherever they are made."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

from conftest import DATE, ROOT, copy_sources, make_release, make_root, run
from mayfly import CACHE, IS_LONG

PROGRAMS = ("mayfly", "mayfly-jailer", "snapshot-editor")


def version():
    return re.search(r'MAYFLY_VERSION +"(.*)"', (ROOT / "vmm/base/version.h").read_text())[1]


@pytest.fixture(name="name", scope="module")
def a_name():
    return f"v{version()}-x86_64"


@pytest.fixture(name="unpacked", scope="module")
def an_unpacked_tar(release, name, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(release / f"mayfly-{name}.tgz") as tar:
        assert {member.uid for member in tar} | {member.gid for member in tar} == {0}
        assert {member.mtime for member in tar} == {int(DATE)}
        tar.extractall(directory)
    return directory / f"release-{name}"


def names(directory):
    return {path.name for path in directory.iterdir()}


def checked(directory):
    """Names in SHA256SUMS, all of which are right."""
    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=directory)
    return {line.split()[1] for line in (directory / "SHA256SUMS").read_text().splitlines()}


def test_a_release_has_these_files(release, name):
    number = f"{version()}-1"
    assert names(release) == {
        f"mayfly-{name}.tgz", f"mayfly-{name}.spdx.json", f"mayfly_{number}_amd64.deb",
        f"mayfly-firecracker_{number}_amd64.deb", f"mayfly-exporter_{number}_all.deb",
        f"mayfly-dbgsym_{number}_amd64.deb", "SHA256SUMS"}
    assert checked(release) == names(release) - {"SHA256SUMS"}


def test_the_tar_is_laid_out_as_firecrackers(unpacked, name):
    assert names(unpacked) == {
        *(f"{program}-{name}{end}" for program in PROGRAMS for end in ("", ".debug")),
        f"seccomp-filter-{name}.json", f"mayfly_spec-v{version()}.yaml", "LICENSE", "NOTICE",
        "THIRD-PARTY", "CHANGELOG.md", "SHA256SUMS"}
    assert checked(unpacked) == names(unpacked) - {"SHA256SUMS"}


def build_id(path):
    return re.search(r"Build ID: (\w+)", run("readelf", "-n", path))[1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_alone_and_its_symbols_are_beside_it(unpacked, name, program):
    path = unpacked / f"{program}-{name}"
    assert f"mayfly {version()}\n" in run(path, "--version")
    sections = run("readelf", "-SlW", path)
    assert "INTERP" not in sections and ".symtab" not in sections and ".debug_info" not in sections
    symbols = path.with_name(path.name + ".debug")
    assert build_id(symbols) == build_id(path)
    main = re.search(r"^(\w+) T main$", run("nm", symbols), re.M)[1]
    source = {"mayfly": "vmm/main.c", "mayfly-jailer": "jailer/main.c",
              "snapshot-editor": "vmm/snapshot/main.c"}[program]
    found = run("addr2line", "-e", symbols, main)
    assert re.match(rf"(build/dist/)?{source}:\d+", found), found


def test_no_file_names_where_it_was_built(unpacked):
    for path in unpacked.iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), path.name


def linked_packages():
    """What CMake links the programs with, and glibc: not by way of the linker's maps."""
    cache = (ROOT / "build/dist/CMakeCache.txt").read_text()
    paths = re.findall(r"^(?:JSON_C|URING|HTTP_PARSER|SODIUM):FILEPATH=(.*)$", cache, re.M)
    paths.append(run("gcc", "-print-file-name=libc.a").strip())
    return {run("dpkg", "-S", os.path.realpath(path)).split(":")[0] for path in paths}


def bill(release, name):
    return json.loads((release / f"mayfly-{name}.spdx.json").read_text())


def test_everything_that_is_linked_in_is_named(release, unpacked, name):
    known = linked_packages()
    assert len(known) == 5
    packages = {package["name"]: package for package in bill(release, name)["packages"]}
    assert set(packages) - known == {"mayfly", f"libgcc-{run('gcc', '-dumpversion').strip()}-dev"}
    text = (unpacked / "THIRD-PARTY").read_text()
    for package in known:
        got = run("dpkg-query", "-W", "-f", "${Version}", package)
        assert packages[package]["versionInfo"] == got
        assert f"({package} {got})" in text
    for words in ("GNU LESSER GENERAL PUBLIC LICENSE", "Permission is hereby granted, free of charge"):
        assert words in text


def test_the_bill_has_each_file_and_what_is_in_it(release, unpacked, name):
    found = {file["fileName"][2:]: file for file in bill(release, name)["files"]}
    there = {path.name for path in release.iterdir()} - {"SHA256SUMS", f"mayfly-{name}.spdx.json"}
    assert set(found) == there | {f"{unpacked.name}/{path}" for path in names(unpacked)}
    for path, file in found.items():
        data = (unpacked.parent if "/" in path else release).joinpath(path).read_bytes()
        sums = {entry["algorithm"]: entry["checksumValue"] for entry in file["checksums"]}
        assert sums == {"SHA1": hashlib.sha1(data).hexdigest(),
                        "SHA256": hashlib.sha256(data).hexdigest()}
    links = {(one["spdxElementId"], one["relatedSpdxElement"])
             for one in bill(release, name)["relationships"] if one["relationshipType"] == "STATIC_LINK"}
    mayfly = found[f"{unpacked.name}/mayfly-{name}"]["SPDXID"]
    assert (mayfly, "SPDXRef-Package-libjson-c-dev") in links
    assert (mayfly.replace("mayfly-v", "mayfly-jailer-v"), "SPDXRef-Package-libjson-c-dev") not in links


@pytest.mark.skipif(not IS_LONG, reason="needs a package of PyPI: with --long")
def test_the_bill_is_spdx(release, name):
    tools = CACHE / "spdx-tools-0.8.3"
    if not tools.exists():
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", tools,
                               "spdx-tools==0.8.3"], check=False)
        if done.returncode != 0:
            shutil.rmtree(tools, ignore_errors=True)
            pytest.skip("NOBODY ELSE READ THE BILL: spdx-tools can't be had")
    run(sys.executable, "-m", "spdx_tools.spdx.clitools.pyspdxtools", "-i",
        release / f"mayfly-{name}.spdx.json", env={**os.environ, "PYTHONPATH": str(tools)})


# The same bytes


def sums(release):
    return (release / "SHA256SUMS").read_text()


@pytest.fixture(name="signed", scope="module")
def a_signed_release_of_another_directory(release, tmp_path_factory): # release: one after the other
    """(its directory, gpg's home)"""
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    run("gpg", "--homedir", home, "--batch", "--passphrase", "", "--quick-generate-key",
        "Somebody <somebody@example.org>", "default", "sign", "never")
    other = copy_sources(tmp_path_factory.mktemp("x") / "of another length" / "mayfly")
    yield make_release(other, "--sign", "somebody@example.org", GNUPGHOME=str(home), TZ="Asia/Tokyo",
                       CMAKE_BUILD_PARALLEL_LEVEL="1"), home
    shutil.rmtree(other)


def test_two_directories_make_the_same_bytes(release, signed):
    assert sums(signed[0]) == sums(release)
    checked(signed[0])


def test_checksums_can_be_signed(signed, tmp_path):
    release, home = signed
    run("gpg", "--homedir", home, "--verify", release / "SHA256SUMS.asc", release / "SHA256SUMS")
    (tmp_path / "SHA256SUMS").write_text(sums(release).replace("a", "b", 1))
    done = subprocess.run(["gpg", "--homedir", home, "--verify", release / "SHA256SUMS.asc",
                           tmp_path / "SHA256SUMS"], capture_output=True, check=False)
    assert done.returncode != 0


def packages_for(what):
    """What ./devtool installs for it."""
    return re.search(rf'^{what}_packages="([^"]*)"', (ROOT / "devtool").read_text(), re.M)[1].split()


@pytest.mark.skipif(not IS_LONG, reason="builds in two roots: with --long")
def test_two_fresh_roots_make_the_same_bytes(tmp_path):
    made = []  # the two are in directories of different lengths, too
    for place in ("first/root", "second"):
        root = make_root(tmp_path / place, *packages_for("build"), *packages_for("manual"),
                         *packages_for("release"))
        where = "home/some one/mayfly" if made else "mayfly"
        copy_sources(root / where)
        (root / "make").write_text('cd "$1"\ncmake --preset dist\ncmake --build --preset dist\n'
                                   'packaging/release\n')
        out = run("unshare", "--mount", "--pid", "--fork", "sh", "-ec",
                  'mount -t proc none "$1/proc"; mount --bind /dev "$1/dev"; exec chroot "$1" sh -e /make "$2"',
                  "sh", root, f"/{where}", env={
                      "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": DATE})
        made.append(sums(root / pathlib.Path(out.splitlines()[-1]).relative_to("/")))
    assert made[0] == made[1]


# The packages


def test_the_copies_are_the_same_programs(release, tmp_path):
    for name in ("mayfly", "mayfly-firecracker"):
        run("dpkg-deb", "-x", next(release.glob(f"{name}_*.deb")), tmp_path)
    for copy, program in (("firecracker", "mayfly"), ("jailer", "mayfly-jailer")):
        assert not (tmp_path / "usr/bin" / copy).is_symlink()
        assert build_id(tmp_path / "usr/bin" / copy) == build_id(tmp_path / "usr/bin" / program)
    symbols = run("dpkg-deb", "-f", next(release.glob("mayfly-dbgsym_*.deb")), "Build-Ids").split()
    assert {build_id(tmp_path / "usr/bin" / program) for program in PROGRAMS} == set(symbols)


@pytest.mark.skipif(not shutil.which("lintian"), reason="LINTIAN FOUND NOTHING: it is missing")
@pytest.mark.skipif(not IS_LONG, reason="lintian is slow: with --long")
def test_lintian_finds_nothing(release):
    done = subprocess.run(["lintian", "--allow-root", *release.glob("*.deb")], capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
