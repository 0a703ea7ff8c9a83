"""The jailer: each flag, each error, and guests inside. As root, in the namespaces of the host that the
tests run on."""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import time

import pytest

import mayfly
import taps
import vsock
from faults import needs_strace
from filters import GETPPID, filters, make_call, wait_for
from guests import drive, make_disk, needs_kvm
from jail import EXEC_FILE, GID, JAILER, UID, Jail, jailer, mayfly_ended, needs_root, reachable

pytestmark = needs_root
ROOT = mayfly.ROOT


# The cell


def test_the_cell_has_its_binary_its_devices_and_nothing_else():
    with Jail() as vm:
        found = {}
        for directory, names, files in os.walk(vm.root):
            for name in names + files:
                path = os.path.join(directory, name)
                found[os.path.relpath(path, vm.root)] = os.lstat(path)
        devices = {"dev/kvm": (10, 232), "dev/net/tun": (10, 200), "dev/urandom": (1, 9)}
        with open("/proc/misc", encoding="ascii") as misc:
            minor = re.search(r"(\d+) userfaultfd\n", misc.read())
        if minor:
            devices["dev/userfaultfd"] = (10, int(minor[1]))
        assert set(found) == {"dev", "dev/net", "run", "run/firecracker.socket", "mayfly",
                              "mayfly.pid", *devices}
        for name, numbers in devices.items():
            assert stat.S_ISCHR(found[name].st_mode), name
            assert stat.S_IMODE(found[name].st_mode) == 0o600
            assert (os.major(found[name].st_rdev), os.minor(found[name].st_rdev)) == numbers
        for name in ("dev", "dev/net", "run"):
            assert stat.S_IMODE(found[name].st_mode) == 0o700
        for name in (*devices, "dev", "dev/net", "run", "mayfly"):
            assert (found[name].st_uid, found[name].st_gid) == (UID, GID), name
        assert stat.S_IMODE(os.stat(vm.root).st_mode) == 0o700
        assert found["mayfly"].st_mode == os.stat(EXEC_FILE).st_mode
        assert found["mayfly"].st_ino != os.stat(EXEC_FILE).st_ino
        assert found["mayfly.pid"].st_uid == 0


def test_the_vmm_has_lost_everything_but_its_standard_files():
    os.environ["SECRET"] = "x"
    inherited = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(inherited, True)

    def leave_a_file_open():
        os.dup2(inherited, 9, inheritable=True)

    with Jail(before_exec=leave_a_file_open) as vm:
        status = vm.status()
        assert vm.pid() == vm.process.pid
        assert status["Uid"].split() == [str(UID)] * 4
        assert status["Gid"].split() == [str(GID)] * 4
        assert status["Groups"].split() == []
        assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        with open(f"/proc/{vm.pid()}/environ", "rb") as environment:
            assert environment.read() == b""
        mayfly.wait_until(lambda: sum(name.startswith("socket:")
                                      for name in mayfly.open_files(vm.pid())) == 1,
                          "the end of connections")
        files = mayfly.open_files(vm.pid())
        kvm = [name for name in files if name in ("/dev/kvm", "anon_inode:kvm-vm")]
        assert "/etc/passwd" not in files and len(files) == 5 + len(kvm) <= 7, files
        with open(f"/proc/{vm.pid()}/mountinfo", encoding="utf-8") as mounts:
            lines = mounts.read().splitlines()
        assert len(lines) == 1 and lines[0].split()[4] == "/", "no mount of the host's is left"
        assert os.readlink(f"/proc/{vm.pid()}/cwd") == "/"
    os.close(inherited)


SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
DAC_OVERRIDE = f"{1 << 1:016x}"


def test_a_vmm_of_user_0_opens_what_its_mode_forbids_until_its_guest_runs():
    """As Kata's log and metrics: FIFOs of mode 000. From the guest's first instruction on, no set of
    any thread has a capability."""
    with contextlib.ExitStack() as stack:
        vm = Jail(uid=0, gid=0, vmm_args=["--log-path", "/log", "--metrics-path", "/metrics"])
        os.makedirs(vm.root)
        for name in ("log", "metrics"):
            os.mkfifo(vm.inside(name))
            os.chmod(vm.inside(name), 0)
            stack.callback(os.close, os.open(vm.inside(name), os.O_RDONLY | os.O_NONBLOCK))
        stack.enter_context(vm)
        status = vm.status()
        assert status["Uid"].split() == ["0"] * 4 and status["NoNewPrivs"] == "1"
        assert [status[name] for name in SETS] == [DAC_OVERRIDE] * 3 + ["0" * 16] * 2
        vm.ok("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 128})
        disk = vm.give(make_disk(os.path.join(vm.directory, "disk"), 8))
        vm.ok("PUT", "/drives/d", drive(disk, "d", io_engine="Async"))
        vm.ok("PUT", "/boot-source",
              {"kernel_image_path": vm.give(os.path.join(mayfly.GUESTS, "counter"))})
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        threads = os.listdir(f"/proc/{vm.pid()}/task")
        assert len(threads) >= 3
        for thread in threads:
            status = vm.status(f"{vm.pid()}/task/{thread}")
            assert {status[name] for name in SETS} == {"0" * 16}, status["Name"]


@pytest.mark.parametrize("flags", [[], ["--new-user-ns"]])
def test_nobody_else_keeps_a_capability(flags):
    with Jail(*flags, uid=0 if flags else UID) as vm:
        assert {vm.status()[name] for name in SETS} == {"0" * 16}


def test_the_vmm_is_told_who_it_is_and_when_it_began():
    with Jail(vmm_args=["--level", "Debug", "--show-level"]) as vm:
        with open(f"/proc/{vm.pid()}/cmdline", "rb") as f:
            argv = f.read().decode().split("\0")[:-1]
        assert argv[:4] == ["/mayfly", "--id", vm.id, "--start-time-us"]
        assert argv[5] == "--start-time-cpu-us" and argv[7:9] == ["--parent-cpu-time-us", "0"]
        assert argv[9:] == ["--level", "Debug", "--show-level"]
        assert 0 < int(argv[4]) <= time.monotonic_ns() // 1000
        assert vm.ok("GET", "/")["id"] == vm.id
        metrics = vm.request("GET", "/metrics")[2]
        wall = float(re.search(r"^\S*process_startup_time_seconds (\S+)", metrics, re.M)[1])
        assert 0 < wall < mayfly.DEADLINE_S


def test_name_and_place_come_from_the_file_behind_a_symbolic_link(tmp_path):
    target = shutil.copy(EXEC_FILE, tmp_path / "fc-1.2")
    link = tmp_path / "firecracker"
    link.symlink_to(target)
    with Jail(exec_file=str(link)) as vm:
        assert "/fc-1.2/" in vm.root
        assert vm.status()["Name"] == "fc-1.2"
        assert os.path.exists(vm.inside("fc-1.2.pid"))


def test_what_the_host_mounts_below_the_root_is_seen_inside(tmp_path):
    """Callers bring disks in by bind mounts, also while the VMM runs."""
    disk = make_disk(tmp_path / "disk", 8)
    os.chmod(disk, 0o666)
    vm = Jail()
    base = vm.directory
    subprocess.run(["mount", "-t", "tmpfs", "none", base], check=True)
    try:
        subprocess.run(["mount", "--make-shared", base], check=True)
        with vm:
            point = vm.inside("disk")
            with open(point, "wb"):
                pass
            subprocess.run(["mount", "--bind", disk, point], check=True)
            try:
                vm.ok("PUT", "/drives/d", drive("/disk", "d"))
            finally:
                subprocess.run(["umount", "-l", point], check=True)
    finally:
        subprocess.run(["umount", "-l", base], check=True)


def test_standard_output_may_be_a_pipe():
    """The VMM can't open it anew without /proc; its flags are changed, and changed back."""
    read_end, write_end = os.pipe()
    with Jail(stdout=write_end) as vm:
        assert b"Running Firecracker" in os.read(read_end, 1000)
        assert not os.get_blocking(write_end)
        vm.process.send_signal(signal.SIGHUP)
        assert vm.wait() == 156
        assert os.get_blocking(write_end)
    os.close(read_end)
    os.close(write_end)


# Flags


def test_the_default_base_is_srv_jailer():
    made = not os.path.exists("/srv/jailer")
    os.makedirs("/srv/jailer", exist_ok=True)
    vm = Jail(base="/srv/jailer")
    at = vm.command.index("--chroot-base-dir")
    del vm.command[at:at + 2]
    try:
        with vm:
            assert vm.root.startswith("/srv/jailer/mayfly/")
            vm.ok("GET", "/version")
    finally:
        shutil.rmtree(os.path.dirname(vm.root))
        if made:
            shutil.rmtree("/srv/jailer")


def test_daemonize_detaches_from_session_terminal_and_output():
    with Jail("--daemonize") as vm:
        assert vm.process.wait(mayfly.DEADLINE_S) == 0
        pid = vm.pid()
        assert pid != vm.process.pid
        assert os.getsid(pid) not in (os.getsid(0), pid), "no leader could get a terminal"
        for fd in range(3):
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
        assert vm.status()["Name"] == "mayfly"
        assert vm.output() == ""
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            argv = f.read().decode().split("\0")
        assert argv[6] == "0" and int(argv[8]) > 0, "a child's CPU clock begins anew"


@pytest.mark.parametrize("flags", [["--new-pid-ns"], ["--new-pid-ns", "--daemonize"]])
def test_a_new_pid_namespace_has_the_vmm_as_its_first_process(flags):
    with Jail(*flags) as vm:
        assert vm.process.wait(mayfly.DEADLINE_S) == 0
        with open(vm.inside("mayfly.pid"), encoding="ascii") as f:
            assert re.fullmatch(r"\d+", f.read())
        assert vm.status()["NSpid"].split() == [str(vm.pid()), "1"]


@pytest.mark.parametrize("flag, kind", [("--new-ipc-ns", "ipc"), ("--new-uts-ns", "uts"),
                                        ("--new-cgroup-ns", "cgroup")])
def test_further_namespaces(flag, kind):
    for flags, is_new in ([], False), ([flag], True):
        with Jail(*flags) as vm:
            is_other = os.readlink(f"/proc/{vm.pid()}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
            assert is_other == is_new


def test_a_network_namespace_is_joined():
    name = f"jail-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with Jail("--netns", f"/var/run/netns/{name}") as vm:
            assert os.stat(f"/proc/{vm.pid()}/ns/net").st_ino == \
                os.stat(f"/var/run/netns/{name}").st_ino
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def limit_of(pid, name):
    with open(f"/proc/{pid}/limits", encoding="ascii") as f:
        return re.search(rf"{name} +(\S+) +(\S+)", f.read()).groups()


def test_resource_limits():
    with Jail() as vm:
        assert limit_of(vm.pid(), "Max open files") == ("2048", "2048")
    with Jail("--resource-limit", "no-file=512", "--resource-limit", "fsize=1048576") as vm:
        assert limit_of(vm.pid(), "Max open files") == ("512", "512")
        assert limit_of(vm.pid(), "Max file size") == ("1048576", "1048576")


@pytest.mark.parametrize("method", ["copy", "link", "bind"])
def test_three_ways_into_the_cell(tmp_path, method):
    binary = shutil.copy(EXEC_FILE, tmp_path / "mayfly")
    base = tmp_path / "b" # of the same file system; a socket's path must be short
    base.mkdir()
    for _ in range(2): # the second over what the first left
        with Jail("--exec-method", method, base=str(base), exec_file=binary, jail_id="again") as vm:
            vm.ok("GET", "/version")
            running, original = os.stat(f"/proc/{vm.pid()}/exe"), os.stat(binary)
            assert (running.st_ino == original.st_ino) == (method != "copy")
            assert original.st_uid == 0, "the VMM owns at most a copy"
            with open(f"/proc/{vm.pid()}/mountinfo", encoding="utf-8") as f:
                mounts = [line.split() for line in f]
            if method == "bind":
                assert [m[5].split(",")[0] for m in mounts if m[4] == "/mayfly"] == ["ro"]
        for name in ("mayfly.pid", "dev/kvm", "dev/net/tun", "dev/urandom", "dev/userfaultfd",
                     "run/firecracker.socket"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(vm.inside(name))


@pytest.mark.parametrize("flags", [[], ["--new-pid-ns"], ["--daemonize"]])
def test_a_read_only_root_leaves_run_writable(flags):
    with Jail("--read-only-root", *flags) as vm:
        status, _, answer = vm.request("PUT", "/metrics", {"metrics_path": "/metrics"})
        assert status == 400 and "Read-only file system" in answer["fault_message"]
        vm.ok("PUT", "/metrics", {"metrics_path": "/run/metrics"})
        assert os.path.exists(vm.inside("run/metrics"))
        assert vm.pid() > 0


def test_a_user_namespace_needs_no_root(tmp_path):
    nobody = 65534
    binary = shutil.copy(EXEC_FILE, tmp_path / "mayfly")
    runner = shutil.copy(JAILER, tmp_path / "mayfly-jailer")

    def become_nobody():
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)

    vm = Jail("--new-user-ns", exec_file=binary, before_exec=become_nobody)
    vm.command[0] = runner
    os.chown(vm.directory, nobody, nobody)
    with vm:
        vm.ok("GET", "/version")
        status = vm.status()
        assert status["Uid"].split() == [str(nobody)] * 4, "seen from here"
        with open(f"/proc/{vm.pid()}/uid_map", encoding="ascii") as f:
            assert f.read().split() == [str(UID), str(nobody), "1"]
        assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        with open(f"/proc/{vm.pid()}/mountinfo", encoding="utf-8") as f:
            points = {line.split()[4] for line in f}
        assert {"/", "/dev/kvm", "/dev/net/tun", "/dev/urandom"} <= points


def test_the_filter_of_the_process_can_be_left_out():
    for flags, count in ([], "1"), (["--no-seccomp"], "0"):
        with Jail(*flags, vmm_args=["--no-seccomp"]) as vm:
            assert vm.status()["Seccomp_filters"] == count


@needs_kvm
def test_threads_of_a_jailed_guest_have_their_filters_beside_that_of_the_process():
    with Jail() as vm:
        vm.ok("PUT", "/boot-source",
              {"kernel_image_path": vm.give(os.path.join(mayfly.GUESTS, "counter"))})
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        wait_for(lambda: filters(vm) == {"mayfly": 2, "fc_vcpu 0": 2})


def test_a_forbidden_call_ends_a_process_that_only_starts():
    with Jail() as vm:
        make_call(vm.process.pid, GETPPID)
        assert vm.wait() == 148
        assert "intercepting signal 31, code 1" in vm.output()


# What the host lacks

FINE_HOST = {
    "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vmx smx\nvmx flags\t: vnmi\n",
    "/sys/module/kvm_intel/parameters/nested": "N\n",
    "/sys/module/kvm/parameters/nx_huge_pages": "N\n",
    "/sys/devices/system/cpu/smt/active": "0\n",
    "/sys/devices/system/cpu/vulnerabilities/mds": "Mitigation: Clear CPU buffers\n",
    "/sys/kernel/mm/ksm/run": "0\n",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "4\n",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "/proc/swaps": "Filename Type Size Used Priority\n",
    "/proc/sys/vm/unprivileged_userfaultfd": "0\n",
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
}
POOR_HOST = {
    "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu svm_lock nosvm\nvmx flags\t: vmx\n",
    "/sys/module/kvm_amd/parameters/nested": "1\n",
    "/sys/module/kvm/parameters/nx_huge_pages": "Y\n",
    "/sys/module/kvm/parameters/nx_huge_pages_recovery_ratio": "60\n",
    "/sys/devices/system/cpu/smt/active": "1\n",
    "/sys/devices/system/cpu/vulnerabilities/mds": "Vulnerable: no microcode\n",
    "/sys/devices/system/cpu/vulnerabilities/tsa": "Vulnerable\n",
    "/sys/kernel/mm/ksm/run": "1\n",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0\n",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
    "/proc/swaps": "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n",
    "/proc/sys/vm/unprivileged_userfaultfd": "1\n",
    "/sys/fs/cgroup/cgroup.controllers": "hugetlb\n",
}


def check_host(tmp_path, files, *mounts, arguments="", before=""):
    """Exit code and {what: (verdict, advice)} where these files lie over the host's."""
    commands = ["{ [ $(stat -f -c %T /sys/fs/cgroup) = cgroup2fs ] || "
                "mount -t cgroup2 none /sys/fs/cgroup; }"]
    for path, text in files.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text(text)
    for path in ("/sys/module", "/sys/devices/system/cpu", "/sys/kernel/mm", "/proc/swaps", "/proc/cpuinfo",
                 "/proc/sys/vm", "/sys/fs/cgroup/cgroup.controllers"):
        commands.append(f"mount --bind {tmp_path}{path} {path}")
    script = " && ".join([*commands, *mounts, f"exec {before} {JAILER} --check {arguments}"])
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True,
                          timeout=mayfly.DEADLINE_S, check=False)
    assert done.stderr == ""
    lines = [line.split(None, 1) for line in done.stdout.splitlines()]
    return done.returncode, {what.split(": ", 1)[0]: (verdict, what) for verdict, what in lines}


def leave_out_what_is_no_file(said):
    del said["cgroups favour changes"], said[landlock(said)]


def landlock(said):
    return next(what for what in said if what.startswith("Landlock"))


@needs_kvm
def test_a_host_that_lacks_nothing_is_told_so(tmp_path):
    code, said = check_host(tmp_path, FINE_HOST)
    leave_out_what_is_no_file(said)
    assert code == 0 and len(said) == 15
    assert {verdict for verdict, _ in said.values()} == {"ok"}


@needs_kvm
def test_a_host_is_told_what_it_lacks(tmp_path):
    code, said = check_host(tmp_path, POOR_HOST, f"mount --bind {tmp_path}/proc/swaps /dev/kvm")
    leave_out_what_is_no_file(said)
    assert code == 1
    assert {what for what, (verdict, _) in said.items() if verdict == "wrong"} == {
        "/dev/kvm", "KVM runs Linux", "KSM off", "processor's weaknesses mitigated", "cgroup version 2"}
    assert {what for what, (verdict, _) in said.items() if verdict == "ok"} == {
        "seccomp", "devices and programs in cells", "cells have the binary's name"}
    assert said["processor's weaknesses mitigated"][1].endswith(
        "the processor leaks by mds tsa: newer microcode, and no mitigations=off")


@needs_strace
@pytest.mark.parametrize("answer, what, verdict", [
    ("retval=6", "Landlock, ABI 6", "ok"), ("retval=7", "Landlock, ABI 7", "ok"),
    ("retval=5", "Landlock, ABI 5", "advice"), ("retval=1", "Landlock, ABI 1", "advice"),
    ("error=ENOSYS", "Landlock", "advice"), ("error=EOPNOTSUPP", "Landlock", "advice")])
def test_the_check_says_which_landlock_the_host_has(tmp_path, answer, what, verdict):
    _, said = check_host(
        tmp_path, FINE_HOST,
        before=f"strace -qq -o /dev/null -e inject=landlock_create_ruleset:{answer}")
    assert landlock(said) == what
    assert said[what][0] == verdict


@needs_kvm
def test_a_host_with_cgroups_of_version_1_is_advised(tmp_path):
    code, said = check_host(tmp_path, FINE_HOST, "mount -t tmpfs none /sys/fs/cgroup")
    assert code == 0 and said["cgroup version 2"][0] == "advice"


@needs_kvm
@pytest.mark.parametrize("options, words", [
    ("nodev", "is mounted nodev, "), ("noexec", "is mounted noexec, "),
    ("nodev,noexec", "is mounted nodev and noexec, ")])
def test_a_base_where_no_cell_works_is_found_by_the_check(tmp_path, options, words):
    base = tmp_path / "base"
    base.mkdir()
    code, said = check_host(tmp_path, FINE_HOST, f"mount -t tmpfs -o {options} none {base}",
                            arguments=f"--chroot-base-dir {base}")
    verdict, text = said["devices and programs in cells"]
    assert (code, verdict) == (1, "wrong") and words in text and str(base) in text


@needs_kvm
def test_a_binary_whose_cells_no_client_finds_is_found_by_the_check(tmp_path):
    """A symbolic link is not where a cell has its name from; a hard link is."""
    shutil.copy(EXEC_FILE, tmp_path / "mayfly")
    (tmp_path / "firecracker").symlink_to("mayfly")
    runner = shutil.copy(JAILER, tmp_path / "mayfly-jailer")
    os.link(tmp_path / "mayfly", tmp_path / "hard")
    for arguments, is_wrong in ((f"--exec-file {tmp_path}/firecracker", True),
                                (f"--exec-file {tmp_path}/hard", False)):
        code, said = check_host(tmp_path, FINE_HOST, arguments=arguments)
        verdict, text = said["cells have the binary's name"]
        assert (code, verdict) == ((1, "wrong") if is_wrong else (0, "ok")), text
        assert f"{tmp_path}/firecracker is a link to {tmp_path}/mayfly" in text or not is_wrong
    text = mayfly.complete(runner, "--check").stdout # looks beside itself
    assert re.search(r"^wrong +cells have the binary's name", text, re.M)


def test_help_and_version():
    code, text, error = jailer("--version")
    assert (code, error) == (0, "")
    assert re.match(r"Jailer v\d+\.\d+\.\d+\n", text)
    for flag in ("--help", "-h"):
        code, text, error = jailer("--bogus", flag)
        assert (code, error) == (0, "")
        for name in ("--id", "--exec-file", "--uid", "--gid", "--chroot-base-dir", "--netns",
                     "--daemonize", "--new-pid-ns", "--cgroup", "--cgroup-version",
                     "--parent-cgroup", "--resource-limit", "--version", "--check"):
            assert f"  {name} " in text


def test_the_page_for_movers_names_every_flag():
    with open(os.path.join(ROOT, "docs", "firecracker.md"), encoding="utf-8") as f:
        section = f.read().partition("\n## The jailer\n")[2].partition("\n## ")[0]
    named = {flag for row in re.findall(r"^\| (`.*?) \|", section, re.M)
             for flag in re.findall(r"`(--[a-z-]+)", row)}
    assert named == set(re.findall(r"^  (--[a-z-]+)", jailer("--help")[1], re.M))


# Errors


NEEDED = {"--id": "x", "--exec-file": EXEC_FILE, "--uid": "1", "--gid": "1",
          "--chroot-base-dir": "/tmp"}


@pytest.mark.parametrize("changes, text", [
    ({"--id": None}, "Failed to parse arguments: Argument 'id' required, but not found."),
    ({"--exec-file": None}, "Failed to parse arguments: Argument 'exec-file' required, but not found."),
    ({"--uid": None}, "Failed to parse arguments: Argument 'uid' required, but not found."),
    ({"--gid": None}, "Failed to parse arguments: Argument 'gid' required, but not found."),
    ({"--id": ""}, "Invalid instance ID: Invalid len (0);  the length must be between 1 and 64"),
    ({"--id": "x" * 65}, "Invalid instance ID: Invalid len (65);"),
    ({"--id": "a_b"}, "Invalid instance ID: Invalid char (_) at position 1"),
    ({"--id": "../x"}, "Invalid instance ID: Invalid char (.) at position 0"),
    ({"--uid": "-1"}, "Invalid uid: -1"),
    ({"--uid": "root"}, "Invalid uid: root"),
    ({"--uid": "4294967295"}, "Invalid uid: 4294967295"),
    ({"--gid": "4294967296"}, "Invalid gid: 4294967296"),
    ({"--exec-file": "/none"},
     "Failed to canonicalize path /none: No such file or directory (os error 2)"),
    ({"--exec-file": "/tmp"}, "/tmp is not a file"),
    ({"--chroot-base-dir": "/none"},
     "Failed to canonicalize path /none: No such file or directory (os error 2)"),
    ({"--chroot-base-dir": "/etc/passwd"}, "/etc/passwd is not a directory"),
    ({"--netns": "/none"}, "Failed to open file /none: No such file or directory (os error 2)"),
    ({"--netns": "/etc/passwd"}, "Failed to join network namespace: netns: Invalid argument"),
    ({"--resource-limit": "no-file"}, "Invalid format for resources limits: no-file"),
    ({"--resource-limit": "cpu=1"}, "Invalid resource argument: cpu"),
    ({"--resource-limit": "fsize=x"}, "Invalid limit value for resource: x"),
    ({"--cgroup": "cpu.shares"}, "Invalid format for cgroups: cpu.shares"),
    ({"--cgroup": "cpu.shares="}, "Invalid format for cgroups: cpu.shares="),
    ({"--cgroup": "a.b=1=2"}, "Invalid format for cgroups: a.b=1=2"),
    ({"--cgroup": "shares=1"}, "Cgroup invalid file: shares"),
    ({"--cgroup": "cpu./../x=1"}, "Cgroup invalid file: cpu./../x"),
    ({"--cgroup": "none.x=1"}, "Controller none is unavailable"),
    ({"--cgroup": "none.x=1", "--cgroup-version": "2"}, "Controller none is unavailable"),
    ({"--cgroup-version": "3"}, "3 is an invalid cgroup version specifier"),
    ({"--parent-cgroup": "/x"},
     "Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'"),
    ({"--parent-cgroup": "a/../../b"}, "Parent cgroup path is invalid."),
    ({"--parent-cgroup": "a/."}, "Parent cgroup path is invalid."),
    ({"--exec-method": "magic"}, "Invalid exec method: magic: must be copy, link or bind"),
    ({"--bogus": "1"}, "Failed to parse arguments: Found argument 'bogus' which wasn't expected"),
    ({"--netns": "--daemonize"},
     "Failed to parse arguments: The argument 'netns' requires a value, but none was supplied."),
])
def test_what_is_wrong_is_said_and_makes_no_jail(tmp_path, changes, text):
    arguments = {**NEEDED, "--chroot-base-dir": str(tmp_path), **changes}
    code, out, error = jailer(*[x for name, value in arguments.items() if value is not None
                                for x in (name, value)])
    assert (code, out) == (1, "")
    assert error.startswith(text) and error.count("\n") == 1 and error.endswith("\n")
    if not {"--netns", "--cgroup"} & set(changes): # found out when they are needed
        assert os.listdir(tmp_path) == []


def test_nothing_but_cgroups_and_limits_is_given_twice():
    code, _, error = jailer("--id", "a", "--id", "b")
    assert code == 1 and "The argument 'id' was provided more than once." in error


def test_a_hard_link_in_the_place_of_the_binary_is_refused():
    vm = Jail()
    os.makedirs(vm.root)
    victim = os.path.join(vm.directory, "victim")
    with open(victim, "w", encoding="ascii") as f:
        f.write("precious")
    os.link(victim, vm.inside("mayfly"))
    code, _, error = jailer(*vm.command[1:])
    assert code == 1 and f"Detected hard link at: {vm.inside('mayfly')}" in error
    os.unlink(vm.inside("mayfly"))
    os.symlink(victim, vm.inside("mayfly"))
    code, _, error = jailer(*vm.command[1:])
    assert (code, error) == (
        1, f"Failed to open {vm.inside('mayfly')}: Symbolic link loop (os error 40)\n")
    with open(victim, encoding="ascii") as f:
        assert f.read() == "precious"
    shutil.rmtree(vm.directory)


def test_symbolic_links_left_inside_lead_nowhere_outside():
    """The root was an earlier VMM's, who may have prepared it."""
    vm = Jail()
    outside = os.path.join(vm.directory, "outside")
    os.makedirs(vm.root)
    os.mkdir(outside)
    os.symlink(outside, vm.inside("dev"))
    os.symlink("/etc/passwd", vm.inside("mayfly.pid"))
    before = os.stat("/etc/passwd")
    code, _, error = jailer(*vm.command[1:])
    assert code == 1 and "dev" in error
    assert os.listdir(outside) == []
    assert os.stat("/etc/passwd").st_mtime == before.st_mtime
    shutil.rmtree(vm.directory)


# Reuse, and many at once


def test_an_id_is_used_once_until_its_cell_is_removed():
    with Jail() as vm:
        vm.ok("GET", "/version")
        for _ in range(2):
            code, _, error = jailer(*vm.command[1:])
            assert code == 1
            assert "Failed to open" in error and "Text file busy" in error or \
                "Failed to create /dev/net/tun via mknod inside the jail: File exists (os error 17)" \
                in error
            vm.ok("GET", "/version")
        super(Jail, vm).stop()
        code, _, error = jailer(*vm.command[1:])
        assert code == 1
        assert "Failed to create /dev/net/tun via mknod inside the jail: File exists (os error 17)" \
            in error
        shutil.rmtree(vm.root)
        vm.start()
        vm.ok("GET", "/version")


def calls_of_a_jailer():
    """The names of the system calls that a jailer makes, in order, up to its execve."""
    vm = Jail()
    trace = os.path.join(vm.directory, "trace")
    with open(vm.output_path, "wb") as output:
        process = subprocess.Popen(["strace", "-D", "-o", trace, *vm.command], stdout=output,
                                   stderr=output, stdin=subprocess.DEVNULL)
        vm.process = process
        vm.connect().close()
        process.kill()
        process.wait()
    with open(trace, encoding="utf-8") as f:
        names = re.findall(r"^(\w+)\(", f.read(), re.M)
    shutil.rmtree(vm.directory)
    return names[1:names.index("execve", 1) + 1]


def test_a_jailer_killed_at_any_step_does_not_block_the_next_one():
    counts, points = {}, []
    for name in calls_of_a_jailer():
        counts[name] = counts.get(name, 0) + 1
        points.append((name, counts[name]))
    steps = [p for p in points if p[0] in (
        "mkdir", "openat", "flock", "copy_file_range", "fchown", "unshare", "mount", "pivot_root",
        "umount2", "mkdirat", "openat2", "fchmod", "mknodat", "fchownat", "write", "setresuid",
        "capset", "renameat2")]
    assert {"mount", "pivot_root", "setresuid"} <= {name for name, _ in steps}
    for name, when in steps:
        vm = Jail()
        killed = subprocess.run(
            ["strace", "-o", "/dev/null", "-e", f"inject={name}:signal=KILL:when={when}",
             *vm.command], capture_output=True, timeout=mayfly.DEADLINE_S)
        assert killed.returncode == -signal.SIGKILL, (name, when, killed)
        with vm:
            vm.ok("GET", "/version")


def test_a_hundred_jails_at_once(tmp_path):
    vms = [Jail(base=str(tmp_path), uid=UID + i) for i in range(100)]
    with contextlib.ExitStack() as stack:
        for vm in vms:
            stack.callback(vm.__exit__)
            vm.spawn()
        for vm in vms:
            assert vm.ok("GET", "/")["id"] == vm.id
        assert len({vm.status()["Uid"] for vm in vms}) == 100


# Guests


@needs_kvm
@pytest.mark.parametrize("flags", [[], ["--new-pid-ns", "--daemonize", "--exec-method", "bind",
                                        "--new-ipc-ns", "--new-uts-ns"]])
@pytest.mark.parametrize("engine", ["Sync", "Async"])
def test_a_jailed_guest_uses_its_devices(tmp_path, flags, engine):
    """The kernel and the disk lie in the cell."""
    vm = Jail(*flags, vmm_args=["--log-path", "/run/log"])
    disk = vm.give(make_disk(tmp_path / "disk", 32768))
    with started(vm, "block", "sectors=32768 writeback", {
            "/drives/disk": drive(disk, cache_type="Writeback", io_engine=engine)}):
        pass


@contextlib.contextmanager
def started(vm, guest, boot_args, devices):
    """A test guest at work in a jail, which then ends by itself, and well."""
    kernel = vm.give(os.path.join(mayfly.GUESTS, guest))
    with vm:
        vm.ok("PUT", "/serial", {"serial_out_path": "/run/console"})
        vm.ok("PUT", "/boot-source", {"kernel_image_path": kernel, "boot_args": boot_args})
        for path, body in devices.items():
            vm.ok("PUT", path, body)
        pid_fd = os.pidfd_open(vm.pid())
        vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        yield
        mayfly_ended(pid_fd)
        with open(vm.inside("run/console"), encoding="ascii") as f:
            lines = f.read().splitlines()
        assert lines and lines[-1] == "done"
        assert not [line for line in lines if line.startswith("not ok")]
        with open(vm.inside("run/log"), encoding="utf-8") as f:
            assert f.read().rstrip().endswith("exiting successfully. exit_code=0")
        if not vm.is_detached:
            assert vm.wait() == 0


@pytest.fixture
def namespace():
    """A network namespace with a tap that the VMM's user may open: its path."""
    name = f"mayfly-test-{os.getpid()}"
    taps.ip(f"netns add {name}")
    try:
        taps.ip(f"-n {name} tuntap add tap0 mode tap user {UID}")
        taps.ip(f"-n {name} link set tap0 up")
        yield f"/run/netns/{name}"
    finally:
        taps.ip(f"netns del {name}")


def wire_in(namespace):
    """The other end of its tap."""
    with open(namespace, "rb") as there, taps.inside(there.fileno()):
        return taps.Wire()


@needs_kvm
def test_a_jailed_guest_is_on_the_network_of_its_namespace(namespace):
    vm = Jail("--netns", namespace, vmm_args=["--log-path", "/run/log"])
    interface = {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": taps.GUEST}
    with wire_in(namespace) as wire, started(vm, "net", "mrg offload eventidx", {
            "/network-interfaces/eth0": interface}):
        wire.exchange(taps.random_frames(range(60, 200)))
        wire.send(taps.make_frame(bytes(46), kind=taps.TYPE_END))


@needs_kvm
def test_a_jailed_guest_reaches_sockets_in_its_cell():
    vm = Jail(vmm_args=["--log-path", "/run/log"])
    with contextlib.ExitStack() as stack:
        os.makedirs(vm.inside("run"))
        listener = stack.enter_context(vsock.listen(vm.inside("run/v.sock_7")))
        os.chown(vm.inside("run/v.sock_7"), UID, GID)
        stack.enter_context(started(vm, "vsock", "cid=3 eventidx connect=7 count=1 bytes=10000", {
            "/vsock": {"guest_cid": 3, "uds_path": "/run/v.sock"}}))
        with listener.accept()[0] as client:
            while part := client.recv(4096):
                client.sendall(part)
