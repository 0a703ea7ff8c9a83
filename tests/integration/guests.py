"""MicroVMs with a test guest (tests/guests) or one that only halts, on the real /dev/kvm; their disks."""

import contextlib
import glob
import os
import struct
import subprocess

import pytest

import mayfly
import unix_http

SECTOR = 512

needs_kvm = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK),
    reason="NO GUEST RAN: no /dev/kvm that can be opened here (tests/rig runs the test guests)")


@contextlib.contextmanager
def tmpfs(path, options):
    """Makes a directory, with a file system of its own."""
    if os.geteuid() != 0:
        pytest.skip(f"A TMPFS WITH {options} WAS NOT TESTED: mounting takes root")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


class Machine(mayfly.Mayfly):
    """A microVM that runs a test guest. The log goes to a file of its own."""

    def __init__(self, guest, boot_args="", vcpus=1, mem_mib=128, drives=(), initrd=None,
                 flags=(), **stdio):
        super().__init__(*flags, **stdio)
        self.log_path = os.path.join(self.directory, "log")
        self.args += ("--log-path", self.log_path)
        self.kernel = os.path.join(mayfly.GUESTS, guest)
        self.boot_args, self.vcpus, self.mem_mib = boot_args, vcpus, mem_mib
        self.drives, self.initrd = drives, initrd

    def configure(self):
        self.ok("PUT", "/machine-config", {"vcpu_count": self.vcpus, "mem_size_mib": self.mem_mib})
        self.put_kernel(self.kernel)
        for drive in self.drives:
            self.ok("PUT", f"/drives/{drive['drive_id']}", drive)

    def put_kernel(self, path):
        source = {"kernel_image_path": str(path)}
        if self.boot_args is not None:
            source["boot_args"] = self.boot_args
        if self.initrd is not None:
            source["initrd_path"] = str(self.initrd)
        self.ok("PUT", "/boot-source", source)

    def instance_start(self):
        return self.request("PUT", "/actions", {"action_type": "InstanceStart"})

    def boot(self):
        self.configure()
        status, _, body = self.instance_start()
        assert status == 204, body
        return self

    def log(self):
        with open(self.log_path, encoding="utf-8") as log:
            return log.read()

    def send(self, data):
        """Bytes to the process's standard input, a pipe."""
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def finish(self, timeout=mayfly.DEADLINE_S):
        """Waits for the guest's end, exit code 0; its lines, where all its checks passed."""
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the guest did not end; output:\n{self.output()}\nlog:\n{self.log()}")
        lines = self.output().splitlines()
        failed = [line for line in lines if line.startswith("not ok")]
        assert not failed, f"{failed} in:\n{self.output()}"
        assert code == 0 and lines and lines[-1] == "done", f"exit {code}:\n{self.output()}"
        return lines


def run(guest, *args, **kwargs):
    """Boots a guest and returns its lines once it has ended well."""
    with Machine(guest, *args, **kwargs) as machine:
        return machine.boot().finish()


def printed(lines, label):
    """What follows the label on its line."""
    found = [line[len(label) + 1:] for line in lines if line.startswith(label + " ")]
    assert len(found) == 1, f"{label!r} in {lines}"
    return found[0]


def at_rest(machine):
    """(RssAnon in KiB, threads, open descriptors) once the API's last connection is closed: the
    third answer on one that stays open shows that the loop has been round since. io_uring's threads,
    which the kernel starts and ends as it likes, do not count."""
    with machine.connect() as client:
        for _ in range(3):
            unix_http.ok(client, "GET", "/")
        process = f"/proc/{machine.process.pid}"
        with open(f"{process}/status", encoding="ascii") as text:
            fields = dict(line.split(":", 1) for line in text)
        return (int(fields["RssAnon"].split()[0]),
                sum(not name.startswith("iou-") for name in thread_names(process)),
                len(os.listdir(f"{process}/fd")))


def thread_names(process):
    for path in glob.glob(f"{process}/task/*/comm"):
        with contextlib.suppress(OSError): # it has ended
            with open(path, encoding="ascii") as name:
                yield name.read()


# Disks, and a guest that only halts


def make_disk(path, sectors):
    """Each sector holds its number in its first eight bytes, the complement in its last."""
    with open(path, "wb") as disk:
        for i in range(sectors):
            disk.write(struct.pack(f"<Q{SECTOR - 16}xQ", i, ~i & 2**64 - 1))
    return path


def drive(path, drive_id="disk", **members):
    return {"drive_id": drive_id, "path_on_host": str(path), "is_root_device": False, **members}


def write_halting_kernel(path):
    """An ELF image whose only code is cli; hlt; jmp back."""
    code, load = b"\xfa\xf4\xeb\xfd", 0x1000000
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, load, 64, 0, 0,
                         64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 120, load, load, len(code), len(code), 0x1000)
    with open(path, "wb") as kernel:
        kernel.write(header + segment + code)


def make_files(directory):
    paths = {name: os.path.join(directory, name) for name in
             ("kernel", "disk", "empty", "text", "directory", "none", "fifo")}
    write_halting_kernel(paths["kernel"])
    with open(paths["disk"], "wb") as disk:
        disk.truncate(1 << 20)
    open(paths["empty"], "wb").close()
    with open(paths["text"], "w") as text:
        text.write("not a kernel\n")
    os.mkdir(paths["directory"])
    os.mkfifo(paths["fifo"])
    return paths


def start(vm, files):
    vm.ok("PUT", "/boot-source", {"kernel_image_path": files["kernel"]})
    vm.ok("PUT", "/actions", {"action_type": "InstanceStart"})
