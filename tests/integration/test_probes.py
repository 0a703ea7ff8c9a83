"""The static probes: where perf and bpftrace look for them, and free of charge."""

import re

from mayfly import BINARY, ROOT, complete


def probes():
    """{name: [(address, number of arguments)]}: a function that was inlined twice has two."""
    notes = complete("readelf", "-nW", BINARY).stdout
    found = {}
    for name, at, arguments in re.findall(
            r"Provider: mayfly\n +Name: (\w+)\n +Location: (0x\w+), .*\n +Arguments: (.*)", notes):
        found.setdefault(name, []).append((int(at, 16), len(re.findall(r"8@", arguments))))
    return found


def test_each_probe_is_documented_with_its_arguments():
    with open(f"{ROOT}/docs/observability.md", encoding="utf-8") as page:
        rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page.read(), re.M)
    documented = {name: len(arguments.split(", ")) for name, arguments in rows}
    assert documented == {name: places[0][1] for name, places in probes().items()}
    assert len(documented) == 6


def test_a_probe_is_one_nop():
    for name, places in probes().items():
        for at, _ in places:
            text = complete("objdump", "-d", f"--start-address={at}", f"--stop-address={at + 1}",
                            BINARY).stdout
            assert re.search(rf"{at:x}:\s+90\s+nop$", text, re.M), name
