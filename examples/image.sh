#!/bin/sh
# From an image that Docker has to a running microVM, in three lines: image.sh IMAGE KERNEL
# The image's process has the terminal; its status is the last line. See docs/images.md.
set -eu

image=$1 kernel=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/vm.json" <<EOF
{
  "boot-source": {
    "kernel_image_path": "$kernel",
    "boot_args": "console=ttyS0 reboot=k panic=1 quiet init=/.mayfly/init"
  },
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 256},
  "drives": [
    {"drive_id": "rootfs", "path_on_host": "$work/root.ext4", "is_root_device": true, "is_read_only": false}
  ]
}
EOF

docker save -o "$work/image.tar" "$image"
"$here/../devtool" rootfs oci "$work/image.tar" "$work/root.ext4"
"${MAYFLY:-mayfly}" --no-api --config-file "$work/vm.json"
