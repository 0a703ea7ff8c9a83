"""Rules about the source that the compiler can't check."""
import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def sources(*directories):
    found = [p for d in directories for p in (ROOT / d).rglob("*.[ch]")]
    assert found
    return {p.relative_to(ROOT).as_posix(): p.read_text() for p in found}


def test_a_guest_address_becomes_a_pointer_in_three_places_only():
    allowed = {"vmm/kvm/guest_mem.c", "vmm/kvm/guest_mem.h", "vmm/kvm/kvm.c", "virtio/queue.c"}
    users = {name for name, text in sources("vmm", "virtio", "mmds", "api").items()
             if "gmem_host_" in text}
    assert users == allowed


def test_buffers_of_the_guest_leave_the_virtqueues_for_the_kernel_only():
    """So that each write into guest memory passes one of the places that queue.h lists."""
    module = {"virtio/queue.c", "virtio/queue.h"}
    allowed = {
        r"chain_lend_": module | {"virtio/block_async.c"},
        r"chain_take_|iov_write_": module | {"virtio/rx_buffers.c"},
        r"(->|\.)iov\b|used\[": {"virtio/queue.c"},
        r"iov_base": {"virtio/queue.c", "virtio/block_async.c", "virtio/rx_buffers.c"},
        # block_file.c's and vsock_conn.c's are of memory of their own.
        r"struct iovec": module | {"virtio/block_async.c", "virtio/block_file.c",
                                   "virtio/rx_buffers.c", "virtio/rx_buffers.h",
                                   "virtio/vsock_conn.c"},
        r"(->|\.)buffers\[": {"virtio/rx_buffers.c"},
        r"(->|\.)headers\[": {"virtio/rx_buffers.c"},
    }
    text = sources("virtio")
    for word, files in allowed.items():
        assert {name for name in text if re.search(word, text[name])} == files, word


def test_only_two_functions_write_a_used_ring():
    text = sources("virtio")["virtio/queue.c"]
    assert re.findall(r"^.*q->used\[.*$", text, re.M) == [
        "    __atomic_store_n(&q->used[word], value, __ATOMIC_RELEASE);",
        "    gmem_wrote_(q->mem, &q->used[word], sizeof(value));",
        "    store(q->mem, &q->used[RING_FIRST + USED_ELEM_WORDS * (st->next_used % st->size)], "
        "&elem,",
    ]


@pytest.mark.parametrize("function", ["virtq_rearm", "virtq_wants_interrupt"])
def test_what_is_written_for_the_guest_is_there_before_its_ring_is_read(tmp_path, function):
    """Without the full barrier a store waits in the processor's buffer while the load behind it is
    carried out: one notification in millions is lost, which no test sees happen."""
    compiled = tmp_path / "queue.o"
    subprocess.run([os.environ.get("CC", "cc"), "-std=gnu17", "-O2", f"-I{ROOT}", "-c", "-o",
                    compiled, ROOT / "virtio/queue.c"], check=True)
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}",
                           compiled], check=True, capture_output=True, text=True).stdout
    assert f"<{function}>:" in code
    assert re.search(r"\t(mfence|lock |xchg )", code), code


def test_what_the_host_refuses_is_said_in_one_function_s_words():
    """error.h's; the policy's compiler is a program of the build's."""
    users = {name for name, text in sources("virtio", "mmds", "api", "vmm", "jailer").items()
             if re.search(r'\bstrerror\w*\(|\bperror\(|%m\b(?!-)', text)}
    assert users == {"vmm/base/error.h", "vmm/base/error.c", "vmm/seccomp/compile/main.c"}


def test_a_file_includes_its_own_header_first():
    for name, text in sources("virtio", "mmds", "api", "vmm", "jailer").items():
        header = name[:-2] + ".h"
        if name.endswith(".c") and (ROOT / header).exists():
            assert re.search(r'^#include ["<]([^">]+)', text, re.M).group(1) == header, name


def test_files_stay_readable():
    for name, text in sources("virtio", "mmds", "api", "vmm", "jailer").items():
        lines = text.splitlines()
        assert len(lines) <= 600, name
        assert max(map(len, lines)) <= 100, name


def test_a_static_function_has_a_name_of_its_own():
    """So that a backtrace, a search or a count of instructions means one."""
    defined = {}
    for name, text in sources("virtio", "mmds", "api", "vmm", "jailer").items():
        if not name.endswith("main.c"): # programs of their own
            for function in re.findall(r"^static (?:[\w]+ )*[\w]+[ *]+(\w+)\(", text, re.M):
                defined.setdefault(function, set()).add(name)
    assert len(defined) > 500
    assert {function: names for function, names in defined.items() if len(names) > 1} == {}


def test_no_file_of_the_product_is_longer_than_600_lines():
    long = {name: text.count("\n")
            for name, text in sources("virtio", "mmds", "api", "vmm", "jailer").items()}
    assert {name: lines for name, lines in long.items() if lines > 600} == {}
