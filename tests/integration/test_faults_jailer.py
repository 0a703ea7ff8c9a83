"""What the host refuses the jailer: each of its system calls fails once. It says which, ends with 1,
runs nothing, and leaves no mount behind. strace injects the errors, as in test_faults.py."""

import collections
import os
import shutil

import pytest

import mayfly
from faults import STRERROR, injected, needs_strace
from jail import Jail, needs_root, remove_cgroup

pytestmark = [needs_strace, needs_root]

FAULTS = {
    "openat": "EMFILE", "openat2": "EMFILE", "flock": "EAGAIN", "mkdir": "ENOSPC",
    "mkdirat": "ENOSPC", "copy_file_range": "ENOSPC",
    "ftruncate": "EIO", "fchown": "EPERM", "fchmod": "EPERM", "linkat": "EMLINK",
    "unshare": "ENOSPC", "mount": "ENOMEM", "open_tree": "ENOMEM", "mount_setattr": "EPERM",
    "move_mount": "EBUSY", "chdir": "EACCES", "pivot_root": "EBUSY", "umount2": "EBUSY",
    "fchownat": "EPERM", "mknodat": "EPERM", "setns": "EPERM", "write": "ENOSPC",
    "prlimit64": "EPERM", "prctl": "EPERM", "setgroups": "EPERM", "setresgid": "EAGAIN",
    "setresuid": "EAGAIN", "capset": "EPERM", "seccomp": "ENOMEM", "renameat2": "EIO",
    "close_range": "ENOMEM",
}
# Without these a jail is as good.
HARMLESS = {
    ("openat", "/proc/misc"), # a host without userfaultfd has none in the cell
}


def has_pids_controller():
    return os.path.exists("/sys/fs/cgroup/pids/tasks")


def jail(*flags):
    """One whose VMM says its version and ends."""
    cgroup = ["--cgroup", "pids.max=64"] if has_pids_controller() else []
    return Jail(*cgroup, *flags, vmm_args=["--version"])


def trace(vm, tmp_path, fault=None):
    """Exit code, standard error, and the jailer's own calls, from its first to the VMM's."""
    log = tmp_path / "strace"
    inject = ["-e", f"inject={fault}"] if fault else []
    done = mayfly.complete("strace", "-o", log, *inject, *vm.command)
    return done.returncode, done.stderr, log


def remove(vm):
    shutil.rmtree(vm.directory)
    if os.path.exists(f"/sys/fs/cgroup/pids/mayfly/{vm.id}"):
        remove_cgroup(f"/sys/fs/cgroup/pids/mayfly/{vm.id}")


def calls_of(log):
    """[(name, which of that name, line)]; not the last, which the filter would take for an attack."""
    counts, found, is_begun = collections.Counter(), [], False
    for line in log.read_text().splitlines():
        name = line.split("(", 1)[0]
        counts[name] += 1
        is_begun |= name == "close_range"
        if name == "execve" and is_begun:
            return found
        if is_begun:
            found.append((name, counts[name], line))
    raise AssertionError("the VMM was not executed")


def is_worth_it(name, line):
    if name == "prctl" and "PR_CAPBSET_DROP" in line: # forty times the same
        return "CAP_CHOWN" in line
    return name in FAULTS and not any(name == n and text in line for n, text in HARMLESS)


def mounts():
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        return f.read()


def wrong_with(vm, tmp_path, name, which):
    code, error, log = trace(vm, tmp_path, f"{name}:error={FAULTS[name]}:when={which}")
    if len(injected(log)) != 1:
        return "the fault did not happen"
    if code != 1 or STRERROR[FAULTS[name]] not in error:
        return f"exit code {code}: {error!r}"
    return None


@pytest.mark.parametrize("flags", [
    [], ["--exec-method", "bind", "--read-only-root"],
    ["--exec-method", "link", "--new-cgroup-ns", "--netns", "/proc/self/ns/net"],
], ids=["copy", "bind", "link"])
def test_each_call_that_fails_ends_the_jailer_with_the_reason(tmp_path, flags):
    vm = jail(*flags)
    code, error, log = trace(vm, tmp_path)
    remove(vm)
    assert code == 0, error
    before, wrong = mounts(), {}
    calls = [(name, which, line) for name, which, line in calls_of(log) if is_worth_it(name, line)]
    assert len(calls) > 30
    for name, which, line in calls:
        vm = jail(*flags)
        result = wrong_with(vm, tmp_path, name, which)
        remove(vm)
        if result:
            wrong[line] = result
    assert not wrong
    assert mounts() == before
