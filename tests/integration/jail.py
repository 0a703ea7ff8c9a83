"""A mayfly process in a jail of its own: started by mayfly-jailer, spoken to over the API.

    with Jail("--new-pid-ns", vmm_args=["--level", "Debug"]) as vm:
        vm.ok("GET", "/version")
        os.path.exists(vm.inside("run/firecracker.socket"))

The jailer is $MAYFLY_JAILER, or mayfly-jailer beside the binary.
"""

import contextlib
import glob
import itertools
import os
import re
import select
import signal
import subprocess

import pytest

import mayfly

JAILER = os.environ.get("MAYFLY_JAILER",
                        os.path.join(os.path.dirname(mayfly.BINARY), "mayfly-jailer"))
# What is run inside. A build for sanitizers or coverage needs libraries, which a cell does not have:
# its jailer runs the release.
EXEC_FILE = os.environ.get("MAYFLY_EXEC_FILE",
                           re.sub("/build/(sanitize|coverage)/", "/build/release/", mayfly.BINARY))
CAPTURED = os.path.join(os.path.dirname(EXEC_FILE), "tests", "captured")
UID, GID = 31234, 31235
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="THE JAILER WAS NOT TESTED: only root can build a jail")
numbers = itertools.count()


@pytest.fixture(autouse=True)
def reachable(tmp_path):
    """For the tests that import it. pytest's directories are for their owner only, and not every
    jailer of these is root's."""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)


def jailer(*args, **kwargs):
    """Exit code, stdout and stderr of a jailer that ends by itself."""
    done = mayfly.complete(JAILER, *args, **kwargs)
    return done.returncode, done.stdout, done.stderr


class Jail(mayfly.Mayfly):
    """args are further ones for the jailer, vmm_args for the VMM. A jail of the same base and id
    may follow another one. exec_file: to be run in the VMM's place."""

    def __init__(self, *args, vmm_args=(), base=None, jail_id=None, uid=UID, gid=GID,
                 exec_file=None, **more):
        super().__init__(**more)
        self.base = base or self.directory
        self.id = jail_id or f"t{os.getpid()}-{next(numbers)}"
        self.uid, self.gid = uid, gid
        self.exec_file = exec_file or EXEC_FILE
        self.name = os.path.basename(os.path.realpath(self.exec_file))
        self.root = os.path.join(self.base, self.name, self.id, "root")
        self.socket_path = self.inside("run/firecracker.socket")
        self.command = [JAILER, "--id", self.id, "--exec-file", self.exec_file, "--uid", str(uid),
                        "--gid", str(gid), "--chroot-base-dir", self.base, *args]
        self.command += ["--", *vmm_args] if vmm_args else []
        self.is_detached = "--daemonize" in args or "--new-pid-ns" in args

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for path in glob.glob(f"/sys/fs/cgroup/*/*/{self.id}"): # empty by now
            remove_cgroup(path)

    def start(self):
        self.spawn()
        try:
            self.connect().close()
        except BaseException:
            self.stop()
            raise
        return self

    def spawn(self):
        """Starts the jailer, and waits for nothing."""
        with open(self.output_path, "wb") as output:
            self.process = subprocess.Popen(
                self.command, preexec_fn=self.prepare, stdin=self.stdin,
                stdout=self.stdout or output, stderr=output)

    def has_ended(self):
        """A jailer that detaches the VMM ends well, and then it is the VMM that counts."""
        code = self.process.poll()
        return code is not None and not (code == 0 and self.is_detached)

    def inside(self, path):
        """Where what the VMM calls /path is."""
        return os.path.join(self.root, path)

    def give(self, path, name=None):
        """Brings a file of the host's into the jail, for the VMM's user."""
        os.makedirs(self.root, exist_ok=True)
        inside = self.inside(name or os.path.basename(path))
        with open(path, "rb") as source, open(inside, "wb") as target:
            target.write(source.read())
        os.chown(inside, self.uid, self.gid)
        return "/" + os.path.basename(inside)

    def pid(self):
        """Once the file is there: a new PID namespace's is written while the VMM starts."""
        path = self.inside(f"{self.name}.pid")
        mayfly.wait_until(lambda: os.path.exists(path), path)
        with open(path, encoding="ascii") as f:
            return int(f.read())

    def status(self, pid=None):
        """/proc/PID/status of the VMM, as a dict."""
        with open(f"/proc/{pid or self.pid()}/status", encoding="ascii") as f:
            return dict(line.rstrip("\n").split(":\t", 1) for line in f)

    def stop(self):
        """Kills the VMM and waits until it is gone."""
        if self.is_detached and self.process and self.process.wait(mayfly.DEADLINE_S) == 0:
            try:
                fd = os.pidfd_open(self.pid())
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                mayfly_ended(fd)
            except ProcessLookupError:
                pass
        return super().stop()


def mayfly_ended(pid_fd):
    """Waits for the end of a process that is nobody's child here."""
    ready, _, _ = select.select([pid_fd], [], [], mayfly.DEADLINE_S)
    os.close(pid_fd)
    assert ready, "the process still runs"


def remove_cgroup(path):
    """Once what was in it is gone, which the kernel does a little later than it says."""
    def is_removed():
        with contextlib.suppress(OSError):
            os.rmdir(path)
            return True
    mayfly.wait_until(is_removed, f"{path} to be empty")
