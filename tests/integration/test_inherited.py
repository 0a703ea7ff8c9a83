"""What a process inherits does not change what it does: each thing of the list in
vmm/base/inherited.h, for the VMM and for the jailer."""

import contextlib
import fcntl
import itertools
import json
import os
import pty
import resource
import shutil
import signal
import stat
import subprocess
import termios

import pytest

import mayfly
from faults import needs_strace
from filters import LIBC
from guests import Machine, drive, make_files, needs_kvm, run, start
from jail import EXEC_FILE, JAILER, Jail, mayfly_ended
from mayfly import BINARY, Mayfly, complete, wait_until

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="PART OF WHAT IS INHERITED WAS NOT TESTED: it needs root")
SIGNALS = set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP} # the real-time ones mean nothing
ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
PR_SET_PDEATHSIG, CLONE_NEWPID, ADDR_NO_RANDOMIZE = 1, 0x20000000, 0x0040000
RLIMIT_SIGPENDING = 11


def pid_of_child(process):
    def children():
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as f:
            return f.read().split()
    return int(wait_until(children, "a child")[0])


def status_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f)


def go_on_in_child(in_parent=lambda child: None):
    """For before_exec: the binary is executed by a child, whose end the parent tells as its own:
    200 + N after signal N."""
    if child := os.fork():
        os.closerange(3, 256) # or Popen() would wait for them
        in_parent(child)
        status = os.waitpid(child, 0)[1]
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 200 + os.WTERMSIG(status))
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# Descriptors


HOLES = [holes for n in (1, 2, 3) for holes in itertools.combinations(range(3), n)]


def close(holes):
    return lambda: [os.close(fd) for fd in holes]


def links(pid, fds):
    return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fds}


def write_config(directory):
    """Of a microVM whose kernel is none, and whose disk is writable."""
    files = make_files(str(directory))
    config = {"boot-source": {"kernel_image_path": files["text"]},
              "drives": [drive(files["disk"], "rootfs", is_root_device=True)],
              "metrics": {"metrics_path": os.path.join(directory, "metrics")}}
    path = os.path.join(directory, "vm.json")
    with open(path, "w", encoding="ascii") as f:
        json.dump(config, f)
    return path, files["disk"]


@pytest.mark.parametrize("holes", HOLES)
def test_nothing_that_is_opened_becomes_a_standard_file_that_was_closed(tmp_path, holes):
    config, disk = write_config(tmp_path)
    done = complete(BINARY, "--no-api", "--config-file", config, preexec_fn=close(holes))
    assert done.returncode == 1
    with open(disk, "rb") as f:
        assert f.read() == bytes(1 << 20)
    for line in (tmp_path / "metrics").read_text().splitlines():
        json.loads(line)
    with Mayfly(before_exec=close(holes)) as vm:
        vm.ok("GET", "/version")
        assert links(vm.process.pid, holes) == {"/dev/null"}


@needs_root
def test_a_root_directory_without_devices_has_no_holes_either(tmp_path):
    shutil.copy(EXEC_FILE, tmp_path / "mayfly")
    vm = subprocess.Popen(
        ["/mayfly", "--api-sock", "/s"], executable="/mayfly",
        preexec_fn=lambda: (os.chroot(tmp_path), os.chdir("/"), close(range(3))()))
    try:
        wait_until(lambda: (tmp_path / "s").exists() or vm.poll() is not None, "the API")
        assert links(vm.pid, range(3)) == {"anon_inode:[eventpoll]"}
    finally:
        vm.kill()
        vm.wait()


@needs_root
@pytest.mark.parametrize("flags", [[], ["--daemonize"], ["--new-pid-ns"]])
def test_the_jailer_hands_down_no_holes(flags):
    with Jail(*flags, before_exec=close(range(3))) as vm:
        vm.ok("GET", "/version")
        assert links(vm.pid(), range(3)) == {"/dev/null"}


# Signals


def ignore_and_block_all():
    for number in SIGNALS:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def mask(*numbers):
    return sum(1 << number - 1 for number in numbers)


def hears_all(pid):
    """But for the two by which a terminal would stop it; SIGIO comes by a signalfd. Threads that KVM
    adds never leave the kernel."""
    for tid in os.listdir(f"/proc/{pid}/task"):
        status = status_of(f"{pid}/task/{tid}")
        stops = mask(signal.SIGTTIN, signal.SIGTTOU)
        if not status["Name"].startswith("kvm-") and \
                (int(status["SigBlk"], 16) & ~mask(signal.SIGIO),
                 int(status["SigIgn"], 16)) != (0, stops):
            return False
    return True


@needs_kvm
@pytest.mark.parametrize("number", ENDS)
def test_a_guest_is_paused_patched_and_ended_whatever_signals_were_blocked(number):
    with Mayfly(before_exec=ignore_and_block_all) as vm:
        files = make_files(vm.directory)
        vm.ok("PUT", "/drives/d", drive(files["disk"], "d"))
        start(vm, files)
        wait_until(lambda: hears_all(vm.process.pid), "threads that have begun")
        vm.ok("PATCH", "/vm", {"state": "Paused"})
        vm.ok("PATCH", "/vm", {"state": "Resumed"})
        vm.ok("PATCH", "/drives/d", {"drive_id": "d", "path_on_host": files["disk"]})
        vm.process.send_signal(number)
        assert vm.wait() == -number


@needs_kvm
def test_a_guest_ends_whatever_signals_were_blocked():
    run("smp", "vcpus=2", vcpus=2, before_exec=ignore_and_block_all)


@needs_root
@pytest.mark.parametrize("flags", [[], ["--daemonize"], ["--new-pid-ns"]])
def test_the_jailer_hands_no_blocked_signals_down(flags):
    with Jail(*flags, before_exec=ignore_and_block_all) as vm:
        vm.ok("GET", "/version")
        wait_until(lambda: hears_all(vm.pid()), "a process that has begun")


def test_a_file_that_is_too_large_ends_the_process_whatever_signals_were_ignored():
    def prepare():
        ignore_and_block_all()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    with Mayfly("--log-path", "log", api=False, before_exec=prepare) as vm:
        assert vm.wait() == 151, vm.output()


def pipes_without_reader():
    for fd in (1, 2):
        read_end, write_end = os.pipe()
        os.dup2(write_end, fd)
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("binary, code", [(BINARY, 153), (JAILER, 1)])
def test_output_that_nobody_reads_does_not_change_the_status(binary, code):
    done = complete(binary, "--bogus", preexec_fn=pipes_without_reader)
    assert done.returncode == code


@needs_kvm
def test_a_guest_is_paused_where_no_more_signals_may_wait():
    """They are counted by user: another process of its may have used them up."""
    def prepare():
        resource.setrlimit(RLIMIT_SIGPENDING, (0, 0))

    with Mayfly(before_exec=prepare) as vm:
        start(vm, make_files(vm.directory))
        vm.ok("PATCH", "/vm", {"state": "Paused"})


# The first process of a PID namespace


def become_first_process():
    LIBC.unshare(CLONE_NEWPID)
    go_on_in_child()


@needs_root
@needs_kvm
@pytest.mark.parametrize("number", ENDS)
def test_the_first_process_of_a_namespace_ends_by_the_same_signals(number):
    with Mayfly(before_exec=become_first_process) as vm:
        start(vm, make_files(vm.directory))
        os.kill(pid_of_child(vm.process), number)
        assert vm.wait() == 128 + number


@needs_root
def test_sigterm_ends_a_jailed_vmm_that_is_the_first_process_of_its_namespace():
    with Jail("--new-pid-ns") as vm:
        pid_fd = os.pidfd_open(vm.pid())
        signal.pidfd_send_signal(pid_fd, signal.SIGTERM)
        mayfly_ended(pid_fd)


# Terminal, process group, session


@pytest.fixture(name="terminal")
def a_terminal():
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def lead_session():
    """For before_exec, with a terminal on stdin, which becomes that of the session."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Job(Machine):
    """A microVM whose guest sends back what it reads, started by a shell of sorts on a terminal.
    SIGUSR1 makes the shell take the terminal back and set it without echo."""

    def __init__(self, terminal, is_in_background):
        self.is_in_background = is_in_background
        super().__init__("serial", "echo", stdin=terminal, stdout=terminal, before_exec=self.begin)

    def begin(self):
        lead_session()
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        attributes = termios.tcgetattr(0)
        attributes[3] &= ~termios.ECHO

        def take_back(*_):
            os.tcsetpgrp(0, os.getpgrp())
            termios.tcsetattr(0, termios.TCSANOW, attributes)

        signal.signal(signal.SIGUSR1, take_back)
        go_on_in_child()
        os.setpgid(0, 0)
        if not self.is_in_background:
            os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)

    def pid(self):
        return pid_of_child(self.process)


def read_until(fd, text):
    seen = b""
    while text not in seen:
        seen += os.read(fd, 4096)


def unread(fd):
    count = fcntl.ioctl(fd, termios.FIONREAD, bytes(4))
    return int.from_bytes(count, "little")


def is_watched(pid, fd):
    """Whether an epoll set of the process has it."""
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with (contextlib.suppress(FileNotFoundError), # closed meanwhile
              open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii") as info):
            if any(line.split()[:2] == ["tfd:", str(fd)] for line in info):
                return True
    return False


@needs_kvm
def test_in_the_background_of_a_shell_a_guest_runs_and_leaves_the_terminal_alone(terminal):
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    before[3] |= termios.TOSTOP
    termios.tcsetattr(theirs, termios.TCSANOW, before)
    with Job(theirs, is_in_background=True) as job:
        job.boot()
        read_until(ours, b"ready")
        os.write(ours, b"typed\n")
        wait_until(lambda: unread(theirs), "what was typed")
        job.ok("GET", "/version")
        assert unread(theirs) == len("typed\n")
        assert termios.tcgetattr(theirs) == before
        os.kill(job.pid(), signal.SIGTERM)
        assert job.wait() == 200 + signal.SIGTERM
        assert termios.tcgetattr(theirs) == before


@needs_kvm
def test_a_terminal_that_a_shell_has_taken_back_is_left_alone(terminal):
    ours, theirs = terminal
    with Job(theirs, is_in_background=False) as job:
        job.boot()
        read_until(ours, b"ready")
        assert termios.tcgetattr(theirs)[3] & termios.ICANON == 0
        job.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: termios.tcgetattr(theirs)[3] & termios.ICANON, "the shell")
        shells = termios.tcgetattr(theirs)
        assert is_watched(job.pid(), 0)
        os.write(ours, b"typed\n")
        wait_until(lambda: not is_watched(job.pid(), 0), "the end of input")
        job.ok("GET", "/version")
        os.kill(job.pid(), signal.SIGTERM)
        assert job.wait() == 200 + signal.SIGTERM
        assert termios.tcgetattr(theirs) == shells


@needs_kvm
@pytest.mark.parametrize("number", ENDS)
def test_a_signal_that_ends_the_process_leaves_no_raw_terminal(terminal, number):
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    with Machine("serial", "echo", stdin=theirs, stdout=theirs) as machine:
        machine.boot()
        read_until(ours, b"ready")
        assert termios.tcgetattr(theirs) != before
        machine.process.send_signal(number)
        assert machine.wait() == -number
    assert termios.tcgetattr(theirs) == before


@pytest.fixture(name="pipe")
def a_pipe():
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


@needs_root
@pytest.mark.parametrize("number", ENDS)
def test_a_signal_that_ends_the_process_leaves_a_shared_output_blocking(pipe, number):
    """Without /proc the VMM can't open it anew: test_jailer.py."""
    with Jail(stdout=pipe[1]) as vm:
        assert not os.get_blocking(pipe[1])
        vm.process.send_signal(number)
        assert vm.wait() == -number
        assert os.get_blocking(pipe[1])


@needs_root
def test_a_failed_start_leaves_a_shared_output_blocking(pipe):
    vm = Jail(stdout=pipe[1], vmm_args=["--no-api", "--config-file", "/none"])
    vm.spawn()
    assert vm.wait() == 1
    assert os.get_blocking(pipe[1])
    shutil.rmtree(vm.directory)


@needs_root
@needs_kvm
def test_the_end_does_not_wait_for_the_reader_of_a_shared_output(pipe):
    with Jail(stdout=pipe[1]) as vm:
        vm.ok("PUT", "/boot-source", {
            "kernel_image_path": vm.give(os.path.join(mayfly.GUESTS, "exit")),
            "boot_args": "reset"})
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe[1], bytes(4096))
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe[1], b"x")
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        assert vm.wait() == 0


@needs_root
@pytest.mark.parametrize("flags", [["--daemonize"], ["--daemonize", "--new-pid-ns"]])
def test_the_end_of_a_jailer_that_leads_a_session_does_not_end_its_vmm(terminal, flags):
    with Jail(*flags, stdin=terminal[1], before_exec=lead_session) as vm:
        assert vm.process.wait(mayfly.DEADLINE_S) == 0
        vm.ok("GET", "/version")


@needs_root
@needs_strace
def test_a_late_end_of_a_jailer_that_leads_a_session_does_not_end_its_vmm(terminal):
    """When the VMM has its handler of SIGHUP already. setsid gives the jailer the terminal."""
    vm = Jail("--new-pid-ns", stdin=terminal[1])
    vm.command = ["strace", "-qqq", "-o", "/dev/null", "-e", "trace=exit_group", "-e",
                  "inject=exit_group:delay_enter=500000", "setsid", "--ctty", *vm.command]
    with vm:
        assert vm.process.wait(mayfly.DEADLINE_S) == 0
        vm.ok("GET", "/version")


@needs_kvm
def test_no_file_of_a_configuration_becomes_the_terminal_of_a_session(terminal):
    with Mayfly(before_exec=os.setsid) as vm:
        path = os.ttyname(terminal[1])
        vm.request("PUT", "/boot-source", {"kernel_image_path": path, "initrd_path": path})
        vm.request("PUT", "/drives/d", drive(path, "d"))
        vm.request("PUT", "/logger", {"log_path": path})
        with open(f"/proc/{vm.process.pid}/stat", encoding="ascii") as f:
            assert f.read().split()[6] == "0"


# umask


UMASKS = [0, 0o22, 0o137, 0o277]


def mode(path):
    return oct(stat.S_IMODE(os.stat(path).st_mode))


@needs_kvm
@pytest.mark.parametrize("umask", UMASKS)
def test_what_others_may_read_follows_the_umask(umask):
    with Mayfly("--log-path", "log", before_exec=lambda: os.umask(umask)) as vm:
        vm.ok("PUT", "/metrics", {"metrics_path": "metrics"})
        vm.ok("PUT", "/serial", {"serial_out_path": "serial"})
        start(vm, make_files(vm.directory))
        for name in ("log", "metrics", "serial"):
            assert mode(os.path.join(vm.directory, name)) == oct(0o666 & ~umask), name


@needs_root
@needs_kvm
@pytest.mark.parametrize("umask", [*UMASKS, 0o777])
def test_what_a_cell_needs_does_not_follow_the_umask(umask):
    with Jail(before_exec=lambda: os.umask(umask)) as vm:
        for name in ("dev/kvm", "dev/net/tun", "dev/urandom"):
            assert mode(vm.inside(name)) == oct(0o600), name
        for name in ("", "dev", "dev/net", "run"):
            assert mode(vm.inside(name)) == oct(0o700), name
        assert int(vm.status()["Umask"], 8) == umask
        vm.ok("PUT", "/boot-source",
              {"kernel_image_path": vm.give(os.path.join(mayfly.GUESTS, "counter"))})
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})


# Working directory, environment, personality


def lose_the_way():
    """No directory, and an environment full of what a C library looks at."""
    directory = f"gone-{os.getpid()}"
    os.mkdir(directory)
    os.chdir(directory)
    os.rmdir(f"../{directory}")
    LIBC.personality(ADDR_NO_RANDOMIZE)


ENVIRONMENT = {"LD_PRELOAD": "/none.so", "LC_ALL": "tr_TR.UTF-8", "TZ": ":/none", "IFS": "x",
               "POSIXLY_CORRECT": "1", "PATH": ""}


def test_the_vmm_needs_neither_directory_nor_environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with Mayfly(before_exec=lose_the_way) as vm:
        vm.ok("GET", "/version")


@needs_root
def test_the_jailer_hands_down_neither_directory_nor_environment_nor_personality(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with Jail(before_exec=lose_the_way) as vm:
        vm.ok("GET", "/version")
        with open(f"/proc/{vm.pid()}/environ", "rb") as f:
            assert f.read() == b""
        with open(f"/proc/{vm.pid()}/personality", encoding="ascii") as f:
            assert int(f.read(), 16) == 0
        assert os.readlink(f"/proc/{vm.pid()}/cwd") == "/"


# Core dumps


MEM_MIB = 64
dumps_are_small = pytest.mark.skipif(
    "sanitize" in BINARY, reason="NO CORE WAS LOOKED AT: a sanitizer's process has terabytes")


def start_with_secret(vm, huge_pages="None"):
    """A secret in the guest's memory: its initrd, whose pages are mapped and the rest copied."""
    secret = os.urandom((1 << 16) + 100)
    files = make_files(vm.directory)
    initrd = os.path.join(vm.directory, "initrd")
    with open(initrd, "wb") as f:
        f.write(secret)
    vm.ok("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": MEM_MIB,
                                     "huge_pages": huge_pages})
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"], "initrd_path": initrd})
    vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
    return secret


def mappings(pid):
    """Start and end of each, and whether a core dump leaves it out."""
    with open(f"/proc/{pid}/smaps", encoding="ascii") as f:
        for line in f:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                at = [int(n, 16) for n in words[0].split("-")]
            elif words[0] == "VmFlags:":
                yield *at, "dd" in words


def find_memory(pid, secret):
    """Bytes that are left out of a core dump; whether the secret is in them, and in the rest."""
    found = {True: False, False: False}
    left_out = 0
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for begin, end, is_left_out in mappings(pid):
            left_out += is_left_out * (end - begin)
            with contextlib.suppress(OSError, ValueError, OverflowError):
                memory.seek(begin)
                found[is_left_out] |= secret[-100:] in memory.read(end - begin)
    return left_out, found[True], found[False]


@dumps_are_small
@needs_kvm
@pytest.mark.parametrize("huge_pages", ["None", "Transparent"])
def test_guest_memory_is_left_out_of_core_dumps(huge_pages):
    with Mayfly() as vm:
        secret = start_with_secret(vm, huge_pages)
        left_out, is_in_it, is_in_the_rest = find_memory(vm.process.pid, secret)
        assert left_out >= MEM_MIB << 20
        assert is_in_it and not is_in_the_rest


def core_pattern():
    with open("/proc/sys/kernel/core_pattern", encoding="ascii") as f:
        return f.read().strip()


@dumps_are_small
@needs_kvm
@pytest.mark.skipif("/" in core_pattern() or "|" in core_pattern() or not core_pattern(),
                    reason="NO CORE WAS DUMPED: this host sends them elsewhere")
def test_a_core_dump_has_no_guest_memory():
    def prepare():
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)

    with Mayfly(before_exec=prepare) as vm:
        secret = start_with_secret(vm)
        vm.process.send_signal(signal.SIGQUIT)
        assert vm.wait() == -signal.SIGQUIT
        cores = [name for name in os.listdir(vm.directory) if name.startswith("core")]
        assert len(cores) == 1
        with open(os.path.join(vm.directory, cores[0]), "rb") as f:
            core = f.read()
        assert core[:4] == b"\x7fELF" and b"anonymous-instance" in core
        assert secret[:100] not in core and secret[-100:] not in core


@needs_root
def test_a_jailed_vmm_dumps_no_core():
    def prepare():
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)

    with Jail(before_exec=prepare) as vm:
        with open(f"/proc/{vm.pid()}/limits", encoding="ascii") as f:
            limits = next(line for line in f if line.startswith("Max core file size"))
        assert limits.split()[4:6] == ["1", "1"]
