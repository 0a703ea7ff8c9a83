#!/bin/bash
# Run by systemd in the fresh root: the packages of /release and, as their next version, of /upgrade. What
# test_root.py reads is in /result.
set -eEuo pipefail
trap 'echo "failed at line $LINENO: $BASH_COMMAND" >/result' ERR

say() { echo "== $*"; }
socket=/srv/jailer/mayfly/vm1/root/run/firecracker.socket
pid() { systemctl show --property MainPID --value mayfly@vm1; }
wait_for() { # COMMAND...: the test's deadline is that of all
    until "$@"; do sleep 0.2; done
}

say install
dpkg --install /release/*.deb
dpkg --list 'mayfly*'
id mayfly
for directory in /srv/jailer /srv/vm /etc/mayfly; do [ -d $directory ]; done
systemctl is-active mayfly-exporter
mayfly-jailer --check || true
mayfly --version

say start
cp /guest /srv/vm/vmlinux
echo '{"boot-source": {"kernel_image_path": "/srv/vm/vmlinux", "boot_args": "presses=1"}, "drives": [],
    "machine-config": {"vcpu_count": 1, "mem_size_mib": 128}}' >/etc/mayfly/vm1.json
echo VM_UID=30001 >/etc/mayfly/vm1.env
systemctl start mayfly@vm1
started=$(pid)
wait_for sh -c 'journalctl --no-pager -u mayfly@vm1 | grep -q ready'
wait_for sh -c 'python3 -c "import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:9550/metrics\").read().decode())" |
    grep -q vm=.vm1.'
mkdir /srv/jailer/kept
jailer --id fc1 --exec-file /usr/bin/firecracker --uid 30002 --gid 30002 --daemonize
curl -sS --unix-socket /srv/jailer/firecracker/fc1/root/run/firecracker.socket http://localhost/

say upgrade
dpkg --install /upgrade/*.deb
systemctl daemon-reload
[ "$(dpkg-query -W -f '${Version}' mayfly)" = 99-1 ]
for unit in mayfly@vm1 mayfly-exporter; do systemctl is-active $unit; done
[ "$(pid)" = "$started" ]
curl -sS --unix-socket $socket http://localhost/ | grep -q Running

say remove
dpkg --listfiles mayfly mayfly-firecracker mayfly-exporter | grep -E '^/(etc|lib|usr)/.*mayfly' | sort -u >/files
[ "$(wc -l </files)" -gt 20 ]
dpkg --remove mayfly-firecracker mayfly-exporter mayfly-dbgsym mayfly
[ "$(readlink /proc/"$started"/exe)" = /mayfly ]
curl -sS --unix-socket $socket http://localhost/ | grep -q Running

say stop
systemctl stop mayfly@vm1
[ ! -e /proc/"$started" ]
journalctl --no-pager -u mayfly@vm1 | tee /journal | grep 'ok the_power_button_interrupts'
grep -qx 'Result=success' <(systemctl show --property Result mayfly@vm1)

say purge
dpkg --purge mayfly-firecracker mayfly-exporter mayfly
left=$(while read -r path; do [ -d "$path" ] || [ ! -e "$path" ] || echo "$path"; done </files)
[ -z "$left" ] || { echo "left: $left" >/result; false; }
[ -d /srv/jailer/kept ] && [ -d /srv/jailer/mayfly/vm1 ] && [ -f /etc/mayfly/vm1.json ]
echo passed >/result
