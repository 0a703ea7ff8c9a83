"""A machine of the test's own, where the documents' commands change nothing of the host.

Its processes, mounts and network are its own. here() has this host's files: what is written to
/etc, /usr/local and the checkout is forgotten, and /run, /srv and /tmp begin empty. fresh() is a new
Debian 12 with a copy of the checkout and nothing installed; it reaches Debian's mirror, and nothing
else. Both share the cache of kernels and disks.
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

from blocks import ROOT

sys.path.append(str(ROOT / "tests" / "integration"))
import debian_root  # noqa: E402  pylint: disable=wrong-import-position
import taps  # noqa: E402  pylint: disable=wrong-import-position
from mayfly import CACHE, IS_LONG  # noqa: E402  pylint: disable=wrong-import-position

DEADLINE_S = 3600 if IS_LONG else 900
MIRROR = "deb.debian.org"

# The network has what a host's has: a loopback and, leading nowhere, an eth0. (With no address but the
# loopback's, names are not resolved.)
NETWORK = """
ip link set lo up
ip link add eth0 type veth peer name world
ip address add 192.0.2.2/24 dev eth0
ip link set eth0 up
ip link set world up
"""

# What is written to is laid over the files before the places are emptied that they may lie in. This
# host's packages stay as they are: apt-get only says whether those that it is told to install are there.
HERE = """
mount -t tmpfs none /mnt
for path in /etc /usr/local {root}; do
    mkdir -p /mnt/$path/new /mnt/$path/work
    mount -t overlay -o lowerdir=$path,upperdir=/mnt/$path/new,workdir=/mnt/$path/work none $path
done
mkdir -p {cache} /mnt/checkout /mnt/cache
mount --bind {root} /mnt/checkout
mount --bind {cache} /mnt/cache
for path in /run /srv /tmp; do mount -t tmpfs none $path; done
mkdir -p {root} {cache}
mount --bind /mnt/checkout {root}
mount --bind /mnt/cache {cache}
cat >/usr/local/bin/apt-get <<'EOF'
#!/bin/bash
for word; do
    case $word in -* | install) ;; *) dpkg-query -W "$word" >/dev/null || exit 1 ;; esac
done
EOF
chmod 755 /usr/local/bin/apt-get
"""

FRESH = """
mkdir -p {cache} {to}/root/.cache/mayfly
mount --bind {to} {to}
mount --bind {cache} {to}/root/.cache/mayfly
mount --rbind /dev {to}/dev
mount -t proc none {to}/proc
mount --rbind /sys {to}/sys
mount -t tmpfs none {to}/run
"""

# What is written to another root is forgotten.
ABOVE = """
mount -t tmpfs none /mnt
mkdir /mnt/new /mnt/work
mount -t overlay -o lowerdir={root},upperdir=/mnt/new,workdir=/mnt/work none {to}
"""


class Terminal:
    """A shell whose input is typed: what a command in the foreground reads is lost to those behind
    it. It ends with the first command that fails."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.said = bytearray()
        self.more = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        while data := os.read(self.process.stdout.fileno(), 65536):
            with self.more:
                self.said += data
                self.more.notify_all()
        with self.more:
            self.more.notify_all()

    def type(self, text):
        with contextlib.suppress(BrokenPipeError): # it has ended: whoever waits will see
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()

    def text(self, since=0):
        return self.said[since:].decode(errors="replace")

    def run(self, commands):
        """What the commands print, when all have come to their end."""
        start, mark = len(self.said), f"-- {os.urandom(8).hex()} --"
        self.type(f"{commands}\necho {mark}\n")
        with self.more:
            done = self.more.wait_for(
                lambda: mark.encode() in self.said[start:] or not self.reader.is_alive(),
                DEADLINE_S)
        said = self.text(start)
        assert done, f"it came to no end:\n{said}"
        assert mark in said, f"a command failed:\n{said}"
        return said.partition(mark)[0]

    def stay(self, commands, is_there):
        """Types commands of which the last one stays, and waits until it is there."""
        start, end = len(self.said), time.monotonic() + DEADLINE_S
        self.type(commands)
        while not is_there():
            assert self.process.poll() is None, f"a command failed:\n{self.text(start)}"
            assert time.monotonic() < end, f"it never came:\n{self.text(start)}"
            time.sleep(0.01)
        return self.text(start)


class World:
    """The machine; `with` ends all of its processes. It begins with the commands `setup`; its root
    and the directory of its terminals are these."""

    def __init__(self, setup, root="/", directory=ROOT, cache="/root/.cache/mayfly"):
        self.directory, self.cache, self.terminals = directory, cache, []
        script = f"set -eu\n{NETWORK}{setup}\necho there\nexec chroot {root} sleep infinity"
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = self.holder.stdout.readline()
        assert said == "there\n", f"no machine of its own: {said}{self.holder.stdout.read()}"
        children = f"/proc/{self.holder.pid}/task/{self.holder.pid}/children"
        self.init = int(pathlib.Path(children).read_text())
        taps.mayfly.wait_until(lambda: self.executes("sleep"), "the machine's first process")

    def executes(self, name):
        return pathlib.Path(f"/proc/{self.init}/comm").read_text() == f"{name}\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.kill(self.init, 9) # and with it each process of its namespace
        self.holder.wait()
        for terminal in self.terminals:
            terminal.process.wait()

    def command(self, script, directory=None):
        return ["nsenter", f"--target={self.init}", "--mount", "--net", "--pid", "--root", "--wd",
                "env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb", f"MAYFLY_CACHE={self.cache}",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "bash", "-euo", "pipefail", "-c", f"cd {directory or self.directory}; {script}"]

    def terminal(self, directory=None):
        self.terminals.append(Terminal(self.command("exec bash -euo pipefail", directory)))
        return self.terminals[-1]

    def succeeds(self, command):
        return subprocess.run(self.command(command), stdin=subprocess.DEVNULL, capture_output=True,
                              check=False).returncode == 0


@contextlib.contextmanager
def here():
    with World(HERE.format(root=ROOT, cache=CACHE), cache=CACHE) as world:
        yield world


def relay(network):
    """Debian's mirror, at the loopback's port 80 of that network."""
    with taps.inside(network):
        server = socket.create_server(("127.0.0.1", 80), backlog=64)

    def copy(source, to):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, mirror = server.accept()[0], socket.create_connection((MIRROR, 80))
                for pair in (client, mirror), (mirror, client):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server


def new_root(directory):
    """A minimal Debian 12, which is kept in the cache, and the checkout in its /mayfly."""
    debian_root.unpack(directory, "docs-debian-12")
    etc = directory / "etc"
    (etc / "hosts").write_text(f"127.0.0.1 localhost {MIRROR}\n")
    (etc / "nsswitch.conf").write_text("hosts: files\n")
    (etc / "apt" / "sources.list").write_text(
        f"deb http://{MIRROR}/debian bookworm main\ndeb http://{MIRROR}/debian bookworm-updates main\n"
        f"deb http://{MIRROR}/debian-security bookworm-security main\n")
    (directory / "mayfly").mkdir()
    subprocess.run("tar -cf - --exclude=./build --exclude=./.cache --exclude=./.git . | "
                   f"tar -xf - -C {directory}/mayfly", shell=True, cwd=ROOT, check=True)


@contextlib.contextmanager
def fresh(directory, above=None):
    """With the root `above`, it is that and what has been done in it, and stays as it was."""
    if not above:
        new_root(directory)
    setup = (ABOVE if above else "") + FRESH
    with World(setup.format(to=directory, root=above, cache=CACHE), directory, "/mayfly") as world:
        network = os.open(f"/proc/{world.init}/ns/net", os.O_RDONLY)
        with relay(network):
            yield world
        os.close(network)
