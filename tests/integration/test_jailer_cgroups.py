"""Control groups of both versions, as the jailer makes and joins them."""

import os
import shutil
import signal
import subprocess

import pytest

import mayfly
from faults import STRERROR, needs_strace
from jail import CAPTURED, Jail, jailer, needs_root, reachable, remove_cgroup

pytestmark = needs_root


def v1(controller):
    path = f"/sys/fs/cgroup/{controller}"
    if not os.path.exists(f"{path}/tasks"):
        pytest.skip(f"THE CGROUP CONTROLLER {controller} WAS NOT TESTED: it is not mounted (version 1)")
    return path


def read(*path):
    with open(os.path.join(*path), encoding="ascii") as f:
        return f.read().strip()


def cgroups_of(pid):
    """{controllers: path}; version 2 has the key ""."""
    lines = (line.split(":", 2) for line in read(f"/proc/{pid}/cgroup").splitlines())
    return {controllers: path for _, controllers, path in lines}


def test_version_1_sets_values_and_moves_the_vmm():
    cpu, pids = v1("cpu"), v1("pids")
    with Jail("--cgroup", "cpu.shares=77", "--cgroup", "pids.max=7",
              "--cgroup", "cpu.cfs_quota_us=50000") as vm:
        assert read(cpu, "mayfly", vm.id, "cpu.shares") == "77"
        assert read(cpu, "mayfly", vm.id, "cpu.cfs_quota_us") == "50000"
        assert read(pids, "mayfly", vm.id, "pids.max") == "7"
        found = cgroups_of(vm.pid())
        assert found["cpu"] == found["pids"] == f"/mayfly/{vm.id}"


def test_version_1_fills_empty_cpusets_from_above():
    cpuset = v1("cpuset")
    parent = f"jail-{os.getpid()}/nested"
    try:
        with Jail("--cgroup", "cpuset.cpus=0", "--parent-cgroup", parent) as vm:
            assert read(cpuset, parent, vm.id, "cpuset.cpus") == "0"
            assert read(cpuset, parent, vm.id, "cpuset.mems") == read(cpuset, "cpuset.mems")
            assert cgroups_of(vm.pid())["cpuset"] == f"/{parent}/{vm.id}"
        remove_cgroup(os.path.join(cpuset, parent, vm.id))
    finally:
        for path in (parent, os.path.dirname(parent)):
            remove_cgroup(os.path.join(cpuset, path))


def test_a_value_that_the_kernel_refuses_is_told_with_its_file():
    v1("cpu")
    vm = Jail("--cgroup", "cpu.shares=x")
    code, _, error = jailer(*vm.command[1:])
    assert code == 1
    assert f"Failed to write to /sys/fs/cgroup/cpu/mayfly/{vm.id}/cpu.shares: Invalid argument" \
        in error
    code, _, error = jailer(*[a.replace("cpu.shares", "cpu.none") for a in vm.command[1:]])
    assert code == 1 and error == (
        "Failed to read file /sys/fs/cgroup/cpu/mayfly/cpu.none into a string: "
        "No such file or directory (os error 2)\n")
    remove_cgroup(f"/sys/fs/cgroup/cpu/mayfly/{vm.id}")
    shutil.rmtree(vm.directory)


def test_memory_is_limited_by_the_cgroup(tmp_path):
    memory = v1("memory")
    captured = shutil.copy(CAPTURED, tmp_path / "mayfly")
    vm = Jail("--cgroup", f"memory.limit_in_bytes={64 << 20}", exec_file=captured,
              vmm_args=["process", "memory"])
    vm.spawn()
    assert vm.process.wait(60) == -signal.SIGKILL
    assert int(read(memory, "mayfly", vm.id, "memory.max_usage_in_bytes")) <= 64 << 20
    remove_cgroup(os.path.join(memory, "mayfly", vm.id))
    shutil.rmtree(vm.directory)


@pytest.fixture(name="v2")
def a_v2_hierarchy(tmp_path):
    """Where version 2 is mounted, with a controller to be had; the jailer takes the first one in
    the list of mounts."""
    with open("/proc/self/mounts", encoding="utf-8") as f:
        mounted = [line.split()[1] for line in f if line.split()[2] == "cgroup2"]
    path = mounted[0] if mounted else str(tmp_path)
    if not mounted:
        subprocess.run(["mount", "-t", "cgroup2", "none", path], check=True)
    if "hugetlb" not in read(path, "cgroup.controllers").split():
        pytest.skip("CGROUPS OF VERSION 2 WERE NOT TESTED: no controller hugetlb in version 2")
    yield path
    for name in ("mayfly", f"jail-{os.getpid()}"):
        if os.path.exists(os.path.join(path, name)):
            for child in os.listdir(os.path.join(path, name)):
                if os.path.isdir(os.path.join(path, name, child)):
                    remove_cgroup(os.path.join(path, name, child))
            remove_cgroup(os.path.join(path, name))
    if not mounted:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("flags", [[], ["--new-pid-ns"], ["--daemonize"],
                                   ["--daemonize", "--new-pid-ns"]])
def test_version_2_hands_the_controller_down_and_has_the_vmm_inside(v2, flags):
    with Jail("--cgroup-version", "2", "--cgroup", "hugetlb.2MB.max=4194304", *flags) as vm:
        assert read(v2, "mayfly", vm.id, "hugetlb.2MB.max") == "4194304"
        assert cgroups_of(vm.pid())[""] == f"/mayfly/{vm.id}"
        assert "hugetlb" in read(v2, "cgroup.subtree_control").split()
        assert "hugetlb" in read(v2, "mayfly", "cgroup.subtree_control").split()


@needs_strace
@pytest.mark.parametrize("error, text", [
    ("EAGAIN", "Failed cloning into a new child process"),
    ("EBUSY", "Failed to move process to cgroup ({})"),
])
def test_only_a_cgroup_that_takes_no_process_is_blamed_for_that(v2, tmp_path, error, text):
    vm = Jail("--cgroup-version", "2", "--cgroup", "hugetlb.2MB.max=0", "--new-pid-ns")
    done = mayfly.complete("strace", "-f", "-o", tmp_path / "calls", "-e",
                           f"inject=clone3:error={error}:when=1", *vm.command)
    text = text.format(os.path.join(v2, "mayfly", vm.id))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{text}: {STRERROR[error]}"), done.stderr
    shutil.rmtree(vm.directory)


def test_version_2_without_settings_joins_a_parent_that_exists(v2):
    parent = f"jail-{os.getpid()}"
    with Jail("--cgroup-version", "2", "--parent-cgroup", parent) as vm:
        assert cgroups_of(vm.pid())[""] == cgroups_of("self")[""], "there is no such cgroup"
    os.mkdir(os.path.join(v2, parent))
    with Jail("--cgroup-version", "2", "--parent-cgroup", parent) as vm:
        assert cgroups_of(vm.pid())[""] == f"/{parent}"


@pytest.mark.parametrize("flags", [[], ["--daemonize"]])
def test_version_2_joins_a_cgroup_named_as_the_binary(v2, flags):
    os.mkdir(os.path.join(v2, "mayfly"))
    with Jail("--cgroup-version", "2", *flags) as vm:
        assert cgroups_of(vm.pid())[""] == "/mayfly"


@pytest.mark.parametrize("flags", [[], ["--new-pid-ns"], ["--daemonize"]])
def test_a_cgroup_that_has_children_with_limits_can_not_be_joined(v2, flags):
    with Jail("--cgroup-version", "2", "--cgroup", "hugetlb.2MB.max=0"):
        vm = Jail("--cgroup-version", "2", *flags)
        code, _, error = jailer(*vm.command[1:])
        assert code == 1 and error.startswith(
            f"Failed to move process to cgroup ({v2}/mayfly): Resource busy (os error 16); it hands "
            "controllers down"), error
        assert not os.path.exists(vm.inside("mayfly.pid"))
        shutil.rmtree(vm.directory)


def test_a_cgroup_with_processes_can_not_hand_controllers_down(v2):
    parent = f"jail-{os.getpid()}"
    os.mkdir(os.path.join(v2, parent))
    member = subprocess.Popen(["sleep", "infinity"])
    try:
        with open(os.path.join(v2, parent, "cgroup.procs"), "w", encoding="ascii") as f:
            f.write(str(member.pid))
        vm = Jail("--cgroup-version", "2", "--cgroup", "hugetlb.2MB.max=0", "--parent-cgroup", parent)
        code, _, error = jailer(*vm.command[1:])
        assert code == 1 and error.startswith(
            f"Failed to write to {v2}/{parent}/cgroup.subtree_control: Resource busy (os error 16); a "
            "cgroup that has processes of its own can't hand controllers down"), error
    finally:
        member.kill()
        member.wait()
    shutil.rmtree(vm.directory)


def test_a_parent_that_is_no_cgroup_is_refused(v2):
    vm = Jail("--cgroup-version", "2", "--parent-cgroup", "cgroup.procs")
    code, _, error = jailer(*vm.command[1:])
    assert (code, error) == (1, f"Failed to open directory {v2}/cgroup.procs: Not a directory "
                                "(os error 20)\n")
    shutil.rmtree(vm.directory)


@pytest.mark.parametrize("mounts, version, hint", [
    ("mount -t cgroup2 none /sys/fs/cgroup", 1,
     "This host has version 2 (/sys/fs/cgroup): --cgroup-version 2."),
    ("mount -t cgroup -o none,name=jail-test none /sys/fs/cgroup", 2,
     "This host has version 1 (/sys/fs/cgroup): --cgroup-version 1."),
    ("true", 2, "This host has none of either version."),
])
def test_a_host_of_the_other_version_is_named(mounts, version, hint):
    vm = Jail("--cgroup", "cpu.shares=1", "--cgroup-version", str(version))
    script = ("while read -r _ at type _; do case $type in cgroup*) umount -l $at;; esac; "
              f"done </proc/self/mounts; {mounts} && exec \"$@\"")
    done = mayfly.complete("unshare", "--mount", "sh", "-c", script, "sh", *vm.command)
    assert (done.returncode, done.stderr) == (
        1, "Hierarchy not found: No hierarchy found for this cgroup version. " + hint + "\n")
    shutil.rmtree(vm.directory)


def test_a_cgroup_namespace_begins_at_the_vmms_cgroup(v2):
    with Jail("--cgroup-version", "2", "--cgroup", "hugetlb.2MB.max=0", "--new-cgroup-ns") as vm:
        path = f"/proc/{vm.pid()}/ns/cgroup"
        seen = subprocess.run(["nsenter", f"--cgroup={path}", "cat", f"/proc/{vm.pid()}/cgroup"],
                              capture_output=True, text=True, check=True).stdout
        assert "0::/\n" in seen
