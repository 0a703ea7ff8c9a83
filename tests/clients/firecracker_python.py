"""Drives a microVM with PyPI's firecracker-python, by the parts of it that talk to the VMM: its
process manager, its API, and its MicroVM's snapshots. (To make one, MicroVM wants a network
interface, Docker and nftables.)

usage: firecracker_python.py FIRECRACKER DIRECTORY KERNEL DISK

Prints a line of JSON for each check: [name, "passed" or "failed", why]. KERNEL is the test guest
`keyboard`.
"""

import json
import os
import sys

from firecracker.api import Api
from firecracker.config import MicroVMConfig
from firecracker.exceptions import APIError
from firecracker.microvm import MicroVM
from firecracker.process import ProcessManager
from firecracker.vmm import VMMManager

binary, directory, kernel, disk = sys.argv[1:]
ID, CLONE = "python1", "python2"


def report(name, holds, why=""):
    print(json.dumps([name, "passed" if holds else "failed", "" if holds else str(why)]))


def refused(name, fragment, call, **members):
    try:
        call(**members)
        report(name, False, "accepted")
    except APIError as error:
        report(name, fragment in str(error), error)


def socket_path(name):
    return os.path.join(directory, name, "firecracker.socket")


def start(name):
    """A process and its API."""
    os.mkdir(os.path.join(directory, name))
    log_path = os.path.join(directory, name, "vm.log")
    arguments = ["--api-sock", socket_path(name), "--id", name, "--log-path", log_path]
    return manager.start(name, arguments), Api(socket_path(name))


def snapshot(name, api, tap, action):
    """As a MicroVM does it that has this process, and its snapshot where that of ID is."""
    vm = MicroVM.__new__(MicroVM)
    vm._microvm_id, vm._api, vm._logger, vm._vmm = name, api, manager._logger, VMMManager()
    vm._config = MicroVMConfig(data_path=directory, snapshot_path=directory)
    vm._vmm._config = vm._config
    vm._mem_file_path, vm._snapshot_path = (os.path.join(directory, ID, file)
                                            for file in ("memory", "snapshot"))
    vm._iface_name, vm._host_dev_name = "eth0", tap
    vm.snapshot(action=action)


manager = ProcessManager()
manager._config.binary_path, manager._config.data_path = binary, directory
pid, api = start(ID)
report("starts the process", manager.is_running(ID))
report("finds it by name and socket", manager._find_running_process(ID) == pid,
       manager._find_running_process(ID))

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
api.network.put(iface_id="eth0", host_dev_name="tap1")
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

api = Api(socket_path(ID))  # it keeps a connection for each resource, and ten is the most
snapshot(ID, api, "tap1", "create")
report("creates a snapshot and resumes", api.describe.get().json()["state"] == "Running")
_, clone = start(CLONE)
snapshot(CLONE, clone, "tap2", "load")
report("loads it and it runs", clone.describe.get().json()["state"] == "Running")
shown = clone.vm_config.get().json()["network-interfaces"][0]["host_dev_name"]
report("gives it a network of its own", shown == "tap2", shown)
clone.close()
report("stops the clone", manager.stop(CLONE))
api.close()
report("stops the process", manager.stop(ID) and manager._find_running_process(ID) is None)
