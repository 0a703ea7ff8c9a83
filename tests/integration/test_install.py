"""What cmake --install puts where works there: programs, pages, completion, units."""

import json
import os
import pathlib
import pty
import re
import select
import shutil
import struct
import tempfile
import time

import pytest
import yaml

import mayfly
from guests import needs_kvm, run as run_guest
from jail import Jail, needs_root, reachable  # noqa: F401
from mayfly import complete as run

ROOT = pathlib.Path(mayfly.ROOT)
BUILD = pathlib.Path(mayfly.BINARY).parent
PREFIX = "opt/mayfly"
PROGRAMS = ("mayfly", "mayfly-jailer", "snapshot-editor", "mayfly-exporter")
COMPONENTS = {
    "mayfly": {
        "bin/mayfly", "bin/mayfly-jailer", "bin/snapshot-editor", "lib/mayfly/jailed.sh",
        "lib/systemd/system/mayfly@.service", "lib/sysusers.d/mayfly.conf",
        "lib/tmpfiles.d/mayfly.conf", "share/mayfly/apparmor", "share/mayfly/openapi.yaml",
        "share/mayfly/seccomp-filter.json", "share/man/man1/mayfly.1",
        "share/man/man1/mayfly-jailer.1", "share/man/man1/snapshot-editor.1",
        "share/man/man7/mayfly-api.7", "share/zsh/site-functions/_mayfly",
        "share/bash-completion/completions/mayfly",
        "share/bash-completion/completions/mayfly-jailer",
        "share/bash-completion/completions/snapshot-editor"},
    "firecracker": {
        "bin/firecracker", "bin/jailer", "share/man/man1/firecracker.1", "share/man/man1/jailer.1",
        "share/bash-completion/completions/firecracker",
        "share/bash-completion/completions/jailer"},
    "exporter": {
        "bin/mayfly-exporter", "lib/systemd/system/mayfly-exporter.service",
        "share/man/man1/mayfly-exporter.1", "share/bash-completion/completions/mayfly-exporter"},
}

pytestmark = pytest.mark.skipif(not (BUILD / "packaging").exists(),
                                reason="NOTHING WAS INSTALLED: only builds that are released are")


def install(destination, *options):
    return run("cmake", "--install", str(BUILD), "--prefix", f"/{PREFIX}", *options,
               env={**os.environ, "DESTDIR": str(destination)})


def tree(destination):
    return {path.relative_to(destination / PREFIX).as_posix()
            for path in destination.rglob("*") if not path.is_dir()}


@pytest.fixture(name="root", scope="module")
def an_installed_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("installed")
    done = install(root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(name="prefix", scope="module")
def a_prefix(root):
    return root / PREFIX


def options_of(program):
    text = run(str(program), "--help").stdout
    return set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.M))


# Files


def test_each_file_is_where_it_belongs(root):
    assert tree(root) == set().union(*COMPONENTS.values())
    for name in tree(root):
        is_program = name.startswith("bin/") or name.endswith(".sh")
        assert (root / PREFIX / name).stat().st_mode & 0o777 == (0o755 if is_program else 0o644), name


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_installed_alone(tmp_path, name):
    assert install(tmp_path, "--component", name).returncode == 0
    assert tree(tmp_path) == COMPONENTS[name]


def test_what_is_installed_names_its_prefix_and_nothing_of_another(root):
    named = 0
    for name in tree(root):
        if name.startswith(("lib/", "share/mayfly/apparmor")):
            text = (root / PREFIX / name).read_text()
            assert "/usr/local" not in text, name
            for path in re.findall(rf"/{PREFIX}/[\w/.-]*[\w-]", text):
                assert (root / path[1:]).exists() or path.endswith("/bin"), f"{name}: {path}"
                named += 1
    assert named >= 4


@pytest.mark.parametrize("name", ["firecracker", "jailer"])
def test_another_program_of_that_name_is_left_alone(tmp_path, name):
    other = tmp_path / PREFIX / "bin" / name
    other.parent.mkdir(parents=True)
    other.write_text("#!/bin/sh\necho 'Firecracker v1.0.0'\n")
    other.chmod(0o755)
    done = install(tmp_path)
    assert done.returncode != 0
    assert f"{other} is not mayfly's" in " ".join(done.stderr.split())
    assert tree(tmp_path) == {f"bin/{name}"}
    assert install(tmp_path, "--component", "mayfly").returncode == 0
    assert tree(tmp_path) == COMPONENTS["mayfly"] | {f"bin/{name}"}


def test_an_installation_can_be_repeated(tmp_path):
    for _ in range(2):
        assert install(tmp_path).returncode == 0


def test_the_version_is_the_same_everywhere(prefix):
    version = re.search(r'MAYFLY_VERSION +"(.*)"', (ROOT / "vmm/base/version.h").read_text())[1]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+) \((?:unreleased|\d{4}-\d\d-\d\d)\)$", text, re.M)[1] == version
    api = yaml.safe_load((prefix / "share/mayfly/openapi.yaml").read_text())
    assert api["info"]["version"] == version
    for name in ("mayfly", "mayfly-jailer", "snapshot-editor"):
        assert f"mayfly {version}\n" in run(str(prefix / "bin" / name), "--version").stdout
        assert f'"mayfly {version}"' in (prefix / f"share/man/man1/{name}.1").read_text()


# As Firecracker's


@needs_kvm
@needs_root
def test_by_firecrackers_names_cells_are_where_its_tools_look(prefix, monkeypatch):
    monkeypatch.setattr("jail.JAILER", str(prefix / "bin/jailer"))
    with Jail(exec_file=str(prefix / "bin/firecracker")) as vm:
        vm.ok("GET", "/version")
        assert os.path.exists(f"{vm.base}/firecracker/{vm.id}/root/run/firecracker.socket")


# Directories and users


@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="systemd-tmpfiles is missing")
@needs_root
def test_directories_and_users_are_made(tmp_path):
    done = run("cmake", "--install", str(BUILD), "--prefix", "/usr", "--component", "mayfly",
               env={**os.environ, "DESTDIR": str(tmp_path)})
    assert done.returncode == 0
    (tmp_path / "etc").mkdir()
    for _ in range(2):
        for tool, *more in (("systemd-sysusers",), ("systemd-tmpfiles", "--create")):
            done = run(tool, f"--root={tmp_path}", *more)
            assert done.returncode == 0, done.stderr
    assert re.search(r"^mayfly:x:", (tmp_path / "etc/passwd").read_text(), re.M)
    assert re.search(r"^kvm:x:\d+:mayfly$", (tmp_path / "etc/group").read_text(), re.M)
    for name in ("srv/jailer", "srv/vm", "etc/mayfly"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o755


@pytest.mark.skipif(not shutil.which("apparmor_parser"),
                    reason="THE APPARMOR PROFILE WAS NOT READ: apparmor_parser is missing")
def test_apparmor_understands_the_profile(prefix):
    done = run("apparmor_parser", "--skip-kernel-load", "--skip-cache", "--names",
               str(prefix / "share/mayfly/apparmor"))
    # A kernel without AppArmor is no matter here.
    warnings = [line for line in done.stderr.splitlines() if "interface file missing" not in line]
    assert (done.returncode, warnings) == (0, [])
    assert done.stdout.split() == ["mayfly", "mayfly-jailer"]


# Man pages


def pages(prefix):
    found = sorted((prefix / "share/man").rglob("*.[17]"))
    assert len(found) == 7
    return found


def rendered(page, *options):
    """Its text without what makes it bold, and what man had to say."""
    done = run("man", "--local-file", *options, str(page), cwd=page.parent.parent, env={
        **os.environ, "MANWIDTH": "1000", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8",
        "MANROFFOPT": "-c"})
    assert done.returncode == 0, done.stderr
    return re.sub(".\b", "", done.stdout), done.stderr


@pytest.mark.skipif(not shutil.which("man"), reason="NO MAN PAGE WAS RENDERED: man is missing")
def test_pages_render_without_a_warning(prefix):
    for page in pages(prefix):
        text, warnings = rendered(page, "--warnings", "--encoding=UTF-8")
        assert warnings == "", page
        assert "@" not in re.sub(r"mayfly@|\S+@\S+\.", "", text), page


@pytest.mark.skipif(not shutil.which("man"), reason="NO MAN PAGE WAS RENDERED: man is missing")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_page_has_each_option_with_its_help(prefix, name):
    text, _ = rendered(prefix / f"share/man/man1/{name}.1")
    told = re.findall(r"^ {7}(--[a-z-]+)", text, re.M)
    assert set(told) == options_of(prefix / "bin" / name)
    if name != "mayfly-exporter": # whose help is broken into lines
        words = run(str(prefix / "bin" / name), "--help").stdout
        for line in re.findall(r"^  --\S+ +(?:\S+ {2,})?(.{20,})$", words, re.M):
            assert line.strip()[1:] in " ".join(text.split()), line


@pytest.mark.skipif(not shutil.which("man"), reason="NO MAN PAGE WAS RENDERED: man is missing")
def test_the_page_on_the_api_has_each_request_and_member(prefix):
    api = yaml.safe_load((ROOT / "api/openapi.yaml").read_text())
    text, _ = rendered(prefix / "share/man/man7/mayfly-api.7")
    for path, operations in api["paths"].items():
        for method in set(operations) & {"get", "put", "patch", "delete"}:
            assert re.search(rf"^ +{method.upper()} {re.escape(path)}$", text, re.M), (method, path)
    sections = dict(re.findall(r"^ {3}(\w+)\n((?:(?! {3}\w).*\n)*)", text, re.M))
    for name, schema in api["components"]["schemas"].items():
        for member in schema.get("properties", ()):
            assert re.search(rf"^ {{7}}{re.escape(member)}\b", sections[name], re.M), (name, member)


# Completion


def bash_offers(prefix, *words):
    """What bash offers for the last of the words."""
    script = (f'. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
              'function=$(complete -p "$1" | sed "s/.*-F //; s/ .*//")\n'
              '"$function" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"; printf "%s\\n" "${COMPREPLY[@]}"')
    file = prefix / "share/bash-completion/completions" / words[0]
    done = run("bash", "-c", script, "bash", str(file), *words, cwd=prefix / "share")
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize("name", [*PROGRAMS, "firecracker", "jailer"])
def test_bash_offers_each_option(prefix, name):
    if name == "snapshot-editor":
        assert bash_offers(prefix, name, "") == {"edit-memory", "info-vmstate", "--help", "--version"}
        assert bash_offers(prefix, name, "edit-memory", "") == {"rebase"}
        assert bash_offers(prefix, name, "edit-memory", "rebase", "--") == {"--memory-path", "--diff-path"}
    else:
        assert bash_offers(prefix, name, "--") == options_of(prefix / "bin" / name)
        assert bash_offers(prefix, name, "--versi") <= {"--version"}


def test_bash_offers_values(prefix):
    assert bash_offers(prefix, "mayfly", "--level", "") == {
        "Off", "Error", "Warn", "Info", "Debug", "Trace"}
    assert bash_offers(prefix, "mayfly", "--config-file", "ma") == {"man", "mayfly"}
    assert bash_offers(prefix, "mayfly", "--id", "") == set()
    assert bash_offers(prefix, "jailer", "--exec-method", "b") == {"bind"}
    assert "--api-sock" in bash_offers(prefix, "mayfly-jailer", "--id", "x", "--", "--")


def wait_for(terminal, text):
    end, seen = time.monotonic() + mayfly.DEADLINE_S, ""
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"waited in vain for {text!r} in {seen!r}"
        seen += os.read(terminal, 65536).decode("utf-8", "replace")
    return seen


@pytest.fixture(name="zsh_shows", scope="module")
def a_zsh(prefix, tmp_path_factory):
    """A function: what zsh writes to a terminal when a line is followed by a tab."""
    home = tmp_path_factory.mktemp("zsh")
    # ^Xe says that what was before it is done.
    (home / ".zshrc").write_text(
        f"fpath=({prefix}/share/zsh/site-functions $fpath)\nautoload -U compinit\ncompinit -u -D\n"
        "mark() { print -n END }\nzle -N mark\nbindkey '^Xe' mark\nbindkey '^U' kill-whole-line\n"
        "LISTMAX=9999\nsetopt NO_BEEP\nstty rows 200 cols 200\nPROMPT='READY> '\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="vt100", LC_ALL="C.UTF-8", ZDOTDIR=str(home))
        os.chdir(prefix / "share")
        os.execvp("zsh", ["zsh", "-i"])
    wait_for(terminal, "READY> ")

    def shows(line):
        os.write(terminal, f"\x15{line}\t\x18e".encode()) # ^U: instead of what was there
        return wait_for(terminal, "END")

    yield shows
    os.close(terminal)
    os.waitpid(pid, 0)


@pytest.mark.skipif(not shutil.which("zsh"), reason="ZSH COMPLETED NOTHING: zsh is missing")
@pytest.mark.parametrize("line,offers", [
    ("mayfly --", "mayfly"), ("firecracker --", "mayfly"), ("mayfly-jailer --", "mayfly-jailer"),
    ("jailer --id x -- --", "mayfly"), ("mayfly --level ", {"Trace", "Warn"}),
    ("mayfly --config-file ", {"man/", "mayfly/"}),
    ("snapshot-editor ", {"edit-memory", "info-vmstate"}),
    ("snapshot-editor info-vmstate vcpu-states --", {"--vmstate-path"}),
    ("mayfly-exporter --", "mayfly-exporter")])
def test_zsh_offers_what_a_program_takes(prefix, zsh_shows, line, offers):
    if isinstance(offers, str):
        offers = options_of(prefix / "bin" / offers)
    shown = zsh_shows(line)
    assert {offer for offer in offers if offer not in shown} == set(), shown


# The seccomp policy


@pytest.fixture(name="policy")
def the_policy(prefix):
    return json.loads((prefix / "share/mayfly/seccomp-filter.json").read_text())


def test_the_policy_in_json_is_the_one_that_is_built_in(policy):
    """Each row of --list but those that are refused with an error."""
    listed = {"vmm": set(), "vcpu": set(), "api": set()}
    for line in run(str(BUILD / "seccomp-compile"), "--list").stdout.splitlines():
        name, _, text, why, _, *tests = line.split("\t")
        if name in ("main", "vcpu"):
            rows = listed["vmm" if name == "main" else "vcpu"]
            rows.add((text.split()[0], why, *map(int, tests)))
    for name, thread in policy.items():
        rows = set()
        for rule in thread["filter"]:
            numbers = []
            for test in rule.get("args", ()):
                mask = 2 ** 64 - 1 if test["op"] == "eq" else test["op"]["masked_eq"]
                numbers += [test["index"], mask, test["val"]]
            rows.add((rule["syscall"], rule["comment"], *numbers))
        assert rows == listed[name]
    assert listed["vmm"] and listed["vcpu"]


def compiled(thread):
    """As seccompiler-bin does, by libseccomp: a BPF program."""
    seccomp = pytest.importorskip("seccomp", reason="THE POLICY'S JSON WAS NOT COMPILED: "
                                  "python3-seccomp is missing")
    assert (thread["default_action"], thread["filter_action"]) == ("trap", "allow")
    made = seccomp.SyscallFilter(seccomp.TRAP)
    for rule in thread["filter"]:
        tests = [seccomp.Arg(test["index"], seccomp.EQ, test["val"]) if test["op"] == "eq" else
                 seccomp.Arg(test["index"], seccomp.MASKED_EQ, test["op"]["masked_eq"], test["val"])
                 for test in rule.get("args", ())]
        made.add_rule(seccomp.ALLOW, rule["syscall"], *tests)
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


@needs_kvm
def test_a_guest_runs_under_the_policy_that_the_json_makes(policy, tmp_path):
    path = tmp_path / "filters"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(policy)))
        for name, thread in policy.items():
            program = compiled(thread)
            file.write(struct.pack("<Q", len(name)) + name.encode() +
                       struct.pack("<Q", len(program) // 8) + program)
    run_guest("boot", flags=("--seccomp-filter", str(path)))
