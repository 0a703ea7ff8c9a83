# Sourced by devtool and tests/run: a step is a line with the time, its output is in build/logs.
export -n SECONDS # which devtool hands to tests/run and to nobody else
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
export MAYFLY_CACHE=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/mayfly}
python=/usr/bin/python3 # the one that Debian's pytest is installed for
kernel_version=6.1

say() {
    printf '[%4d s] %s\n' "$SECONDS" "$*"
}

die() {
    echo "devtool: $*" >&2
    exit 1
}

# Runs a command with its output in a log. Says every 20 seconds how far the log has come, and what
# its end was if the command fails.
step() { # NAME COMMAND...
    local name=$1 log="build/logs/${1//[^a-z0-9.]/-}.log" job tick=0 status=0
    shift
    mkdir -p build/logs
    say "$name"
    "$@" >"$log" 2>&1 </dev/null &
    job=$!
    while sleep 0.2 && kill -0 "$job" 2>/dev/null; do
        tick=$((tick + 1))
        [ $((tick % 100)) -ne 0 ] || say "$name: $(tail -n 1 "$log" | cut -c 1-80)"
    done
    wait "$job" || status=$?
    if [ $status -ne 0 ]; then
        tail -n 60 "$log"
        say "$name: failed with status $status; all of it is in $log"
    fi
    return $status
}

build() { # PRESET [TARGET]
    [ -f "build/$1/build.ninja" ] || step "configure $1" cmake --preset "$1" || return
    step "build $*" cmake --build --preset "$1" ${2:+--target "$2"}
}
