"""`blockd` without the start of a Python each time: a process that has it loaded, and forks.

A run has a thousand commands and hundreds of daemons; loading the program would be most of what
they cost. `Forks` starts a process that has loaded it; a command or a daemon then runs in a child
of that process, by the entry point of `blockd` itself, with the arguments, folder, environment and
streams that it is given. What that leaves out, the start of the program itself, is shown by the
tests that start it by a `prefix` or `program` of their own (installation, activation, privileges).

A request is one connection to the process: arguments, folder and environment as JSON with three
streams go there, the child's pid comes back, and its status when it has ended.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from blockd.api.node import Node

ROOT = Path(__file__).parents[1]
LOADED = (
    *("blockd.cli.entry", "blockd.api.client", "blockd.cli.meter", "blockd.cli.quick"),
    *(f"blockd.cli.{noun}" for noun in ("cluster", "doctor", "serve", "snapshot", "volume")),
    *("blockd.daemon", "blockd.wiring", "blockd.privileges", "blockd.tls", "blockd.doctor"),
    *("blockd.api.app", "blockd.api.server", "blockd.metrics.app"),
    *("blockd.cluster.node", "blockd.cluster.identity", "volume.stream_wire"),
    *("cryptography.x509", "rich.table", "rich.progress", "pydantic", "typer._adapters"),
)
"""What commands and daemons load, and what they load when they need it."""
MAX_REQUEST = 1 << 17  # arguments and environment
STATUS_BYTES = 4
STREAMS = 3
CLIENT = """\
#!/usr/bin/python3 -IS
# A command of the documentation, as tests/forks.py has it.
import array, json, os, socket, sys
arguments = sys.argv[1:]
if arguments[:1] == ["serve"]:  # one runs already: what a page starts is only checked
    arguments.append("--check-config")
asked = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({path!r})
streams = array.array("i", [0, 1, 2])
server.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.recv(4)  # its pid
answer = server.recv(4)
sys.exit(int.from_bytes(answer, "little", signed=True) if answer else 1)
"""


class Forked:
    """One such child; like `subprocess.Popen`, as far as tests need it."""

    def __init__(self, connection: socket.socket, stdout: "IO[bytes] | None" = None) -> None:
        self.stdout = stdout
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()
        self.pid = int.from_bytes(connection.recv(STATUS_BYTES), "little")
        assert self.pid, "the process that forks has ended"

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        with self._lock:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._connection, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired(f"blockd {self.pid}", timeout or 0)
                status = self._connection.recv(STATUS_BYTES)
                assert status, "the process that forks has ended"
                self.returncode = int.from_bytes(status, "little", signed=True)
                self._connection.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """`program` stands for `blockd` where a program is needed."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="f-"))  # a short path
        self.program = self._folder / "blockd"
        self._path = str(self._folder / "s")
        self.program.write_text(CLIENT.format(path=self._path))
        self.program.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self._path)
        listener.listen(64)
        with listener:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,  # its end is the process's
                cwd=ROOT,
            )

    @property
    def pid(self) -> int:
        """Of the process that forks."""
        return self._process.pid

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        shutil.rmtree(self._folder)

    def start(
        self,
        arguments: Sequence[str],
        streams: tuple[int, int, int],
        environ: Mapping[str, str],
    ) -> socket.socket:
        """Begin `blockd ARGUMENTS` with these streams; what `Forked` takes."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self._path)
        asked = json.dumps([list(arguments), os.getcwd(), dict(environ)]).encode()
        rights = array.array("i", streams)
        connection.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return connection

    def serve(
        self, arguments: Sequence[str], stderr: IO[bytes], environ: Mapping[str, str]
    ) -> Forked:
        """A child whose standard output is read here, without standard input."""
        read, write = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            started = self.start(arguments, (nothing, write, stderr.fileno()), environ)
        finally:
            os.close(write)
            os.close(nothing)
        return Forked(started, os.fdopen(read, "rb"))

    def run(
        self,
        arguments: Sequence[str],
        *,
        stdin: bytes = b"",
        environ: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> "subprocess.CompletedProcess[bytes]":
        """`blockd ARGUMENTS` to its end. TimeoutExpired; it is killed then."""
        pipes = [os.pipe() for _ in range(STREAMS)]
        (given, giving), (out, writing), (err, complaining) = pipes
        try:
            started = self.start(
                arguments,
                (given, writing, complaining),
                os.environ if environ is None else environ,
            )
        finally:
            for fd in (given, writing, complaining):
                os.close(fd)
        process = Forked(started)
        try:
            said = _communicated(giving, stdin, (out, err), timeout_s)
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(["blockd", *arguments], code, *said)


def _communicated(
    giving: int, stdin: bytes, outputs: tuple[int, int], timeout_s: float
) -> list[bytes]:
    """What came from `outputs` until their ends, while `stdin` went to `giving`."""
    deadline = time.monotonic() + timeout_s
    said: dict[int, list[bytes]] = {fd: [] for fd in outputs}
    left = memoryview(stdin)
    os.set_blocking(giving, False)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for fd in outputs:
            stack.callback(os.close, fd)
            selector.register(fd, selectors.EVENT_READ)
        selector.register(giving, selectors.EVENT_WRITE)
        closing = stack.enter_context(contextlib.ExitStack())
        closing.callback(os.close, giving)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired("blockd", timeout_s)
            for key, _ in ready:
                if key.fd == giving:
                    try:
                        left = left[os.write(giving, left[:65536]) :] if left else left
                    except BrokenPipeError:
                        left = left[:0]
                    if not left:
                        selector.unregister(giving)
                        closing.close()
                elif piece := os.read(key.fd, 65536):
                    said[key.fd].append(piece)
                else:
                    selector.unregister(key.fd)
    return [b"".join(pieces) for pieces in said.values()]


class _Shared:
    """The process that this run of pytest has for all its tests, once one needs it."""

    def __init__(self) -> None:
        self.wanted = False
        self._forks: Forks | None = None
        self._lock = threading.Lock()

    def get(self) -> Forks | None:
        """None outside of pytest: what measures the program starts it itself."""
        with self._lock:
            if self.wanted and self._forks is None:
                self._forks = Forks()
            return self._forks

    @property
    def pid(self) -> int | None:
        """Of that process, once there is one."""
        with self._lock:
            return None if self._forks is None else self._forks.pid

    def close(self) -> None:
        self.wanted = False
        if self._forks is not None:
            self._forks.close()
            self._forks = None


shared = _Shared()


def serve(listener: socket.socket) -> list[str]:
    """Have a child for each request, any number at a time, until standard input ends. Returns in
    the children: the arguments, with all else in place."""
    for module in LOADED:
        importlib.import_module(module)
    _remember_adapters()
    gc.collect()
    gc.freeze()  # or else children would copy all of it
    children: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, wake)
        stack.callback(os.close, woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        selector = stack.enter_context(selectors.DefaultSelector())
        for fd in (0, wake, listener.fileno()):
            selector.register(fd, selectors.EVENT_READ)
        asked = _parent(listener, selector, wake, children)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for other in children.values():
        other.close()
    with asked:
        return _become(asked)


class _Nobody:
    """Stands for a node that is not asked anything."""

    def __getattr__(self, name: str) -> "_Nobody":
        return self


def _remember_adapters() -> None:
    """Have what FastAPI makes of the types of the control API made here: it is the same in each
    daemon, and half of what a start takes, 145 times pydantic. With a FastAPI that is arranged in
    another way, each daemon makes its own."""
    try:
        compat: Any = importlib.import_module("fastapi._compat.v2")
        make = compat.TypeAdapter
    except (ImportError, AttributeError):
        return
    made: dict[tuple[object, str, str], object] = {}

    def remembered(kind: Any, *, config: object = None) -> object:
        key = kind.__origin__, repr(kind.__metadata__), repr(config)
        if key not in made:
            made[key] = make(kind, config=config)
        return made[key]

    from blockd.api.app import create_app

    compat.TypeAdapter = remembered
    create_app(cast("Node", _Nobody()), "0")


def _parent(
    listener: socket.socket,
    selector: selectors.BaseSelector,
    wake: int,
    children: dict[int, socket.socket],
) -> socket.socket:
    """Returns in the children: whom to ask what to be."""
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                os._exit(0)
            if key.fd == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 65536)
                _reap(children)
                continue
            connection, _ = listener.accept()
            pid = os.fork()
            if pid == 0:
                return connection
            children[pid] = connection
            with contextlib.suppress(OSError):
                connection.send(pid.to_bytes(STATUS_BYTES, "little"))


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        code = os.waitstatus_to_exitcode(status)
        with children.pop(pid) as connection, contextlib.suppress(OSError):
            connection.send(code.to_bytes(STATUS_BYTES, "little", signed=True))


def _become(connection: socket.socket) -> list[str]:
    """Have the streams, folder and environment that are asked for."""
    asked, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST, STREAMS)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    arguments, folder, environment = json.loads(asked)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(arguments)


def run(arguments: list[str]) -> NoReturn:
    """In the child: be the command, and end as a Python ends, but without taking all apart."""
    from blockd.cli.entry import main

    code = 1
    try:
        main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            output.flush()
    os._exit(code)


if __name__ == "__main__":
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
