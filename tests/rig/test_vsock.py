"""Linux on virtio-vsock: AF_VSOCK in the guest, UNIX sockets on the host, both ways."""

import pytest

SET_UP = "for m in /modules/*.ko; do insmod $m 2>/dev/null; done;"


def boot(guest, run, drives=()):
    """Debian's kernel with a vsock, running a shell command with its modules loaded."""
    request = guest.do

    def put_more(method, path, body):
        if path == "/actions":
            request("PUT", "/vsock", {"guest_cid": 42, "uds_path": f"{guest.dir}/v"})
            for drive in drives:
                request("PUT", f"/drives/{drive['drive_id']}", drive)
        request(method, path, body)

    guest.do = put_more
    return guest.boot("vmlinuz", run=SET_UP + run, initrd="initrd")


def dial(host, guest, port, command):
    """What a shell pipe to a port of the guest answers."""
    return host.run(f"{command} | timeout 600 ./vsock dial {guest.dir}/v {port}", timeout=600)


def test_an_http_server_in_the_guest_is_reached_through_the_socket(guest, host):
    boot(guest, "mkdir w; seq 1 30000 >w/index.html; vsock serve 80 httpd -i -h w & read go")
    answer = dial(host, guest, 80, r"printf 'GET / HTTP/1.0\r\n\r\n'")
    head, body = answer.replace("\r", "").split("\n\n", 1)
    assert head.startswith("HTTP/1.") and " 200 OK" in head.split("\n")[0]
    assert body == "".join(f"{i}\n" for i in range(1, 30001))
    assert " 404 " in dial(host, guest, 80, r"printf 'GET /none HTTP/1.0\r\n\r\n'")
    guest.type("\n")
    guest.wait_end()


def test_streams_of_the_host_come_back_whole_and_half_closed(guest, host):
    """cat answers the end of its input with the end of its output: that needs half-close."""
    boot(guest, "vsock serve 7 cat & vsock serve 8 md5sum & read go")
    host.run(f"dd if=/dev/urandom of={guest.dir}/data bs=64k count=20 2>/dev/null")
    wanted = host.run(f"md5sum <{guest.dir}/data")
    back = f"cat {guest.dir}/data | timeout 600 ./vsock dial {guest.dir}/v 7 | md5sum"
    assert host.run(back, timeout=600) == wanted
    assert dial(host, guest, 8, f"cat {guest.dir}/data") == wanted
    many = "".join(f"({back} >{guest.dir}/sum{i}) & " for i in range(8))
    host.run(f"({many} wait)", timeout=600)  # in a shell that has no other children
    for i in range(8):
        assert host.run(f"cat {guest.dir}/sum{i}") == wanted
    guest.type("\n")
    guest.wait_end()


def test_streams_of_the_guest_reach_sockets_of_the_host(guest, host):
    host.run(f"(./vsock listen {guest.dir}/v_9 md5sum >/dev/null & echo $! >{guest.dir}/server)")
    run = (
        "dd if=/dev/urandom of=f bs=64k count=20 2>/dev/null; md5sum <f; echo from host;"
        " vsock connect 2 9 <f; vsock connect 2 10 </dev/null || echo refused"
    )
    boot(guest, run)
    lines = guest.wait_end().splitlines()
    host.run(f"kill $(cat {guest.dir}/server)")
    at = lines.index("from host")
    assert lines[at + 1] == lines[at - 1]
    assert "refused" in lines


def test_a_stream_survives_a_pause(guest, host):
    boot(guest, "vsock serve 7 cat & read go")
    host.run(f"mkfifo {guest.dir}/in; (./vsock dial {guest.dir}/v 7 <>{guest.dir}/in"
             f" >{guest.dir}/out & echo $! >{guest.dir}/client)")
    host.run(f"echo before >{guest.dir}/in")
    assert host.wait_for(f"grep -q before {guest.dir}/out")
    guest.do("PATCH", "/vm", {"state": "Paused"})
    host.run(f"echo meanwhile >{guest.dir}/in")
    guest.do("PATCH", "/vm", {"state": "Resumed"})
    assert host.wait_for(f"grep -q meanwhile {guest.dir}/out")
    host.run(f"kill $(cat {guest.dir}/client)")
    guest.type("\n")
    guest.wait_end()


@pytest.mark.usefixtures("net_tools")
def test_socat_talks_to_socat_both_ways(guest, host):
    host.run(f"socat -u UNIX-LISTEN:{guest.dir}/v_9 CREATE:{guest.dir}/got & server=$!")
    assert host.wait_for(f"[ -S {guest.dir}/v_9 ]")
    run = (
        "mkdir /mnt; mount -o ro /dev/vdb /mnt; mount -t devtmpfs dev /mnt/dev;"
        " chroot /mnt socat VSOCK-LISTEN:7,fork PIPE & dd if=/dev/urandom of=f bs=64k count=20"
        " 2>/dev/null; md5sum <f; chroot /mnt socat -u STDIN VSOCK-CONNECT:2:9 <f; read go"
    )
    boot(guest, run, [{"drive_id": "tools", "path_on_host": "net.ext4", "is_root_device": False,
                       "is_read_only": True}])
    sum_ = host.run(f"wait $server; md5sum <{guest.dir}/got", timeout=600).strip()
    dialled = f"socat -t 60 - UNIX-CONNECT:{guest.dir}/v"
    assert host.wait_for(f"echo CONNECT 7 | {dialled} | grep -q OK")
    answer = host.run(f"(echo CONNECT 7; seq 1 50000) | {dialled}", timeout=600)
    ok, echoed = answer.split("\n", 1)
    assert ok.startswith("OK ")
    assert echoed.split() == [str(i) for i in range(1, 50001)]
    guest.type("\n")
    assert sum_ in guest.wait_end().splitlines()
