"""Limits belong to volumes, are kept, and a row that cannot be read refuses nothing."""

import errno
import logging
from collections.abc import Iterator

import pytest

from blockd.accounts import LEAST_PRUNED
from blockd.api.limit_types import PREFIX, LimitsStatus, VolumeLimits, decode, encode
from blockd.limits import RateLimits
from native import OP_READ, Reservation
from tests.sim.store_rig import StoreRig
from volume import layout
from volume.errors import NoSuchVolume, StoreSealed
from volume.framing import framed

MIB = 1 << 20
SECOND_NS = 10**9
SOME = VolumeLimits(iops=100, read_bandwidth=MIB, burst_s=2)


@pytest.fixture
def rig() -> Iterator[StoreRig]:
    rig = StoreRig()
    rig.store.create_volume("vm1", MIB)
    yield rig
    rig.store.close()


def limits_of(rig: StoreRig) -> RateLimits:
    """As the daemon makes them at its start."""
    return RateLimits(rig.store, lambda: 10 * SECOND_NS)


def row(rig: StoreRig, volume: str = "vm1") -> str:
    return PREFIX + rig.volume(volume).uuid.hex()


def test_nothing_is_limited_at_first(rig: StoreRig) -> None:
    limits = limits_of(rig)
    assert limits.get("vm1") == LimitsStatus(VolumeLimits(), 0, 0, 0.0)
    assert not limits.of(rig.volume("vm1")).is_set
    with pytest.raises(NoSuchVolume):
        limits.get("vm2")
    with pytest.raises(NoSuchVolume):
        limits.set("", SOME)


def test_limits_are_in_force_at_once_and_after_a_restart(rig: StoreRig) -> None:
    limits = limits_of(rig)
    limit = limits.of(rig.volume("vm1"))
    limits.set("vm1", SOME)
    assert limits.of(rig.volume("vm1")) is limit
    assert limit.is_set
    again = limits_of(rig)
    assert again.get("vm1").limits == SOME
    assert again.of(rig.volume("vm1")).is_set
    again.set("vm1", VolumeLimits())
    assert not again.of(rig.volume("vm1")).is_set
    assert rig.store.kept(PREFIX) == {}
    assert limits_of(rig).get("vm1").limits == VolumeLimits()


def test_every_rate_is_its_own(rig: StoreRig) -> None:
    limits = limits_of(rig)
    limits.set("vm1", VolumeLimits(read_iops=1, burst_s=1))
    mine = Reservation(limits.of(rig.volume("vm1")))
    now_ns = 10 * SECOND_NS
    for _ in range(2):
        assert mine.ask(OP_READ, 512, now_ns) == 0
    assert mine.ask(OP_READ, 512, now_ns) != 0
    assert mine.ask(OP_READ, 512, now_ns + SECOND_NS) == 0
    status = limits.get("vm1")
    assert (status.held_requests, status.held_s) == (1, 1.0)
    assert limits.held() == [("vm1", 0, 1, SECOND_NS)]


def test_limits_go_along_with_a_name_and_a_past_version(rig: StoreRig) -> None:
    limits = limits_of(rig)
    limits.set("vm1", SOME)
    rig.store.snapshots.create("monday", ["vm1"])
    past = rig.store.open_version("vm1@monday")
    past.attach("c")
    assert limits.of(past) is limits.of(rig.volume("vm1"))
    past.detach("c")
    rig.store.rename_volume("vm1", "vm2")
    assert limits.get("vm2").limits == SOME
    rig.store.versions.clone("vm2", "vm3")
    assert limits.get("vm3").limits == VolumeLimits()


def test_a_volume_that_is_deleted_takes_them_along(rig: StoreRig) -> None:
    limits = limits_of(rig)
    limits.set("vm1", SOME)
    device = rig.volume("vm1")
    rig.store.delete_volume("vm1")
    limits.forget(device)
    assert rig.store.kept(PREFIX) == {}
    rig.store.create_volume("vm1", MIB)
    assert limits.get("vm1").limits == VolumeLimits()


def test_a_crash_between_the_two_leaves_a_row_that_the_next_start_forgets(rig: StoreRig) -> None:
    limits_of(rig).set("vm1", SOME)
    rig.store.delete_volume("vm1")
    assert limits_of(rig).held() == []
    assert rig.store.kept(PREFIX) == {}


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000, b'{"iops": "many"}', b'{"iops": -1}'),
        *(b'{"iops": 5.0}', b'{"iops": true}', b'{"iops": 1e400}', b'{"burst_s": NaN}'),
        *(b'{"burst_s": "1"}', b'{"burst_s": null}', b'{"tokens": 5}', b'{"self": 5}'),
    ],
)
def test_a_row_that_cannot_be_read_limits_nothing_and_is_told(
    rig: StoreRig, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    rig.store.keep(row(rig), value)
    caplog.set_level(logging.ERROR)
    limits = limits_of(rig)
    (record,) = caplog.records
    assert "limits unreadable" in record.message
    assert record.__dict__["volume"] == "vm1"
    status = limits.get("vm1")
    assert status.limits == VolumeLimits()
    assert status.problem
    assert rig.store.kept(PREFIX) == {row(rig): value}  # as it was, for whoever looks into it
    limits.set("vm1", SOME)
    assert limits.get("vm1").problem is None
    assert limits_of(rig).get("vm1") == LimitsStatus(SOME, 0, 0, 0.0)


def test_a_row_that_fails_its_checksum_leaves_the_others(rig: StoreRig) -> None:
    rig.store.create_volume("vm2", MIB)
    limits = limits_of(rig)
    limits.set("vm1", SOME)
    limits.set("vm2", SOME)
    kv = rig.store._meta_kv
    key = layout.META_PREFIX_STATE + row(rig).encode()
    value = bytearray(framed(encode(SOME)))
    value[10] ^= 1
    kv.update({key: bytes(value)})
    again = limits_of(rig)
    assert "fails its checksum" in (again.get("vm1").problem or "")
    assert again.get("vm2") == LimitsStatus(SOME, 0, 0, 0.0)
    again.set("vm1", VolumeLimits())
    assert again.get("vm1").problem is None
    assert set(rig.store.kept(PREFIX)) == {row(rig, "vm2")}


def test_a_row_that_cannot_be_forgotten_does_not_refuse_the_start(rig: StoreRig) -> None:
    limits_of(rig).set("vm1", SOME)
    rig.store.delete_volume("vm1")
    rig.store._seal.close(OSError(errno.EIO, "EIO"))
    assert limits_of(rig).held() == []


def test_a_store_that_takes_nothing_changes_nothing(rig: StoreRig) -> None:
    limits = limits_of(rig)
    rig.store._seal.close(OSError(errno.EIO, "EIO"))
    with pytest.raises(StoreSealed):
        limits.set("vm1", SOME)
    assert limits.get("vm1").limits == VolumeLimits()
    assert not limits.of(rig.volume("vm1")).is_set


def test_volumes_that_are_gone_do_not_add_up(rig: StoreRig) -> None:
    limits = limits_of(rig)
    for number in range(2 * LEAST_PRUNED):
        name = f"v{number}"
        rig.store.create_volume(name, MIB)
        limits.of(rig.volume(name))
        rig.store.delete_volume(name)
    assert len(limits._limits) <= LEAST_PRUNED + 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"iops": -1}, "iops -1"),
        ({"write_bandwidth": 10**13}, "write_bandwidth 10000000000000"),
        ({"burst_s": 0}, "burst of 0 s"),
        ({"burst_s": 4000}, "burst of 4000 s"),
        ({"burst_s": float("nan")}, "burst of nan s"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VolumeLimits(**given)  # type: ignore[arg-type]


def test_rows_come_back_as_they_were_kept() -> None:
    assert decode(encode(SOME)) == SOME
