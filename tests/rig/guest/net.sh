# The guest's half of test_net.py. usage: sh net.sh HOST4 HOST6
# Each line that begins with "result" is for the test. iperf3 and ethtool are in the root of this file.
tools=$(dirname "$0")
mount -t tmpfs tmpfs $tools/tmp
mount -t devtmpfs dev $tools/dev
mount -t proc proc $tools/proc
head -c 500001 /dev/urandom >/tmp/data
echo 0 >/proc/sys/net/ipv6/conf/eth0/dad_transmits
ip address add fd00:30::2/64 dev eth0
while ip address show dev eth0 | grep -q tentative; do sleep 0.1; done
sum=$(sha256sum </tmp/data)
nc -ll -p 9003 -e sha256sum &

# 20000 bytes are a frame of many fragments, or many frames.
for host; do
    for size in 0 56 1472 1473 20000; do
        ping -q -c 1 -s $size $host >/dev/null && echo result ping $host $size
    done
done
for offloads in on off; do
    chroot $tools ethtool -K eth0 tx $offloads sg $offloads tso $offloads gso $offloads \
        gro $offloads
    echo result tso $(chroot $tools ethtool -k eth0 | grep ^tcp-segmentation-offload)
    for host; do
        [ "$(nc $host 9001 </tmp/data)" = "$sum" ] && echo result sent $offloads $host
        echo result got $offloads $host $(nc $host 9002 </dev/null | sha256sum)
    done
    echo ready $offloads
    read go
done
for direction in '' -R; do
    chroot $tools iperf3 -c $1 -t 1 $direction >/tmp/log 2>&1 && echo result iperf3 tcp $direction ||
        cat /tmp/log
    chroot $tools iperf3 -c $2 -u -b 10M -l 1200 -t 1 $direction >/tmp/log 2>&1 &&
        echo result iperf3 udp $direction || cat /tmp/log
done
