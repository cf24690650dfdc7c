"""Run what an image says it runs, below a folder that has its files, and use it as a client.

    python scripts/imaging IMAGE.json ROOT

IMAGE.json is what `buildah inspect --type image` says. The network must be this process's own: the
image's ports are used as they are. Ends with an error when anything is not as it should be.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nbd_client import NbdClient

HEALTHY_S = 60.0  # the image's own start period
STOP_S = 10.0  # what `docker stop` gives by default
NBD = ("127.0.0.1", 10809)
DATA = b"in a container  " * 4096


@dataclass(frozen=True)
class Image:
    """What is run: below `root`, as `user`, with nothing of our environment."""

    root: Path
    user: str
    environment: Sequence[str]
    command: Sequence[str]
    health: Sequence[str]
    stop_signal: str

    @classmethod
    def read(cls, description: Path, root: Path) -> "Image":
        told = json.loads(description.read_text())
        config: dict[str, Any] = told["OCIv1"]["config"]
        health = told["Docker"]["config"]["Healthcheck"]["Test"]
        assert health[0] == "CMD", health
        return cls(
            root,
            config["User"],
            config["Env"],
            [*config["Entrypoint"], *config["Cmd"]],
            health[1:],
            config["StopSignal"],
        )

    def run(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        inside = ["chroot", f"--userspec={self.user}", str(self.root)]
        return subprocess.Popen([*inside, "/usr/bin/env", "-i", *self.environment, *command])

    def call(self, *command: str) -> int:
        return self.run(command).wait()


def started(image: Image) -> "subprocess.Popen[bytes]":
    """The daemon, once it is healthy."""
    began = time.monotonic()
    daemon = image.run(image.command)
    while image.call(*image.health):
        assert daemon.poll() is None, f"ended with {daemon.returncode}"
        assert time.monotonic() - began < HEALTHY_S, "does not become healthy"
        time.sleep(0.2)
    print(f"healthy after {time.monotonic() - began:.1f} s", flush=True)
    return daemon


def stopped(image: Image, daemon: "subprocess.Popen[bytes]") -> None:
    began = time.monotonic()
    daemon.send_signal(signal.Signals[image.stop_signal])
    code = daemon.wait(STOP_S)
    assert code == 0, f"ended with {code}"
    print(f"{image.stop_signal}: ended with 0 after {time.monotonic() - began:.1f} s", flush=True)


def main(description: Path, root: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    image = Image.read(description, root)
    print(f"user {image.user}: {' '.join(image.command)}", flush=True)
    daemon = started(image)
    try:
        assert image.call("blockd", "volume", "create", "disk", "16M") == 0
        with NbdClient(NBD) as client:
            client.greet()
            client.go("disk")
            client.write(1 << 20, DATA)
            client.flush()
            client.disconnect()
        stopped(image, daemon)
        daemon = started(image)
        with NbdClient(NBD) as client:
            client.greet()
            client.go("disk")
            assert client.read(1 << 20, len(DATA)) == DATA, "reads something else than was written"
            client.disconnect()
        print(f"{len(DATA)} bytes were written, and read after a restart", flush=True)
        stopped(image, daemon)
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
