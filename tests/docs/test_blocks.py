"""The commands of the documents are run as they are printed, in their order, each document's in a
machine of its own: see blocks.py for how a block says what it is, and world.py for the machine.

By default it has this host's files. With MAYFLY_LONG it is a fresh Debian 12, in which only what
the documents tell to install is there.
"""

import json
import os
import re
import shutil
import subprocess

import pytest

import blocks
import world

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/kvm", os.R_OK | os.W_OK) or subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"], stderr=subprocess.DEVNULL,
        check=False).returncode != 0,
    reason="NO COMMAND OF THE DOCUMENTS WAS RUN: that takes root with its rights, and /dev/kvm")

ALL = {name: blocks.parse(name) for name in blocks.documents()}
RUN = [name for name, found in ALL.items() if any(b.kind in ("run", "stays") for b in found)]
NOT_RUN = [b for found in ALL.values() for b in found if b.kind == "not run"]
JSON = [b for found in ALL.values() for b in found if b.kind == "json"]
REFUSED = re.compile(r'"fault_message"|"error"')


def shape(text):
    """Numbers are not the same in another run."""
    return re.sub(r"\b[0-9a-f]*\d[0-9a-f]*\b", "#", text)


class Reader:
    """Types one block after the other, those that stay into terminals of their own."""

    def __init__(self, machine):
        self.machine, self.said = machine, ""
        self.terminal = machine.terminal()

    def read(self, block):
        if block.kind == "run":
            self.said = self.terminal.run(block.content)
            assert not REFUSED.search(self.said), self.said
        elif block.kind == "stays":
            self.machine.terminal().stay(block.content, lambda: self.machine.succeeds(block.text))
        elif block.kind == "output":
            lines = shape(self.said).splitlines()
            missing = [line for line in shape(block.content).splitlines() if line not in lines]
            assert not missing, f"it prints:\n{self.said}"


def read(machine, to_read):
    reader = Reader(machine)
    for block in to_read:
        try:
            reader.read(block)
        except AssertionError as error:
            pytest.fail(f"{block}:\n{block.content}\n{error}", pytrace=False)


@pytest.fixture(name="built", scope="session")
def a_fresh_root(tmp_path_factory):
    """In which somebody has built mayfly as the README says, from nothing."""
    if not world.IS_LONG:
        yield None
        return
    root = tmp_path_factory.mktemp("debian")
    with world.fresh(root) as machine:
        read(machine, blocks.in_order("README.md", "step-by-step"))
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("document", RUN)
def test_a_documents_commands_do_what_it_says(document, built, tmp_path):
    with world.fresh(tmp_path, built) if world.IS_LONG else world.here() as machine:
        read(machine, blocks.in_order(document))


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_a_block_that_is_not_run_says_why(block):
    pytest.skip(f"NOT RUN: {block}: {block.text}")


@pytest.mark.parametrize("text", [
    "```python\nprint()\n```\n", "```text\nx\n```\n", "<!-- not run -->\n```\nx\n```\n",
    "<!-- later: when it works -->\n```\nx\n```\n", "<!-- output: x -->\n```\nx\n```\n",
    "```\nno end\n"])
def test_what_a_block_is_must_be_said(text):
    with pytest.raises(AssertionError, match=r"x\.md:\d+: "):
        blocks.parse("x.md", text)


@pytest.mark.parametrize("commands", ["false; true", "echo $nothing_such", "no-such-command\ntrue",
                                      "false | true"])
def test_a_command_that_fails_is_noticed(commands):
    with world.here() as machine, pytest.raises(AssertionError, match="a command failed"):
        machine.terminal().run(commands)


def test_what_is_written_stays_in_the_machine():
    places = ["/etc", "/usr/local", "/srv", "/run", "/tmp", str(blocks.ROOT)]
    name = f"mayfly-docs-{os.getpid()}"
    with world.here() as machine:
        for place in places:
            machine.terminal().run(f"touch {place}/{name}")
    assert not [place for place in places if os.path.exists(f"{place}/{name}")]


@pytest.mark.parametrize("block", JSON, ids=str)
def test_what_is_called_json_is_json(block):
    json.loads(block.content)
