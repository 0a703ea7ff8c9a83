#!/bin/sh
# A microVM's life, request by request.
# usage: curl.sh MAYFLY KERNEL DISK [BOOT_ARGS]
set -eu

mayfly=$1 kernel=$2 disk=$3 boot_args=${4:-console=ttyS0 reboot=k panic=1}
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
socket=$directory/api.sock

# api METHOD PATH [BODY]: prints the answer, and ends the script on an error.
api() {
    echo "> $1 $2 ${3:-}"
    answer=$(curl -sS --unix-socket "$socket" -w '\n< %{http_code}' -X "$1" ${3:+-d "$3"} \
        "http://localhost$2")
    echo "$answer"
    case $answer in *"< 20"[04]) ;; *) kill "$vmm"; exit 1 ;; esac
}

# One process is one microVM.
"$mayfly" --id curl-example --api-sock "$socket" --log-path "$directory/log" </dev/null &
vmm=$!
while ! curl -s --unix-socket "$socket" http://localhost/ >/dev/null; do
    kill -0 "$vmm" # it failed to start: why is above
    sleep 0.01
done

# Before the start: what the machine is. Files are opened now, so mistakes show now.
api GET /version
api PUT /machine-config '{"vcpu_count": 1, "mem_size_mib": 128}'
api PATCH /machine-config '{"mem_size_mib": 256}'
api PUT /boot-source "{\"kernel_image_path\": \"$kernel\", \"boot_args\": \"$boot_args\"}"
api PUT /drives/rootfs "{\"drive_id\": \"rootfs\", \"path_on_host\": \"$disk\",
    \"is_root_device\": true, \"is_read_only\": false,
    \"rate_limiter\": {\"ops\": {\"size\": 1000, \"refill_time\": 1000}}}"
api PUT /serial "{\"serial_out_path\": \"$directory/console\"}" # else stdin and stdout
api PUT /metrics "{\"metrics_path\": \"$directory/metrics\"}"
api GET /vm/config # also a configuration file: mayfly --config-file

# Start it, look at it, stop the clock, change a running drive.
api PUT /actions '{"action_type": "InstanceStart"}'
api GET /
api GET /boot-timeline
api GET /metrics | tail -n 3
api PATCH /vm '{"state": "Paused"}'
api PATCH /drives/rootfs "{\"drive_id\": \"rootfs\", \"path_on_host\": \"$disk\"}"
api PATCH /vm '{"state": "Resumed"}'
api PUT /actions '{"action_type": "FlushMetrics"}'

# Ctrl-Alt-Del: the guest reboots, which ends the process with status 0. The socket file stays.
api PUT /actions '{"action_type": "SendCtrlAltDel"}'
wait "$vmm"
cat "$directory/console"
echo "$(wc -l <"$directory/metrics") lines of metrics"
