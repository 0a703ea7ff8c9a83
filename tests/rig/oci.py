"""OCI images for test_oci.py, made with ./devtool rootfs oci."""

import os
import shutil
import subprocess
import sys
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "integration"))
from oci_images import Layout, directory, entry, layer, link

def busybox_layer():
    with open(shutil.which("busybox"), "rb") as file:
        busybox = file.read()
    return layer(directory("bin"), entry("bin/busybox", busybox, mode=0o755), directory("etc"),
                 *(link(f"bin/{name}", "busybox") for name in
                   "sh cat id pwd ls sleep ip hostname nc kill grep mount touch".split()),
                 entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"),
                 entry("etc/group", b"logs:x:50:web\n"), entry("gone", b"x"),
                 directory("tmp", mode=0o1777))


SHOW = r"""
echo "args $# [$1] [$2]"; echo "env $A $PATH $HOME"; echo "user $(id -u):$(id -g) $(id -G)"
echo "directory $(pwd)"; echo "root $(ls -a / | grep -v '^\.*$' | grep -c gone) $(cat /x)"
echo "to stdout" >/dev/stdout; (echo "written" >/tmp/w) && echo "file $(cat /tmp/w)"
grep ' / ' /proc/mounts | tail -n 1
sleep 1000 & exit 7
"""
WAIT = "trap 'echo asked; exit 3' QUIT; echo ready; while :; do sleep 0.2; done"
NETWORK = r"""
ip address show dev eth0; ip route; hostname; cat /etc/resolv.conf
echo "heard $(nc 172.30.5.1 9000)"; exec /bin/none
"""
IMAGES = {
    "show": {"Entrypoint": ["sh", "-c", SHOW, "sh"], "Cmd": ["one  two", ""], "User": "web",
             "Env": ["A=a \"b\"\tc"], "WorkingDir": "/work"},
    "wait": {"Cmd": ["/bin/sh", "-c", WAIT], "StopSignal": "SIGQUIT"},
    "network": {"Cmd": ["/bin/sh", "-c", NETWORK]},
}


def make(directory_path, init):
    """Disks by name: oci-show is written to, the others are read-only."""
    layers = [busybox_layer(), layer(entry(".wh.gone"), entry("x", b"second"))]
    disks = {}

    def make_disk(name, source, suffix="squashfs"):
        disk = disks[f"oci-{name}"] = directory_path / f"{name}.{suffix}"
        subprocess.run([ROOT / "guest-kernel-configs" / "rootfs", "oci", source, disk],
                       env={**os.environ, "GUEST_INIT": init}, check=True, stdout=subprocess.DEVNULL)
        return disk
    for name, config in IMAGES.items():
        layout = Layout(directory_path / name, layers, config)
        made = make_disk(name, layout.path)
        if name == "show":
            saved = make_disk("saved", layout.save(directory_path / "saved.tar"))
            assert made.read_bytes() == saved.read_bytes()
            disks["oci-squashed"] = made
            make_disk(name, layout.path, "ext4")
    del disks["oci-saved"]
    return disks
