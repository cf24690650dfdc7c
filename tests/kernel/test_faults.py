"""The server dies under the kernel, or a path to it does: I/O waits, goes on, and verifies."""

import time
from pathlib import Path

import pytest

from tests.kernel.multipath import CLUSTER, IMPATIENT, multipath, until_paths
from tests.kernel.rig import FIO, FIO_S, MiB, Rig

# Held to a pace, so that it is at work at each moment that matters here.
PACED = "--rw=randwrite --bs=4k --iodepth=16 --size=6m --rate_iops=300 --verify_backlog=256"
BEFORE, AFTER = 200, 700  # of the 1536 writes
PATIENT = {"node.session.timeo.replacement_timeout": "120"}


def kill_in_mid_fio(rig: Rig, device: str) -> None:
    job = rig.begin(f"{FIO} --name=job --filename={device} {PACED}", FIO_S)
    rig.until_written(device, BEFORE)
    rig.server.kill()
    assert job.running
    ended = rig.written(device)
    rig.server.start()
    began = time.monotonic()
    rig.until_written(device, ended + 1)
    print(f"the first write ended {time.monotonic() - began:.1f} s after the restart")
    rig.until_written(device, AFTER)
    assert job.running
    job.wait()


@pytest.mark.parametrize("connections", [1, 4])
def test_nbd_goes_on_after_a_kill_when_it_is_given_new_connections(
    rig: Rig, connections: int
) -> None:
    volume = rig.volume()
    device = rig.nbd(volume, f"-connections {connections} -timeout 5")
    rig.reconnecting(volume)
    kill_in_mid_fio(rig, device)
    assert "new connection" in rig.run("cat /tmp/reconnect0")


def test_an_iscsi_session_recovers_from_a_kill_in_mid_fio(rig: Rig) -> None:
    device = rig.login(rig.volume(), settings=PATIENT)
    kill_in_mid_fio(rig, device)


def test_iscsi_writes_fail_when_the_server_stays_away(rig: Rig) -> None:
    device = rig.login(rig.volume(), settings=IMPATIENT)
    rig.server.kill()
    rig.fails(f"dd if=/dev/zero of={device} bs=4k count=1 oflag=direct")
    rig.server.start()


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
@pytest.mark.parametrize("protocol", ["nbd", "iscsi"])
def test_a_mounted_file_system_lives_on_over_a_kill(
    rig: Rig, protocol: str, filesystem: str
) -> None:
    volume = rig.volume(512 * MiB)
    if protocol == "nbd":
        device = rig.nbd(volume, "-timeout 5")
        rig.reconnecting(volume)
    else:
        device = rig.login(volume, settings=PATIENT)
    rig.run(f"""
        mkfs.{filesystem} -q {device}
        mkdir -p /mnt/disk
        mount -t {filesystem} {device} /mnt/disk
        head -c 2M /dev/urandom >/mnt/disk/before
        sha256sum /mnt/disk/before >/tmp/sums
        sync -f /mnt/disk
    """)
    rig.server.kill()
    during = rig.begin("""
        head -c 2M /dev/urandom >/mnt/disk/during
        sha256sum /mnt/disk/during >>/tmp/sums
        sync -f /mnt/disk
    """)
    rig.server.start()
    during.wait()
    check = {"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}[filesystem]
    rig.run(f"""
        umount /mnt/disk
        {check} {device}
        mount -t {filesystem} {device} /mnt/disk
        sha256sum --quiet --check /tmp/sums
    """)


def test_multipath_goes_on_with_the_other_portal(rig: Rig) -> None:
    device, paths = multipath(rig, rig.volume(), rig.portals)
    assert len(set(paths.values())) == 2
    until_paths(rig, "active", 2)
    job = rig.begin(f"{FIO} --name=job --filename={device} {PACED}", FIO_S)
    mapped = rig.run(f"realpath {device}").strip()
    rig.until_written(mapped, BEFORE)
    second = rig.portals[1].split(":")[0]
    rig.run(f"ip route add blackhole {second}/32")
    until_paths(rig, "failed", 1)
    rig.until_written(mapped, AFTER)
    job.wait()
    rig.run(f"ip route del blackhole {second}/32")
    until_paths(rig, "active", 2)
    rig.fio(device, "--rw=randwrite --bs=16k --iodepth=8 --size=4m")


def test_multipath_waits_for_a_server_that_comes_back(rig: Rig) -> None:
    """With `queue`: how long a start takes on a busy machine is not what this is about."""
    device, _ = multipath(rig, rig.volume(), rig.portals, CLUSTER)
    until_paths(rig, "active", 2)
    job = rig.begin(f"{FIO} --name=job --filename={device} {PACED}", FIO_S)
    mapped = rig.run(f"realpath {device}").strip()
    rig.until_written(mapped, BEFORE)
    rig.server.kill()
    until_paths(rig, "failed", 2)
    rig.server.start()
    job.wait()
    until_paths(rig, "active", 2)
    assert Path(mapped).name.startswith("dm-")
