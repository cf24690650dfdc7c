"""Other people's clients: fio's verify over NBD, qemu-io's patterns over iSCSI.

Each guest has a volume of its own and a thread. What it writes in one process it reads back in
another, so that kills come in between; a kill in the middle of a process makes that process fail,
which says nothing, and it is done again. A failure without a kill, or bytes that differ, is one.
"""

import contextlib
import random
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from server import Server

from tests.daemon import Daemon

MiB = 1 << 20
POLL_S = 0.5
SLOT = 64 << 10


class Guest:
    """`turn` is called again and again; it raises Killed or AssertionError."""

    def __init__(self, server: Server, name: str, size: int, seed: int) -> None:
        self.server = server
        self.name = name
        self.size = size
        self.rng = random.Random(f"{seed}/{name}")
        self.bytes = 0
        """Written and read back."""
        self.turns = 0
        self.failure: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the process that runs; its outcome counts."""
        self._stopping.set()
        self._thread.join()

    def turn(self) -> None:
        raise NotImplementedError

    def run_tool(
        self, command_line: Callable[[Daemon], list[str]], folder: Path | None = None
    ) -> str | None:
        """What it printed; None when the server was killed meanwhile. Raises AssertionError."""
        while not self.server.up.wait(1.0):
            if self._stopping.is_set():
                return None
        generation = self.server.generation
        if not self.server.up.is_set():
            return None
        command = command_line(self.server.daemon)
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=folder
            )
            while self.server.generation == generation and process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
            if self.server.generation != generation:
                # fio's engine spins for ever once its server is gone. Nor does a good end say that
                # nothing of it was cut off.
                process.kill()
                process.wait()
                return None
            output.seek(0)
            said = output.read()
        assert process.returncode == 0, f"{' '.join(command)}\n{said[-4000:]}"
        return said

    def pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def _run(self) -> None:
        try:
            while not self.stopping:
                self.turn()
        except Exception as error:
            self.failure = f"{self.name}: {type(error).__name__}: {error}"


class Fio(Guest):
    """Writes its whole volume once in random order, at some rate; reads it back and verifies."""

    def __init__(
        self,
        server: Server,
        name: str,
        size: int,
        seed: int,
        *,
        block: str,
        rate: int,
        folder: Path,
    ) -> None:
        super().__init__(server, name, size, seed)
        self._block = block
        self._rate = rate
        self._folder = folder
        folder.mkdir()

    def turn(self) -> None:
        seed = self.rng.randrange(1 << 30)
        while not self.stopping and self._fio(seed, "--do_verify=0", "--end_fsync=1") is None:
            pass  # killed while it wrote: from the start
        if self.stopping:
            return
        while (done := self._fio(seed, "--verify_only=1")) is None and not self.stopping:
            pass
        if done is not None:
            self.turns += 1
            self.bytes += self.size

    def _fio(self, seed: int, *options: str) -> str | None:
        def command_line(daemon: Daemon) -> list[str]:
            return [
                "fio",
                f"--name={self.name}",
                "--ioengine=nbd",
                f"--uri={daemon.uri(self.name)}",
                "--rw=randwrite",
                f"--bs={self._block}",
                "--iodepth=8",
                f"--size={self.size}",
                "--thread",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                f"--rate_iops={self._rate}",
                f"--randseed={seed}",
                *options,
            ]

        return self.run_tool(command_line, self._folder)


class QemuIo(Guest):
    """Patterns in slots of a volume over iSCSI, by libiscsi; older ones are read back, too."""

    def __init__(self, server: Server, name: str, size: int, seed: int, *, pause_s: float) -> None:
        super().__init__(server, name, size, seed)
        self._patterns: dict[int, int] = dict.fromkeys(range(size // SLOT), 0)
        self._pause_s = pause_s

    def turn(self) -> None:
        new = {slot: self.rng.randrange(1, 256) for slot in self._some()}
        gone = self._some() - new.keys()
        writes = [f"write -P {byte} {slot * SLOT} {SLOT}" for slot, byte in new.items()]
        writes += [f"write -z -u {slot * SLOT} {SLOT}" for slot in gone]
        written = self._qemu_io(*writes, "flush")
        for slot in new.keys() | gone:
            if written is None:
                self._patterns.pop(slot, None)  # nobody knows
            else:
                self._patterns[slot] = new.get(slot, 0)
        self.pause(self._pause_s)
        reads = [
            f"read -P {self._patterns[slot]} {slot * SLOT} {SLOT}"
            for slot in self._some() | new.keys()
            if slot in self._patterns
        ]
        said = self._qemu_io(*reads) if reads and not self.stopping else None
        if said is not None:
            assert "Pattern verification failed" not in said, said
            assert "error" not in said.lower(), said
            self.turns += 1
            self.bytes += len(reads) * SLOT
        self.pause(self._pause_s)

    def _some(self) -> set[int]:
        return set(self.rng.sample(range(self.size // SLOT), 6))

    def _qemu_io(self, *commands: str) -> str | None:
        flat = [part for command in commands for part in ("-c", command)]
        return self.run_tool(
            lambda daemon: ["qemu-io", "-f", "raw", *flat, daemon.iscsi_url(self.name)]
        )
