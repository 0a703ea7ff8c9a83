"""A page fault handler, as Firecracker's examples are: a process on a socket that serves the guest
memory of whoever connects, page by page or all at the first fault. Here a thread of the test's."""

import array
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import threading

import pytest

PAGE = 4096
UFFDIO_COPY = 0xc028aa03
EVENT_PAGEFAULT = 0x12
needs_uffd = pytest.mark.skipif(not os.access("/dev/userfaultfd", os.R_OK | os.W_OK),
                                reason="no usable /dev/userfaultfd")


class Handler:
    """Listens at `path`. serves: "page", "all" at the first fault, or "nothing"; `limit`: so many
    faults are served, and then it is gone."""

    def __init__(self, path, memory_path, serves="page", limit=None):
        self.path, self.memory_path, self.serves, self.limit = path, memory_path, serves, limit
        self.message, self.faults, self.flags, self.trouble = None, [], set(), None
        self.has_gone = threading.Event()
        self.wake, self.stopping = os.pipe()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        os.write(self.stopping, b"x")
        self.thread.join()
        for fd in (self.wake, self.stopping):
            os.close(fd)
        self.listener.close()
        os.unlink(self.path)
        assert self.trouble is None, self.trouble

    def _run(self):
        with contextlib.ExitStack() as ends:
            try:
                self._handle(ends)
            except Exception as trouble: # the test's thread tells
                self.trouble = trouble
        self.has_gone.set()

    def _is_ready(self, file):
        """False: it is to end."""
        ready, _, _ = select.select([file, self.wake], [], [])
        return self.wake not in ready

    def _handle(self, ends):
        if not self._is_ready(self.listener):
            return
        stream = ends.enter_context(self.listener.accept()[0])
        text, (control,), _, _ = stream.recvmsg(1024, socket.CMSG_SPACE(4))
        uffd, = array.array("i", control[2])
        ends.callback(os.close, uffd)
        self.message = json.loads(text)
        assert text == json.dumps(self.message, separators=(",", ":")).encode()
        with open(self.memory_path, "rb") as memory:
            self.memory = mmap.mmap(memory.fileno(), 0, access=mmap.ACCESS_COPY)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        while self._is_ready(uffd):
            self._serve(uffd, os.read(uffd, 32))
            if self.limit is not None and len(self.faults) >= self.limit:
                return

    def _serve(self, uffd, event):
        assert event[0] == EVENT_PAGEFAULT
        _, flags, at = struct.unpack_from("<QQQ", event)
        region, = [r for r in self.message
                   if 0 <= at - r["base_host_virt_addr"] < r["size"]]
        offset = (at - region["base_host_virt_addr"]) & -PAGE
        self.faults.append(region["offset"] + offset)
        self.flags.add(flags)
        if self.serves == "all":
            for r in self.message:
                self._copy(uffd, r, 0, r["size"])
        elif self.serves == "page":
            self._copy(uffd, region, offset, PAGE)

    def _copy(self, uffd, region, offset, size):
        request = bytearray(struct.pack("<QQQQq", region["base_host_virt_addr"] + offset,
                                        self.address + region["offset"] + offset, size, 0, 0))
        with contextlib.suppress(FileExistsError): # two threads wanted it
            fcntl.ioctl(uffd, UFFDIO_COPY, request)


def load_body(files, handler, **members):
    return {"snapshot_path": files[0],
            "mem_backend": {"backend_type": "Uffd", "backend_path": handler}, **members}
