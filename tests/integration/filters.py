"""The threads of a VMM with their seccomp filters, and calls made in their place."""

import ctypes
import os

import pytest

import mayfly

no_sanitizer = pytest.mark.skipif(
    "sanitize" in mayfly.BINARY, reason="FILTERS WERE NOT TESTED: a sanitizer's build only logs")
LIBC = ctypes.CDLL(None, use_errno=True)
GETPPID = 110 # allowed to nobody; for us


def threads(vm):
    """{name: (thread's number, how many filters it has)}"""
    found = {} # without the one that KVM adds, which never leaves the kernel
    for tid in os.listdir(f"/proc/{vm.process.pid}/task"):
        with open(f"/proc/{vm.process.pid}/task/{tid}/status", encoding="ascii") as f:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in f)
        if not status["Name"].startswith("kvm-"):
            found[status["Name"]] = (int(tid), int(status["Seccomp_filters"]))
    return found


def filters(vm):
    return {name: count for name, (_, count) in threads(vm).items()}


def wait_for(condition):
    if "MAYFLY_EXEC_FILE" in os.environ:
        return # the filters are left out: see tests/seccomp
    mayfly.wait_until(condition, "the filters")


def ptrace(request, tid, address=0, data=0):
    LIBC.ptrace.restype = ctypes.c_long
    LIBC.ptrace.argtypes = [ctypes.c_long] * 4
    ctypes.set_errno(0)
    result = LIBC.ptrace(request, tid, address, data)
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")
    return result


PEEK, POKE, CONT, DETACH, SEIZE, INTERRUPT = 3, 6, 24, 17, 0x4206, 0x4207
ORIG_RAX, RAX, ARGUMENTS, ENOSYS = 15 * 8, 10 * 8, (14 * 8, 13 * 8, 12 * 8), 38


def to_next_call(tid):
    ptrace(SEIZE, tid)
    ptrace(INTERRUPT, tid)
    os.waitpid(tid, 0x40000000)
    while True:
        ptrace(CONT, tid)
        os.waitpid(tid, 0x40000000)
        if ptrace(PEEK, tid, RAX) == -ENOSYS: # at the call's entry
            break


def make_call(tid, number):
    """Makes a thread's next system call another one, before its filters see it."""
    to_next_call(tid)
    ptrace(POKE, tid, ORIG_RAX, number)
    ptrace(DETACH, tid)


def result_of_call(tid, number, *arguments):
    """What a thread gets for a call in the place of its next wait, which is one for nothing."""
    to_next_call(tid)
    ptrace(POKE, tid, ORIG_RAX, number)
    before = [ptrace(PEEK, tid, place) for place in ARGUMENTS]
    for place, argument in zip(ARGUMENTS, arguments):
        ptrace(POKE, tid, place, argument)
    ptrace(CONT, tid)
    os.waitpid(tid, 0x40000000)
    result = ptrace(PEEK, tid, RAX)
    for place, argument in zip(ARGUMENTS, before):
        ptrace(POKE, tid, place, argument)
    ptrace(POKE, tid, RAX, -4) # EINTR
    ptrace(DETACH, tid)
    return result
