"""A command while it runs, without a transport: what it needs is told in steps.

`LogicalUnit.prepare` looks at a CDB before any data is there and answers with one of

    Result      it is over already
    Single      the hot case: one request to the device, and GOOD when that succeeds
    Prepared    anything else: how much data-out it takes, and a function that begins it

The transport collects `data_out_length` bytes (or fewer, when the initiator has fewer to send),
then makes a `Task` and carries out its steps until there is a result:

    Submit      hand requests to a device; go on when every one of them has come back
    Work        call a function that waits for a disk, on another thread; go on with what it returns
    Await       go on when something that is under way elsewhere has ended

A command that needs several steps is a generator: it yields these and is resumed with None or the
value. Errors of requests are in `request.error`; an exception of `Work.call` is thrown
into the generator. Nothing here knows in which order steps of several tasks are carried out, nor
on which thread: all calls come from the transport's one thread.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import Buffer

from blockd.device import BlockDevice
from blockd.scsi.sense import CheckCondition, ReservationConflict, Sense
from native import Request

# Status codes (SAM-5 table 33).
GOOD: Final = 0x00
CHECK_CONDITION: Final = 0x02
CONDITION_MET: Final = 0x04
BUSY: Final = 0x08
RESERVATION_CONFLICT: Final = 0x18
TASK_SET_FULL: Final = 0x28
TASK_ABORTED: Final = 0x40


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. `data` is its data-in, in order, cut to the allocation length."""

    status: int = GOOD
    data: tuple[Buffer, ...] = ()
    sense: Sense | None = None
    """For a CHECK CONDITION; encoded in the format that the unit's D_SENSE asks for."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Requests for `device.submit`, in this order. `data` of a WRITE belongs to the task and stays
    as it is until the request is finished."""

    device: BlockDevice
    requests: list[Request]


@dataclass(frozen=True, slots=True)
class Work:
    """Something that waits: to be called on a thread of its own."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Await:
    """Something that ends by itself, as tasks of others that were aborted: `begin` is called with
    what is to be called when it has, then or later."""

    begin: Callable[[Callable[[], None]], None]


Steps = Generator[Submit | Work | Await, Any, Result]


class Countdown:
    """Calls `done` when all that was counted has gone. Begins with one, for whoever counts: that
    one calls `gone` when everything has been counted."""

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self.count = 1

    def gone(self) -> None:
        self.count -= 1
        if not self.count:
            self._done()


@dataclass(slots=True)
class Single:
    """READ, WRITE or FLUSH: one request. The transport sets `request.data` of a WRITE, and may hand
    in the requests of several commands as one batch."""

    device: BlockDevice
    request: Request
    data_out_length: int
    finish: Callable[[Request], Result]
    """Called with the finished request."""


@dataclass(slots=True)
class Prepared:
    """A command that passed the checks that need no data."""

    data_out_length: int
    """Bytes of data-out that the CDB asks for; 0 when it takes none."""
    run: Callable[[memoryview], Steps | Result]
    """Begin, with the data-out that came: `data_out_length` bytes, or fewer when the initiator
    announced fewer. The memory is the task's until it ends. CheckCondition, ReservationConflict."""
    exact: bool = False
    """The data is no run of blocks of which some may be missing or left over: an initiator that
    announced another length than `data_out_length` gets 05/2400, before data is asked for."""
    data_in_length: int = 0
    """Bytes of data-in that it will hold when that is much; the transport may put it off until it
    has room for these. Not together with data-out."""


class Task:
    """Drives the steps of a `Prepared` command. `result` is set when it is over."""

    __slots__ = ("_steps", "_waiting", "result", "step")

    def __init__(self) -> None:
        self.result: Result | None = None
        self.step: Submit | Work | Await | None = None
        """What is to be carried out now; set by `begin`, `finished`, `worked` and `waited`."""
        self._steps: Steps | None = None
        self._waiting = 0

    def begin(self, prepared: Prepared, data_out: memoryview) -> None:
        """Run to the first step, or to the end."""
        self._guard(lambda: self._begin(prepared, data_out))

    def finished(self, count: int) -> bool:
        """`count` requests of the current Submit are back; whether that moved the task on."""
        assert isinstance(self.step, Submit)
        self._waiting -= count
        assert self._waiting >= 0
        if self._waiting:
            return False
        self._advance(None)
        return True

    def worked(self, value: object, error: Exception | None = None) -> None:
        """The current Work is done."""
        assert isinstance(self.step, Work)
        if error is None:
            self._advance(value)
        else:
            self._throw(error)

    def waited(self) -> None:
        """What the current Await is about has ended."""
        assert isinstance(self.step, Await)
        self._advance(None)

    def abort(self) -> None:
        """Let go of the generator; requests that are out may still come back and are ignored."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        self.step = None

    def _begin(self, prepared: Prepared, data_out: memoryview) -> None:
        begun = prepared.run(data_out)
        if isinstance(begun, Result):
            self.result = begun
        else:
            self._steps = begun
            self._take(next(begun))

    def _advance(self, value: object) -> None:
        steps = self._steps
        assert steps is not None
        self._guard(lambda: self._take(steps.send(value)))

    def _throw(self, error: Exception) -> None:
        steps = self._steps
        assert steps is not None
        self._guard(lambda: self._take(steps.throw(error)))

    def _take(self, step: Submit | Work | Await) -> None:
        self.step = step
        self._waiting = len(step.requests) if isinstance(step, Submit) else 0
        assert self._waiting or not isinstance(step, Submit), "a Submit of nothing"

    def _guard(self, call: Callable[[], None]) -> None:
        """Run one stretch of the command and turn how it ends into a result."""
        try:
            call()
        except StopIteration as end:
            self._end(end.value)
        except CheckCondition as error:
            self._end(Result(CHECK_CONDITION, sense=error.sense))
        except ReservationConflict:
            self._end(Result(RESERVATION_CONFLICT))

    def _end(self, result: Result) -> None:
        self.result = result
        self.step = None
        self._steps = None
