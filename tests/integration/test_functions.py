"""examples/functions with a micro-guest; tests/rig/test_functions.py has Linux."""

import glob
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest

import mayfly
from guests import needs_kvm
from jail import EXEC_FILE, needs_root
from taps import CAN_MAKE_TAPS
from uffd import needs_uffd

pytestmark = [needs_kvm, needs_root, needs_uffd,
              pytest.mark.skipif(not CAN_MAKE_TAPS, reason="NO FUNCTION WAS CALLED: no /dev/net/tun")]
PROGRAM = os.path.join(mayfly.ROOT, "examples", "functions", "functions.py")
GUEST = os.path.join(mayfly.GUESTS, "function")


@pytest.fixture(name="place")
def a_place(tmp_path):
    """Where templates and jails are, and the disk; it has a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="fn-test-") as place:
        os.chmod(place, 0o711)
        with open(tmp_path / "disk", "wb") as disk:
            disk.truncate(1 << 20)
        before = os.listdir("/run/netns") if os.path.exists("/run/netns") else []
        yield place, tmp_path / "disk"
        assert os.listdir(place) == []
        assert set(os.listdir("/run/netns")) <= set(before)


def command(place, *options):
    directory, disk = place
    return [sys.executable, PROGRAM, "--mayfly", EXEC_FILE, "--directory", directory, "--timeout",
            str(mayfly.DEADLINE_S), "--boot-timeout", str(mayfly.DEADLINE_S), *options, GUEST,
            str(disk)]


@pytest.mark.parametrize("ahead", [[], ["--ahead"]])
def test_each_call_is_answered_by_a_clone_of_its_own(place, ahead):
    done = mayfly.complete(*command(place, "--calls", "12", "--at-once", "4", "--show", *ahead))
    assert done.returncode == 0, done.stdout + done.stderr
    answers = re.findall(r"^(call-\d+) ([0-9a-f]{16}) (\d+) HELLO (\d+)$", done.stdout, re.M)
    names, randoms, writes, numbers = zip(*answers)
    assert len(set(names)) == len(set(randoms)) == 12
    assert {int(n) for n in writes} == {1}, "each disk is the template's"
    assert list(map(int, numbers)) == list(range(1, 13))
    assert "12 of 12 calls answered" in done.stdout
    assert re.search(r"^all behind the slot +[\d.]+ +[\d.]+$", done.stdout, re.M)


class Server:
    def __init__(self, place, *options):
        self.process = subprocess.Popen(command(place, "--listen", "0", *options), text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        line = self.process.stdout.readline()
        self.port = int(re.fullmatch(r"listening on port (\d+)\n", line).group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """It ends as it should: with what it measured."""
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=mayfly.DEADLINE_S)[0]
        assert self.process.returncode == 0 and "Traceback" not in said, said

    def post(self, text):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=mayfly.DEADLINE_S)
        client.request("POST", "/", text)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def test_what_goes_wrong_with_a_clone_is_its_call_s_alone(place):
    with Server(place, "--at-once", "1", "--timeout", "4") as server:
        assert server.post("crash")[0] == 502
        assert server.post("hang") == (502, "timed out\n")
        mayfly.wait_until(lambda: server.post("still here")[1].endswith(" STILL HERE"), "an answer")
        cells = os.path.join(place[0], "fn-*", "mayfly", "*")
        mayfly.wait_until(lambda: not glob.glob(cells), "the jails of all calls to be gone")


def test_a_call_for_which_there_is_no_room_is_told_so(place):
    with Server(place, "--at-once", "1", "--timeout", "3") as server:
        clients = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(5)]
        for client in clients:
            client.request("POST", "/", "hang")
        answers = [client.getresponse() for client in clients]
        assert (503, b"all microVMs that may run at once are busy\n") in [
            (answer.status, answer.read()) for answer in answers]
