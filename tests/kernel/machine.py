"""The virtual machine: qemu in software emulation, and a channel on which it runs our scripts.

The guest has no disk: its programs are in the initramfs, its state is gone with it. Its kernel log
goes to a file. Scripts go to it over a virtio serial port as lines (guest/agent.sh has the
protocol), so nothing depends on the network that is under test. Every wait has a bound.
"""

import base64
import contextlib
import itertools
import socket
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from tests.kernel.image import Image

BOOT_S = 300.0  # 20 s; 72 s were seen at a load of 14 on two cores
SCRIPT_S = 300.0  # most take a second, 20 times that where cores are shared
ANSWER_S = 60.0  # from the end of a script's time to the arrival of its answer
END_S = 10.0
MEMORY_MiB = 1024
PROCESSORS = 2
LOG_LINES = 60
KERNEL_LINE = (
    "console=ttyS0 quiet loglevel=6 printk.time=1 panic=-1 net.ifnames=0 mitigations=off nokaslr"
    " tsc=reliable rdinit=/init"
)


class GuestError(AssertionError):
    """A script did not do what it should; the message has all that is known."""


class Job:
    """A script that runs in the guest."""

    def __init__(self, machine: "Machine", script: str, timeout_s: float) -> None:
        self._machine = machine
        self._script = script
        self._deadline = time.monotonic() + timeout_s + ANSWER_S
        self.answer: Future[tuple[int, str]] = Future()

    @property
    def running(self) -> bool:
        return not self.answer.done()

    def finish(self) -> tuple[int, str]:
        """Its status and its output, whatever they are."""
        try:
            return self.answer.result(max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            raise self._failed("did not come back, although its time is over") from None

    def wait(self) -> str:
        """Its output. GuestError if it failed."""
        status, output = self.finish()
        if status:
            how = "took too long" if status in (124, 137) else f"exited with {status}"
            raise self._failed(f"{how}\n{output}")
        return output

    def _failed(self, how: str) -> GuestError:
        log = "\n".join(self._machine.kernel_log().splitlines()[-LOG_LINES:])
        return GuestError(f"in the guest:\n{self._script}\n{how}\n--- kernel log\n{log}")


class Machine:
    """`folder` takes the channel's socket and the kernel log; its path must be short."""

    def __init__(self, image: Image, folder: Path) -> None:
        self._image = image
        self._log = folder / "kernel.log"
        self._channel_path = folder / "agent"
        self._process: subprocess.Popen[bytes] | None = None
        self._told = threading.Event()
        """The guest is ready, or gone."""
        self._ready = False
        self._receiver: threading.Thread | None = None
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self.boot_s = 0.0

    def start(self) -> None:
        """Returns when scripts can be run."""
        began = time.monotonic()
        self._told.clear()
        self._ready = False
        with socket.socket(socket.AF_UNIX) as listener:
            self._channel_path.unlink(missing_ok=True)
            listener.bind(str(self._channel_path))
            listener.listen(1)
            listener.settimeout(END_S)
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            try:
                self._channel = listener.accept()[0]
            except TimeoutError:
                raise GuestError(f"qemu did not start:\n{self._ended()}") from None
        self._receiver = threading.Thread(target=self._receive, args=(self._channel,), daemon=True)
        self._receiver.start()
        self._told.wait(BOOT_S)
        if not self._ready:
            said = f"{self._ended()}\n{self.kernel_log()}"
            raise GuestError(f"the guest did not boot in {BOOT_S:.0f} s, or ended:\n{said}")
        self.boot_s = time.monotonic() - began

    def _command(self) -> list[str]:
        return [
            # The guest ends with the tests, however they end.
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
            "-nodefaults", "-no-reboot", "-display", "none",
            "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max",
            "-smp", str(PROCESSORS), "-m", str(MEMORY_MiB),
            "-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs),
            "-append", KERNEL_LINE,
            "-chardev", f"file,id=log,path={self._log},append=on", "-serial", "chardev:log",
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={self._channel_path}",
            "-device", "virtserialport,chardev=agent,name=blockd.agent",
        ]  # fmt: skip

    def _ended(self) -> str:
        """What qemu said; it is gone after that."""
        process = self._process
        if process is None:
            return ""
        self._process = None
        process.kill()
        return process.communicate()[1].decode(errors="replace")

    def stop(self) -> None:
        """Switch it off. Scripts that run are lost."""
        self._ended()
        if self._receiver is not None:
            self._receiver.join(END_S)

    def _receive(self, channel: socket.socket) -> None:
        # A qemu that was killed resets the connection.
        with channel, channel.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            for line in lines:
                self._apply(line.decode().split())
        for job in list(self._jobs.values()):  # qemu is gone
            job.answer.set_result((-1, "the guest is gone"))
        self._jobs.clear()
        self._told.set()

    def _apply(self, words: list[str]) -> None:
        match words:
            case ["ready"]:
                self._ready = True
                self._told.set()
            case ["done", number, status, *encoded]:
                output = base64.b64decode("".join(encoded)).decode(errors="replace")
                self._jobs.pop(int(number)).answer.set_result((int(status), output))
            case _:
                raise AssertionError(f"the guest's agent said {words}")

    def begin(self, script: str, timeout_s: float = SCRIPT_S) -> Job:
        """Start a shell script (dash -eu); it is killed after `timeout_s`."""
        number = next(self._numbers)
        job = self._jobs[number] = Job(self, script, timeout_s)
        encoded = base64.b64encode(script.encode()).decode()
        try:
            self._channel.sendall(f"run {number} {timeout_s:.0f} {encoded}\n".encode())
        except OSError as error:
            raise GuestError(f"the guest is gone: {error}\n{self.kernel_log()}") from None
        return job

    def run(self, script: str, timeout_s: float = SCRIPT_S) -> str:
        """The output of a shell script that must succeed, both streams together."""
        return self.begin(script, timeout_s).wait()

    def kernel_log(self) -> str:
        """All that the kernel said since the machine was made."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""
