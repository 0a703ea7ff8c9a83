#!/bin/sh
# Boots a configuration file in a jail; as root. The guest's console is standard input and output.
# usage: jailed.sh ID CONFIG [UID]
#
# UID (30001) is a user that no other microVM has. Its network is the namespace NETNS, with its TAP,
# or, without that variable, an empty one.
#
# /srv/vm is seen inside under the same name, by a mount that is gone when the microVM is; UID, and
# the group of that number, must be allowed to read the kernel there, and to write its disk.
set -eu

id=$1 config=$2 user=${3-30001}
mayfly=${MAYFLY:-/usr/local/bin/mayfly} files=${FILES:-/srv/vm} base=${BASE:-/srv/jailer}
[ -n "$user" ] || { echo "jailed.sh: no UID (VM_UID)" >&2; exit 2; }
case $id in
'' | *[!A-Za-z0-9-]*) echo "jailed.sh: an ID is letters, digits and dashes" >&2; exit 2 ;;
esac
cell=$base/$(basename "$(realpath "$mayfly")")/$id

rm -rf "$cell" # what an earlier microVM of that id has left; its mounts are not seen here
mkdir -p "$cell/root$files"
install -m 644 "$config" "$cell/root/vm.json"
[ -n "${NETNS:-}" ] || empty=--net
exec unshare --mount ${empty:-} sh -euc 'mount --bind "$1" "$2"; shift 2; exec "$@"' sh \
    "$files" "$cell/root$files" \
    "$mayfly-jailer" --id "$id" --exec-file "$mayfly" --uid "$user" --gid "$user" \
    ${NETNS:+--netns "$NETNS"} --chroot-base-dir "$base" -- --config-file /vm.json --log-path /run/log
