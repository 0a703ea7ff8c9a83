"""Names in a cell that its user has made symbolic links of, before a jailer comes or while it is at
work. Nothing that a link leads to changes. What it leads to here is a directory of the host's that
was mounted into the cell: everything else in there is the user's anyway."""

import contextlib
import ctypes
import os
import shutil
import subprocess

import pytest

import mayfly
from jail import GID, UID, Jail, jailer, needs_root

pytestmark = needs_root
LOOP = "Symbolic link loop (os error 40)"


@contextlib.contextmanager
def cell(tmp_path, *flags):
    """A jail, with a directory of the host's in it, and a function that says how that is."""
    host = tmp_path / "host"
    (host / "directory").mkdir(parents=True)
    (host / "file").write_text("precious")
    vm = Jail(*flags, vmm_args=["--version"])
    os.makedirs(vm.inside("shared"))
    subprocess.run(["mount", "--bind", host, vm.inside("shared")], check=True)

    def looks():
        found = {}
        for directory, names, files in os.walk(host):
            for path in (directory, *(os.path.join(directory, name) for name in names + files)):
                st = os.lstat(path)
                found[path] = (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_size, st.st_mtime_ns)
        return found

    try:
        yield vm, looks
    finally:
        subprocess.run(["umount", "-l", vm.inside("shared")], check=True)
        shutil.rmtree(vm.directory)


def refused(path):
    return f"Failed to open {path} inside the jail: {LOOP}\n"


@pytest.mark.parametrize("flags, name, error", [
    ([], "dev", refused("directory /dev")),
    ([], "dev/net", refused("directory /dev/net")),
    ([], "run", refused("directory /run")),
    (["--read-only-root"], "run", refused("directory /run")),
    ([], "mayfly", "Failed to open {root}/mayfly: " + LOOP + "\n"),
    (["--exec-method", "bind"], "mayfly", refused("/mayfly")),
    (["--exec-method", "link"], "mayfly", ""),
    ([], "mayfly.pid", "Failed to open file /mayfly.pid: File exists (os error 17)\n"),
    ([], ".pid", ""),
    ([], "dev/kvm", ""),
    ([], "dev/net/tun", ""),
    ([], "dev/urandom", ""),
    ([], "dev/userfaultfd", ""),
    (["--new-user-ns"], "dev/kvm", refused("/dev/kvm")),
    (["--new-user-ns"], "dev/net/tun", refused("/dev/net/tun")),
])
@pytest.mark.parametrize("target", ["/shared/directory", "/shared/file", "/shared/none"])
def test_a_link_that_was_there_before_is_replaced_or_refused(tmp_path, flags, name, error, target):
    uid = 0 if "--new-user-ns" in flags else UID # of there, and so the caller
    with cell(tmp_path, *flags) as (vm, looks):
        vm.command[vm.command.index("--uid") + 1] = str(uid)
        os.makedirs(os.path.dirname(vm.inside(name)), exist_ok=True)
        os.symlink(target, vm.inside(name))
        before = looks()
        code, _, text = jailer(*vm.command[1:])
        assert looks() == before
        assert (code, text) == (1 if error else 0, error.format(root=vm.root))


def exchange_for_ever(here, there):
    """As the user, who owns the directory that both are in."""
    os.setgroups([])
    os.setresgid(GID, GID, GID)
    os.setresuid(UID, UID, UID)
    libc = ctypes.CDLL(None)
    while os.getppid() != 1:
        libc.renameat2(-100, here.encode(), -100, there.encode(), 2)


@pytest.mark.parametrize("name", ["run", "dev", "dev/net", "dev/kvm"])
def test_a_link_that_comes_and_goes_is_never_followed(tmp_path, name):
    """Whatever comes of the jailers, and both comes: the name is what it should be at every other
    instant."""
    with cell(tmp_path) as (vm, looks):
        for directory in ("dev/net", "run"):
            os.makedirs(vm.inside(directory))
        other = vm.inside(os.path.join(os.path.dirname(name), "other"))
        os.symlink("/shared/directory", other)
        for directory, _, _ in os.walk(vm.root):
            if not directory.startswith(vm.inside("shared")):
                os.chown(directory, UID, GID)
        if name == "dev/kvm":
            os.mknod(vm.inside(name))
        for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            path.chmod(0o755)
        before = looks()
        for directory in (vm.directory, os.path.dirname(vm.root)):
            os.chmod(directory, 0o755)
        attacker = os.fork()
        if attacker == 0:
            try:
                exchange_for_ever(vm.inside(name), other)
            finally:
                os._exit(1)
        try:
            for _ in range(40 if mayfly.IS_LONG else 10):
                jailer(*vm.command[1:])
                for left in ("mayfly.pid", "dev/kvm", "dev/net/tun", "dev/urandom",
                             "dev/userfaultfd"):
                    if left != name:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(vm.inside(left))
                assert looks() == before
        finally:
            os.kill(attacker, 9)
            os.waitpid(attacker, 0)
