"""Fresh roots of Debian 12. One that has been made is kept in the cache."""

import os
import subprocess

from mayfly import CACHE


def unpack(directory, name, *options):
    """Into the directory: a minimal one, made with these options of mmdebstrap's and kept by that name."""
    kept = CACHE / f"{name}.tar"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = CACHE / f"{name}.{os.getpid()}"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", *options,
                        "bookworm", new], check=True)
        new.rename(kept)
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-C", directory, "--exclude=./dev/*", "-xf", kept], check=True)
