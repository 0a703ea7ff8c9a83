"""A host that can run Linux guests, and a guest on it.

The host is this machine where it has hardware virtualisation, else the rig, an emulated one. Either
way it is a shell that stays open for the whole test run, so that the rig boots once.
"""

import json
import os
import re
import select
import shlex
import signal
import subprocess
import time


class Host:
    """Runs shell commands in a directory that holds the files it was given.

    prefix is the command that runs a shell there: empty for this machine, else the rig.
    """

    def __init__(self, prefix, directory, log):
        self.log = log
        self.directory = directory
        self.commands = 0
        self.shell = subprocess.Popen(
            [*prefix, "sh", "-c", "echo ready; exec sh /dev/stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "ab"),
            start_new_session=True,
        )
        self.unread = b""
        # A serial port that nobody has opened yet loses what is sent to it.
        deadline = time.monotonic() + 600
        while b"ready\n" not in self.unread:
            self._read(deadline)
        self.run(f"cd {shlex.quote(directory)}")
        # By the host's clock: with guests that use all of an emulated CPU a try takes long.
        self.run(
            "now() { read -r up _ </proc/uptime; echo ${up%.*}; };"
            ' wait_for() { end=$(($(now) + $1)); until eval "$2"; do'
            " [ $(now) -lt $end ] || return 1; sleep 0.1; done; }"
        )

    def _read(self, deadline):
        left = max(0, deadline - time.monotonic())
        if not select.select([self.shell.stdout], [], [], left)[0]:
            raise TimeoutError("the host did not answer in time")
        data = os.read(self.shell.stdout.fileno(), 65536)
        if not data:
            raise ConnectionError("the host is gone: " + open(self.log).read()[-2000:])
        self.unread += data

    def run(self, command, timeout=600, check=True):
        """The standard output and error of a shell command; its status too if check is False."""
        self.commands += 1
        mark = f"@@{self.commands}"
        self.shell.stdin.write(
            f"{{ {command}\n}} </dev/null >/tmp/output.$$ 2>&1\n"
            f"echo {mark} $? $(wc -c </tmp/output.$$); cat /tmp/output.$$\n".encode()
        )
        self.shell.stdin.flush()
        deadline = time.monotonic() + timeout
        while not (head := re.search(rb"%s (\d+) (\d+)\n" % mark.encode(), self.unread)):
            self._read(deadline)
        status, size = int(head[1]), int(head[2])
        while len(self.unread) < head.end() + size:
            self._read(deadline)
        output = self.unread[head.end() : head.end() + size].decode(errors="replace")
        self.unread = self.unread[head.end() + size :]
        if not check:
            return status, output
        assert status == 0, f"{command}\nended with status {status}: {output}"
        return output

    def wait_for(self, command, timeout=600):
        """Repeats a command until it succeeds; False if it has not by then."""
        status, _ = self.run(
            f"wait_for {timeout} {shlex.quote(command)}", timeout=timeout * 4, check=False
        )
        return status == 0

    def close(self):
        try:
            self.shell.stdin.write(b"exit 0\n")
            self.shell.stdin.flush()
            self.shell.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            os.killpg(self.shell.pid, signal.SIGKILL)
            self.shell.wait()


class Guest:
    """A mayfly process with its API socket, its console in a file and its stdin a FIFO."""

    count = 0

    def __init__(self, host, *arguments):
        Guest.count += 1
        self.host = host
        self.dir = f"{host.directory}/guest-{Guest.count}"
        self.socket = f"{self.dir}/api.sock"
        self.disk = f"{self.dir}/root.ext4"
        host.run(f"mkdir {self.dir} && mkfifo {self.dir}/input && >{self.dir}/log")
        host.run(f"cp root.ext4 {self.disk}")
        self.arguments = arguments or ("--api-sock", self.socket)

    def launch(self):
        """Starts the process; with an API socket, returns when it answers."""
        argv = shlex.join(["./mayfly", *self.arguments, "--log-path", f"{self.dir}/log"])
        self.host.run(
            f"({argv} <>{self.dir}/input >{self.dir}/console 2>{self.dir}/errors &"
            f" echo $! >{self.dir}/pid; wait $!; echo $? >{self.dir}/status) >/dev/null 2>&1 &"
        )
        if "--api-sock" in self.arguments:
            answers = f"curl -s -o {self.dir}/answer --unix-socket {self.socket} http://localhost/"
            ended = f"[ -f {self.dir}/status ]"
            assert self.host.wait_for(f"{answers} || {ended}"), "the API does not answer"
            assert self.status() is None, f"mayfly ended: {self.errors()}"
        return self

    def request(self, method, path, body=None):
        """An API request: its status code and body."""
        data = "" if body is None else "-d " + shlex.quote(json.dumps(body))
        answer = self.host.run(
            f"curl -sS --unix-socket {self.socket} -X {method} {data}"
            f" -H 'Content-Type: application/json' -w '\\n%{{http_code}}' http://localhost{path}"
        )
        text, code = answer.rsplit("\n", 1)
        return int(code), text

    def do(self, method, path, body):
        code, text = self.request(method, path, body)
        assert code == 204, f"{method} {path} {body}: {code} {text}"

    def boot(self, kernel, arguments="", run=None, initrd=None, vcpus=1, mem_mib=128,
             read_only=False, smbios=None):
        """Configures and starts it; run is a shell command for the guest (no double quotes)."""
        self.launch()
        self.do("PUT", "/machine-config", {"vcpu_count": vcpus, "mem_size_mib": mem_mib})
        source = {"kernel_image_path": kernel, "boot_args": boot_args(arguments, run)}
        if initrd:
            source["initrd_path"] = initrd
        self.do("PUT", "/boot-source", source)
        self.do("PUT", "/drives/rootfs", self.drive(read_only))
        if smbios:
            self.do("PUT", "/smbios", smbios)
        self.do("PUT", "/actions", {"action_type": "InstanceStart"})
        return self

    def drive(self, read_only=False):
        return {
            "drive_id": "rootfs",
            "path_on_host": self.disk,
            "is_root_device": True,
            "is_read_only": read_only,
        }

    def type(self, text):
        self.host.run(f"printf %s {shlex.quote(text)} >{self.dir}/input")

    def console(self):
        return self.host.run(f"cat {self.dir}/console").replace("\r", "")

    def console_size(self):
        return int(self.host.run(f"wc -c <{self.dir}/console"))

    def errors(self):
        return self.host.run(f"cat {self.dir}/errors {self.dir}/log")

    def status(self):
        status, output = self.host.run(f"cat {self.dir}/status", check=False)
        return int(output) if status == 0 else None

    def wait_console(self, text, timeout=600):
        assert "\n" not in text, "grep would look for what is before it, or for what is behind it"
        seen = self.host.wait_for(f"grep -qF {shlex.quote(text)} {self.dir}/console", timeout)
        assert seen, f"no {text!r} on the console:\n{self.console()}\n{self.errors()}"

    def wait_end(self, timeout=600):
        """Waits for the process to end with status 0; returns what was on the console."""
        ended = self.host.wait_for(f"[ -s {self.dir}/status ]", timeout)
        assert ended, f"mayfly still runs:\n{self.console()}\n{self.errors()}"
        assert self.status() == 0, f"status {self.status()}:\n{self.console()}\n{self.errors()}"
        return self.console()

    def stop(self):
        """Ends the process at once, where one runs, with all that it holds."""
        gone = f"[ ! -s {self.dir}/pid ] || [ -s {self.dir}/status ]"
        self.host.run(f"{gone} || kill -KILL $(cat {self.dir}/pid); true")
        assert self.host.wait_for(gone)

    def remove(self):
        """Kills the process if it still runs, and frees its disk."""
        self.stop()
        self.host.run(f"rm -rf {self.dir}")


def boot_args(arguments="", run=None):
    words = ["console=ttyS0 reboot=k panic=1 quiet", arguments]
    if run is not None:
        assert '"' not in run
        words.append(f'mayfly.run="{run}"')
    return " ".join(word for word in words if word)


def said(console, prefix):
    """The rest of the console line that begins with prefix."""
    lines = [line for line in console.splitlines() if line.startswith(prefix)]
    assert lines, f"no line {prefix!r} in:\n{console}"
    return lines[0][len(prefix) :].strip()
