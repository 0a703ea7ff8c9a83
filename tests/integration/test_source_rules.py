"""Rules about the source that the compiler can't check."""
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def sources(*directories):
    found = [p for d in directories for p in (ROOT / d).rglob("*.[ch]")]
    assert found
    return {p.relative_to(ROOT).as_posix(): p.read_text() for p in found}


def test_a_guest_address_becomes_a_pointer_in_three_places_only():
    allowed = {"vmm/kvm/guest_mem.c", "vmm/kvm/guest_mem.h", "vmm/kvm/kvm.c", "virtio/queue.c"}
    users = {name for name, text in sources("vmm", "virtio", "api").items()
             if "gmem_host_" in text}
    assert users == allowed


def test_only_an_engine_borrows_the_buffers_of_a_chain():
    users = {name for name, text in sources("vmm", "virtio", "api").items()
             if "chain_lend_" in text}
    assert users == {"virtio/queue.c", "virtio/queue.h", "virtio/block_async.c", "virtio/net_rx.c",
                     "virtio/rx_batch.c"}


def test_a_file_includes_its_own_header_first():
    for name, text in sources("virtio", "api", "vmm", "jailer").items():
        header = name[:-2] + ".h"
        if name.endswith(".c") and (ROOT / header).exists():
            assert re.search(r'^#include ["<]([^">]+)', text, re.M).group(1) == header, name


def test_files_stay_readable():
    for name, text in sources("virtio", "api", "vmm", "jailer").items():
        lines = text.splitlines()
        assert len(lines) <= 600, name
        assert max(map(len, lines)) <= 100, name
