"""./devtool rootfs oci: what becomes of an OCI image's layers, and of hostile ones. That it boots is
tests/rig/test_oci.py's."""

import io
import json
import os
import subprocess
import tarfile

import pytest

import mayfly
from oci_images import Layout, directory, entry, layer, link

OCI = os.path.join(mayfly.ROOT, "guest-kernel-configs", "oci")
ROOTFS = os.path.join(mayfly.ROOT, "guest-kernel-configs", "rootfs")
PASSWD = (b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv/web:/bin/sh\n", b"web:x:34:\n"
          b"logs:x:50:other,web\nweird\n")


@pytest.fixture(name="init")
def an_init(tmp_path):
    path = tmp_path / "guest-init"
    path.write_bytes(b"\x7fELF of a guest's first process")
    return path


@pytest.fixture(name="convert")
def a_conversion(tmp_path, init):
    """The root that is made of layers: its entries by name, and their bytes."""
    def convert(*layers, config=None, path=None, **image):
        path = path or Layout(tmp_path / f"layout-{len(os.listdir(tmp_path))}", layers, config, **image).path
        done = subprocess.run([OCI, path, init], capture_output=True, check=False)
        if done.returncode:
            raise ValueError(done.stderr.decode())
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            names = tar.getnames()
            assert len(names) == len(set(names))
            return {each.name: (each, tar.extractfile(each).read() if each.isreg() else None)
                    for each in tar}
    return convert


def refused(convert, *layers, **more):
    with pytest.raises(ValueError) as why:
        convert(*layers, **more)
    text = str(why.value)
    assert text.startswith("oci: ") and text.count("\n") == 1, text
    return text


def what_runs(root):
    texts = root[".mayfly/image"][1].decode().split("\0")
    return {kind: [text[1:] for text in texts if text.startswith(kind)] for kind in "ugmdsea"}


def test_layers_lie_on_each_other(convert):
    root = convert(
        layer(directory("etc"), entry("etc/a", b"low"), entry("etc/b", b"low"), entry("etc/c", b"low"),
              directory("opt"), directory("opt/old"), entry("opt/old/x", b"x"), entry("was-file", b"f"),
              directory("was-directory"), entry("was-directory/x", b"x"), directory("srv", mode=0o700),
              entry("srv/kept", b"kept")),
        layer(entry("etc/a", b"high", mode=0o4711, uid=1000, gid=65535), entry("etc/.wh.b"),
              entry("opt/new", b"new"), entry("opt/.wh..wh..opq"), directory("was-file"),
              entry("was-file/y", b"y"), entry("was-directory", b"d"), directory("srv", mode=0o711),
              entry("./without/parents/z", b"z"), entry("/absolute", b"abs")))
    assert root["etc/a"][1] == b"high" and root["etc/c"][1] == b"low"
    info = root["etc/a"][0]
    assert (info.mode, info.uid, info.gid, info.mtime) == (0o4711, 1000, 65535, 1000000000)
    assert "etc/b" not in root
    assert [name for name in root if name.startswith("opt")] == ["opt", "opt/new"]
    assert root["was-file/y"][1] == b"y" and root["was-directory"][1] == b"d"
    assert root["srv"][0].mode == 0o711 and root["srv/kept"][1] == b"kept"
    assert root["without/parents/z"][1] == b"z" and root["absolute"][1] == b"abs"
    assert not [name for name in root if ".wh." in name]


def test_a_whiteout_is_about_the_layers_below_wherever_it_stands(convert):
    low = layer(directory("d"), entry("d/x", b"low"))
    root = convert(low, layer(entry("d/x", b"high"), entry("d/.wh.x")))
    assert root["d/x"][1] == b"high"
    root = convert(low, layer(entry("d/y", b"high"), entry("d/.wh..wh..opq")))
    assert "d/x" not in root and root["d/y"][1] == b"high"
    assert "d" not in convert(low, layer(entry(".wh.d"), entry(".wh.none"), entry("none/.wh.x")))


def test_links_are_followed_inside_the_root_and_stay_links(convert):
    """As a layer means it that puts a file below what another one made a link."""
    root = convert(layer(directory("usr"), directory("usr/lib"), link("lib", "usr/lib"),
                         link("away", "../../../../tmp/away"), link("top", "/usr/../..")),
                   layer(entry("lib/x", b"x"), entry("away/y", b"y"), entry("top/z", b"z")))
    assert root["usr/lib/x"][1] == b"x" and root["lib"][0].linkname == "usr/lib"
    assert root["tmp/away/y"][1] == b"y" and root["z"][1] == b"z"
    assert root["away"][0].linkname == "../../../../tmp/away"


def test_hard_links_stay_one_file(convert):
    hard = {"kind": tarfile.LNKTYPE}
    root = convert(layer(entry("b", b"data"), entry("a", linkname="b", **hard)),
                   layer(entry("c", linkname="./b", **hard)), layer(entry("b", b"other")))
    assert root["a"][1] == b"data" and root["c"][0].islnk() and root["c"][0].linkname == "a"
    assert root["b"][1] == b"other"


def test_devices_are_left_out_and_fifos_are_not(convert):
    root = convert(layer(entry("mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1),
                         entry("sda", kind=tarfile.BLKTYPE), entry("fifo", kind=tarfile.FIFOTYPE)))
    assert "mem" not in root and "sda" not in root and root["fifo"][0].isfifo()


def test_what_the_guest_needs_is_there_whatever_the_image_says(convert, init):
    root = convert(layer(link("proc", "/etc"), entry("dev", b"file"), link(".mayfly", "/etc"),
                         entry(".mayfly/init", b"theirs")), config={"WorkingDir": "/work/here"})
    for name in ("proc", "dev", "sys", "work/here", ".mayfly"):
        assert root[name][0].isdir()
    assert root[".mayfly/init"][1] == init.read_bytes() and root[".mayfly/init"][0].mode == 0o755
    assert root["etc/init"][1] == b"theirs"


@pytest.mark.parametrize("user, uid, gid, more, home", [
    (None, "0", "0", [], "/root"), ("", "0", "0", [], "/root"), ("web", "33", "34", ["50"], "/srv/web"),
    ("33", "33", "34", ["50"], "/srv/web"), ("web:logs", "33", "50", [], "/srv/web"),
    ("1234", "1234", "0", [], "/"), ("1234:5", "1234", "5", [], "/"), ("4294967294:web", "4294967294",
                                                                      "34", [], "/")])
def test_the_user_is_the_images(convert, user, uid, gid, more, home):
    files = layer(directory("etc"), entry("etc/passwd", PASSWD[0]), entry("etc/group", PASSWD[1]))
    runs = what_runs(convert(files, config={"User": user}))
    assert (runs["u"], runs["g"], runs["m"]) == ([uid], [gid], more)
    assert f"HOME={home}" in runs["e"]


def test_the_process_is_the_images(convert):
    runs = what_runs(convert(config={
        "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo \"a b\"\nc", "", "ü"], "StopSignal": "SIGQUIT",
        "Env": ["A=1=2", "EMPTY=", "PATH=/x", "A=3"], "WorkingDir": "srv/../"[:4]}))
    assert runs["a"] == ["/bin/sh", "-c", "echo \"a b\"\nc", "", "ü"]
    assert runs["e"] == ["PATH=/x", "HOME=/", "TERM=linux", "A=3", "EMPTY="]
    assert (runs["d"], runs["s"]) == (["/srv"], ["3"])
    assert what_runs(convert(config={"StopSignal": "RTMIN+3"}))["s"] == ["37"]


@pytest.mark.parametrize("config, why", [
    ({"Cmd": []}, "names nothing to run"), ({"Cmd": [""]}, "names nothing to run"),
    ({"Cmd": "text"}, "not a list of texts"), ({"Cmd": [1]}, "not a list of texts"),
    ({"Cmd": ["a\0b"]}, "not a list of texts"), ({"Env": {"A": "B"}}, "not a list of texts"),
    ({"User": "nobody-here"}, "has no user 'nobody-here'"), ({"User": "0:nobody"}, "has no user"),
    ({"User": "4294967295"}, "has no user"), ({"WorkingDir": "/a/../../b"}, "leads out of the root"),
    ({"StopSignal": "99"}, "unknown signal"), ({"StopSignal": "SIGNONE"}, "unknown signal"),
    ({"User": 5}, "not an OCI image")])
def test_a_configuration_that_cannot_be_is_refused(convert, config, why):
    assert why in refused(convert, layer(), config=config)


@pytest.mark.parametrize("bad, why", [
    (entry("../../tmp/x"), "leads out of the root"), (entry("a/../../x"), "leads out of the root"),
    (entry("a/.."), "leads out of the root"), (entry("x" * 256), "a name that no file can have"),
    (entry("/".join(["x"] * 3000)), "a name that no file can have"),
    (entry("l", kind=tarfile.LNKTYPE, linkname="../../etc/passwd"), "leads out of the root"),
    (entry("l", kind=tarfile.LNKTYPE, linkname="none"), "a hard link to what is no file"),
    (entry("l", kind=tarfile.LNKTYPE, linkname="."), "a hard link to the root"),
    (link("l", "x" * 5000), "a link to what no file can be"),
    (entry("sparse", kind=tarfile.GNUTYPE_SPARSE), ""),
    (entry("big", uid=70000), "only ids up to 65535")])
def test_an_entry_that_cannot_be_is_refused(convert, bad, why):
    assert why in refused(convert, layer(directory("d"), bad))


def test_links_in_a_circle_are_refused(convert):
    assert "links without an end" in refused(
        convert, layer(link("a", "b"), link("b", "a")), layer(entry("a/x")))
    maze = [link(f"l{i}", "/".join([f"l{i + 1}"] * 100)) for i in range(60)]
    assert "without an end" in refused(convert, layer(*maze), layer(entry("l0/x")))
    deep = [link("l", "/".join(["d"] * 1500))]
    assert "directories without an end" in refused(convert, layer(*deep), layer(entry("l/x")))


def test_a_layer_that_grows_without_end_is_refused(tmp_path, convert):
    """A PAX header of 6 GiB, and a file that says it is longer than its layer."""
    lie, _ = entry("x")
    lie.size = 1 << 40
    assert "unexpected end of data" in refused(convert, lie.tobuf() + bytes(1024))
    head, _ = entry("x", kind=tarfile.XHDTYPE)
    head.size = 6 << 30
    sparse = tmp_path / "layer"
    with open(sparse, "wb") as file:
        file.write(head.tobuf(format=tarfile.GNU_FORMAT))
        file.truncate(6 << 30)
    if mayfly.IS_LONG: # 6 GiB through a digest
        layout = Layout(tmp_path / "bomb", [])
        packed = subprocess.run(["gzip", "-1", "-c", sparse], capture_output=True, check=True).stdout
        layer_of = layout.put(packed)
        manifest = json.dumps({"config": layout.config, "layers": [layer_of]}).encode()
        layout.write_index([layout.put(manifest)])
        assert "takes more memory" in refused(convert, path=layout.path)


def test_blobs_are_what_their_digests_say(tmp_path, convert):
    layout = Layout(tmp_path / "layout", [layer(entry("a"))])
    for descriptor in (layout.layers[0], layout.config, layout.manifest):
        blob = layout.blob(descriptor)
        data = blob.read_bytes()
        blob.write_bytes(data + b" ")
        assert "is not what its digest says" in refused(convert, path=layout.path)
        blob.write_bytes(data)
    convert(path=layout.path)


def test_a_layout_leads_nowhere_else(tmp_path, convert):
    """Neither its links nor its names; and a FIFO is not waited for."""
    layout = Layout(tmp_path / "layout", [layer(entry("a"))])
    blob = layout.blob(layout.config)
    other = tmp_path / "config"
    other.write_bytes(blob.read_bytes())
    blob.unlink()
    blob.symlink_to(other)
    assert "Too many levels of symbolic links" in refused(convert, path=layout.path)
    blob.unlink()
    os.mkfifo(blob)
    assert "is not a file" in refused(convert, path=layout.path)
    layout.write_index([{"digest": "sha256:../../config"}])
    assert "only sha256 is known" in refused(convert, path=layout.path)
    layout.write_index([{"digest": "sha512:" + "0" * 128}])
    assert "only sha256 is known" in refused(convert, path=layout.path)
    (layout.path / "index.json").unlink()
    (layout.path / "manifest.json").write_text('[{"Config": "../config", "Layers": []}]')
    assert "../config leads out of the image" in refused(convert, path=layout.path)


def test_the_image_for_this_machine_is_taken(tmp_path, convert):
    """Of an index in an index, as buildx writes them, with what is no image beside it."""
    layout = Layout(tmp_path / "layout", [layer(entry("a", b"ours"))])
    other = {"platform": {"os": "linux", "architecture": "arm64"}, "digest": "sha256:" + "0" * 64}
    attestation = {"platform": {"os": "unknown", "architecture": "unknown"}, **layout.config}
    ours = {"platform": {"os": "linux", "architecture": "amd64"}, **layout.manifest}
    inner = layout.put(json.dumps({"manifests": [other, attestation, ours]}).encode())
    layout.write_index([inner])
    assert convert(path=layout.path)["a"][1] == b"ours"
    layout.write_index([ours, ours])
    assert "2 images for linux/amd64" in refused(convert, path=layout.path)
    layout.write_index([other])
    assert "0 images for linux/amd64" in refused(convert, path=layout.path)
    assert "an image for linux/arm64" in refused(convert, layer(), architecture="arm64")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"manifests": 5}', '{"manifests": [5]}',
                                  '{"manifests": [{}]}', "[" * 100000, '{"config": 5, "layers": 6}',
                                  '{"config": {"digest": "\\ud800"}, "layers": []}'])
def test_an_index_that_is_none_is_refused_in_one_line(tmp_path, convert, text):
    layout = Layout(tmp_path / "layout", [])
    (layout.path / "index.json").write_text(text)
    refused(convert, path=layout.path)


def test_what_docker_saves_is_the_same_root(tmp_path, convert):
    layout = Layout(tmp_path / "layout", [layer(entry("a", b"low"), entry("b")),
                                          layer(entry("a", b"high"), entry(".wh.b"))])
    saved = layout.save(tmp_path / "image.tar")
    of_layout, of_save = convert(path=layout.path), convert(path=saved)
    assert {name: data for name, (_, data) in of_layout.items()} == \
        {name: data for name, (_, data) in of_save.items()}
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        manifest = [{"Config": "c", "Layers": ["a"]}]
        info, data = entry("manifest.json", json.dumps(manifest).encode())
        tar.addfile(info, io.BytesIO(data))
        tar.addfile(link("c", "/etc/passwd")[0])
        tar.addfile(link("a", "a")[0])
    assert "there is no file" in refused(convert, path=tmp_path / "evil.tar")


@pytest.mark.parametrize("suffix", ["ext4", "squashfs"])
def test_the_same_image_gives_the_same_bytes(tmp_path, init, suffix):
    files = layer(directory("etc", uid=5), entry("etc/a", b"data" * 5000, mode=0o4755), link("l", "etc"),
                  entry("h", kind=tarfile.LNKTYPE, linkname="etc/a"), entry("ünï ☃"),
                  entry(b"\xff\xfe".decode("utf-8", "surrogateescape")))
    layout = Layout(tmp_path / "layout", [files])
    made = []
    for number in range(2):
        out = tmp_path / f"{number}.{suffix}"
        done = mayfly.complete(ROOTFS, "oci", str(layout.path), str(out),
                               env={**os.environ, "GUEST_INIT": str(init), "TZ": f"UTC{number}"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(out)
        made.append(out.read_bytes())
    assert made[0] == made[1]
    if suffix == "ext4":
        for what, said in ("stat etc/a", "Mode:  04755"), ("stat h", "Links: 2"), ("stat etc", "User:     5"):
            assert said in mayfly.complete("/sbin/debugfs", "-R", what, str(out)).stdout
        assert mayfly.complete("/sbin/e2fsck", "-fn", str(out)).returncode == 0
