#!/usr/bin/env python3
"""Boots a microVM from Python, and is a client to copy: the standard library is all it needs.

usage: mayfly_client.py [--mayfly PATH] [--vcpus N] [--mib N] [--args TEXT] KERNEL [DISK]
"""
import argparse, http.client, json, os, socket, subprocess, sys, tempfile, time


class Client(http.client.HTTPConnection):
    """One connection to a microVM's API. Errors are RuntimeErrors in the server's words."""

    def __init__(self, path, timeout=None):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def call(self, method, path, **body):
        self.request(method, path, json.dumps(body) if body else None)
        answer = self.getresponse()
        value = json.loads(answer.read(1 << 20) or "null")
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {value['fault_message']}")
        return value


def wait_for_api(vmm, client):
    """Returns once the process serves the client's socket, in the client's time."""
    end = time.monotonic() + (client.timeout or float("inf"))
    while vmm.poll() is None and time.monotonic() < end:
        try:
            return client.connect()
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.001)
    raise RuntimeError(f"no API; the VMM's status is {vmm.returncode}")


def main():
    parser = argparse.ArgumentParser(description="Boots a microVM; its console is this terminal.")
    parser.add_argument("kernel")
    parser.add_argument("disk", nargs="?")
    parser.add_argument("--mayfly", default="mayfly", help="the binary")
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--mib", type=int, default=128, help="memory")
    parser.add_argument("--args", default="console=ttyS0 reboot=k panic=1", help="command line")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        vm = Client(os.path.join(directory, "api.sock"))
        vmm = subprocess.Popen([o.mayfly, "--api-sock", vm.path, "--level", "Error"])
        try:
            wait_for_api(vmm, vm)
            vm.call("PUT", "/machine-config", vcpu_count=o.vcpus, mem_size_mib=o.mib)
            vm.call("PUT", "/boot-source", kernel_image_path=o.kernel, boot_args=o.args)
            if o.disk:
                vm.call("PUT", "/drives/root", drive_id="root", path_on_host=o.disk,
                        is_root_device=True)
            vm.call("PUT", "/actions", action_type="InstanceStart")
            return vmm.wait()
        except RuntimeError as error:
            return str(error)
        finally:
            vmm.kill()


if __name__ == "__main__":
    sys.exit(main())
