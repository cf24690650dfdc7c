"""What the units promise, tried below the systemd that runs here: run by scripts/try-units.

The machine is a throw-away one: units are started, killed and broken. Ends with an error at the
first thing that is not as the units and docs/operations.md say.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.nbd_client import NbdClient

UNIT = "blockd.service"
SOCKETS = ("blockd.socket", "blockd-iscsi.socket", "blockd-control.socket")
NBD = ("127.0.0.1", 10809)
BLOCKD = "/opt/blockd/bin/blockd"
STATE = Path("/var/lib/blockd")  # a link to a private folder, as DynamicUser= has it
COPIES = Path("/srv/blockd-meta")
DYNAMIC_USERS = range(61184, 65520)  # systemd's, by its documentation
DATA = b"below a systemd " * 4096
SOON_S = 30.0
WATCHDOG_S = 60.0


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stderr}"
    return done.stdout


def shown(name: str, unit: str = UNIT) -> str:
    return call("systemctl", "show", "--value", "-p", name, unit).strip()


def main_pid() -> int:
    return int(shown("MainPID"))


def say(text: str) -> None:
    print(text, flush=True)


def until(what: Callable[[], bool], name: str, within_s: float = SOON_S) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not what():
        waited = time.monotonic() - began
        assert waited < within_s, f"not within {within_s:.0f} s: {name}\n{log()}"
        time.sleep(0.05)
    return time.monotonic() - began


def log() -> str:
    return call("journalctl", "--no-pager", "-n", "40", "-u", UNIT)


def attached(*, write: bool = False) -> None:
    """A client connects once, without a second try, and reads what was written."""
    with NbdClient(NBD) as client:
        client.greet()
        client.go("vm1")
        if write:
            client.write(1 << 20, DATA)
        assert client.read(1 << 20, len(DATA)) == DATA, "reads something else than was written"
        client.disconnect()


def installed() -> None:
    call("systemctl", "daemon-reload")
    call("systemctl", "enable", "--now", *SOCKETS, UNIT)
    call("systemctl", "enable", "--now", "blockd-backup-meta.timer")
    assert shown("ActiveState") == "active", log()
    assert shown("ActiveState", "blockd-backup-meta.timer") == "active"
    call(BLOCKD, "volume", "create", "vm1", "64M")
    attached(write=True)
    say(f"enabled; 64 KiB written over NBD; {call('systemctl', '--version').splitlines()[0]}")


def confined() -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{main_pid()}/status").read_text().splitlines()
        if ":\t" in line
    )
    users = {int(each) for each in status["Uid"].split()}
    assert users <= set(DYNAMIC_USERS), users
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["CapEff"]
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2", "no filter of system calls"
    rated = call("systemd-analyze", "security", "--no-pager", UNIT).strip().splitlines()[-1]
    say(f"user {users.pop()}, no capabilities, system calls filtered; {rated.lstrip('→ ')}")


def reloaded() -> None:
    before = main_pid()
    call("systemctl", "reload", UNIT)
    assert main_pid() == before
    attached()
    say("reload: the same process")


def restarted() -> None:
    """The socket stays, so whoever connects meanwhile waits, and is served."""
    before = main_pid()
    waits: list[float] = []
    restart = subprocess.Popen(["systemctl", "restart", UNIT])
    while restart.poll() is None or len(waits) < 3:
        began = time.monotonic()
        try:
            attached()
        except ConnectionRefusedError:
            raise
        except (OSError, EOFError):  # it was connected when the process went
            continue
        waits.append(time.monotonic() - began)
    assert restart.returncode == 0, log()
    assert main_pid() != before
    most = max(waits)
    say(f"restart: {len(waits)} connections meanwhile, none refused, waited {most:.2f} s at most")


def stopped() -> None:
    before = main_pid()
    call("systemctl", "stop", UNIT)
    assert shown("Result") == "success", log()
    assert shown("ActiveState", SOCKETS[0]) == "active", "the socket went along"
    attached()  # the connection starts the service
    assert main_pid() not in (0, before)
    say("stop: ended with 0; the next connection started the service")


def killed() -> None:
    restarts = int(shown("NRestarts"))
    os.kill(main_pid(), signal.SIGKILL)
    took = until(lambda: int(shown("NRestarts")) > restarts, "a restart after SIGKILL")
    attached()
    say(f"kill -9: started again after {took:.1f} s, what was acknowledged is there")


def hung() -> None:
    restarts = int(shown("NRestarts"))
    os.kill(main_pid(), signal.SIGSTOP)
    took = until(
        lambda: int(shown("NRestarts")) > restarts, "the watchdog", 2 * WATCHDOG_S + SOON_S
    )
    attached()
    say(f"stopped process: the watchdog had it started again after {took:.0f} s")


def copied() -> None:
    COPIES.mkdir(mode=0o700)
    call("systemctl", "start", "blockd-backup-meta.service")
    copies = list(COPIES.iterdir())
    assert copies, "no copy of meta/"
    say(f"backup-meta: {copies[0].name}")


def misconfigured() -> None:
    """Wrong settings are for a person: no second try; a right file, and it starts."""
    config = STATE / "blockd.toml"
    config.write_text("[store]\nshort_percents = 10\n")
    with contextlib.suppress(AssertionError):
        call("systemctl", "restart", UNIT)
    until(lambda: shown("ActiveState") == "failed", "a failure for wrong settings")
    assert shown("ExecMainStatus") == "2", shown("ExecMainStatus")
    assert shown("NRestarts") == "0", "tried again"
    assert "short_percents" in log()
    config.unlink()
    call("systemctl", "reset-failed", UNIT, *SOCKETS)
    call("systemctl", "restart", *SOCKETS, UNIT)
    attached()
    say("wrong settings: exit code 2, not tried again, the key is in the log; mended, it starts")


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for step in (
        installed,
        confined,
        reloaded,
        restarted,
        stopped,
        killed,
        copied,
        misconfigured,
        hung,
    ):
        step()
    say("the units do what they say")


if __name__ == "__main__":
    main()
