"""What the kernel writes is what it reads: raw blocks, discards, file systems, resizes."""

import pytest

from tests.kernel.rig import PROTOCOLS, MiB, Rig

VERIFIED = "--rw=randwrite --bsrange=4k-64k --iodepth=16 --size=48m"
FSCK = {"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_direct_random_writes_verify(rig: Rig, protocol: str) -> None:
    device = rig.attach(protocol, rig.volume())
    rig.fio(device, VERIFIED)


def test_four_jobs_over_four_connections_verify(rig: Rig) -> None:
    device = rig.attach("nbd-4", rig.volume())
    rig.fio(
        device, "--rw=randwrite --bs=4k --iodepth=8 --size=8m --numjobs=4 --offset_increment=8m"
    )


@pytest.mark.parametrize("protocol", ["nbd", "iscsi"])
def test_discarded_blocks_read_zero_and_their_neighbours_stay(rig: Rig, protocol: str) -> None:
    device = rig.attach(protocol, rig.volume())
    rig.run(f"""
        head -c 4M /dev/urandom >/tmp/content
        dd if=/tmp/content of={device} bs=1M oflag=direct status=none
        blkdiscard --offset 1M --length 2M {device}
        dd if=/dev/zero of=/tmp/content bs=1M seek=1 count=2 conv=notrunc status=none
        dd if={device} bs=1M count=4 iflag=direct status=none | cmp - /tmp/content
    """)


@pytest.mark.parametrize("protocol", ["nbd", "iscsi"])
def test_zeroed_blocks_read_zero(rig: Rig, protocol: str) -> None:
    device = rig.attach(protocol, rig.volume())
    rig.run(f"""
        head -c 1M /dev/urandom | dd of={device} bs=1M oflag=direct iflag=fullblock status=none
        blkdiscard --zeroout --offset 4096 --length 8192 {device}
        dd if={device} bs=4096 skip=1 count=2 iflag=direct status=none | cmp -n 8192 - /dev/zero
        ! dd if={device} bs=4096 count=1 iflag=direct status=none | cmp -n 4096 - /dev/zero
    """)


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
@pytest.mark.parametrize("protocol", ["nbd-4", "iscsi"])
def test_a_file_system_keeps_its_files(rig: Rig, protocol: str, filesystem: str) -> None:
    volume = rig.volume(512 * MiB)
    device = rig.attach(protocol, volume)
    rig.run(f"""
        mkfs.{filesystem} -q {device}
        mkdir -p /mnt/disk
        mount -t {filesystem} -o discard {device} /mnt/disk
        cd /mnt/disk
        for number in $(seq 40); do
            mkdir -p folder$((number % 7))
            head -c $((number * 20011)) /dev/urandom >folder$((number % 7))/file$number
        done
        rm folder3/*
        find . -type f | sort | xargs sha256sum >/tmp/sums
        cd /
        umount /mnt/disk
    """)
    rig.release(protocol, volume, device)
    device = rig.attach(protocol, volume)
    rig.run(f"""
        {FSCK[filesystem]} {device}
        mount -t {filesystem} -o ro {device} /mnt/disk
        cd /mnt/disk
        test $(find . -type f | wc -l) = $(wc -l </tmp/sums)
        sha256sum --quiet --check /tmp/sums
    """)


def test_a_grown_volume_is_seen_after_a_rescan_under_a_mounted_file_system(rig: Rig) -> None:
    volume = rig.volume(64 * MiB)
    device = rig.login(volume)
    rig.run(f"""
        mkfs.ext4 -q {device}
        mkdir -p /mnt/disk
        mount -t ext4 {device} /mnt/disk
        head -c 1M /dev/urandom >/mnt/disk/file
        cp /mnt/disk/file /tmp/file
    """)
    rig.server.run("volume", "resize", volume, "256M")
    rig.run(f"{rig.record(volume)} --rescan")
    rig.run(f"until [ $(blockdev --getsize64 {device}) = {256 * MiB} ]; do sleep 0.05; done")
    rig.run(f"""
        resize2fs {device}
        test $(stat -f -c '%b * %S' /mnt/disk | bc) -gt {200 * MiB}
        cmp /mnt/disk/file /tmp/file
        umount /mnt/disk
        e2fsck -fn {device}
    """)


def test_a_grown_volume_is_seen_by_an_nbd_device_that_is_attached_again(rig: Rig) -> None:
    volume = rig.volume(64 * MiB)
    device = rig.nbd(volume)
    rig.server.run("volume", "resize", volume, "256M")
    assert rig.size(device) == 64 * MiB
    rig.detach(device)
    assert rig.size(rig.nbd(volume)) == 256 * MiB
