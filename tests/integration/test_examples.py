"""The files in examples/ do what they say, with test guests on the real /dev/kvm."""

import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

import mayfly
from guests import needs_kvm
from jail import EXEC_FILE, JAILER
from mayfly import complete as run
from oci_images import Layout, entry, layer
from taps import network_namespace

pytestmark = needs_kvm

EXAMPLES = os.path.join(mayfly.ROOT, "examples")
FILES = "/srv/vm"
needs_curl = pytest.mark.skipif(not shutil.which("curl"),
                                reason="THE EXAMPLE WAS NOT RUN: curl is missing")


def example(name):
    return os.path.join(EXAMPLES, name)


def text_of(name):
    with open(example(name), encoding="utf-8") as file:
        return file.read()


def guest(name):
    return os.path.join(mayfly.GUESTS, name)


@pytest.fixture(name="disk")
def a_disk(tmp_path):
    path = tmp_path / "root.ext4"
    path.write_bytes(bytes(1 << 20))
    return path


def here(text, tmp_path, kernel, boot_args=None):
    """An example's configuration with the files of a test, and for its kernel a test guest."""
    shutil.copy(guest(kernel), tmp_path / "vmlinuz")
    (tmp_path / "initrd").write_bytes(bytes(4096))
    config = json.loads(text.replace(FILES, str(tmp_path)))
    if boot_args:
        config["boot-source"]["boot_args"] = boot_args
    path = tmp_path / "vm.json"
    path.write_text(json.dumps(config))
    return path


def check_boot(done):
    """The guest `boot` ran with the root drive and ended well."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^command line: .*root=/dev/vda", done.stdout, re.M), done.stdout
    assert done.stdout.splitlines().count("done") == 1
    assert "not ok" not in done.stdout


def options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def offered():
    return options(run(mayfly.BINARY, "--help").stdout)


def test_the_configuration_file_boots_to_a_console(tmp_path, disk):
    config = here(text_of("vm.json"), tmp_path, "boot")
    check_boot(run(mayfly.BINARY, "--no-api", "--config-file", str(config)))


@needs_curl
def test_the_walk_through_with_curl_is_walked_to_its_end(disk):
    done = run(example("curl.sh"), mayfly.BINARY, guest("keyboard"), str(disk), "keys")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = re.findall(r"^> (.*?) *$", done.stdout, re.M)
    assert len(asked) >= 14
    assert "ok ctrl_alt_del_interrupts" in done.stdout
    assert '"state":"Running"' in done.stdout
    assert re.search(r"^\d+ lines of metrics$", done.stdout, re.M)


@needs_curl
def test_the_walk_through_with_curl_ends_at_an_error(tmp_path):
    done = run(example("curl.sh"), mayfly.BINARY, guest("boot"), str(tmp_path / "none"))
    assert done.returncode == 1
    assert "Error manipulating the backing file" in done.stdout


def test_the_python_client_boots_a_guest(disk):
    check_boot(run(sys.executable, example("mayfly_client.py"), "--mayfly", mayfly.BINARY,
                   "--vcpus", "2", guest("boot"), str(disk)))


def test_the_python_client_says_why_a_request_was_refused(tmp_path):
    done = run(sys.executable, example("mayfly_client.py"), "--mayfly", mayfly.BINARY,
               str(tmp_path / "none"))
    assert done.returncode == 1
    assert "PUT /boot-source: Boot source error: The kernel file cannot be opened" in done.stderr


def test_the_python_client_stays_short():
    assert len(text_of("mayfly_client.py").splitlines()) <= 72


def test_an_image_of_docker_boots(tmp_path):
    """With a docker that has saved it before; the guest `boot` looks for a root drive."""
    Layout(tmp_path / "layout", [layer(entry("a", b"a"))]).save(tmp_path / "saved.tar")
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$*" = "save -o $3 an/image:1" ] && cp {tmp_path}/saved.tar "$3"\n')
    docker.chmod(0o755)
    check_boot(run(example("image.sh"), "an/image:1", guest("boot"), env={
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MAYFLY": mayfly.BINARY}))


# In a jail


needs_root = pytest.mark.skipif(os.geteuid() != 0,
                                reason="JAILED EXAMPLES WERE NOT RUN: only root can build a jail")


@pytest.fixture(name="jailed")
def a_jailed_run(tmp_path):
    """What jailed.sh is told by its environment, and where the user inside may read."""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    (tmp_path / "base").mkdir()
    return {**os.environ, "MAYFLY": EXEC_FILE, "FILES": str(tmp_path), "BASE": f"{tmp_path}/base"}


def readable(tmp_path):
    for name in ("vmlinuz", "initrd", "root.ext4"):
        (tmp_path / name).chmod(0o666)


@needs_root
@pytest.mark.parametrize("named", [True, False])
def test_a_jail_has_the_network_that_was_named_or_an_empty_one(tmp_path, disk, jailed, named):
    """The tap is in the one that is named, or in the caller's; the guest `boot` needs none."""
    config = here(text_of("vm.json"), tmp_path, "boot")
    readable(tmp_path)
    with_tap = json.loads(config.read_text())
    with_tap["network-interfaces"] = [{"iface_id": "eth0", "host_dev_name": "tap0"}]
    config.write_text(json.dumps(with_tap))
    with network_namespace():
        subprocess.run(["ip", "tuntap", "add", "tap0", "mode", "tap", "user", "30001", "vnet_hdr"],
                       check=True)
        network = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        if not named:
            done = run(example("jailed.sh"), "vm1", str(config), env=jailed)
    if named:
        jailed["NETNS"] = f"/proc/{os.getpid()}/fd/{network}"
        check_boot(run(example("jailed.sh"), "vm1", str(config), env=jailed))
    else:
        assert done.returncode == 1 and "tap0" in (tmp_path / "base/mayfly/vm1/root/run/log").read_text()
    os.close(network)


@needs_root
def test_a_configuration_file_boots_in_a_jail_again_and_again(tmp_path, disk, jailed):
    config = here(text_of("vm.json"), tmp_path, "boot")
    readable(tmp_path)
    for _ in range(2):
        check_boot(run(example("jailed.sh"), "vm1", str(config), env=jailed))
    assert disk.stat().st_size == 1 << 20, "the cell was removed, not what was mounted there"


# The systemd unit


def unit_command(name, tmp_path, **more):
    """A command of the unit, as systemd would run it for the instance vm1."""
    line = re.search(rf"^{name}=(.*)$", text_of("mayfly@.service"), re.M).group(1)
    for old, new in {"%i": "vm1", "/usr/local/lib/mayfly/jailed.sh": example("jailed.sh"),
                     "/etc/mayfly/vm1.json": f"{tmp_path}/vm.json", "/srv/jailer":
                     f"{tmp_path}/base", **more}.items():
        line = line.replace(old, new)
    assert "%" not in line
    line = line.replace("${VM_UID}", "30005")
    return shlex.split(line)


@needs_root
@needs_curl
def test_the_units_commands_start_and_stop_a_guest(disk, jailed):
    short = tempfile.mkdtemp(prefix="unit-") # a socket's path is short
    tmp_path = pathlib.Path(short)
    tmp_path.chmod(0o755)
    shutil.copy(disk, tmp_path)
    here(text_of("vm.json"), tmp_path, "button")
    readable(tmp_path)
    env = {**jailed, "FILES": short, "BASE": f"{short}/base"}
    vm = mayfly.Mayfly()
    assert run(*unit_command("ExecStartPre", tmp_path)).returncode == 0
    vm.socket_path = f"{short}/base/mayfly/vm1/root/run/firecracker.socket"
    with open(vm.output_path, "wb") as output:
        vm.process = subprocess.Popen(unit_command("ExecStart", tmp_path), stdout=output,
                                      stderr=output, stdin=subprocess.DEVNULL, env=env)
    vm.wait_for_output("ready")
    assert vm.ok("GET", "/")["id"] == "vm1"
    assert os.stat(f"{short}/base/mayfly/vm1/root").st_uid == 30005, "the user that its file names"
    stop = subprocess.Popen(
        unit_command("ExecStop", tmp_path, **{"$MAINPID": str(vm.process.pid)}))
    assert vm.wait(mayfly.DEADLINE_S) == 0
    assert stop.wait(mayfly.DEADLINE_S) == 0
    assert "ok the_power_button_interrupts" in vm.output()
    shutil.rmtree(vm.directory)
    shutil.rmtree(short)


@pytest.mark.skipif(not shutil.which("systemd-analyze"),
                    reason="THE UNIT WAS NOT VERIFIED: systemd-analyze is missing")
def test_systemd_takes_the_unit(tmp_path):
    """With a binary that is there; the checker wants to find it."""
    unit = tmp_path / "mayfly@.service"
    unit.write_text(text_of("mayfly@.service").replace("/usr/local/lib/mayfly", EXAMPLES))
    done = run("systemd-analyze", "verify", "--man=no", str(tmp_path / "mayfly@vm1.service"),
               env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"})
    complaints = [line for line in done.stderr.splitlines() if "mayfly@" in line]
    assert not complaints, done.stderr


# The Nomad job


def hcl_tokens(text):
    """Of the part of HCL that the job uses. Here-documents are strings."""
    pattern = re.compile(r"""\s+|\#[^\n]*|
        (?P<name>[A-Za-z_][\w-]*)|(?P<number>\d+)|(?P<string>"(?:[^"\\\n]|\\.)*")|
        <<-?(?P<mark>[A-Z]+)\n(?P<text>.*?)\n\s*(?P=mark)(?=\n)|(?P<sign>[{}\[\],=])""",
                         re.X | re.S)
    at = 0
    while at < len(text):
        match = pattern.match(text, at)
        assert match, f"not HCL: {text[at:at + 40]!r}"
        at = match.end()
        if match["text"] is not None:
            yield "string", textwrap.dedent(match["text"])
        elif match["string"]:
            yield "string", json.loads(match["string"])
        elif match["name"] or match["number"] or match["sign"]:
            yield match.lastgroup, match[match.lastgroup]


def hcl_body(tokens):
    """Attributes by name, blocks by type and labels, up to the end or a closing brace."""
    body = {}
    for kind, name in tokens:
        if (kind, name) == ("sign", "}"):
            break
        assert kind == "name", name
        path = [name]
        kind, value = next(tokens)
        while kind == "string":
            path.append(value)
            kind, value = next(tokens)
        assert kind == "sign" and value in "={", value
        assert ".".join(path) not in body
        body[".".join(path)] = hcl_body(tokens) if value == "{" else hcl_value(tokens)
    return body


def hcl_value(tokens):
    kind, value = next(tokens)
    if (kind, value) != ("sign", "["):
        assert kind in ("string", "number"), value
        return value
    items = []
    for kind, value in tokens:
        if (kind, value) == ("sign", "]"):
            break
        if kind == "string":
            items.append(value)
    return items


def nomad_task():
    job = hcl_body(hcl_tokens(text_of("mayfly.nomad.hcl")))["job.microvm"]
    return job["group.vm"]["task.guest"]


@needs_root
def test_the_nomad_jobs_command_boots_a_guest(tmp_path, disk, jailed):
    task = nomad_task()
    assert task["driver"] == "raw_exec"
    assert os.path.basename(task["config"]["command"]) == "jailed.sh"
    config = here(task["template"]["data"], tmp_path, "boot")
    readable(tmp_path)
    assert os.path.basename(task["template"]["destination"]) == config.name
    arguments = [each.replace("${NOMAD_TASK_DIR}", str(tmp_path))
                 .replace("${NOMAD_ALLOC_ID}", "01234567-89ab-cdef-0123-456789abcdef")
                 .replace("${NOMAD_PORT_user}", "27413")
                 for each in task["config"]["args"]]
    assert not [each for each in arguments if "$" in each]
    check_boot(run(example("jailed.sh"), *arguments, env=jailed))
    cell, = (tmp_path / "base").glob("*/*/root")
    assert cell.stat().st_uid == 27413


def test_the_nomad_jobs_files_are_made_by_the_commands_above_it():
    """Each is there, and makes what the job names."""
    text = text_of("mayfly.nomad.hcl")
    commands = re.findall(r"^#   (\S.*)$", text, re.M)
    config = json.loads(nomad_task()["template"]["data"])
    boot = config["boot-source"]
    named = {boot["kernel_image_path"], boot["initrd_path"], config["drives"][0]["path_on_host"]}
    made, = (re.search(r"\{(.*)\}$", command)[1] for command in commands if FILES in command)
    assert named == {f"{FILES}/{name}" for name in made.split(",")}
    usage = run(f"{mayfly.ROOT}/devtool", "--help").stdout
    for name in re.findall(r"\./devtool (\w+)", "\n".join(commands)):
        assert re.search(rf"^  {name}\b", usage, re.M)
    assert os.path.basename(nomad_task()["config"]["command"]) in commands[0]


def test_the_nomad_job_reserves_the_guests_memory():
    task = nomad_task()
    guest_mib = json.loads(task["template"]["data"])["machine-config"]["mem_size_mib"]
    assert int(task["resources"]["memory"]) > guest_mib


@pytest.mark.skipif(not shutil.which("nomad"),
                    reason="NOMAD DID NOT CHECK THE JOB: nomad is missing")
def test_nomad_takes_the_job():
    done = run("nomad", "fmt", "-check", example("mayfly.nomad.hcl"))
    assert done.returncode == 0, done.stderr


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


AGENT = """
bind_addr = "127.0.0.1"
data_dir = "{data}"
disable_update_check = true
advertise {{
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}}
ports {{
  http = {http}
  rpc  = {rpc}
  serf = {serf}
}}
server {{
  enabled          = true
  bootstrap_expect = 1
}}
client {{
  enabled           = true
  servers           = ["127.0.0.1:{rpc}"]
  network_interface = "lo"
  options = {{
    "driver.allowlist"     = "raw_exec"
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,consul,vault,cni,bridge"
  }}
}}
plugin "raw_exec" {{
  config {{
    enabled = true
  }}
}}
"""


class Nomad:
    """A server and client of its own, on loopback; what it mounted goes with it. Its directory has
    a short name: a socket's path, which the job has far below it, is limited."""

    def __init__(self):
        self.directory = directory = pathlib.Path(tempfile.mkdtemp(prefix="nomad-"))
        http, rpc, serf = free_ports(3)
        config = directory / "agent.hcl"
        config.write_text(AGENT.format(data=directory / "data", http=http, rpc=rpc, serf=serf))
        self.env = {**os.environ, "NOMAD_ADDR": f"http://127.0.0.1:{http}"}
        self.env.pop("AWS_CA_BUNDLE", None)  # Nomad fails on it although it looks for no cloud
        with open(directory / "agent.log", "wb") as log:
            self.process = subprocess.Popen(["nomad", "agent", "-config", str(config)],
                                            env=self.env, stdout=log, stderr=log)

    def do(self, *words):
        return run("nomad", *words, env=self.env)

    def until(self, what, done):
        """Asks again until an answer will do."""
        end = time.monotonic() + mayfly.DEADLINE_S
        while time.monotonic() < end and self.process.poll() is None:
            answer = what()
            if done(answer):
                return answer
        raise AssertionError((self.directory / "agent.log").read_text()[-3000:])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        with open("/proc/mounts", encoding="utf-8") as mounts:
            places = [line.split()[1] for line in mounts]
        for place in places:
            if place.startswith(f"{self.directory}/"):
                subprocess.run(["umount", place], check=True)
        shutil.rmtree(self.directory)


@pytest.mark.skipif(not shutil.which("nomad") or os.geteuid() != 0,
                    reason="THE NOMAD JOB WAS NOT RUN: nomad is missing, or this is not root")
def test_nomad_runs_the_job(tmp_path, disk, jailed):
    here(text_of("vm.json"), tmp_path, "boot")
    readable(tmp_path)
    with tempfile.TemporaryDirectory(prefix="nomad-") as base, Nomad() as nomad:
        job = tmp_path / "job.hcl"
        job.write_text(text_of("mayfly.nomad.hcl").replace(FILES, str(tmp_path))
                       .replace("/usr/local/lib/mayfly/jailed.sh", example("jailed.sh"))
                       .replace("      template {", f'''      env {{
        MAYFLY = "{jailed["MAYFLY"]}"
        FILES  = "{tmp_path}"
        BASE   = "{base}"
      }}

      template {{''', 1))
        nomad.until(lambda: nomad.do("node", "status").stdout, lambda text: " ready" in text)
        started = nomad.do("job", "run", str(job))
        assert started.returncode == 0, started.stdout + started.stderr
        allocation, = nomad.until(
            lambda: json.loads(nomad.do("job", "allocs", "-json", "microvm").stdout),
            lambda all_: all_ and all_[0]["ClientStatus"] in ("complete", "failed"))
        console = nomad.do("alloc", "logs", allocation["ID"], "guest").stdout
        assert allocation["ClientStatus"] == "complete", console
        assert allocation["TaskStates"]["guest"]["Failed"] is False
        assert console.splitlines().count("done") == 1 and "not ok" not in console


def test_the_examples_options_are_offered():
    commands = [text_of("README.md"), re.search(r"Popen\((.*?)\)", text_of("mayfly_client.py"))[1]]
    commands += re.findall(r" -- (--.*)", text_of("jailed.sh"))
    commands += re.findall(r'^"\$mayfly".*', text_of("curl.sh"), re.M)
    for command in commands:
        assert options(command), command
        assert options(command) <= offered()
    ours = re.search(r"mayfly-jailer\" (.*?) -- ", text_of("jailed.sh"), re.S)[1]
    assert options(ours) <= options(run(JAILER, "--help").stdout)
