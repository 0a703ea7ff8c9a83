"""The folders of the product are rooms: one library each, without circles (CMakeLists.txt)."""
import graphlib
import pathlib
import re
import shutil
import subprocess

import pytest

import mayfly

ROOT = pathlib.Path(mayfly.ROOT)
BUILD = pathlib.Path(mayfly.BINARY).parent
SHARED_WITH_JAILER = {"vmm/base/capabilities.h", "vmm/base/clock.h", "vmm/base/error.h",
                      "vmm/base/inherited.h", "vmm/base/instance_id.h",
                      "vmm/base/options.h", "vmm/base/version.h",
                      "vmm/seccomp/landlock.h", "vmm/seccomp/seccomp.h"}


def rooms(root):
    """Each room with those that CMakeLists.txt puts behind it."""
    lines = re.findall(r"^room\(([^)]*)\)$", (root / "CMakeLists.txt").read_text(), re.M)
    named = {words[0]: words[1:] for words in map(str.split, lines)}
    folders = {folder.replace("/", "_"): folder for folder in named}
    return {room: {folders[n] for n in needs if n in folders} for room, needs in named.items()}


def sources(root, folder):
    return [p for p in sorted((root / folder).glob("*.[ch]")) if p.name != "main.c"]


def wrong_includes(root):
    needs = rooms(root)
    for room in needs:
        for path in sources(root, room):
            for header in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M):
                folder = header.rpartition("/")[0]
                if folder not in needs[room] | {room}:
                    yield f"{path.relative_to(root)} includes {header}"


def symbols(library):
    """What a library defines, and what it needs of others."""
    lines = subprocess.run(["gcc-nm", "-g", library], stdout=subprocess.PIPE, check=True,
                           text=True).stdout.splitlines()
    words = [line.split() for line in lines if line and not line.endswith(":")]
    return ({w[2] for w in words if len(w) == 3}, {w[1] for w in words if len(w) == 2})


def wrong_calls(needs, build):
    libraries = {room: symbols(build / f"lib{room.replace('/', '_')}.a") for room in needs}
    home = {name: room for room, (defined, _) in libraries.items() for name in defined}
    for room, (_, undefined) in libraries.items():
        for name in undefined & home.keys():
            if home[name] not in needs[room] | {room}:
                yield f"{room} calls {name}() of {home[name]}"


@pytest.fixture(name="copy")
def _copy(tmp_path):
    for folder in rooms(ROOT):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for path in sources(ROOT, folder):
            shutil.copy(path, tmp_path / folder)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    return tmp_path


def test_every_folder_with_sources_is_a_room_or_a_program():
    tops = ("vmm", "virtio", "mmds", "api", "jailer")
    folders = {p.parent.relative_to(ROOT).as_posix() for top in tops
               for p in (ROOT / top).rglob("*.c") if p.name != "main.c"}
    assert folders == set(rooms(ROOT))


def test_rooms_have_no_circle():
    graphlib.TopologicalSorter(rooms(ROOT)).prepare()


def test_files_of_a_room_have_no_circle():
    """A .c and its .h are one."""
    needs = {}
    for room in rooms(ROOT):
        for path in sources(ROOT, room):
            stem = f"{room}/{path.stem}"
            needs.setdefault(stem, set()).update(
                {h[:-2] for h in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M)}
                - {stem})
    graphlib.TopologicalSorter(needs).prepare()


def test_includes_point_one_way():
    assert list(wrong_includes(ROOT)) == []


def test_calls_point_one_way():
    assert list(wrong_calls(rooms(ROOT), BUILD)) == []


def test_a_wrong_include_is_found(copy):
    path = copy / "vmm/legacy/serial.c"
    path.write_text('#include "virtio/block_file.h"\n' + path.read_text())
    assert list(wrong_includes(copy)) == ["vmm/legacy/serial.c includes virtio/block_file.h"]


def test_a_wrong_call_is_found(tmp_path):
    """One that links: the declaration is written by hand, and the program has the other room."""
    needs = rooms(ROOT)
    for room in needs:
        shutil.copy(BUILD / f"lib{room.replace('/', '_')}.a", tmp_path)
    (tmp_path / "wrong.c").write_text("int block_file_sync(const void *f);\n"
                                      "int wrong(void) { return block_file_sync(0); }\n")
    subprocess.run(["gcc", "-c", "wrong.c"], cwd=tmp_path, check=True)
    subprocess.run(["gcc-ar", "r", "libvmm_legacy.a", "wrong.o"], cwd=tmp_path, check=True,
                   stderr=subprocess.DEVNULL)
    assert list(wrong_calls(needs, tmp_path)) == ["vmm/legacy calls block_file_sync() of virtio"]


def test_the_jailer_shares_little_with_the_vmm():
    for path in sources(ROOT, "jailer") + [ROOT / "jailer/main.c"]:
        includes = set(re.findall(r'^#include "((?!jailer/)[^"]+)"', path.read_text(), re.M))
        assert includes <= SHARED_WITH_JAILER, path
