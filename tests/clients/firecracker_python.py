"""Drives a microVM with PyPI's firecracker-python, by the parts of it that talk to the VMM: its
process manager and its API. (Its MicroVM class wants a network interface, Docker and nftables.)

usage: firecracker_python.py FIRECRACKER DIRECTORY KERNEL DISK

Prints a line of JSON for each check: [name, "passed" or "failed", why]. KERNEL is the test guest
`keyboard`.
"""

import json
import os
import sys

from firecracker.api import Api
from firecracker.exceptions import APIError
from firecracker.process import ProcessManager

binary, directory, kernel, disk = sys.argv[1:]
ID = "python1"


def report(name, holds, why=""):
    print(json.dumps([name, "passed" if holds else "failed", "" if holds else str(why)]))


def refused(name, fragment, call, **members):
    try:
        call(**members)
        report(name, False, "accepted")
    except APIError as error:
        report(name, fragment in str(error), error)


manager = ProcessManager()
manager._config.binary_path, manager._config.data_path = binary, directory
os.mkdir(os.path.join(directory, ID))
socket_path = os.path.join(directory, ID, "firecracker.socket")
log_path = os.path.join(directory, ID, "vm.log")
pid = manager.start(ID, ["--api-sock", socket_path, "--id", ID, "--log-path", log_path])
report("starts the process", manager.is_running(ID))
report("finds it by name and socket", manager._find_running_process(ID) == pid,
       manager._find_running_process(ID))

api = Api(socket_path)
report("reads the state", api.describe.get().json()["state"] == "Not started")
report("reads the id", api.describe.get().json()["id"] == ID)
report("reads the version", "firecracker_version" in api.version.get().json())
api.boot.put(kernel_image_path=kernel, boot_args="keys")
api.drive.put(drive_id="rootfs", path_on_host=disk, is_root_device=True, is_read_only=False)
api.machine_config.put(vcpu_count=1, mem_size_mib=128)
report("configures the machine", api.machine_config.get().json()["mem_size_mib"] == 128)
refused("sees a fault", "API fault: Drive config error: ", api.drive.put, drive_id="x",
        path_on_host="/none", is_root_device=False)
refused("sees why there is no such network", "API fault: Network config error: ",
        api.network.put, iface_id="eth0", host_dev_name="lo")
api.actions.put(action_type="InstanceStart")
report("starts the VM", api.describe.get().json()["state"] == "Running")
api.vm.patch(state="Paused")
report("pauses it", api.describe.get().json()["state"] == "Paused")
api.vm.patch(state="Resumed")
report("resumes it", api.describe.get().json()["state"] == "Running")
shown = api.vm_config.get().json()
report("reads the configuration", shown["drives"][0]["path_on_host"] == disk, shown)
refused("sees a fault after the start", "not supported after starting the microVM",
        api.machine_config.put, vcpu_count=1, mem_size_mib=128)
api.drive.patch(drive_id="rootfs", path_on_host=disk)
report("patches the drive", True)
api.close()
report("stops the process", manager.stop(ID) and manager._find_running_process(ID) is None)
