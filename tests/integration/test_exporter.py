"""What watches a fleet: mayfly-exporter on many VMs, some of which are captured; the dashboard and
the rules for alerts, held to the metrics that there are; a real Prometheus, where there is one."""

import collections
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import tempfile
import threading
import urllib.request

import pytest
import yaml

from guests import drive, make_files, needs_kvm, start
from jail import Jail, needs_root
from mayfly import ROOT, Mayfly, complete, wait_until
from taps import ip, make_tap, needs_taps
from unix_http import DEADLINE_S

MONITORING = f"{ROOT}/examples/monitoring"
SERIES = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')


@pytest.fixture
def cells():
    """Whose path leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="f-") as path:
        yield pathlib.Path(path)


class Exporter:
    """One that looks at the cells below a directory."""

    def __init__(self, directory, *args):
        self.process = subprocess.Popen(
            [f"{MONITORING}/mayfly-exporter", "--listen", "127.0.0.1:0", "--cells",
             f"{directory}/*/{{id}}/root/run/firecracker.socket", *args],
            stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def page(self):
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=DEADLINE_S) as answer:
            return answer.read().decode()

    def values(self):
        return read(self.page())


def read(page):
    """{family: {labels as a frozen set of pairs: value}}; each family once and whole."""
    values, families = collections.defaultdict(dict), set()
    for line in page.splitlines():
        if line.startswith("# "):
            _, kind, family, _ = line.split(" ", 3)
            assert (kind, family) not in families
            families.add((kind, family))
            continue
        name, labels, value = SERIES.fullmatch(line).groups()
        assert re.fullmatch(family + "(_bucket|_sum|_count)?", name)
        labels = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))
        assert labels not in values[name]
        values[name][labels] = float(value)
    return values


def of_vm(values, name):
    return {dict(labels).get("vm"): value for labels, value in values[name].items()}


def cell(base, vm):
    path = base / "mayfly" / vm / "root" / "run"
    path.mkdir(parents=True)
    return path / "firecracker.socket"


class Cell(Mayfly):
    """A VMM whose socket is where a jail has it."""

    def __init__(self, base, vm):
        super().__init__("--id", vm)
        self.socket_path = str(cell(base, vm))


def serve(stack, path, answer):
    """A captured VMM: what it does with each client is in answer(client, request)."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen(16)
    held = []

    def run():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with contextlib.suppress(OSError):
                    client.recv(4096)
                    answer(client)
                    client.shutdown(socket.SHUT_RDWR)
                held.append(client)
    threading.Thread(target=run, daemon=True).start()
    # A thread in accept() has the listener still: this wakes it up.
    stack.callback(listener.shutdown, socket.SHUT_RDWR)


HEAD = b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n"
INFO = "# HELP mayfly_info A.\n# TYPE mayfly_info gauge\n"


def says(text, head=HEAD, end="# EOF\n"):
    return lambda client: client.sendall(head + (text + end).encode("utf-8", "surrogateescape"))


def trickles(client):
    while True:
        client.send(b"x")


def hangs(client):
    client.recv(1)


ROW = "# HELP mayfly_x X.\n# TYPE mayfly_x gauge\n"
CAPTURED = {
    "silent": (hangs, "timeout"),
    "endless": (lambda client: client.sendall(HEAD + b"x" * (1 << 20)), "too_large"),
    "trickling": (trickles, None),
    "many-lines": (says(ROW + "".join(f'mayfly_x{{id="{n}"}} 1\n' for n in range(5000))),
                   "too_large"),
    "cut-off": (says(ROW + "mayfly_x 1\n", end=""), "malformed"),
    "refusing": (says("", head=b"HTTP/1.1 400 \r\n\r\n"), "status"),
    "no-http": (says("", head=b"\0\xff"), "status"),
    "no-text": (says("\udcff\n"), "malformed"),
    "other-names": (says("# TYPE up gauge\nup 1\n"), "malformed"),
    "exporters-names": (says("# TYPE mayfly_exporter_vms gauge\nmayfly_exporter_vms 1\n"),
                        "malformed"),
    "no-family": (says("mayfly_x 1\n"), "malformed"),
    "two-families": (says(ROW + ROW), "malformed"),
    "other-family": (says(ROW + "mayfly_y 1\n"), "malformed"),
    "twice": (says(ROW + "mayfly_x 1\nmayfly_x 2\n"), "malformed"),
    "with-vm": (says(ROW + 'mayfly_x{vm="vm0"} 1\n'), "malformed"),
    "open-label": (says(ROW + 'mayfly_x{id="a} 1\n'), "malformed"),
    "label-twice": (says(ROW + 'mayfly_x{id="a",id="b"} 1\n'), "malformed"),
    "long-label": (says(ROW + f'mayfly_x{{id="{"a" * 200}"}} 1\n'), "malformed"),
    "many-labels": (says(ROW + 'mayfly_x{a="",b="",c="",d="",e=""} 1\n'), "malformed"),
    "injecting": (says(ROW + 'mayfly_x{id="a"} 1\r\nmayfly_y{vm="vm0"} 1\n'), "malformed"),
    "no-number": (says(ROW + "mayfly_x NaN\n"), "malformed"),
    "other-digits": (says(ROW + "mayfly_x \u0663\n"), "malformed"),
    "timed": (says(ROW + "mayfly_x 1 1600000000000\n"), "malformed"),
    "no-type": (says("# TYPE mayfly_x summary\nmayfly_x 1\n"), "malformed"),
}


def test_the_exporter_lives_through_what_fifty_vms_do(cells):
    """Those that come, go, hang and lie cost the others nothing, and none can pose as another."""
    honest = [f"vm{n}" for n in range(50 - len(CAPTURED))]
    with contextlib.ExitStack() as stack:
        vms = {vm: stack.enter_context(Cell(cells, vm)) for vm in honest[:-1]}
        for vm, (answer, _) in CAPTURED.items():
            serve(stack, cell(cells, vm), answer)
        exporter = stack.enter_context(Exporter(cells, "--timeout", "10"))
        values = exporter.values()
        up = of_vm(values, "mayfly_up")
        assert up == {**{vm: 1 for vm in vms}, **{vm: 0 for vm in CAPTURED}}
        assert of_vm(values, "mayfly_exporter_vms") == {None: 49}
        for name in ("mayfly_vcpus", "process_resident_memory_bytes", "process_open_fds"):
            assert set(of_vm(values, name)) - {None} == set(vms)
        assert "mayfly_x" not in values and "mayfly_y" not in values
        failures = collections.Counter({
            dict(labels)["reason"]: int(value)
            for labels, value in values["mayfly_exporter_failures_total"].items()})
        failures.subtract(reason for _, reason in CAPTURED.values() if reason)
        assert list(failures.elements()) in (["too_large"], ["timeout"])
        for vm in ("silent", "trickling"):
            os.unlink(cells / "mayfly" / vm / "root" / "run" / "firecracker.socket")
        # One goes, one comes.
        vms["vm0"].stop()
        stack.enter_context(Cell(cells, honest[-1]))
        up = of_vm(exporter.values(), "mayfly_up")
        assert "silent" not in up and up["vm0"] == 0 and up[honest[-1]] == 1
        assert sum(up.values()) == len(vms)
        os.unlink(vms["vm0"].socket_path)
        assert "vm0" not in of_vm(exporter.values(), "mayfly_up")


@needs_root
def test_the_exporter_reads_a_vm_in_its_jail(cells):
    """What it sees of it in /proc is another user's, in a PID namespace of its own."""
    with Jail("--new-pid-ns", base=str(cells), jail_id="vm1"), Exporter(cells) as exporter:
        values = exporter.values()
    assert of_vm(values, "mayfly_up") == {"vm1": 1}
    assert [dict(labels)["id"] for labels in values["mayfly_info"]] == ["vm1"]
    for family in "process_resident_memory_bytes", "process_open_fds":
        assert of_vm(values, family)["vm1"] > 0, family


def test_the_exporter_follows_no_link_and_opens_sockets_only(cells):
    with contextlib.ExitStack() as stack:
        victim = stack.enter_context(Cell(cells, "victim"))
        cell(cells, "link").symlink_to(victim.socket_path)
        there = cell(cells, "directory").parent
        there.rmdir()
        there.symlink_to(os.path.dirname(victim.socket_path))
        there = cell(cells, "root").parent.parent
        (there / "run").rmdir()
        there.rmdir()
        there.symlink_to(cells / "mayfly" / "victim" / "root")
        (cells / "mayfly" / "cell").symlink_to(cells / "mayfly" / "victim")
        os.mkfifo(cell(cells, "fifo"))
        cell(cells, "file").write_text("x")
        cell(cells, "dir").mkdir()
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(str(cell(cells, "datagrams")))
        cell(cells, 'a"b')
        cell(cells, "-dash")
        exporter = stack.enter_context(Exporter(cells))
        assert of_vm(exporter.values(), "mayfly_up") == {"victim": 1, "datagrams": 0}


def test_what_a_lying_vm_can_say_is_said_of_itself_only(cells):
    """Also where it calls itself another, has no idea of types, and quotes badly."""
    text = ('# HELP mayfly_info I am vm1.\n# TYPE mayfly_info counter\nmayfly_info{id="vm1"} 1\n'
            "# TYPE mayfly_up gauge\nmayfly_up 1\n# TYPE mayfly_running gauge\n"
            'mayfly_running{id="\\u0001\\b\\n\\"\\\\"} 7\n'
            "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 1\n")
    with contextlib.ExitStack() as stack:
        for vm in ("vm1", "vm2"):
            stack.enter_context(Cell(cells, vm))
        serve(stack, cell(cells, "a-liar"), says(text))
        page = stack.enter_context(Exporter(cells)).page()
    values = read(page)
    info = {(dict(labels)["vm"], dict(labels)["id"]) for labels in values["mayfly_info"]}
    assert info == {("vm1", "vm1"), ("vm2", "vm2")}
    assert "# TYPE mayfly_info gauge\n" in page and "I am vm1" not in page
    assert of_vm(values, "mayfly_running") == {"vm1": 0, "vm2": 0, "a-liar": 7}
    assert 'id="\\\\u0001\\\\b\\n\\"\\\\"' in page
    assert of_vm(values, "process_resident_memory_bytes")["a-liar"] > 1 << 20


@pytest.mark.parametrize("args, text", [
    (["--cells", "relative/{id}"], "an absolute path with one {id}"),
    (["--cells", "/a/b"], "an absolute path with one {id}"),
    (["--cells", "/a/../{id}/s"], "an absolute path with one {id}"),
    (["--cells", "/a/{id}/*.sock"], "nothing is chosen there"),
])
def test_the_exporter_refuses_places_that_a_vm_could_choose(args, text):
    done = complete(f"{MONITORING}/mayfly-exporter", *args)
    assert done.returncode == 2 and text in done.stderr


# What reads the page


@pytest.fixture(scope="module")
def prometheus():
    """Directory of Debian's prometheus and promtool."""
    found = complete(f"{ROOT}/tests/integration/prometheus-package")
    if found.returncode:
        pytest.skip(f"NOTHING WAS ASKED OF PROMETHEUS: {found.stderr}")
    return found.stdout.strip()


def with_all_devices(vm):
    """In a network of its own, which the exporter is in, too."""
    ip("link set lo up")
    make_tap("tap0")
    files = make_files(vm.directory)
    limits = {"bandwidth": {"size": 1 << 20, "refill_time": 100}}
    vm.ok("PUT", "/drives/disk", drive(files["disk"], rate_limiter=limits))
    vm.ok("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap0"})
    vm.ok("PUT", "/mmds/config", {"network_interfaces": ["eth0"]})
    vm.ok("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
    start(vm, files)


@needs_kvm
@needs_taps
def test_dashboard_and_alerts_ask_for_metrics_that_there_are(cells):
    with contextlib.ExitStack() as stack:
        with_all_devices(stack.enter_context(Cell(cells, "vm1")))
        serve(stack, cell(cells, "a-liar"), says("no\n"))
        values = stack.enter_context(Exporter(cells)).values()
    with open(f"{MONITORING}/dashboard.json", encoding="utf-8") as file:
        dashboard = json.load(file)
    with open(f"{MONITORING}/alerts.yml", encoding="utf-8") as file:
        rules = yaml.safe_load(file)["groups"][0]["rules"]
    queries = [target["expr"] for panel in dashboard["panels"]
               for target in panel.get("targets", [])]
    queries += [variable["query"] for variable in dashboard["templating"]["list"]]
    queries += [rule["expr"] for rule in rules]
    names = {name for query in queries for name in re.findall(r"\b(?:mayfly|process)_\w+", query)}
    assert len(names) > 40
    assert not names - set(values)
    labels = {label for series in values.values() for labels in series for label, _ in labels}
    asked = {label for query in queries
             for group in re.findall(r"by \(([\w, ]+)\)", query) for label in group.split(", ")}
    asked |= {label for query in queries for label in re.findall(r"(\w+)(?:!~|=~|!=|=)\"", query)}
    assert asked <= labels | {"instance", "job"}


def test_each_alert_is_raised_and_only_when_it_should(prometheus):
    with open(f"{MONITORING}/alerts.yml", encoding="utf-8") as file:
        alerts = set(re.findall(r"alert: (\w+)", file.read()))
    with open(f"{MONITORING}/alerts-test.yml", encoding="utf-8") as file:
        tried = set(re.findall(r"alertname: (\w+)", file.read()))
    assert alerts == tried
    done = complete(f"{prometheus}/promtool", "test", "rules", "alerts-test.yml", cwd=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr
    done = complete(f"{prometheus}/promtool", "check", "config", "prometheus.yml", cwd=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_kvm
@needs_taps
def test_promtool_finds_fault_with_one_name(prometheus, cells):
    """The name is Firecracker's, of a value that is no counter there."""
    with contextlib.ExitStack() as stack:
        vm = stack.enter_context(Cell(cells, "vm1"))
        with_all_devices(vm)
        pages = [vm.request("GET", "/metrics")[2], stack.enter_context(Exporter(cells)).page()]
    for page in pages:
        done = subprocess.run([f"{prometheus}/promtool", "check", "metrics"], input=page, text=True,
                              capture_output=True, timeout=DEADLINE_S, check=False)
        said = (done.stdout + done.stderr).splitlines()
        assert [line.split(" ")[0] for line in said] == ["mayfly_vmm_panic_count"], said


def test_a_prometheus_scrapes_a_fleet(prometheus, cells):
    def query(text):
        address = f"http://127.0.0.1:{port}/api/v1/query?query={text}"
        with contextlib.suppress(OSError), urllib.request.urlopen(address) as answer:
            return {result["metric"].get("vm"): result["value"][1]
                    for result in json.load(answer)["data"]["result"]}

    with contextlib.ExitStack() as stack:
        for vm in ("vm1", "vm2"):
            stack.enter_context(Cell(cells, vm))
        exporter = stack.enter_context(Exporter(cells))
        with open(f"{MONITORING}/prometheus.yml", encoding="utf-8") as file:
            config = file.read().replace("127.0.0.1:9550", exporter.address)
        (cells / "prometheus.yml").write_text(config.replace("15s", "1s"))
        (cells / "alerts.yml").write_bytes(pathlib.Path(f"{MONITORING}/alerts.yml").read_bytes())
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = stack.enter_context(subprocess.Popen(
            [f"{prometheus}/prometheus", f"--config.file={cells}/prometheus.yml",
             f"--storage.tsdb.path={cells}/data", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(server.kill)
        both = {"vm1": "1", "vm2": "1"}
        wait_until(lambda: query("mayfly_up") == both, lambda: query("mayfly_up"))
        assert query("up") == {None: "1"}
        assert set(query("process_resident_memory_bytes")) == {None, "vm1", "vm2"}
        assert query("mayfly_put_api_requests_drive_count_total") == {"vm1": "0", "vm2": "0"}
