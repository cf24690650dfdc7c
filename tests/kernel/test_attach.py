"""The kernel attaches volumes, sees what they are, and lets go of them."""

import pytest

from tests.kernel.rig import PROTOCOLS, MiB, Rig


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_volume_is_attached_with_its_size_and_detached(rig: Rig, protocol: str) -> None:
    volume = rig.volume(100 * MiB)
    device = rig.attach(protocol, volume)
    assert rig.size(device) == 100 * MiB
    rig.run(f"echo first words | dd of={device} bs=512 conv=sync oflag=direct status=none")
    rig.release(protocol, volume, device)
    device = rig.attach(protocol, volume)
    assert rig.run(f"dd if={device} bs=512 count=1 iflag=direct status=none").startswith("first")
    rig.release(protocol, volume, device)


@pytest.mark.parametrize("protocol", ["nbd", "iscsi"])
def test_the_kernel_may_discard_and_has_a_volatile_cache_to_flush(rig: Rig, protocol: str) -> None:
    device = rig.attach(protocol, rig.volume())
    queue = f"/sys/block/{device.removeprefix('/dev/')}/queue"
    assert int(rig.run(f"cat {queue}/discard_max_bytes")) > 0
    assert rig.run(f"cat {queue}/write_cache").strip() == "write back"
    assert rig.run(f"cat {queue}/fua").strip() == "1"
    assert rig.run(f"cat {queue}/logical_block_size").strip() == "512"


def test_discovery_names_every_volume_at_every_portal(rig: Rig) -> None:
    volumes = [rig.volume(), rig.volume()]
    told = rig.discover(rig.portals[0]).splitlines()
    for volume in volumes:
        found = {line.split(",")[0] for line in told if line.endswith(f":{volume}")}
        assert found == set(rig.portals)


@pytest.mark.parametrize("protocol", ["nbd", "iscsi"])
def test_a_snapshot_is_a_device_that_cannot_be_written(rig: Rig, protocol: str) -> None:
    volume = rig.volume()
    device = rig.attach(protocol, volume)
    rig.run(f"echo before | dd of={device} bs=512 conv=sync oflag=direct status=none")
    rig.server.run("snapshot", "create", f"{volume}@then")
    rig.run(f"echo after. | dd of={device} bs=512 conv=sync oflag=direct status=none")
    if protocol == "nbd":
        past = rig.nbd(f"{volume}@then", index=1)
    else:
        rig.run(f"{rig.record(f'{volume}:at:then')} --op new")
        rig.run(f"{rig.record(f'{volume}:at:then')} --login")
        past = rig.disk(f"{volume}:at:then", rig.portals[0])
    assert rig.run(f"blockdev --getro {past}").strip() == "1"
    assert rig.run(f"dd if={past} bs=512 count=1 iflag=direct status=none").startswith("before")
    rig.fails(f"dd if=/dev/zero of={past} bs=512 count=1 oflag=direct")
    assert rig.run(f"dd if={device} bs=512 count=1 iflag=direct status=none").startswith("after.")


def test_an_unknown_volume_is_refused(rig: Rig) -> None:
    rig.fails(rig.nbd_command("nowhere", "/dev/nbd0"))
    rig.run(f"{rig.record('nowhere')} --op new")
    assert "non-retryable iSCSI login failure" in rig.fails(f"{rig.record('nowhere')} --login")
