"""Reads a history once, in order, and collects what is wrong in it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.check.blocks import SECTORS as BLOCK_SECTORS
from tests.check.blocks import torn_blocks
from tests.check.events import (
    CHANGES,
    FLUSH,
    FUA,
    KILL,
    KINDS,
    POWER,
    READ,
    WRITES,
    BadHistory,
    Header,
    Line,
    read_history,
)
from tests.check.log import INFINITY, Change, Log
from tests.check.registers import Registers, Value
from tests.check.stamps import FOREIGN, SECTOR, TORN, Run
from tests.check.states import StateVerdict, judge_state

SHOWN: Final = 50  # findings that are kept with their text; all are counted


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise. `line` is that of the history which shows it."""

    invariant: str
    line: int
    first: int
    count: int
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}: sectors [{self.first}, +{self.count})"
        return f"{self.invariant}: {where}: {self.text}"


@dataclass(slots=True)
class Report:
    """What a history amounts to."""

    header: Header
    operations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(sorted(KINDS), 0))
    failed: int = 0
    """Operations that got an error, of which nobody knows if they happened."""
    crashes: int = 0
    states: int = 0
    """Whole states that were judged, of snapshots too."""
    sectors_read: int = 0
    found: int = 0
    findings: list[Finding] = field(default_factory=list)
    """The first ones."""

    @property
    def ok(self) -> bool:
        return not self.found

    @property
    def total(self) -> int:
        return sum(self.operations.values())

    def add(self, finding: Finding) -> None:
        self.found += 1
        if len(self.findings) < SHOWN:
            self.findings.append(finding)


@dataclass(slots=True)
class _InFlight:
    kind: str
    begin: int
    first: int
    count: int
    change: Change | None


def judge_file(path: Path) -> Report:
    """Judge a recorded history. Raises BadHistory."""
    header, lines = read_history(path)
    judge = Judge(header)
    judge.take(lines)
    return judge.report


class Judge:
    """Takes the events of a history, one after the other."""

    def __init__(self, header: Header) -> None:
        self.report = Report(header)
        self.log = Log(header.size // SECTOR)
        self._registers = Registers()
        self._in_flight: dict[int, _InFlight] = {}  # by begin, since they are put in so
        self._unsettled: list[Change] = []  # failed; they may show until a crash
        self._oldest_failed = INFINITY  # begin of the oldest of them
        self._newest = 0
        self._flushed = 0  # begin of the newest acked flush
        self._names: dict[str, tuple[int, int]] = {}
        self._crash: tuple[int, str] | None = None  # the last one, until a state was taken
        self._time = 1

    def take(self, lines: Iterable[Line]) -> None:
        """Go on with these events. Raises BadHistory."""
        for line in lines:
            self._time += 1
            try:
                self._event(line)
            except (LookupError, ValueError, TypeError) as error:
                raise BadHistory(f"line {self._time}: {line}: {error!r}") from None

    def _event(self, line: Line) -> None:
        what = line[0]
        if what == "b":
            self._begin(*line[1:])
        elif what == "e":
            self._end(*line[1:])
        elif what == "m":
            self._names[line[1]] = (self._time, INFINITY)
        elif what == "n":
            begin, _ = self._names[line[1]]
            if not line[2]:
                self._names[line[1]] = (begin, self._time)
        elif what == "crash":
            self._crashed(line[1])
        elif what == "takeover":
            self._end_changes()
            self._flushed = self._time
        elif what == "state":
            self._state(line[1], line[2])
        elif what != "restart":
            raise ValueError("unknown event")

    def _begin(self, operation: int, writer: int, kind: str, first: int, count: int) -> None:
        if operation <= self._newest:
            raise ValueError("numbers of operations only grow")
        if kind not in KINDS or (
            kind != FLUSH and not 0 <= first < first + count <= self.log.sectors
        ):
            raise ValueError("unknown kind, or not inside the volume")
        if self._crash is not None and self._crash[1] == POWER:
            raise ValueError("after a power cut a state has to be taken before anything is done")
        self._newest = operation
        change = None
        if kind in CHANGES:
            change = Change(operation, writer, first, count, kind not in WRITES, self._time)
            change.oldest = self._oldest_unsettled()
            self.log.add(change)
            if change.zero:
                self._registers.open_zeros[operation] = change
        self._in_flight[operation] = _InFlight(kind, self._time, first, count, change)
        self.report.operations[kind] += 1

    def _end(self, operation: int, error: int, runs: list[Run] | None = None) -> None:
        ended = self._in_flight.pop(operation)
        if error:
            self.report.failed += 1
            if ended.change is not None and ended.change.crashed == INFINITY:
                self._unsettled.append(ended.change)
                self._oldest_failed = min(self._oldest_failed, ended.begin)
        elif ended.change is not None:
            # After a takeover the reply was only on its way: it had happened before.
            ended.change.end = min(self._time, ended.change.crashed)
            ended.change.fua = ended.kind == FUA
            self._registers.acked(ended.change, self._oldest())
            if ended.change.zero:
                self._registers.open_zeros.pop(operation, None)
        elif ended.kind == FLUSH:
            self._flushed = max(self._flushed, ended.begin)
        else:
            assert ended.kind == READ
            if runs is None or sum(int(count) for count, _ in runs) != ended.count:
                raise ValueError("a read without what it saw")
            self._look(runs, ended.first, ended.begin, operation)
            self._torn_blocks(runs, ended.first, self._time, f"read by operation {operation}")

    def _oldest_unsettled(self) -> int:
        """The same, or when the oldest change began of which nobody knows whether it happened."""
        return min(self._oldest(), self._oldest_failed)

    def _oldest(self) -> int:
        """When the oldest operation in flight began."""
        for operation in self._in_flight.values():
            return operation.begin
        return self._time + 1

    def _look(
        self,
        runs: list[Run],
        first: int,
        begin: int,
        operation: int,
        told: frozenset[int] = frozenset(),
    ) -> None:
        """What a read saw, or a state (operation 0): may it be? Nothing is said of the sectors that
        were `told` already."""
        oldest = self._oldest()
        at = first
        for count, source in runs:
            sectors = range(at, at + int(count))
            at = sectors.stop
            if source == 0:
                wrong = self._registers.read_zeros(
                    sectors, begin, self._time, oldest, quiet=not operation
                )
                self._contradicted(wrong, 0, begin, operation, told)
                continue
            if not told.isdisjoint(sectors) and self._is_strange(source, sectors):
                continue
            change = self._known(source, sectors, operation)
            if change is not None:
                wrong = self._registers.read(change, sectors, begin, self._time, oldest)
                self._contradicted(wrong, change.operation, begin, operation, told)
        self.report.sectors_read += at - first

    def _is_strange(self, source: int | str, sectors: range) -> bool:
        change = self.log.changes.get(source) if isinstance(source, int) else None
        return change is None or change.zero or not change.covers(sectors.start, len(sectors))

    def _torn_blocks(self, runs: list[Run], first: int, end: int, what: str) -> None:
        for block, torn in torn_blocks(runs, first, self.log, end):
            text = f"{what}: operation {torn} shows in a part of the 4 KiB block"
            self._find("I5", block, BLOCK_SECTORS, text)

    def _known(self, source: int | str, sectors: range, operation: int) -> Change | None:
        """The change that a read saw; None, and a finding, if it cannot be."""
        by = f"read by operation {operation}" if operation else "in a state"
        if source == TORN:
            self._find("I5", sectors.start, len(sectors), f"torn sectors, {by}")
        elif source == FOREIGN:
            self._find("I8", sectors.start, len(sectors), f"somebody else's bytes, {by}")
        elif self._is_strange(source, sectors):
            text = f"operation {source}, which did not write them, {by}"
            self._find("I8", sectors.start, len(sectors), text)
        else:
            return self.log.changes[int(source)]
        return None

    def _contradicted(
        self,
        wrong: Iterator[tuple[int, Value | None]],
        saw: int,
        begin: int,
        operation: int,
        told: frozenset[int],
    ) -> None:
        """Make findings of sectors that a read saw wrongly; neighbours with one reason are one."""
        groups: list[tuple[int, int, Change | None]] = []
        for sector, value in wrong:
            if sector in told:
                continue
            instead = value.change if value else None
            if groups and sum(groups[-1][:2]) == sector and groups[-1][2] is instead:
                groups[-1] = (groups[-1][0], groups[-1][1] + 1, instead)
            else:
                groups.append((sector, 1, instead))
        for first, count, instead in groups:
            what = f"operation {saw}" if saw else "zeros"
            by = f"read by operation {operation}" if operation else "a state"
            why = "went back"
            if instead is not None and instead.end < begin:
                why = f"stale: operation {instead.operation} was acked in line {instead.end}"
            elif instead is not None:
                why = f"went back: operation {instead.operation} had been seen"
            self._find("I1", first, count, f"{by} shows {what}; {why}")

    def _crashed(self, kind: str) -> None:
        self.report.crashes += 1
        self._end_changes()
        self._in_flight.clear()
        self._crash = (self._time, kind)
        for name, (begin, end) in self._names.items():
            if end == INFINITY:
                self._names[name] = (begin, self._time)

    def _end_changes(self) -> None:
        """What was not acked by now, or failed, has taken effect or never does."""
        cut_off = [ended.change for ended in self._in_flight.values() if ended.change is not None]
        for change in cut_off + self._unsettled:
            change.crashed = min(change.crashed, self._time)
        self._unsettled.clear()
        self._oldest_failed = INFINITY

    def _state(self, of: str | None, runs: list[Run]) -> None:
        if sum(int(count) for count, _ in runs) != self.log.sectors:
            raise ValueError("a state that is not of the whole volume")
        self.report.states += 1
        if of is not None:
            begin, end = self._names[of]
            verdict = judge_state(self.log, runs, begin, min(end, self._time), crashed=False)
            self._report(of, verdict, runs)
            return
        changes = [ended.change for ended in self._in_flight.values()]
        if any(change is not None and change.crashed == INFINITY for change in changes):
            raise ValueError("a state while there are writes in flight")
        crash, self._crash = self._crash, None
        if crash is not None and crash[1] == POWER:
            self._after_power_cut(runs, crash[0])
            return
        verdict = judge_state(self.log, runs, self._time, self._time, crashed=False)
        self._report("the volume", verdict, runs)
        self._look(runs, 0, self._time, 0, told=verdict.bad)
        self._registers.open_zeros.clear()
        self._in_effect(verdict)

    def judge_end(self, runs: list[Run], name: str | None = None) -> None:
        """Judge a state of the whole volume that was taken after all this, or one of `name`.
        Raises BadHistory for a name that the history does not have."""
        if name is not None and name not in self._names:
            raise BadHistory(f"no state has the name {name!r}; there are {sorted(self._names)}")
        if name is None and self._in_flight:
            self.take([["crash", KILL]])
        self.take([["state", name, runs]])

    def _in_effect(self, verdict: StateVerdict) -> None:
        """What shows after a crash that cut it off was in effect by then."""
        for operation in verdict.visible:
            change = self.log.changes[operation]
            change.end = change.settled

    def _after_power_cut(self, runs: list[Run], at: int) -> None:
        verdict = judge_state(self.log, runs, self._flushed, at, crashed=True)
        self._report("after the power cut", verdict, runs)
        for change in self.log.changes.values():
            if change.end > verdict.cut and change.operation not in verdict.visible:
                # Perhaps it was undone, perhaps it is only covered: it proves nothing any more.
                change.end, change.crashed = INFINITY, min(change.crashed, at)
        self._registers.power_cut(at, self._time)
        first = 0
        for count, source in runs:
            change_of = self.log.changes.get(source) if isinstance(source, int) else None
            if change_of is not None:
                self._registers.settle(change_of, range(first, first + int(count)), at, self._time)
            first += int(count)
        self._in_effect(verdict)
        self._flushed = at

    def _report(self, what: str, verdict: StateVerdict, runs: list[Run]) -> None:
        """Findings of a state, by invariant and run of sectors."""
        cut = f"{what}, like line {verdict.cut} for the rest"
        for invariant, sectors, text in (
            ("I5", verdict.torn, f"{what}: torn"),
            ("I8", verdict.foreign, f"{what}: bytes that cannot be there"),
            (
                "I2",
                verdict.lost,
                f"{what}: older than line {verdict.at_least}, or than a FUA write",
            ),
            ("I3", verdict.offenders, f"{cut}: not of that time"),
            ("I3", verdict.split, f"{cut}: lack a write that shows elsewhere"),
        ):
            for first, count in _ranges(sectors):
                self._find(invariant, first, count, text)
        self._torn_blocks(runs, 0, verdict.at_most + 1, what)

    def _find(self, invariant: str, first: int, count: int, text: str) -> None:
        self.report.add(Finding(invariant, self._time, first, count, text))


def _ranges(sectors: Iterable[int]) -> list[tuple[int, int]]:
    """(first, count) of runs of neighbours."""
    found: list[tuple[int, int]] = []
    for sector in sorted(sectors):
        if found and sum(found[-1]) == sector:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((sector, 1))
    return found
