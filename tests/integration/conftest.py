"""Fixtures of several files."""

import pytest

from faults import strace  # noqa: F401
from guests import make_disk, make_files
from mayfly import Mayfly
from taps import own_namespace  # noqa: F401


@pytest.fixture
def vm():
    with Mayfly() as process:
        yield process


@pytest.fixture
def files(vm):
    """kernel, disk and their like in the process's directory."""
    return make_files(vm.directory)


@pytest.fixture
def disk(tmp_path):
    return make_disk(tmp_path / "disk", 32768)
