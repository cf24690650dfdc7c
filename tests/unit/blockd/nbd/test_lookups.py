"""Questions about versions and their answers: nothing that a disk or a name can do escapes."""

import errno

import pytest

from blockd.nbd.lookups import (
    Answer,
    ChangesFound,
    ListVersions,
    OpenChanges,
    OpenVersion,
    Unavailable,
    VersionOpened,
    VersionQuestion,
    VersionsListed,
    look_up,
)
from tests.fakes import FakeChanges, FakeExports, MemoryDevice
from volume.errors import CorruptManifest, InvalidSnapshotName

QUESTIONS = [OpenVersion("disk@monday"), ListVersions(None, 10)]


def exports() -> FakeExports:
    device = MemoryDevice()
    device.snapshot("monday")
    device.snapshot("tuesday")
    return FakeExports([device])


def unavailable(answer: Answer) -> Unavailable:
    assert isinstance(answer, Unavailable)
    return answer


def test_a_version_is_opened() -> None:
    answer = look_up(OpenVersion("disk@monday"), exports())
    assert isinstance(answer, VersionOpened)
    assert answer.device.name == "disk@monday"
    assert answer.device.read_only


@pytest.mark.parametrize("name", ["disk@friday", "nodisk@monday"])
def test_a_version_that_is_not_there_is_nothing_unusual(name: str) -> None:
    answer = unavailable(look_up(OpenVersion(name), exports()))
    assert name.split("@")[0] in answer.message
    assert not answer.unusual


def test_what_no_version_can_be_called_is_nothing_unusual() -> None:
    disks = exports()
    disks.fail_with = InvalidSnapshotName("mon day", "has a blank")
    assert not unavailable(look_up(OpenVersion("disk@mon day"), disks)).unusual


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("error", [CorruptManifest("node 3f9a is damaged"), OSError(errno.EIO, "")])
def test_damage_is_an_answer_and_unusual(question: VersionQuestion, error: Exception) -> None:
    disks = exports()
    disks.fail_with = error
    answer = unavailable(look_up(question, disks))
    assert answer.unusual
    assert not answer.bug


def test_changes_are_found_for_each_ref_that_there_is() -> None:
    disks = exports()
    question = OpenChanges(disks.devices[0], ("tuesday", "friday", "monday"))
    answer = look_up(question, disks)
    assert isinstance(answer, ChangesFound)
    refs = [each.ref if isinstance(each, FakeChanges) else None for each in answer.found]
    assert refs == ["tuesday", None, "monday"]


class DamagedDevice(MemoryDevice):
    def changes_since(self, ref: str) -> FakeChanges:
        raise CorruptManifest(f"the tree of {ref} is damaged")


def test_damage_under_changes_is_no_missing_version() -> None:
    answer = unavailable(look_up(OpenChanges(DamagedDevice(), ("monday",)), exports()))
    assert answer.unusual
    assert "monday" in answer.message


def test_names_are_newest_first_and_bounded() -> None:
    assert look_up(ListVersions("disk", 1), exports()) == VersionsListed(("disk@tuesday",))


class Garrulous(FakeExports):
    def version_names(self, volume: str | None, limit: int) -> list[str]:
        return ["disk@a"] * (limit + 5)


def test_names_are_bounded_whatever_the_store_says() -> None:
    answer = look_up(ListVersions(None, 3), Garrulous([]))
    assert isinstance(answer, VersionsListed)
    assert len(answer.names) == 3
