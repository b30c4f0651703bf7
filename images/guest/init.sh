#!/bin/busybox sh
# The first process of a Linux appliance: brings up the machine's devices and the network, mounts the root disk and what lies on it,
# and hands over to the appliance's program or to the image's own init. /quorate.conf, written by the builder, says what is wanted.
export PATH=/bin

fail() {
    echo "quorate: $*" >&2
    exec /bin/task exit 126
}

mount -t devtmpfs -o mode=755 devtmpfs /dev || fail "no /dev"
# Messages go where the console is, also when its driver has come only now.
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys

# Numbered by the builder in the order of their dependencies.
for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    insmod "$module" || fail "$module cannot be loaded"
done
exec < /dev/console > /dev/console 2>&1

. /quorate.conf

# Drivers probe while they are loaded, so devices are there by now as a rule. If not: the kernel says when something has come.
await() {
    [ -b "$1" ] && return
    timeout 30 uevent sh -c "[ -b $1 ] && kill \$PPID"
    [ -b "$1" ] || fail "there is no $1"
}

hostname "$hostname"
# Whoever connects comes from the VMM alone. With cookies a full queue has the kernel forget a connection that it has accepted, and reset it
# when its second segment comes first; without them it is slow to accept, and the VMM tries again.
[ ! -e /proc/sys/net/ipv4/tcp_syncookies ] || echo 0 > /proc/sys/net/ipv4/tcp_syncookies
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add "$address" dev eth0 && ip link set eth0 up && ip route add default via "$gateway" ||
        echo "quorate: the network cannot be set up" >&2
fi

await "$device"
case $root in
memory)
    # The disk is only read; changes are in this machine's memory.
    mkdir -p /base /changes
    mount -t ext4 -o ro,noatime "$device" /base || fail "the root disk cannot be mounted"
    mount -t tmpfs -o mode=755 tmpfs /changes
    mkdir /changes/upper /changes/work
    mount -t overlay -o lowerdir=/base,upperdir=/changes/upper,workdir=/changes/work overlay /root ||
        fail "the root cannot be put together"
    ;;
read-only)
    mount -t ext4 -o ro,noatime "$device" /root || fail "the root disk cannot be mounted"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /root/tmp
    ;;
disk)
    mount -t ext4 -o rw "$device" /root || fail "the root disk cannot be mounted"
    ;;
esac

mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /root/run
mkdir -p /root/run/lock /root/dev/pts /root/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /root/dev/shm

# disk DEVICE TARGET ro|rw, memory TARGET BYTES
disk() {
    mount -t ext4 -o "$3,noatime" "/root$1" "/root$2" || fail "$2 cannot be mounted"
}
memory() {
    mount -t tmpfs -o "size=$2,mode=1777" tmpfs "/root$1" || fail "$1 cannot be mounted"
}
mounts

if [ -e /program ]; then
    mkdir /root/run/quorate
    cp /bin/busybox /bin/task /program /root/run/quorate/
    exec switch_root /root /run/quorate/program
fi
exec switch_root /root "$init"
fail "$init of the image cannot be started"
