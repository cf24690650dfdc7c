"""What a terminal shows while a command waits; nothing at all in a pipe or a log."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

POLL_S = 0.2
SHOWN_AFTER_S = 0.5  # what is done sooner needs no spinner

T = TypeVar("T")


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on stderr, with the time that has passed, while a block runs that takes longer."""
    if not sys.stderr.isatty():
        yield
        return
    with contextlib.ExitStack() as stack:
        lock = threading.Lock()
        over = False

        def show() -> None:
            with lock:
                if not over:
                    stack.enter_context(_spinner(what))

        timer = threading.Timer(SHOWN_AFTER_S, show)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with lock:
                over = True


def _spinner(what: str) -> contextlib.AbstractContextManager[object]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    progress.add_task(what, total=None)
    return progress


def following(
    what: str, call: Callable[[], T], progress: Callable[[], tuple[str, float]] | None
) -> T:
    """`call()`, with a bar on a terminal that shows `progress()`: a phase, and 0.0 to 1.0.

    Ctrl-C ends the waiting, not what the daemon does."""
    if progress is None or not sys.stderr.isatty():
        with waiting(what):
            return call()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SHOWN_AFTER_S)
    if thread.is_alive():
        with bar() as shown:
            while thread.is_alive():
                shown(*progress())
                thread.join(POLL_S)
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr with the time that is left; called with a phase, and 0.0 to 1.0."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda phase, done: progress.update(task, description=phase, completed=done)
