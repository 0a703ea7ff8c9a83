"""What CONTRIBUTING.md says of the sources is so: places, recipes, container, the forge's CI."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import blocks
import world
from blocks import ROOT

sys.path.append(str(ROOT / "tests" / "integration"))
import mayfly  # noqa: E402  pylint: disable=wrong-import-position

yaml = pytest.importorskip("yaml", reason="THE FORGE'S CI WAS NOT CHECKED: python3-yaml is missing")

PAGE = "CONTRIBUTING.md"
BLOCKS = blocks.parse(PAGE)


def test_the_tree_names_the_folders_and_files_that_are_there():
    tree, = (block.content for block in BLOCKS if block.kind == "tree")
    top, named = "", set()
    for line in tree.splitlines():
        match = re.match(r"( {0,2})(\S+)/ ", line)
        if match and not match[1]:
            top = match[2]
            named.add(top)
        if match:
            folder = ROOT / top / (match[2] if match[1] else "")
        for file in re.findall(r"(?<![\w.-])[\w-]+\.(?:[ch]|md|yaml|py)\b", line):
            assert (folder / file).exists(), f"there is no {folder}/{file}"
        assert folder.is_dir(), line
    here = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    assert named == here - {"build", "__pycache__"}


def test_the_page_says_what_devtool_has():
    usage = subprocess.run([ROOT / "devtool", "--help"], check=True, capture_output=True,
                           text=True).stdout
    for name in re.findall(r"\./devtool ([a-z]+)", (ROOT / PAGE).read_text()):
        assert re.search(rf"^  {name}\b", usage, re.M), name


def changes(diff):
    """(file, old text, new text) of each place."""
    for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, re.M | re.S):
        lines = [line or " " for line in body.splitlines()]
        yield (name, "".join(f"{line[1:]}\n" for line in lines if line[0] in " -"),
               "".join(f"{line[1:]}\n" for line in lines if line[0] in " +"))


RECIPES = [block for block in BLOCKS if block.kind == "diff"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda block: block.section)
def test_a_recipes_change_fits_the_sources(recipe):
    places = list(changes(recipe.content))
    assert places
    for name, old, new in places:
        assert (ROOT / name).read_text().count(old) == 1, f"{name} has not once:\n{old}"
        assert new != old


@pytest.mark.skipif(not mayfly.IS_LONG, reason="THE RECIPES WERE NOT BUILT: that takes MAYFLY_LONG")
def test_the_recipes_changes_do_what_they_say(tmp_path):
    for name in ("api", "vmm", "virtio", "mmds", "jailer", "tests", "benchmarks",
                 "guest-kernel-configs", "CMakeLists.txt", "CMakePresets.json"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    for recipe in RECIPES:
        for name, old, new in changes(recipe.content):
            path = tmp_path / name
            path.write_text(path.read_text().replace(old, new))
    for command in (["cmake", "--preset", "release"],
                    ["cmake", "--build", "--preset", "release", "--target", "mayfly"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    before, mayfly.BINARY = mayfly.BINARY, str(tmp_path / "build" / "release" / "mayfly")
    try:
        with mayfly.Mayfly("--id", "vm1") as vm:
            assert vm.ok("GET", "/example") == {"id": "vm1"}
            status, _, text = vm.request("GET", "/metrics")
            assert status == 200 and "Examples that were counted." in str(text)
    finally:
        mayfly.BINARY = before


def test_a_recipe_without_a_change_names_what_its_files_have():
    section = (ROOT / PAGE).read_text().partition("\n### A device\n")[2]
    items = re.findall(r"^- \[(\S+)\]\(\S+\):(.*?)(?=^- |\Z)", section, re.M | re.S)
    assert len(items) > 5
    for path, text in items:
        for name in re.findall(r"`([^`]+)`", text):
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path} has no {name}"


# Where others build it


def steps():
    """The Containerfile's, as (word, rest)."""
    lines = [line for line in (ROOT / "Containerfile").read_text().splitlines()
             if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def test_the_container_has_debians_release_and_what_its_steps_copy():
    kinds = [kind for kind, _ in steps()]
    assert kinds[0] == "FROM" and set(kinds) <= {"FROM", "WORKDIR", "COPY", "RUN", "CMD"}
    assert steps()[0][1] == "docker.io/library/debian:12"
    for kind, rest in steps():
        if kind == "COPY":
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists(), name


@pytest.mark.skipif(not mayfly.IS_LONG or os.geteuid() != 0,
                    reason="THE CONTAINER WAS NOT BUILT: that takes MAYFLY_LONG and root")
def test_the_containers_steps_end_with_what_builds_mayfly(tmp_path):
    """In a fresh Debian 12, which stands for the image that it begins with."""
    with world.fresh(tmp_path / "root") as machine:
        os.rename(tmp_path / "root" / "mayfly", tmp_path / "root" / "context")
        directory, terminal = "/", machine.terminal("/")
        for kind, rest in steps():
            if kind == "WORKDIR":
                directory = rest
                terminal.run(f"mkdir -p {directory}; cd {directory}")
            elif kind == "COPY":
                *names, to = rest.split()
                terminal.run(f"mkdir -p {to}; cp {' '.join(f'/context/{n}' for n in names)} {to}")
            elif kind == "RUN":
                terminal.run(rest)
        # The sources are mounted there, and no further package is asked for.
        terminal.run("cp -r /context/. .; apt-get() { echo not again; return 1; }; "
                     "export -f apt-get; ./devtool build release product")
        assert "mayfly" in terminal.run("build/release/mayfly --version").lower()
    shutil.rmtree(tmp_path / "root")


def test_the_forges_ci_runs_what_ours_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job, = workflow["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert f"docker.io/library/{job['container']['image']}" == steps()[0][1]
    assert "--device /dev/kvm" in job["container"]["options"]
    assert workflow[True].keys() == {"push", "pull_request"} # YAML 1.1 reads "on" as a truth


def test_editors_are_told_the_formatters_style():
    editors = (ROOT / ".editorconfig").read_text()
    style = (ROOT / ".clang-format").read_text()
    for ours, theirs in ("indent_size", "IndentWidth"), ("max_line_length", "ColumnLimit"):
        assert re.search(rf"{ours} = (\d+)", editors)[1] == re.search(rf"{theirs}: (\d+)", style)[1]


def test_the_owner_is_told_what_to_fill_in():
    text = (ROOT / "SECURITY.md").read_text()
    assert "placeholder" in text or "example.invalid" not in text
