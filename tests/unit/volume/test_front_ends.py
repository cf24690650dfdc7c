"""What the store has for front ends beside bytes: identities of devices, and states they keep."""

import errno

import pytest

from native import OP_READ, Request
from tests.sim.store_rig import KIB, SMALL, StoreRig
from volume.errors import StoreSealed

UUIDS = "iscsi/unit/"


@pytest.fixture
def rig() -> StoreRig:
    rig = StoreRig(options=SMALL)
    rig.store.create_volume("v", 32 * KIB, chunk_size=4 * KIB)
    return rig


def test_a_volume_has_its_uuid_whatever_it_is_called(rig: StoreRig) -> None:
    volume = rig.volume("v")
    assert volume.uuid == volume.volume_uuid == bytes.fromhex(rig.store.info("v").uuid)
    rig.store.rename_volume("v", "w")
    assert rig.volume("w").uuid == volume.uuid


def test_each_version_has_a_uuid_that_stays(rig: StoreRig) -> None:
    uuids = []
    for name in ("a", "b"):
        assert rig.write("v", 0, name.encode() * 512) == 0
        rig.store.snapshots.create(name, ["v"])
        uuids.append(rig.store.open_version(f"v@{name}").uuid)
    assert len({*uuids, rig.volume("v").uuid}) == 3
    rig.tend()
    rig = rig.closed()
    for name, uuid in zip("ab", uuids, strict=True):
        version = rig.store.open_version(f"v@{name}")
        assert version.uuid == uuid
        assert version.volume_uuid == rig.volume("v").uuid


@pytest.mark.parametrize("change", ["restored", "deleted"])
def test_a_device_that_is_no_more_says_so(rig: StoreRig, change: str) -> None:
    assert rig.write("v", 0, b"a" * 512) == 0
    rig.store.snapshots.create("a", ["v"])
    volume, version = rig.volume("v"), rig.store.open_version("v@a")
    assert not volume.retired
    if change == "restored":
        rig.store.versions.restore("v", "a", force=True)
        assert rig.volume("v").uuid == volume.uuid
        assert not rig.volume("v").retired
        assert not version.retired
    else:
        rig.store.delete_volume("v", force=True)
        assert version.retired
    assert volume.retired
    done: list[Request] = []
    volume.submit([Request(OP_READ, 0, 512)], done.extend)
    assert [request.error for request in done] == [errno.ESHUTDOWN]


def test_what_is_kept_is_durable_on_return(rig: StoreRig) -> None:
    rig.store.keep(UUIDS + "a", b"1")
    rig.store.keep(UUIDS + "b", b"2")
    rig.store.keep("iscsi/target/a", b"3")
    rig.store.keep(UUIDS + "b", None)
    for after in (rig.killed(), rig.rebooted()):
        assert after.store.kept(UUIDS) == {UUIDS + "a": b"1"}
        assert after.store.kept("iscsi/") == {UUIDS + "a": b"1", "iscsi/target/a": b"3"}


def test_a_sealed_store_keeps_nothing_more(rig: StoreRig) -> None:
    rig.store.keep(UUIDS + "a", b"1")
    rig.store._seal.close(OSError(errno.EIO, "broken"))
    with pytest.raises(StoreSealed):
        rig.store.keep(UUIDS + "a", b"2")
    assert rig.store.kept(UUIDS) == {UUIDS + "a": b"1"}
