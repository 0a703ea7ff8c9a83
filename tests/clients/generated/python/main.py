"""Drives a VMM by the client that openapi-generator makes of api/openapi.yaml, through its UNIX socket:
configures a microVM of the files given, starts, pauses and resumes it, and says what it was told."""
import json
import socket
import sys

import mayfly
import urllib3

path, kernel, disk = sys.argv[1:]


class UnixConnection(urllib3.connection.HTTPConnection):
    def _new_conn(self):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(path)
        return client


class UnixPool(urllib3.HTTPConnectionPool):
    ConnectionCls = UnixConnection


def fault(configuration):
    """The text of a fault, of a request that is refused."""
    try:
        configuration.put_boot_source(mayfly.BootSource(kernel_image_path="/none"))
    except mayfly.ApiException as error:
        return json.loads(error.body)["fault_message"]
    sys.exit("not refused")


def main():
    client = mayfly.ApiClient()
    client.rest_client.pool_manager = UnixPool("localhost")
    instance, configuration = mayfly.InstanceApi(client), mayfly.ConfigurationApi(client)
    observation = mayfly.ObservationApi(client)
    said = {"before": instance.get_instance().state}
    configuration.put_machine_config(mayfly.MachineConfig(
        vcpu_count=2, mem_size_mib=64, huge_pages="None"))
    configuration.put_boot_source(mayfly.BootSource(kernel_image_path=kernel, boot_args=None))
    configuration.put_drive("rootfs", mayfly.Drive(
        drive_id="rootfs", is_root_device=True, path_on_host=disk, io_engine=mayfly.IoEngine.SYNC,
        rate_limiter=mayfly.RateLimiter(bandwidth=mayfly.TokenBucket(size=1 << 40, refill_time=1000),
                                        ops=None)))
    said["fault"] = fault(configuration)
    said["config"] = configuration.get_vm_config().to_dict()
    instance.put_mmds({"a": [1, "b", None]})
    said["mmds"] = instance.get_mmds()
    instance.put_action(mayfly.Action(action_type="InstanceStart"))
    said["after"] = instance.get_instance().state
    for state in ("Paused", "Resumed"):
        instance.patch_vm(mayfly.VmState(state=state))
        said["after" + state] = instance.get_instance().state
    said["timeline"] = observation.get_boot_timeline().to_dict()
    said["metrics"] = observation.get_metrics()
    json.dump(said, sys.stdout)


main()
