#!/bin/dash
# The first process of the guest: file systems, modules, devices, network, then the agent.
# Its end ends the guest (panic=-1 on the kernel's command line and -no-reboot on qemu's).
set -e
export PATH=/usr/sbin:/usr/bin:/usr/lib/busybox
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /usr/lib/busybox /run/lock/iscsi /var/lib/iscsi /run/multipath
# Applets only where no package's own program comes first in PATH: the checks are about those.
busybox --install -s /usr/lib/busybox

modprobe -a virtio_pci virtio_net virtio_console nbd iscsi_tcp sd_mod \
    dm_multipath dm_round_robin dm_service_time scsi_dh_alua crc32c_generic ext4 xfs
/usr/lib/systemd/systemd-udevd --daemon --resolve-names=early
udevadm trigger --type=subsystems --action=add
udevadm trigger --type=devices --action=add
udevadm settle --timeout=60

# 127.0.0.0/8 is the host's loopback here: SendTargets answers with the addresses that the daemon
# listens on, and they must be the same on both sides. There is no way to anywhere else.
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add 127.0.0.0/8 via 10.0.2.2
# qemu's network waits for 5 s when the guest's receive window has closed.
echo '4096 8388608 8388608' >/proc/sys/net/ipv4/tcp_rmem
echo 8388608 >/proc/sys/net/core/rmem_max

iscsid
exec agent
