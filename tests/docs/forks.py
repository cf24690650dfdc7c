"""`blockd` without the start of a Python each time: a process that has it loaded, and forks.

The pages have more than a hundred commands, and starting the interpreter would be nine tenths of
what they cost. `Forks` starts the process and writes a program that hands it arguments, folder,
environment and its three streams; the command then runs in a child of that process, by the entry
point of `blockd` itself, and the program exits with its code.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
LOADED = (
    *("blockd.cli.entry", "blockd.api.client", "blockd.cli.meter", "blockd.tls"),
    *("volume.stream_wire", "httpx", "rich.table", "rich.progress"),
)
"""What commands load, and what they load when they need it."""
MAX_REQUEST = 1 << 17  # arguments and environment
CLIENT = """\
#!/usr/bin/python3 -IS
# A command of the documentation, as tests/docs/forks.py has it.
import array, json, os, socket, sys
arguments = sys.argv[1:]
if arguments[:1] == ["serve"]:  # one runs already: what a page starts is only checked
    arguments.append("--check-config")
asked = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({path!r})
streams = array.array("i", [0, 1, 2])
server.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""


class Forks:
    """`folder` is empty and has a short path; `program` is what stands for `blockd` then."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "blockd"
        path = str(folder / "s")
        self.program.write_text(CLIENT.format(path=path))
        self.program.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen(64)
        with listener:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.docs.forks", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(listener: socket.socket) -> NoReturn:
    """Run each command that is asked for in a child, any number at a time."""
    for module in LOADED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                listener.close()
                run(connection)


def run(connection: socket.socket) -> NoReturn:
    """In the child: be the command, and tell how it ended."""
    from blockd.cli.entry import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
    arguments, folder, environment = json.loads(asked)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            output.flush()
    connection.send(bytes([code]))
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
