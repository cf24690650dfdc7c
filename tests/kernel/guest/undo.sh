#!/bin/dash
# Undo what a test did, so that the next one begins as after the boot. Fails if something stays.
for program in fio nbd-reconnect; do
    killall -q -KILL "$program"
done
for path in $(awk '$2 ~ "^/mnt" { print $2 }' /proc/mounts); do
    umount "$path" || umount -l "$path"
done
ip route flush type blackhole
if [ -e /run/multipathd.pid ]; then
    multipathd disablequeueing maps
    multipath -F
    multipathd shutdown
fi
for device in 0 1 2 3; do
    if nbd-client -c "/dev/nbd$device" >/dev/null; then
        nbd-client -d "/dev/nbd$device"
    fi
done
if [ -n "$(ls -A /sys/class/iscsi_session 2>/dev/null)" ]; then
    iscsiadm -m session --logout
fi
rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets /etc/multipath/conf.d
udevadm settle --timeout=30
[ -z "$(ls -A /sys/class/iscsi_session 2>/dev/null)" ] &&
    [ "$(cat /sys/block/nbd?/size | sort -u)" = 0 ] &&
    ! grep -q ' /mnt' /proc/mounts
