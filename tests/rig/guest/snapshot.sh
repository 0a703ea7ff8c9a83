# The guest's half of test_snapshot.py: two disks, network and vsock at work, until a line comes.
# Each line of the console that begins with "wrong" is a fault.
for module in /modules/*.ko; do
    insmod $module 2>/dev/null
done
mkdir /mnt /root/files
mount -t ext4 /dev/vdb /mnt
mkdir /mnt/files
dmesg -c >/dev/null

# Writes files that are on the disk before they are read back from there.
write() { # DIRECTORY NAME
    i=0
    while [ ! -e /tmp/stop ]; do
        i=$((i + 1))
        file=$1/$((i % 8))
        head -c 65536 /dev/urandom >/tmp/$2
        dd if=/tmp/$2 of=$file bs=8k conv=fsync 2>/dev/null
        echo 1 >/proc/sys/vm/drop_caches
        cmp /tmp/$2 $file || echo wrong $file
        md5sum $file >$file.sum
        echo round $2 $i
    done
}

# A connection that a load resets is not the last.
send() {
    i=0
    while [ ! -e /tmp/stop ]; do
        i=$((i + 1))
        echo $i | vsock connect 2 9 2>/dev/null
        usleep 20000
    done
}

nc -ll -p 9001 -e cat &
vsock serve 7 cat &
writers=
write /root/files root & writers="$writers $!"
write /mnt/files data & writers="$writers $!"
send & writers="$writers $!"
echo all at work
read go
touch /tmp/stop
wait $writers
sync
echo 3 >/proc/sys/vm/drop_caches
cat /root/files/*.sum /mnt/files/*.sum | md5sum -c | grep -v ': OK$' | sed 's/^/wrong /'
# Warnings and worse, but those that say that the host is busy.
dmesg -r | grep '^<[0-4]>' | grep -v 'hrtimer: interrupt took\|RT throttling' | sed 's/^/wrong /'
umount /mnt || echo wrong umount
