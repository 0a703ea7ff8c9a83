"""What a jailer can't do it says: before it makes anything where it can be known by then, and in any
case until the VMM is executed, also when the caller waits for another process than the VMM's."""

import contextlib
import os
import shutil
import socket
import stat
import subprocess

import pytest

import mayfly
from guests import needs_kvm
from jail import EXEC_FILE, JAILER, UID, Jail, jailer, needs_root, reachable

pytestmark = needs_root
DETACHED = [["--daemonize"], ["--new-pid-ns"], ["--daemonize", "--new-pid-ns"]]
EVERY_WAY = [[], *DETACHED]


def refusal(vm):
    """What a jailer that fails says on its one line."""
    code, out, error = jailer(*vm.command[1:])
    assert (code, out) == (1, "") and error.endswith("\n") and error.count("\n") == 1, error
    return error[:-1]


# Where the cell would be


@contextlib.contextmanager
def mounted(path, options):
    path.mkdir()
    path.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("options, flags, words", [
    ("nodev", [], "{root} is on a file system that is mounted nodev: "
                  "/dev/kvm could not be opened there"),
    ("noexec", [], "{root} is on a file system that is mounted noexec: "
                   "the VMM could not be executed there"),
    ("noexec", ["--exec-method", "bind"], None), # a mount has the flags of where it is from
])
def test_a_base_where_no_cell_works_is_refused_before_anything_is_made(tmp_path, options, flags,
                                                                      words):
    with mounted(tmp_path / "base", options) as base:
        vm = Jail(*flags, base=str(base), vmm_args=["--version"])
        if words:
            assert refusal(vm) == words.format(root=vm.root)
            assert os.listdir(base) == []
        else:
            assert jailer(*vm.command[1:])[0] == 0


def test_a_user_namespace_needs_no_device_nodes(tmp_path):
    with mounted(tmp_path / "base", "nodev") as base:
        vm = Jail("--new-user-ns", base=str(base), uid=0, gid=0, vmm_args=["--version"])
        assert jailer(*vm.command[1:])[0] == 0


def test_a_cell_that_is_a_mount_of_its_own_is_judged_by_that(tmp_path):
    with mounted(tmp_path / "base", "nodev,noexec") as base:
        vm = Jail(base=str(base), vmm_args=["--version"])
        os.makedirs(vm.root)
        subprocess.run(["mount", "-t", "tmpfs", "none", vm.root], check=True)
        try:
            assert jailer(*vm.command[1:])[0] == 0
        finally:
            subprocess.run(["umount", "-l", vm.root], check=True)


def test_a_chroot_is_told_from_what_else_can_be_wrong(tmp_path):
    shutil.copy(JAILER, tmp_path / "jailer")
    shutil.copy(EXEC_FILE, tmp_path / "vmm")
    (tmp_path / "base").mkdir()
    done = mayfly.complete("chroot", tmp_path, "/jailer", "--id", "x", "--exec-file", "/vmm", "--uid",
                           "1", "--gid", "1", "--chroot-base-dir", "/base")
    assert (done.returncode, done.stderr) == (
        1, "Failed to change the propagation type to slave: Invalid argument (os error 22); / is not "
           "a mount: this is a chroot, where no jail can be\n")


# The program


def test_a_script_or_a_dynamic_program_is_refused_with_what_it_needs(tmp_path):
    script = tmp_path / "script"
    script.write_text("#! /bin/sh -e\nexit 0\n")
    script.chmod(0o755)
    dynamic = shutil.copy(shutil.which("true"), tmp_path / "dynamic")
    for program, needed in ((script, "/bin/sh"), (dynamic, "/lib64/ld-linux-x86-64.so.2")):
        vm = Jail(exec_file=str(program))
        assert refusal(vm) == (f"{program} is a script or dynamically linked: it needs {needed}, which "
                               "is not in the jail")
        assert os.listdir(vm.directory) == []
        os.rmdir(vm.directory)


def test_a_dynamic_program_whose_libraries_are_in_the_cell_runs(tmp_path):
    vm = Jail("--no-seccomp", exec_file=shutil.copy(shutil.which("true"), tmp_path / "dynamic"))
    listed = subprocess.run(["ldd", vm.exec_file], capture_output=True, text=True, check=True).stdout
    for library in (word for word in listed.split() if word.startswith("/")):
        os.makedirs(os.path.dirname(vm.inside(library[1:])), exist_ok=True)
        shutil.copy(library, vm.inside(library[1:]))
    assert jailer(*vm.command[1:]) == (0, "", "")
    shutil.rmtree(vm.directory)


@pytest.mark.parametrize("flags", EVERY_WAY)
def test_a_program_that_its_user_may_not_execute_is_told(tmp_path, flags):
    """Found out by the last call of all, when the caller of a detached VMM has long been alone."""
    binary = shutil.copy(EXEC_FILE, tmp_path / "mayfly")
    os.chmod(binary, 0o700)
    (tmp_path / "b").mkdir()
    vm = Jail("--exec-method", "link", *flags, base=str(tmp_path / "b"), exec_file=binary)
    assert refusal(vm) == ("Failed to exec into Firecracker: Permission denied (os error 13); its user "
                           "and group may not execute it, or a directory on the way")
    assert not os.path.exists(vm.inside("mayfly.pid")), "of a process that is gone"


@pytest.mark.parametrize("flags", EVERY_WAY)
def test_a_program_that_is_none_is_told(tmp_path, flags):
    program = tmp_path / "mayfly"
    program.write_bytes(b"\x7fELF, but not for long")
    program.chmod(0o755)
    vm = Jail(*flags, exec_file=str(program))
    assert refusal(vm) == "Failed to exec into Firecracker: Exec format error (os error 8)"
    assert not os.path.exists(vm.inside("mayfly.pid"))
    shutil.rmtree(vm.directory)


# The process


@pytest.mark.parametrize("flags", EVERY_WAY)
def test_a_pid_file_that_is_there_is_told_and_left(flags):
    vm = Jail(*flags)
    os.makedirs(vm.root)
    with open(vm.inside("mayfly.pid"), "w", encoding="ascii") as f:
        f.write("precious")
    assert refusal(vm) == "Failed to open file /mayfly.pid: File exists (os error 17)"
    with open(vm.inside("mayfly.pid"), encoding="ascii") as f:
        assert f.read() == "precious"
    shutil.rmtree(vm.directory)


@pytest.mark.parametrize("flags", DETACHED)
@pytest.mark.parametrize("call", ["capset", "setresuid", "setsid"])
def test_a_process_that_is_killed_before_it_is_the_vmm_is_told(flags, call):
    if call == "setsid" and "--daemonize" not in flags:
        return
    vm = Jail(*flags)
    done = mayfly.complete("strace", "-f", "-o", "/dev/null", "-e",
                           f"inject={call}:signal=KILL:when=1", *vm.command)
    assert (done.returncode, done.stderr) == (
        1, "The process that was to become the VMM was killed\n")
    shutil.rmtree(vm.directory)


@pytest.mark.parametrize("flags", DETACHED)
def test_whatever_fails_on_the_way_is_told(flags):
    calls = {"socketpair": "Failed to make a pair of sockets",
             "clone3": "Failed cloning into a new child process",
             "dup2": "Failed to duplicate fd", "setresuid": f"Failed to change to user {UID}",
             "seccomp": "Failed to install the seccomp filter of the process"}
    if "--daemonize" in flags:
        calls["setsid"] = "Failed to daemonize: setsid"
    else:
        del calls["dup2"]
    for call, text in calls.items():
        vm = Jail(*flags)
        done = mayfly.complete("strace", "-f", "-o", "/dev/null", "-e",
                               f"inject={call}:error=EPERM:when=1", *vm.command)
        assert (done.returncode, done.stderr) == (
            1, f"{text}: Operation not permitted (os error 1)\n")
        shutil.rmtree(vm.directory)


@pytest.mark.parametrize("flags", DETACHED)
def test_the_caller_comes_back_when_the_vmm_is_there(flags):
    """Its PID is in the file by then, and it is the binary."""
    with Jail(*flags) as vm:
        assert vm.process.wait(mayfly.DEADLINE_S) == 0
        with open(vm.inside("mayfly.pid"), encoding="ascii") as f:
            pid = int(f.read())
        assert os.readlink(f"/proc/{pid}/exe").endswith("/mayfly")
        assert vm.status(pid)["Uid"].split() == [str(UID)] * 4
        sockets = [name for name in mayfly.open_files(pid) if name.startswith("socket:")]
        assert len(sockets) <= 1, "its API, and no line of ours"


# The host's syslog


@contextlib.contextmanager
def syslog(tmp_path):
    """A host whose /dev/log is ours, as a command's prefix, and what arrives there."""
    dev = tmp_path / "dev"
    dev.mkdir()
    os.mknod(dev / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(dev / "log"))
        log.settimeout(mayfly.DEADLINE_S)
        yield log, ["unshare", "--mount", "sh", "-c", f"mount --bind {dev} /dev && exec \"$@\"", "sh"]


def test_a_vmm_that_ends_at_its_configuration_leaves_a_line_in_syslog(tmp_path):
    with syslog(tmp_path) as (log, prefix):
        vm = Jail("--daemonize", "--new-pid-ns", vmm_args=["--config-file", "/none.json"])
        vm.command = [*prefix, *vm.command]
        done = mayfly.complete(*vm.command)
        assert (done.returncode, done.stderr) == (0, ""), "the VMM was executed"
        assert log.recv(4096).decode() == (
            f"<27>mayfly: {vm.id}: Error: RunWithApiError error: Unable to open or read from the "
            "configuration file: /none.json: No such file or directory (os error 2)\n")
        shutil.rmtree(vm.directory)


@needs_kvm
def test_the_vmm_of_a_running_guest_has_no_syslog(tmp_path):
    with syslog(tmp_path) as (_, prefix):
        vm = Jail("--daemonize")
        vm.command = [*prefix, *vm.command]
        kernel = vm.give(os.path.join(mayfly.GUESTS, "counter"))
        with vm:
            assert os.readlink(f"/proc/{vm.pid()}/fd/2").startswith("socket:")
            vm.ok("PUT", "/boot-source", {"kernel_image_path": kernel})
            vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
            assert os.readlink(f"/proc/{vm.pid()}/fd/2") == os.readlink(f"/proc/{vm.pid()}/fd/1")


@needs_kvm
def test_standard_error_that_is_no_syslog_stays(tmp_path):
    """systemd's is a socket, too, but a stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        vm = Jail(stdout=theirs.fileno())
        kernel = vm.give(os.path.join(mayfly.GUESTS, "counter"))
        with open(vm.output_path, "wb"):
            pass
        vm.spawn = lambda: setattr(vm, "process", subprocess.Popen(
            vm.command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs))
        with vm:
            before = os.readlink(f"/proc/{vm.pid()}/fd/2")
            vm.ok("PUT", "/boot-source", {"kernel_image_path": kernel})
            vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
            assert os.readlink(f"/proc/{vm.pid()}/fd/2") == before and before.startswith("socket:")
