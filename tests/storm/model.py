"""What must be there after a crash: named things, each with the states that it may be in.

A thing is a volume, a snapshot, a target, a registration; its state is any value, None when it is
not there. A change that was under way when the daemon died may have happened or not, as a whole
(`changing`); what is found is what counts from then on (`found`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from tests.storm.writer import Frozen, Mismatch

State = bytes | Frozen | None
Read = Callable[[str], bytes | None]


class Model:
    """Names and their possible states."""

    def __init__(self) -> None:
        self._states: dict[str, list[State]] = {}
        self._may_appear: dict[str, State] = {}

    def names(self, prefix: str = "") -> list[str]:
        """Names of what must be there, in order."""
        return sorted(
            name
            for name, states in self._states.items()
            if name.startswith(prefix) and None not in states
        )

    def state(self, name: str) -> bytes:
        """The only state of something that is there; of a settled one."""
        (state,) = self._states[name]
        assert isinstance(state, bytes)
        return state

    @contextmanager
    def changing(
        self, after: Mapping[str, State], meanwhile: Mapping[str, State] | None = None
    ) -> Iterator[None]:
        """What the block does makes `after` of these. When it does not come to its end, each may
        be as it was, or so, or as it is `meanwhile`."""
        before = {name: self._states.get(name, [None]) for name in after}
        for name, state in after.items():
            also = [meanwhile[name]] if meanwhile and name in meanwhile else []
            self._states[name] = [*before[name], *also, state]
        yield
        for name, state in after.items():
            self._set(name, state)

    def may_appear(self, prefix: str, state: State) -> None:
        """Until the next crash, something whose name begins so may be found, in this state: what
        was under way chooses the name."""
        self._may_appear[prefix] = state

    def found(self, there: set[str], read: Read, unknown: Collection[str] = ()) -> None:
        """After a crash: check everything, and go on from it. `there`: names of all that is, but
        for those of which nothing can be said now."""
        for name in sorted(there - self._states.keys()):
            prefix = next((each for each in self._may_appear if name.startswith(each)), None)
            if prefix is None:
                raise Mismatch(f"nobody made {name}")
            self._states[name] = [self._may_appear[prefix]]
        self._may_appear.clear()
        for name, states in list(self._states.items()):
            if name in unknown:
                continue
            state = read(name) if name in there else None
            if not any(_is(name, each, state) for each in states):
                _complain(name, states, state)
            self._set(name, state)

    def _set(self, name: str, state: State) -> None:
        if state is None:
            self._states.pop(name, None)
        else:
            self._states[name] = [state]


def _is(name: str, expected: State, found: bytes | None) -> bool:
    if not isinstance(expected, Frozen) or found is None:
        return expected == found
    try:
        expected.check(name, found)
    except Mismatch:
        return False
    return True


def _complain(name: str, states: list[State], found: bytes | None) -> None:
    if found is not None and isinstance(states[-1], Frozen):
        states[-1].check(name, found)
    shown = ", ".join("absent" if each is None else _shown(each) for each in states)
    raise Mismatch(f"{name} is {_shown(found)}; it may be {shown}")


def _shown(state: State) -> str:
    if state is None:
        return "absent"
    if isinstance(state, Frozen):
        return "a state under writes"
    return f"{len(state)} bytes beginning with {state[:16].hex()}"
