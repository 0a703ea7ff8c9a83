"""Memory in several files: what was saved once, and what has changed since, upon it."""

import os
import shutil
import subprocess

import pytest

import mayfly
from guests import Machine, needs_kvm, tmpfs
from jail import Jail, needs_root
from snapshots import (FAILED, Clone, load_body, loaded, mark, numbers, pair, pause, resume, save,
                       until_output)

pytestmark = needs_kvm
PREFIX = (FAILED + "Failed to load guest memory: Error creating guest memory from file: ")


def chain_body(files, **members):
    """The state of the last, the memory of all."""
    body = load_body((files[-1][0], files[0][1]), **members)
    body["mem_backend"]["layers"] = [memory for _, memory in files[1:]]
    return body


def save_chain(machine, directory, count):
    """A Full and Diffs, with the guest at work in between; and what it had said by then."""
    files = [save(machine, pair(directory, "full"))]
    for i in range(count):
        resume(machine)
        length = len(machine.output())
        until_output(machine, lambda text, length=length: len(text) > length + 100)
        files.append(save(machine, pair(directory, f"layer{i}"), snapshot_type="Diff"))
    return files, machine.output()


def booted(machine):
    machine.configure()
    machine.ok("PATCH", "/machine-config", {"track_dirty_pages": True})
    machine.ok("PUT", "/actions", {"action_type": "InstanceStart"})
    until_output(machine, lambda text: text.count("\n") > 30)
    return machine


def refused(files, why, **backend):
    with Clone(files[-1]) as clone:
        body = chain_body(files)
        body["mem_backend"].update(backend)
        status, _, answer = clone.request("PUT", "/snapshot/load", body)
        assert status == 400 and why in answer["fault_message"], answer


def test_layers_need_no_merge(tmp_path):
    """Three generations of them: of a booted machine, of one of its chain, of one of that's."""
    with Machine("counter", mem_mib=128) as first:
        files, printed = save_chain(booted(first), tmp_path, 3)
    for i in range(2):
        with Clone(files[-1]) as clone:
            clone.ok("PUT", "/snapshot/load", chain_body(files, track_dirty_pages=True,
                                                         resume_vm=True))
            assert all(map(os.path.exists, (memory for _, memory in files)))
            until_output(clone, lambda text: text.count("\n") > 30)
            files.append(save(clone, pair(tmp_path, f"more{i}"), snapshot_type="Diff"))
            printed += clone.output()
            if i == 1:
                full = save(clone, pair(tmp_path, "merged"))
    assert printed == numbers(len(printed))
    assert mark(files[-1][1]).split(" on ")[1] == mark(files[-2][1]).split()[0]
    with loaded(full) as clone:
        until_output(clone, lambda text: text.count("\n") > 30)
        pause(clone)
        printed += clone.output()
    assert printed == numbers(len(printed))


def test_what_is_no_chain_is_refused(tmp_path):
    with Machine("counter", mem_mib=128) as first:
        files, _ = save_chain(booted(first), tmp_path, 2)
    full, one, two = files
    refused([full, two], PREFIX + f"{two[1]}: Failed to load guest memory: its file is a layer "
            "upon snapshot ")
    refused([full, two, one, two], PREFIX + f"{two[1]}: Failed to load")
    refused([one, two], "only what changed since another snapshot, and is one of the `layers`")
    refused([full, full, two], PREFIX + f"{full[1]}: Failed to load guest memory: its file is no")
    refused([full] + [one] * 17, PREFIX + "there are 17 `layers`, and 16 are the most")
    refused(files, "`layers` are for a backend of type `File`", backend_type="Uffd")
    refused(files, "invalid type: integer `1`, expected path string", layers=[1])
    with Clone(two) as clone:
        clone.ok("PUT", "/snapshot/load", chain_body(files, resume_vm=True))
        mayfly.wait_until(clone.output, clone.log)


@pytest.fixture
def coarse(tmp_path):
    """A file system on which a page that is written is 2 MiB of data."""
    with tmpfs(tmp_path / "coarse", "huge=always") as path:
        (path / "file").touch()
        is_fine = os.stat(path / "file").st_blksize == 4096
        (path / "file").unlink()
        if is_fine:
            pytest.skip("this kernel's tmpfs has no huge pages")
        yield path


@needs_root
def test_where_holes_are_coarse_nothing_is_a_layer(tmp_path, coarse):
    """What nobody wrote would be read as zeroes, in the place of what is below."""
    why = "file system keeps no holes as small as a page"
    with Machine("counter", mem_mib=128) as first:
        full = save(booted(first), pair(tmp_path, "full"))
        body = {"snapshot_path": str(coarse / "state"), "mem_file_path": str(coarse / "memory"),
                "snapshot_type": "Diff"}
        status, _, answer = first.request("PUT", "/snapshot/create", body)
        assert status == 400 and why in answer["fault_message"], answer
        assert os.listdir(coarse) == []
        layer = save(first, pair(tmp_path, "layer"), snapshot_type="Diff")
    copy = (layer[0], str(shutil.copy(layer[1], coarse / "layer")))
    refused([full, copy], why)
    editor = os.path.join(os.path.dirname(mayfly.BINARY), "snapshot-editor")
    done = subprocess.run([editor, "edit-memory", "rebase", "--memory-path", full[1], "--diff-path",
                           copy[1]], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and why in done.stderr + done.stdout, done
    with Clone(layer) as clone:  # and nothing of it was written into the memory file
        clone.ok("PUT", "/snapshot/load", chain_body([full, layer], resume_vm=True))
        mayfly.wait_until(clone.output, clone.log)


@needs_root
def test_a_jailed_machine_has_layers(tmp_path):
    with Machine("counter", mem_mib=128) as first:
        files, printed = save_chain(booted(first), tmp_path, 2)
    with Jail() as jail:
        names = []
        for state, memory in files:
            os.link(memory, jail.inside(os.path.basename(memory)))
            names.append((jail.give(state), "/" + os.path.basename(memory)))
            os.chmod(memory, 0o444)
        jail.ok("PUT", "/snapshot/load", chain_body(names, resume_vm=True))
        last = int(printed.rstrip("\n").rsplit("\n", 2)[-2])
        until_output(jail, lambda text: f"\n{last + 30}\n" in text)
