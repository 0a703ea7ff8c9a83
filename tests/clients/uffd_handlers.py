"""Guests whose memory comes from Firecracker's example page fault handlers, unchanged.

usage: uffd_handlers.py HANDLERS DIRECTORY

HANDLERS holds their binaries. Prints a line of JSON for each check: [name, "passed" or "failed", why].
"""

import contextlib
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "integration"))
import mayfly
from guests import Machine
from snapshots import FAILED, Clone, numbers, pair, pause, save, until_output
from uffd import load_body

handlers, directory = sys.argv[1:]


@contextlib.contextmanager
def handler(name, memory):
    """A handler that listens, with its socket's path and the file of its output."""
    place = os.path.join(directory, name)
    with open(place + ".log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen([os.path.join(handlers, name), place, memory], stdout=log,
                                   stderr=log)
        try:
            mayfly.wait_until(lambda: os.path.exists(place), "the handler's socket")
            yield process, place, log.name
        finally:
            process.kill()
            process.wait()


def text_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def serves(name, files, printed):
    """A guest that runs from its pages, and is paused and saved, which asks for all of them."""
    with handler(name, files[1]) as (_, path, log), Clone(files, stdin=subprocess.PIPE) as clone:
        clone.ok("PUT", "/snapshot/load", load_body(files, path, resume_vm=True))
        until_output(clone, lambda text: text.count("\n") > 40)
        pause(clone)
        joined = printed + clone.output()
        assert joined == numbers(len(joined)), joined
        again = save(clone, pair(directory, name + "-again"))
        assert os.path.getsize(again[1]) == os.path.getsize(files[1])
        return text_of(log)


def check_on_demand(files, printed):
    serves("on_demand_handler", files, printed)


def check_fault_all(files, printed):
    log = serves("fault_all_handler", files, printed)
    assert log.count("Finished Faulting All") == 1, log


def check_malicious(files, _):
    """It panics at the first fault."""
    with handler("malicious_handler", files[1]) as (process, path, log), Clone(files) as clone:
        status, _, answer = clone.request("PUT", "/snapshot/load", load_body(files, path))
        assert process.wait(mayfly.DEADLINE_S) != 0 and "Fear me!" in text_of(log)
        assert status == 400 and answer["fault_message"].startswith(FAILED), answer
        assert clone.wait() == 1


with Machine("counter") as first:
    first.boot()
    until_output(first, lambda text: text.count("\n") > 40)
    saved = save(first, pair(directory)), first.output()
for what, check in {"the guest of the on-demand handler runs": check_on_demand,
                    "the guest of the handler that serves all at once runs": check_fault_all,
                    "a handler that dies ends the load": check_malicious}.items():
    try:
        check(*saved)
        print(json.dumps([what, "passed", ""]))
    except (AssertionError, OSError) as trouble:
        print(json.dumps([what, "failed", str(trouble)]))
