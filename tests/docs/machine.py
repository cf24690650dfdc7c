"""A machine for the reader of one page: a scratch folder, a daemon, and what runs the blocks there.

The daemon is what `./scripts/serve` starts, on free ports: it has the volume `demo` and speaks NBD
(TLS as well, for who wants it) and iSCSI. Everything else that a page uses, it makes, or says in a
comment that it is given. `SUBSTITUTIONS` is all that is changed in what stands in the page.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.clients import CLIENT_TIMEOUT_S, SYSTEM_PATH, SYSTEM_PYTHON
from tests.daemon import Daemon
from tests.docs.pages import Block
from tests.tls_fixtures import TlsFiles, make_tls_files

FOLDERS = ("/etc/blockd", "/etc/pki/blockd", "/mnt", "/srv", "/tmp", "/var/lib/blockd")
"""Documented places; each is a folder of the scratch machine."""
CHAP = "host1:a-secret-of-host1"
SUDO = """\
#!/bin/sh
exec "$@"
"""
SSH = """\
#!/bin/sh
# The other machine is a second daemon here.
shift
BLOCKD_CONTROL={control} exec sh -c "$*"
"""
_MARK = "\x1e"  # between the outputs of the commands of a console block


class Machine:
    """`folder` is empty and has a short path, `blockd` is the program of that name. Use it as a
    context manager."""

    def __init__(self, folder: Path, blockd: Path) -> None:
        self.folder = folder
        self._blockd = blockd
        self.work = folder / "w"
        self.daemon = Daemon(folder / "data", self._options(), listen=("--nbd", "127.0.0.1:0"))
        self.other = Daemon(folder / "other", listen=("--nbd", "none"))
        self.now = ""
        """The moment at which a block begins; what the pages call a past one."""
        self._left: list[int] = []

    def _options(self) -> list[str]:
        keys = self.folder / "etc" / "blockd"
        return [
            *("--iscsi", "127.0.0.1:0", "--volume", "demo=10G", "--tls", "allow"),
            *("--tls-cert", str(keys / "cert.pem"), "--tls-key", str(keys / "key.pem")),
            *("--tls-client-ca", str(keys / "clients.pem"), "--tls-psk", str(keys / "keys.psk")),
        ]

    def __enter__(self) -> "Machine":
        self.work.mkdir()
        for place in FOLDERS:
            self._here(place).mkdir(parents=True)
        self._keys(make_tls_files(self._here("/etc/pki/blockd")))
        try:
            self.daemon.start()
            self._program("sudo", SUDO)
        except BaseException:
            self.daemon.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()  # what a page that failed has left
        for group in self._left:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.daemon.discard()
        self.other.discard()

    def _unmount(self) -> None:
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in sorted(mounts, key=len, reverse=True):
            if place.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", place], check=False)

    def _here(self, place: str) -> Path:
        return self.folder / place.lstrip("/")

    def _keys(self, made: TlsFiles) -> None:
        """What the documentation calls the files of a server, from those of the tests."""
        keys = self._here("/etc/blockd")
        for name, path in {
            "cert.pem": made.server_certificate,
            "key.pem": made.server_key,
            "clients.pem": made.ca,
            "keys.psk": made.psk,
        }.items():
            (keys / name).symlink_to(path)
        for name, text in {"chap": CHAP, "host1.secret": CHAP.partition(":")[2]}.items():
            (keys / name).touch(mode=0o600)
            (keys / name).write_text(text + "\n")

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def use_ssh(self) -> None:
        """Start the other machine, once."""
        if not self.other.running:
            self.other.start()
            self._program("ssh", SSH.format(control=self.other.ready["control"]))

    def run(self, block: Block) -> None:
        """Do what `block.kind` says with it. Fails the test with what its commands printed."""
        if "ssh " in block.text + block.given:
            self.use_ssh()
        if block.given:
            self._bash(block, self.translate(block.given))
        text = self.translate(block.text)
        {
            "sh": self._bash,
            "console": self._console,
            "toml": self._toml,
            "json": lambda _, text: json.loads(text),
            "python": self._python,
        }[block.kind](block, text)

    def translate(self, text: str) -> str:
        """`text` of a page as this machine needs it."""
        self.now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

        def replacement(match: re.Match[str]) -> str:
            assert match.lastindex is not None
            _, replace = SUBSTITUTIONS[match.lastindex - 1]
            return replace(self, match[0])

        return _ANY_OF_THEM.sub(replacement, text)

    def _bash(self, block: Block, script: str) -> str:
        return self._finish(block, ["bash", "-euo", "pipefail", "-c", script], script)

    def _finish(self, block: Block, command: list[str], shown: str) -> str:
        """What the command printed, on both streams."""
        said = self.folder / "said"
        with said.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.work,
                env=self._environment(),
                start_new_session=True,
            )
            if re.search(r"&\s*($|\n)", shown):
                self._left.append(process.pid)  # what goes on in the background is of this group
            try:
                code = process.wait(CLIENT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
        printed = said.read_text(errors="replace")
        if code:
            pytest.fail(f"{block}: exited with {code}:\n{shown}\n{printed}", pytrace=False)
        if code is None:
            pytest.fail(
                f"{block}: not done in {CLIENT_TIMEOUT_S} s:\n{shown}\n{printed}", pytrace=False
            )
        return printed

    def _environment(self) -> dict[str, str]:
        # The system's programs first: nbdsh takes the python3 that it finds.
        ours = [str(self.folder / "bin"), str(self._blockd.parent)]
        path = [*ours, "/usr/bin", "/bin", os.environ["PATH"], *SYSTEM_PATH]
        return {
            "PATH": ":".join(path),
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "BLOCKD_CONTROL": str(self.daemon.ready["control"]),
        }

    def _console(self, block: Block, text: str) -> None:
        steps = list(console_steps(text))
        script = "".join(f"{command}\nprintf '{_MARK}'\n" for command, _ in steps)
        outputs = self._bash(block, script).split(_MARK)
        for (command, expected), printed in zip(steps, outputs, strict=False):
            missing = first_missing(expected, printed)
            if missing is not None:
                pytest.fail(
                    f"{block}: `{command}` printed no line {missing!r}, or not in this order, "
                    f"but:\n{printed}",
                    pytrace=False,
                )

    def _toml(self, block: Block, text: str) -> None:
        path = self.work / "checked.toml"
        path.write_text(text)
        self._bash(block, shlex.join(["blockd", "serve", "--config", str(path)]))
        path.unlink()

    def _python(self, block: Block, text: str) -> None:
        self._finish(block, [SYSTEM_PYTHON, "-c", text], text)

    @property
    def nbd_port(self) -> str:
        return self.daemon.address.rpartition(":")[2]

    @property
    def iscsi_port(self) -> str:
        return self.daemon.iscsi_address.rpartition(":")[2]


def _with_port(machine: Machine, uri: str) -> str:
    return uri[:-1].replace(SERVER, "localhost") + f":{machine.nbd_port}/"


SERVER = "storage.example.org"
SUBSTITUTIONS: tuple[tuple[str, Callable[[Machine, str], str]], ...] = (
    # The server, by its URIs without a port, its name, its ports.
    (rf"\bnbds?://(?:\w+@)?(?:localhost|127\.0\.0\.1|{re.escape(SERVER)})/", _with_port),
    (re.escape(SERVER), lambda _, name: "localhost"),
    (r"\b10809\b", lambda machine, _: machine.nbd_port),
    (r"\b3260\b", lambda machine, _: machine.iscsi_port),
    # Places.
    (r"(?:\./)?\bblockd-data/", lambda machine, _: f"{machine.daemon.data}/"),
    (rf"(?<![\w.])(?:{'|'.join(FOLDERS)})\b", lambda machine, path: f"{machine.folder}{path}"),
    # Moments and records of the past: the page's volumes have only just been made.
    (r"\b2026-11-22T10:3[0-9:.]*Z", lambda machine, _: machine.now),
    (r"(?<=[@ ])-(?:5|10)m\b", lambda machine, _: machine.now),
    (r"\bseq:(?:12345|48211)\b", lambda _, seq: "seq:1"),
)
"""What is documented, and what the scratch machine has instead."""
_ANY_OF_THEM = re.compile("|".join(f"({pattern})" for pattern, _ in SUBSTITUTIONS))


def console_steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it prints."""
    command: str | None = None
    expected: list[str] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, expected
            command, expected = line[2:], []
        elif line.startswith("> ") and command is not None and not expected:
            command += "\n" + line[2:]
        elif line.strip():
            expected.append(line)
    assert command is not None, f"a console block without `$ `: {text!r}"
    yield command, expected


def first_missing(expected: list[str], printed: str) -> str | None:
    """The first line of `expected` that does not come, after those before it, in `printed`."""
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    for wanted in expected:
        parts = " ".join(wanted.split()).split("...")
        pattern = re.compile(".*".join(map(re.escape, parts)))
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None
