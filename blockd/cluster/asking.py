"""Asking several nodes at once, for what is shown to people."""

from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from typing import Final, TypeVar

from transport.errors import TransportError
from transport.group.around import outcome, text_of
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.peer.wire import Message
from transport.sessions import Sessions

LOOK_S: Final = 2.0

K = TypeVar("K", bound=Hashable)
A = TypeVar("A", bound=Message)


def ask_all(
    sessions: Sessions,
    what: Mapping[K, tuple[str, m.Request]],
    kind: type[A],
    timeout_s: float = LOOK_S,
) -> dict[K, A | str]:
    """Ask nodes, by id, all at once; their answers, or why there is none. Waits."""
    ends: dict[K, Future[Answered | Failed]] = {key: Future() for key in what}

    def ask() -> None:
        for key, (node, request) in what.items():
            try:
                sessions.ask(bytes.fromhex(node), request, timeout_s, ends[key].set_result)
            except TransportError as error:
                ends[key].set_result(Failed(0, str(error)))

    if ends:
        sessions.result_of(ask)
    return {key: _result(end, kind, timeout_s) for key, end in ends.items()}


def _result(end: Future[Answered | Failed], kind: type[A], timeout_s: float) -> A | str:
    try:
        result = outcome(end.result(timeout_s + 1.0))
    except TookTooLong:
        return f"no answer in {timeout_s:g} s"
    return result if isinstance(result, kind) else text_of(result)
