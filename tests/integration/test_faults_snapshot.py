"""Snapshots on a host that refuses: each system call of a create and of a load fails, one after the
other (faults.py). The client is told what and why. After a create the microVM is as it was, and the
next one works; after a load the process ends.
"""

import contextlib
import os
import re
import tempfile
import uuid

import pytest

import mayfly
from faults import UNFILTERED, injected, needs_strace, traced
from guests import Machine, drive, make_disk, needs_kvm
from snapshots import HEADER, Clone, create_body, load_body, loaded, pair, pause, resume, save
from test_faults import IS_SANITIZED

pytestmark = [needs_strace, needs_kvm]
MARK = "user.mayfly.snapshot"
SHM = "/dev/shm"

# What is done without: there is another way, or no more is lost than a line in the log tells.
CREATE_HARMLESS = re.compile(r"write\(3|sysinfo|statx|XSAVE2|TSC_KHZ|DEVICE_ATTR|CLEAR_DIRTY_LOG"
                             r"|copy_file_range|SEEK_|LOCK_SH|EINTR")
LOAD_HARMLESS = re.compile(r"READONLY_MEM|TSC_KHZ|GET_DEVICE_ATTR|TCGETS|munmap|EINTR"
                           r"|newfstatat\(0|newfstatat\(AT_FDCWD|MAP_PRIVATE\|MAP_ANONYMOUS, -1")
CREATE_FAULTS = {
    "ioctl": ["EIO"], "mincore": ["ENOMEM"], "getrandom": ["EINTR", "ENOSYS"],
    "openat": ["EMFILE"], "newfstatat": ["EIO"], "statx": ["EIO"], "flock": ["ENOLCK"],
    "ftruncate": ["EFBIG"], "fchmod": ["EIO"], "write": ["ENOSPC", "EINTR"], "fsync": ["EIO"],
    "fsetxattr": ["ENOSPC"], "fgetxattr": ["EIO"], "pwritev": ["ENOSPC", "EINTR"],
    "rename": ["EIO"], "unlink": ["EIO"], "lseek": ["EIO"], "copy_file_range": ["EIO"],
    "sysinfo": ["EFAULT"],
}
LOAD_FAULTS = {
    "ioctl": ["ENOMEM"], "openat": ["EMFILE"], "newfstatat": ["EIO"], "read": ["EIO", "EINTR"],
    "flock": ["ENOLCK"], "fgetxattr": ["EIO"], "mmap": ["ENOMEM"], "munmap": ["ENOMEM"],
    "lseek": ["EIO"], "fcntl": ["EMFILE"], "socket": ["EMFILE"], "bind": ["EACCES"],
    "listen": ["ENOMEM"], "eventfd2": ["EMFILE"], "timerfd_create": ["EMFILE"],
    "epoll_ctl": ["ENOMEM"], "io_uring_setup": ["ENOMEM"], "io_uring_register": ["ENOMEM"],
    "clone3": ["EAGAIN"], "getrandom": ["EINTR", "ENOSYS"],
}
if IS_SANITIZED: # its own allocator can't go on without memory
    del LOAD_FAULTS["mmap"], LOAD_FAULTS["munmap"]


@pytest.fixture
def quick(tmp_path):
    """A directory without a disk to wait for, where the kernel's tmpfs has extended attributes."""
    with tempfile.TemporaryDirectory(dir=SHM if os.path.isdir(SHM) else None) as directory:
        try:
            os.setxattr(directory, MARK, b"")
        except OSError:
            yield tmp_path
        else:
            yield directory


def faults_of(log, faults):
    """(call, error, which) of all calls between the request and the answer."""
    text = log.read_text()
    before, request, after = text.partition('"PUT /snapshot')
    assert request
    after = after.partition("\nwritev(")[0]
    found = []
    for call, errors in faults.items():
        first, count = (len(re.findall(rf"^{call}\(", part, re.M)) for part in (before, after))
        lines = re.findall(rf"^{call}\(.*", after, re.M)
        found += [(call, error, first + i + 1) for error in errors for i in range(count)
                  if "KVM_IRQ_LINE" not in lines[i]] # which a VM has, or has not
    return found


def names_of(files):
    """Of which snapshots state and memory are; memory's is None while it is unfinished."""
    with open(files[0], "rb") as state:
        name = uuid.UUID(bytes=HEADER.unpack(state.read(HEADER.size))[7])
    words = os.getxattr(files[1], MARK).decode().split(" ")
    return str(name), words[0] if words[1:] == ["whole"] else None


def content(path):
    with open(path, "rb") as file:
        return file.read()


def go_on(vm):
    """The guest writes to its memory."""
    resume(vm)
    length = len(vm.output())
    mayfly.wait_until(lambda: len(vm.output()) > length + 20, vm.output)
    pause(vm)


def judge(status, text, line, harmless):
    """What is wrong with an answer, or None."""
    if status == 204:
        return None if harmless.search(line) else f"204 after {line}"
    if status != 400 or not re.search(r"os error \d+\)|lacks the capab", text):
        return f"{status} {text!r} after {line}"
    return None


def create_with_fault(vm, tmp_path, files, kind, fault):
    """One create with one fault; what was wrong with it, or None."""
    call, error, which = fault
    go_on(vm)
    old_names, old_memory = names_of(files), content(files[1])
    body = create_body(files, snapshot_type=kind)
    with traced(vm, tmp_path, f"{call}:error={error}:when={which}") as log:
        status, _, answer = vm.request("PUT", "/snapshot/create", body)
    lines = injected(log)
    if len(lines) != 1:
        return f"{len(lines)} faults"
    wrong = judge(status, (answer or {}).get("fault_message", ""), lines[0], CREATE_HARMLESS)
    names = names_of(files)
    if names == old_names and (status == 204 or content(files[1]) != old_memory):
        wrong = f"a mixture after {lines[0]}"
    status, _, answer = vm.request("PUT", "/snapshot/create", body)
    if status != 204:
        return f"{lines[0]} and then {answer}"
    names = names_of(files)
    return wrong or (None if names[0] == names[1] else f"{names} afterwards")


@contextlib.contextmanager
def writing(files, source):
    """A guest that goes on writing to its memory, and has a snapshot; from a boot, or from one."""
    with Machine("snapshot", "touched=1 dirty=1", mem_mib=20, flags=UNFILTERED) as first:
        first.configure()
        first.ok("PATCH", "/machine-config", {"track_dirty_pages": True})
        first.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        first.wait_for_output("ready\n")
        save(first, files)
        if source == "booted":
            yield first
        else:
            with loaded(files, {"flags": UNFILTERED}) as clone:
                pause(clone)
                yield clone


def faults_of_a_create(vm, tmp_path, files, kind):
    vm.ok("PUT", "/snapshot/create", create_body(files, snapshot_type=kind))
    go_on(vm)
    with traced(vm, tmp_path) as log:
        vm.ok("PUT", "/snapshot/create", create_body(files, snapshot_type=kind))
        mayfly.wait_until(lambda: "\nwritev(" in log.read_text(), log.read_text)
    return faults_of(log, CREATE_FAULTS)


@pytest.mark.parametrize("source, kind", [
    ("booted", "Diff"), ("loaded", "Full"),
    *([("booted", "Full"), ("loaded", "Diff")] if mayfly.IS_LONG else []),
])
def test_a_create_that_the_host_refuses_says_why_and_the_next_one_works(tmp_path, quick, source,
                                                                       kind):
    files, full, wrong = pair(quick), pair(quick, "full"), {}
    with writing(files, source) as vm:
        faults = faults_of_a_create(vm, tmp_path, files, kind)
        assert {call for call, *_ in faults} >= {"ioctl", "write", "pwritev", "fsync", "rename"}
        for fault in faults:
            result = create_with_fault(vm, tmp_path, files, kind, fault)
            if result:
                wrong[fault] = result
        assert not wrong, "\n".join(f"{fault}: {what}" for fault, what in wrong.items())
        vm.ok("PUT", "/snapshot/create", create_body(full))
        assert content(files[1]) == content(full[1]), "nothing was forgotten"
        with loaded(files) as clone:
            mayfly.wait_until(clone.output, clone.log)


def with_devices(tmp_path):
    """A machine with a drive of each engine and a vsock, to be saved."""
    disk = make_disk(tmp_path / "disk", 64)
    drives = [drive(disk), drive(disk, "async", io_engine="Async", is_read_only=True)]
    return Machine("counter", mem_mib=20, drives=drives)


def load_with_fault(tmp_path, files, fault):
    """One load with one fault; what was wrong with it, or None."""
    call, error, which = fault
    socket = str(tmp_path / "v")
    with Clone(files, flags=UNFILTERED) as clone:
        with traced(clone, tmp_path, f"{call}:error={error}:when={which}") as log:
            try:
                status, _, answer = clone.request("PUT", "/snapshot/load", load_body(
                    files, resume_vm=True, vsock_override={"uds_path": socket}))
            except ConnectionError:
                status, answer = None, None
        if len(injected(log)) != 1:
            return f"{len(injected(log))} faults"
        wrong = judge(status, (answer or {}).get("fault_message", ""), injected(log)[0],
                      LOAD_HARMLESS)
        if status != 204 and not wrong and (clone.wait() != 1 or os.path.exists(socket)):
            wrong = f"exit code {clone.wait()}, left {os.listdir(tmp_path)}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket)
    return wrong


def test_a_load_that_the_host_refuses_says_why_and_ends_the_process(tmp_path, quick):
    files, wrong, socket = pair(quick), {}, str(tmp_path / "v")
    with with_devices(tmp_path) as first:
        first.configure()
        first.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": f"{first.directory}/v"})
        first.ok("PUT", "/actions", {"action_type": "InstanceStart"})
        save(first, files)
        with Clone(files, flags=UNFILTERED) as clone, traced(clone, tmp_path) as log:
            clone.load(resume_vm=True, vsock_override={"uds_path": socket})
            mayfly.wait_until(lambda: "\nwritev(" in log.read_text(), log.read_text)
        os.unlink(socket)
        for fault in faults_of(log, LOAD_FAULTS):
            result = load_with_fault(tmp_path, files, fault)
            if result:
                wrong[fault] = result
    assert not wrong, "\n".join(f"{fault}: {what}" for fault, what in wrong.items())


# What a working set is recorded and prefetched with.
RECORD_FAULTS = {"openat": ["EMFILE"], "ioctl": ["EPERM"], "ftruncate": ["EIO"], "flock": ["EAGAIN"],
                 "fcntl": ["EIO"]}
PREFETCH_FAULTS = {"openat": ["EMFILE"], "pread64": ["EIO"], "preadv2": ["EOPNOTSUPP", "EAGAIN"],
                   "madvise": ["ENOMEM"], "fadvise64": ["EINVAL"]}


def loads_with_a_set(files, tmp_path, faults, is_ours, **members):
    """For each fault in a call that `is_ours`: the load's answer, and the clone."""
    body = load_body(files, resume_vm=True, working_set=members)
    with Clone(files, flags=UNFILTERED) as clone, traced(clone, tmp_path) as log:
        clone.ok("PUT", "/snapshot/load", body)
        mayfly.wait_until(lambda: "\nwritev(" in log.read_text(), log.read_text)
    with contextlib.suppress(FileNotFoundError): # it was killed
        os.unlink(members["path"] + ".mayfly-new")
    found = faults_of(log, faults)
    lines = log.read_text().splitlines()
    for call, error, which in found:
        line = [line for line in lines if line.startswith(call + "(")][which - 1]
        if not is_ours.search(line):
            continue
        with Clone(files, flags=UNFILTERED) as clone:
            with traced(clone, tmp_path, f"{call}:error={error}:when={which}") as log:
                status, _, answer = clone.request("PUT", "/snapshot/load", body)
            yield clone, status, (answer or {}).get("fault_message", ""), line


@pytest.fixture(name="template")
def _template(quick):
    files = pair(quick)
    with Machine("counter", mem_mib=20) as first:
        save(first.boot(), files)
    return files


@pytest.mark.parametrize("call, error", [("pwritev", "ENOSPC"), ("fsync", "EIO"),
                                         ("rename", "EACCES")])
def test_a_record_that_can_not_be_written_is_told_and_no_more(tmp_path, template, call, error):
    path = str(tmp_path / "set")
    with Clone(template, flags=UNFILTERED) as clone:
        clone.load(resume_vm=True, working_set={"path": path, "record": True})
        with traced(clone, tmp_path, f"{call}:error={error}:when=1"):
            pause(clone)
        assert f"The working set {path} is not written: " in clone.log()
        assert not os.path.exists(path) and not os.path.exists(path + ".mayfly-new")


def test_who_asks_for_a_record_hears_that_the_host_refuses_it(tmp_path, template):
    path = str(tmp_path / "set")
    ours = re.compile(r"set|USERFAULTFD|UFFDIO|F_SETFL, O_RDONLY|ftruncate|LOCK_EX")
    for clone, status, text, line in loads_with_a_set(template, tmp_path, RECORD_FAULTS, ours,
                                                      path=path, record=True):
        assert status == 400 and "the working set can't be recorded: " in text, (line, text)
        assert clone.wait() == 1
        assert os.path.exists(path + ".mayfly-new") == ("LOCK_EX" in line), line


def test_a_load_goes_on_without_what_the_host_refuses_to_prefetch(tmp_path, template):
    path = str(tmp_path / "set")
    with loaded(template, working_set={"path": path, "record": True}) as clone:
        mayfly.wait_until(clone.output, clone.log)
        pause(clone)
    ours, count = re.compile(r"set|pread|POPULATE|WILLNEED"), 0
    for clone, status, text, line in loads_with_a_set(template, tmp_path, PREFETCH_FAULTS, ours,
                                                      path=path):
        assert status == 204, (line, text)
        mayfly.wait_until(clone.output, clone.log)
        count += 1
    assert count > 4
