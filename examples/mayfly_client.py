#!/usr/bin/env python3
"""Boots a microVM from Python, and is a client to copy: the standard library is all it needs.

usage: mayfly_client.py [--mayfly PATH] [--vcpus N] [--mib N] [--args TEXT] KERNEL [DISK]
"""
import argparse, http.client, json, os, socket, subprocess, sys, tempfile, time


class Client(http.client.HTTPConnection):
    """One connection to a microVM's API. Errors are RuntimeErrors in the server's words."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def call(self, method, path, **body):
        self.request(method, path, json.dumps(body) if body else None)
        answer = self.getresponse()
        value = json.loads(answer.read() or "null")
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {value['fault_message']}")
        return value


def launch(mayfly, path):
    """Starts a VMM that serves its API on the path; returns it and a client of it."""
    vmm, client = subprocess.Popen([mayfly, "--api-sock", path, "--level", "Error"]), Client(path)
    while vmm.poll() is None:
        try:
            client.connect()
            return vmm, client
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.001)
    sys.exit(vmm.returncode)


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
        vmm, vm = launch(o.mayfly, os.path.join(directory, "api.sock"))
        try:
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
