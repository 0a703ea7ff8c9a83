"""Clones of one Linux guest are each their own: by examples/functions, with its own handler."""

import re

CALLS = 10


def test_clones_of_linux_have_names_random_numbers_and_disks_of_their_own(host):
    host.run("cp root.ext4 functions.ext4;"
             " debugfs -w -R 'write examples/functions/handler.sh root/handler.sh' functions.ext4")
    said = host.run(
        "PATH=$PWD/bin:$PATH python3 examples/functions/functions.py --mayfly $PWD/mayfly"
        f" --directory $PWD --calls {CALLS} --at-once 2 --show --timeout 600 --boot-timeout 600"
        " acpi.vmlinux functions.ext4; ls -d fn-* || rm functions.ext4", timeout=1800)
    answers = re.findall(r"^(call-\d+) ([0-9a-f]{16}) (\d+) HELLO (\d+)$", said, re.M)
    assert len(answers) == CALLS, said
    names, randoms, calls, numbers = zip(*answers)
    assert len(set(names)) == len(set(randoms)) == CALLS, said
    assert set(calls) == {"1"}, "each disk is the template's"
    assert list(map(int, numbers)) == list(range(1, CALLS + 1))
    assert "ls: fn-*: No such file" in said, "nothing is left"
