"""Accounts belong to volumes, whatever these are called and however they are reached."""

from collections.abc import Iterator

import pytest

from blockd.accounts import LEAST_PRUNED, Accounts
from native import OP_READ, Account
from tests.sim.store_rig import StoreRig

MIB = 1 << 20


@pytest.fixture
def rig() -> Iterator[StoreRig]:
    rig = StoreRig()
    rig.store.create_volume("vm1", MIB)
    yield rig
    rig.store.close()


@pytest.fixture
def accounts(rig: StoreRig) -> Accounts:
    return Accounts(rig.store)


def named(accounts: Accounts) -> list[tuple[str, str]]:
    return [(name, protocol) for name, protocol, _ in accounts.all()]


def test_a_volume_has_one_account_for_each_protocol(rig: StoreRig, accounts: Accounts) -> None:
    volume = rig.volume("vm1")
    nbd = accounts.of(volume, "nbd")
    assert accounts.of(volume, "nbd") is nbd
    assert accounts.of(volume, "iscsi") is not nbd
    assert named(accounts) == [("vm1", "iscsi"), ("vm1", "nbd")]


def test_a_past_version_counts_for_its_volume(rig: StoreRig, accounts: Accounts) -> None:
    rig.store.snapshots.create("monday", ["vm1"])
    past = rig.store.open_version("vm1@monday")
    past.attach("c")
    account = accounts.of(past, "nbd")
    assert named(accounts) == [("vm1", "nbd")]
    assert accounts.of(rig.volume("vm1"), "nbd") is account
    past.detach("c")


def test_a_renamed_volume_keeps_its_account(rig: StoreRig, accounts: Accounts) -> None:
    account = accounts.of(rig.volume("vm1"), "nbd")
    account.record(OP_READ, 512, False, 1)
    rig.store.rename_volume("vm1", "vm2")
    assert accounts.all() == [("vm2", "nbd", account)]
    assert accounts.of(rig.volume("vm2"), "nbd") is account


def test_a_deleted_volume_is_forgotten_and_its_name_begins_anew(
    rig: StoreRig, accounts: Accounts
) -> None:
    before = accounts.of(rig.volume("vm1"), "nbd")
    rig.store.delete_volume("vm1")
    assert accounts.all() == []
    rig.store.create_volume("vm1", MIB)
    assert accounts.of(rig.volume("vm1"), "nbd") is not before


class Device:
    """As much of a device as accounts look at."""

    def __init__(self, name: str) -> None:
        self.name = name


class Exports:
    def names(self) -> list[str]:
        return ["kept"]

    def get(self, name: str) -> Device:
        return Device(name)


def test_accounts_of_volumes_that_are_gone_are_bounded() -> None:
    accounts = Accounts(Exports())  # type: ignore[arg-type]
    kept: Account = accounts.of(Device("kept"), "nbd")  # type: ignore[arg-type]
    for number in range(10 * LEAST_PRUNED):
        accounts.of(Device(f"gone{number}"), "nbd")  # type: ignore[arg-type]
        assert len(accounts._accounts) <= LEAST_PRUNED
    assert accounts.all() == [("kept", "nbd", kept)]
