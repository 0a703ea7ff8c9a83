#!/usr/bin/env python3
"""A function platform in one page: a guest is booted once and saved, and each call is answered by a
clone of it, in a jail of its own, that lives for this call only. As root.

usage: functions.py [OPTION]... --calls N KERNEL DISK     calls the function, and says how long it takes
       functions.py [OPTION]... --listen PORT KERNEL DISK  serves POST requests of this host by HTTP

The guest is to take each connection to port 8000 of its vsock for a call: what it reads there up to
the end is the request, what it writes the answer. handler.sh is such a function, with a DISK that
`devtool rootfs` makes; docs/functions.md has the commands, and what is shared and what is not.
"""
import argparse, collections, concurrent.futures, contextlib, http.server, itertools, os
import pathlib, queue, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))
from mayfly_client import Client, wait_for_api

PORT = 8000
BYTES_MAX = 1 << 20 # of a request, and of an answer
GUEST_ARGS = ("console=ttyS0 reboot=k panic=1 quiet ip=169.254.0.2:::255.255.0.0::eth0:off "
              f'mayfly.run="vsock serve {PORT} sh /root/handler.sh"')


class Busy(RuntimeError):
    pass


class Slot:
    """What one microVM at a time needs of the host: a user of its own, and a network namespace
    whose one tap leads nowhere but to the metadata service."""

    def __init__(self, number, first_uid):
        self.uid = first_uid + number
        self.netns = f"fn{os.getpid()}-{number}"

    def make(self):
        for words in (f"netns add {self.netns}",
                      f"-n {self.netns} tuntap add tap0 mode tap user {self.uid}",
                      f"-n {self.netns} link set tap0 up"):
            subprocess.run(["ip", *words.split()], check=True)

    def remove(self):
        subprocess.run(["ip", "netns", "del", self.netns], check=False)


class Cell:
    """A jail for one microVM, the VMM in it, and `files` under their names, nobody's to write."""

    def __init__(self, o, name, slot, files):
        self.o, self.name, self.slot, self.files = o, name, slot, files
        self.home = pathlib.Path(o.directory, os.path.basename(os.path.realpath(o.mayfly)), name)
        self.root, self.vmm = self.home / "root", None
        self.api = Client(str(self.root / "run/firecracker.socket"), o.timeout)

    def start(self):
        """Returns when the VMM can be asked."""
        self.root.mkdir(parents=True)
        os.chown(self.root, self.slot.uid, self.slot.uid)
        for path in self.files:
            os.link(path, self.root / path.name)
        jailer = os.path.join(os.path.dirname(self.o.mayfly), "mayfly-jailer")
        self.vmm = subprocess.Popen(
            [jailer, "--id", self.name, "--exec-file", self.o.mayfly, "--exec-method", "bind",
             "--uid", str(self.slot.uid), "--gid", str(self.slot.uid),
             "--netns", f"/run/netns/{self.slot.netns}", "--chroot-base-dir", self.o.directory],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_api(self.vmm, self.api)

    def close(self):
        if self.vmm:
            self.vmm.kill()
            self.vmm.wait()
            self.vmm = None
        self.api.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def ask(self, request):
        """One call of the function. The guest is not trusted to end it, or to be brief."""
        deadline, answer = time.monotonic() + self.o.timeout, b""
        with socket.socket(socket.AF_UNIX) as stream:
            def receive(count):
                stream.settimeout(max(0.001, deadline - time.monotonic()))
                return stream.recv(count)
            stream.settimeout(self.o.timeout)
            stream.connect(str(self.root / "v.sock"))
            stream.sendall(b"CONNECT %d\n" % PORT)
            while not answer.endswith(b"\n"):
                answer += (part := receive(1))
                if not part:
                    raise ConnectionError("the guest takes no call")
            stream.sendall(request)
            stream.shutdown(socket.SHUT_WR)
            answer = b"" # of a guest that is killed while it answers, what came until then
            while part := receive(1 << 16):
                answer += part
                if len(answer) > BYTES_MAX:
                    raise RuntimeError("the answer is too long")
        if request and not answer:
            raise ConnectionError("the guest has no answer")
        return answer


class Functions:
    """A template, and for each slot a cell in which the next clone of it will be."""

    def __init__(self, o, slots):
        self.o, self.cells, self.numbers = o, queue.SimpleQueue(), itertools.count(1)
        self.template, self.shared = pathlib.Path(o.directory, "template"), []
        self.times = collections.defaultdict(lambda: collections.deque(maxlen=100000))
        self.make_template(slots[0])
        self.cleaners = concurrent.futures.ThreadPoolExecutor(o.at_once)
        for slot in slots:
            self.cleaners.submit(self.renew, slot)

    def close(self):
        self.cleaners.shutdown()
        while not self.cells.empty():
            self.cells.get().close()

    def renew(self, slot, old=None):
        """Makes room for the next call, when the caller of the last one has its answer."""
        if old:
            old.close()
        cell = Cell(self.o, f"call-{next(self.numbers)}", slot, self.shared)
        try:
            if self.o.ahead:
                cell.start()
        except Exception: # the next call tries again, and tells
            cell.close()
        self.cells.put(cell)

    def make_template(self, slot):
        self.template.mkdir()
        with contextlib.closing(Cell(self.o, "template", slot, [])) as cell:
            cell.start()
            for name, path in (("kernel", self.o.kernel), ("disk", self.o.disk)):
                shutil.copyfile(path, cell.root / name)
                os.chown(cell.root / name, slot.uid, slot.uid)
            call = cell.api.call
            call("PUT", "/machine-config", vcpu_count=1, mem_size_mib=self.o.mib)
            call("PUT", "/boot-source", kernel_image_path="/kernel", boot_args=self.o.args)
            call("PUT", "/drives/disk", drive_id="disk", path_on_host="/disk", is_root_device=True)
            call("PUT", "/network-interfaces/eth0", iface_id="eth0", host_dev_name="tap0")
            call("PUT", "/mmds/config", network_interfaces=["eth0"])
            call("PUT", "/vsock", guest_cid=3, uds_path="/v.sock")
            call("PUT", "/actions", action_type="InstanceStart")
            self.wait_for_guest(cell)
            call("PATCH", "/vm", state="Paused")
            call("PUT", "/snapshot/create", snapshot_path="/state", mem_file_path="/memory")
            self.share(cell, "state", "memory", "disk")
        # What the guest touches from its load to its first answer, recorded with such a call.
        with contextlib.closing(Cell(self.o, "recorder", slot, self.shared)) as cell:
            cell.start()
            self.load(cell, record=True)
            cell.ask(self.o.text.encode())
            cell.api.call("PATCH", "/vm", state="Paused")
            self.share(cell, "working-set")

    def share(self, cell, *names): # which are root's from now on, and in all later cells
        for name in names:
            path = self.template / name
            os.replace(cell.root / name, path)
            os.chown(path, 0, 0)
            path.chmod(0o444)
            self.shared.append(path)

    def wait_for_guest(self, cell):
        """By a call without a request, which no function is asked for."""
        deadline = time.monotonic() + self.o.boot_timeout
        while True:
            try:
                return cell.ask(b"")
            except ConnectionError:
                if cell.vmm.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def call(self, request):
        """The answer of a clone made for it. What goes wrong is an exception, of this call only."""
        began = time.monotonic()
        try:
            cell = self.cells.get(timeout=self.o.timeout)
        except queue.Empty:
            raise Busy("all microVMs that may run at once are busy") from None
        try:
            return self.call_in(cell, request, began)
        finally:
            self.cleaners.submit(self.renew, cell.slot, cell)

    def load(self, cell, **how):
        cell.api.call("PUT", "/mmds", name=cell.name)
        cell.api.call("PUT", "/snapshot/load", snapshot_path="/state", resume_vm=True,
                      mem_backend={"backend_type": "File", "backend_path": "/memory"},
                      working_set={"path": "/working-set", **how},
                      drive_overrides=[{"drive_id": "disk", "overlay_path": "/overlay"}])

    def call_in(self, cell, request, began):
        at = [began, time.monotonic()]
        if not cell.vmm:
            cell.start()
        at.append(time.monotonic())
        self.load(cell)
        at.append(time.monotonic())
        answer = cell.ask(request)
        at.append(time.monotonic())
        for what, begin, end in (("a slot", 0, 1), ("jail and VMM", 1, 2), ("load", 2, 3),
                                 ("answer", 3, 4), ("all behind the slot", 1, 4)):
            self.times[what].append((at[end] - at[begin]) * 1e3)
        return answer

    def show_times(self):
        print(f"{'milliseconds':20}{'p50':>8}{'p99':>8}")
        for what, times in self.times.items():
            p = statistics.quantiles([*times, *times], n=100, method="inclusive") # it takes two
            print(f"{what:20}{p[49]:8.1f}{p[98]:8.1f}")


def serve(functions, port):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            if length > BYTES_MAX:
                return self.send_error(413)
            request = self.rfile.read(length)
            try:
                status, answer = 200, functions.call(request)
            except Exception as error:
                status, answer = 503 if isinstance(error, Busy) else 502, f"{error}\n".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = False # whose cells are removed before we end
        print(f"listening on port {server.server_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def call_many(functions, o):
    """Calls, as many at once as there are slots. True: all were answered."""
    def call(number):
        try:
            return functions.call(f"{o.text} {number}".encode()).decode(errors="replace").rstrip()
        except Exception as error:
            return error

    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(o.at_once) as callers:
        answers = list(callers.map(call, range(1, o.calls + 1)))
    took = time.monotonic() - begin
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    print(*(answers if o.show else failed), sep="\n", end="\n" if o.show or failed else "")
    print(f"{len(answers) - len(failed)} of {o.calls} calls answered, {o.at_once} at once: "
          f"{o.calls / took:.1f} clones a second")
    return not failed


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel")
    parser.add_argument("disk")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--calls", type=int, metavar="N")
    what.add_argument("--listen", type=int, metavar="PORT", help="0: any")
    parser.add_argument("--at-once", type=int, default=8, help="microVMs that may live at once (8)")
    parser.add_argument("--ahead", action="store_true", help="start jails and VMMs before calls")
    parser.add_argument("--text", default="hello", help="what --calls sends, and a number")
    parser.add_argument("--show", action="store_true", help="the answers of --calls")
    parser.add_argument("--mib", type=int, default=128, help="memory of a guest (128)")
    parser.add_argument("--args", default=GUEST_ARGS, help="the guest's command line")
    parser.add_argument("--mayfly", default="/usr/local/bin/mayfly", help="beside its jailer")
    parser.add_argument("--directory", default="/srv", help="for template and jails (/srv)")
    parser.add_argument("--uid", type=int, default=40000, help="first of --at-once users (40000)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds of a call (10)")
    parser.add_argument("--boot-timeout", type=float, default=60, help="of the one boot (60)")
    o = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as ends:
        o.directory = ends.enter_context(tempfile.TemporaryDirectory(dir=o.directory, prefix="fn-"))
        os.chmod(o.directory, 0o711)
        slots = [Slot(number, o.uid) for number in range(o.at_once)]
        for slot in slots:
            ends.callback(slot.remove)
            slot.make()
        functions = ends.enter_context(contextlib.closing(Functions(o, slots)))
        if o.listen is not None:
            serve(functions, o.listen)
        elif not call_many(functions, o):
            return 1
        functions.show_times()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, RuntimeError, subprocess.CalledProcessError) as failure:
        sys.exit(f"functions.py: {failure}")
