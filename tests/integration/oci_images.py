"""OCI images made by hand, in memory and in a layout directory: for tests."""

import gzip
import hashlib
import io
import json
import pathlib
import tarfile


def entry(name, data=b"", kind=tarfile.REGTYPE, mode=None, **members):
    """A file, or by its kind a directory, a link to members["linkname"], and so on."""
    made = tarfile.TarInfo(name)
    made.type, made.size, made.mtime = kind, len(data), 1000000000
    made.mode = mode if mode is not None else 0o755 if kind == tarfile.DIRTYPE else 0o644
    for member, value in members.items():
        setattr(made, member, value)
    return made, data


def directory(name, **members):
    return entry(name, kind=tarfile.DIRTYPE, **members)


def link(name, target):
    return entry(name, kind=tarfile.SYMTYPE, linkname=target)


def layer(*entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """A layout directory with one image of these layers, bytes of archives."""

    def __init__(self, path, layers, config=None, **image):
        self.path = pathlib.Path(path)
        (self.path / "blobs" / "sha256").mkdir(parents=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        config = {"Cmd": ["/bin/true"], **(config or {})}
        image = {"os": "linux", "architecture": "amd64", "config": config, **image}
        self.layers = [self.put(gzip.compress(each, mtime=0)) for each in layers]
        self.config = self.put(json.dumps(image).encode())
        self.manifest = self.put(json.dumps(
            {"schemaVersion": 2, "config": self.config, "layers": self.layers}).encode())
        self.write_index([self.manifest])

    def put(self, data):
        """Its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def write_index(self, manifests):
        (self.path / "index.json").write_text(json.dumps({"manifests": manifests}))

    def blob(self, descriptor):
        return self.path / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")

    def save(self, path):
        """As `docker save` writes an image: a layer that is there twice is a link."""
        names = [f"{number}/layer.tar" for number, _ in enumerate(self.layers)]
        manifest = [{"Config": "config.json", "RepoTags": ["a:b"], "Layers": names + ["copy/layer.tar"]}]
        with tarfile.open(path, "w") as tar:
            files = [("config.json", self.blob(self.config).read_bytes()),
                     ("manifest.json", json.dumps(manifest).encode())]
            files += [(name, gzip.decompress(self.blob(each).read_bytes()))
                      for name, each in zip(names, self.layers)]
            for info, data in [entry(*file) for file in files]:
                tar.addfile(info, io.BytesIO(data))
            tar.addfile(link("copy/layer.tar", f"../{names[-1]}")[0])
        return path
