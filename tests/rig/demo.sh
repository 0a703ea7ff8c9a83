#!/bin/bash
# What ./devtool run shows, on hardware and in the rig alike: starts mayfly, configures it with curl
# step by step, boots Debian's kernel from an ext4 disk, shows the guest's console and where the
# time went. With --net the guest has a TAP, pings this host and gets a page of it by HTTP; that
# takes a network namespace in which a TAP may be made.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: demo.sh MAYFLY GUEST-DIRECTORY [--net] [--shell]" >&2; exit 2; }
mayfly=$1 guest=$2 shell='' net=''
shift 2
for option; do
    case $option in
    --shell) shell=1 ;;
    --net) net=1 ;;
    esac
done

work=$(mktemp -d)
socket=$work/api.sock
trap 'kill $pid $server 2>/dev/null || true; rm -rf "$work"' EXIT
pid='' server=''
newline=$'\n'
[ -n "$shell" ] && newline=$'\r\n' # mayfly has the terminal in raw mode

say() {
    printf '%s%s' "$*" "$newline"
}

now() { # microseconds, without starting a process
    local t=$EPOCHREALTIME
    time_us=${t/[.,]/}
}

row() { # TEXT MICROSECONDS
    table+=$(printf '  %-52s %8d.%d' "$1" $(($2 / 1000)) $(($2 % 1000 / 100)))$newline
}
table=

request() { # METHOD PATH BODY: shows it, makes it, notes its time as curl measured it
    local code seconds answer=$work/answer
    say "curl --unix-socket api.sock -X $1 http://localhost$2 -d '$3'"
    read -r code seconds < <(curl -sS --unix-socket "$socket" -o "$answer" \
        -w '%{http_code} %{time_total}\n' -X "$1" "http://localhost$2" -d "$3")
    if [ "$code" != 204 ]; then
        say "  $code $(cat "$answer")"
        exit 1
    fi
    row "$1 $2" $((10#${seconds/./}))
}

# Copies the console to our output; notes when the first line and user space were seen.
show_console() {
    local line
    while IFS= read -r line; do
        now
        [ -s "$work/first" ] || echo "$time_us" >"$work/first"
        case $line in "mayfly guest: user space"*) echo "$time_us" >"$work/user" ;; esac
        printf '%s\n' "$line"
    done
}

# Shows a command and runs it: those of busybox, which this host and the guest both have.
host() { # APPLET ARGUMENT...
    say "host# $*"
    busybox "$@"
}

if [ -n "$net" ]; then
    host tunctl -t tap0
    host ip address add 172.30.0.1/24 dev tap0
    host ip link set tap0 up
    mkdir "$work/www"
    echo "This page is the host's." >"$work/www/index.html"
    say "host# httpd -p 172.30.0.1:80 -h www"
    busybox httpd -f -p 172.30.0.1:80 -h "$work/www" &
    server=$!
fi
cp "$guest/root.ext4" "$work/root.ext4"
mkfifo "$work/console" "$work/never"
exec 3<&0 4<>"$work/never"
say "mayfly --level Warning --api-sock api.sock"
now; launched=$time_us
if [ -n "$shell" ]; then
    "$mayfly" --level Warning --api-sock "$socket" <&3 &
else
    "$mayfly" --level Warning --api-sock "$socket" </dev/null >"$work/console" &
fi
pid=$!
[ -n "$shell" ] || { show_console <"$work/console" & }
until [ -S "$socket" ]; do
    kill -0 $pid 2>/dev/null || { say "mayfly ended"; exit 1; }
    read -rt 0.001 -u 4 || true # waits a millisecond
done
now; row "mayfly started to its API socket there" $((time_us - launched))

arguments="console=ttyS0 reboot=k panic=1"
[ -n "$shell" ] && arguments+=" quiet mayfly.shell"
if [ -n "$net" ]; then
    arguments+=" quiet ip=172.30.0.2::172.30.0.1:255.255.255.0::eth0:off"
    run="ifconfig eth0; ping -c 3 172.30.0.1; wget -O - http://172.30.0.1/"
    [ -n "$shell" ] || arguments+=" mayfly.run=\\\"$run\\\""
fi
request PUT /machine-config '{"vcpu_count": 1, "mem_size_mib": 256}'
request PUT /boot-source "{\"kernel_image_path\": \"$guest/vmlinuz\",\
 \"initrd_path\": \"$guest/initrd\", \"boot_args\": \"$arguments\"}"
request PUT /drives/rootfs "{\"drive_id\": \"rootfs\", \"path_on_host\": \"$work/root.ext4\",\
 \"is_root_device\": true, \"is_read_only\": false}"
[ -z "$net" ] || request PUT /network-interfaces/eth0 '{"iface_id": "eth0",
 "host_dev_name": "tap0", "guest_mac": "06:00:ac:1e:00:02"}'
now; started=$time_us
request PUT /actions '{"action_type": "InstanceStart"}'

status=0
wait $pid || status=$?
now; ended=$time_us
pid=''
if [ -n "$server" ]; then
    kill "$server"
    server=''
fi
wait || true
newline=$'\n'
if [ -z "$shell" ]; then
    row "InstanceStart sent to the first line on the console" $(($(cat "$work/first") - started))
    row "InstanceStart sent to user space" $(($(cat "$work/user") - started))
    row "InstanceStart sent to the end of the process" $((ended - started))
    say ""
    say "where the time went, in milliseconds of this host's clock"
    printf '%s' "$table"
fi
say "mayfly ended with status $status"
exit $status
