"""Streams through the control API and the command line, between stores in memory."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from blockd.api import transfer as api
from blockd.api.client import ApiError, Client
from blockd.cli import entry
from blockd.cli.meter import LINE_EVERY_S, Meter, Pace, duration
from blockd.cli.options import ENVIRONMENT
from tests.fake_node import FakeNode, raw_client
from tests.unit.volume.stream_rig import CHUNK, Site, boundaries
from volume.errors import CorruptChunk
from volume.stream_wire import break_frame

CONTENTS = {at: at + 1 for at in range(0, 900, 9)}


@pytest.fixture
def versions(node: FakeNode) -> Site:
    """vol@a and vol@b, which changes two chunks; nothing received yet."""
    site = node.store.streams.site
    first = site.commit(CONTENTS)
    second = site.commit({9: 5000, 10: 5001}, onto=first)
    node.store.streams.versions = {"vol@a": first, "vol@b": second}
    return site


@pytest.fixture
def http(node: FakeNode) -> Iterator[httpx.Client]:
    with raw_client(node) as client:
        yield client


def stream(
    node: FakeNode, source: str, base: str | None = None, resume: str | None = None
) -> bytes:
    with Client(node.control) as client, client.send(source, base, resume) as pieces:
        return b"".join(pieces)


def deliver(node: FakeNode, data: bytes, name: str = "copy", piece: int = 100_000) -> Any:
    with Client(node.control) as client:
        return client.receive(name, (data[at : at + piece] for at in range(0, len(data), piece)))


def test_a_version_goes_out_and_comes_in(node: FakeNode, versions: Site) -> None:
    data = stream(node, "vol@a")
    assert data == versions.stream(node.store.streams.versions["vol@a"])
    info = deliver(node, data)
    assert (info.name, info.commit) == ("copy", versions.heads["copy"].hex())
    difference = stream(node, "vol@b", "vol@a")
    assert len(difference) < 2 * CHUNK + 20_000
    deliver(node, difference)
    assert versions.heads["copy"] == node.store.streams.versions["vol@b"]


def test_what_cannot_be_sent_is_refused_with_a_status(node: FakeNode, http: httpx.Client) -> None:
    answer = http.get("/v1/stream", params={"source": "vol@x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_such_version")
    with pytest.raises(ApiError, match="version vol@x"):
        stream(node, "vol@x")


def test_a_token_goes_on_in_the_middle(node: FakeNode, versions: Site) -> None:
    whole = stream(node, "vol@a")
    with pytest.raises(ApiError, match="go on with: blockd send") as caught:
        deliver(node, whole[: len(whole) // 2])
    assert caught.value.code == "stream_interrupted"
    with Client(node.control) as client:
        (info,) = client.receives()
    assert not info.active
    rest = stream(node, "vol@a", resume=info.token)
    assert len(rest) < 0.6 * len(whole)
    deliver(node, rest)
    assert versions.heads["copy"] == node.store.streams.versions["vol@a"]


def test_an_unfinished_receive_can_be_forgotten(node: FakeNode, versions: Site) -> None:
    with pytest.raises(ApiError):
        deliver(node, stream(node, "vol@a")[:100_000])
    with Client(node.control) as client:
        assert [info.name for info in client.receives()] == ["copy"]
        client.abort_receive("copy")
        assert client.receives() == []
        with pytest.raises(ApiError, match="no stream was being received"):
            client.abort_receive("copy")


def test_a_refusal_is_heard_in_the_middle_of_a_long_body(node: FakeNode, versions: Site) -> None:
    data = stream(node, "vol@a")
    deliver(node, data)

    def endless() -> Iterator[bytes]:
        yield data
        while True:
            yield bytes(1 << 20)

    with Client(node.control) as client, pytest.raises(ApiError, match="exists already"):
        client.receive("copy", endless())  # that is the test: it returns


def test_damage_is_a_clean_error(node: FakeNode, versions: Site) -> None:
    data = bytearray(stream(node, "vol@a"))
    data[boundaries(bytes(data))[40] + 99] ^= 1
    with pytest.raises(ApiError, match="damaged at byte") as caught:
        deliver(node, bytes(data))
    assert caught.value.code == "invalid_stream"
    assert versions.heads == {}


def test_a_client_that_dies_leaves_what_it_sent(
    node: FakeNode, versions: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "FEED_BYTES", 10_000)
    data = stream(node, "vol@a")

    def dying() -> Iterator[bytes]:
        yield data[:200_000]
        raise KeyboardInterrupt

    with Client(node.control) as client, pytest.raises(KeyboardInterrupt):
        client.receive("copy", dying())
    with Client(node.control) as client:
        for _ in range(500):
            found = client.receives()
            if found and not found[0].active:
                break
            threading.Event().wait(0.01)
        assert found[0].received_bytes > 150_000
    deliver(node, data)


def test_streams_at_once_are_bounded(
    node: FakeNode, versions: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "FEED_BYTES", 500)
    data = stream(node, "vol@a")
    gate, begun = threading.Event(), threading.Semaphore(0)

    def waiting() -> Iterator[bytes]:
        yield data[:1000]
        begun.release()
        gate.wait(30)
        yield data[1000:]

    def one(name: str) -> None:
        with Client(node.control) as client:
            client.receive(name, waiting())

    threads = [threading.Thread(target=one, args=(f"v{n}",)) for n in range(api.MAX_STREAMS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=30)
    with Client(node.control) as client:
        while len(client.receives()) < api.MAX_STREAMS:  # until it has seen all of them
            threading.Event().wait(0.01)
        with pytest.raises(ApiError, match="under way already"):
            client.receive("one-more", [data])
    gate.set()
    for thread in threads:
        thread.join(30)
    assert {f"v{n}" for n in range(api.MAX_STREAMS)} <= set(versions.heads)


def test_a_send_that_breaks_off_has_no_end(
    node: FakeNode, versions: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stream(node, "vol@a")
    closed = []

    def broken(*_: object, **__: object) -> Iterator[bytes]:
        try:
            yield whole[:5000]
            raise CorruptChunk("chunk 3f: gone")
        finally:
            closed.append(True)

    monkeypatch.setattr(node.store, "send", broken)
    assert stream(node, "vol@a") == whole[:5000] + break_frame("chunk 3f: gone")
    assert closed == [True]


def test_memory_stays_small_when_nobody_reads(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def endless(*_: object, **__: object) -> Iterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield bytes(1 << 20)

    monkeypatch.setattr(node.store, "send", endless)
    with Client(node.control) as client, client.send("vol@a") as pieces:
        next(pieces)
        before = -1
        while before != made:  # until it stands still
            before = made
            threading.Event().wait(0.2)
        assert made <= 4


# -- the command line


@pytest.fixture
def environ(node: FakeNode, versions: Site) -> dict[str, str]:
    return {**os.environ, ENVIRONMENT: str(node.control)}


def blockd(
    environ: dict[str, str], *arguments: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "blockd", *arguments]
    return subprocess.run(
        command, input=stdin, env=environ, capture_output=True, timeout=60, check=False
    )


def test_send_and_receive_by_files(environ: dict[str, str], versions: Site) -> None:
    sent = blockd(environ, "send", "vol@a")
    assert sent.returncode == 0, sent.stderr
    assert sent.stderr.startswith(b"send vol@a: ")
    made = blockd(environ, "receive", "copy", stdin=sent.stdout)
    assert made.returncode == 0, made.stderr
    commit = versions.heads["copy"].hex()
    assert made.stdout.decode() == f"received volume copy, 3.91 MiB\ncommit  {commit}\n"
    assert b"receive copy: " in made.stderr
    again = blockd(environ, "receive", "copy", "--json", stdin=sent.stdout)
    assert again.returncode == 5
    assert json.loads(again.stderr.splitlines()[-1])["error"]["code"] == "volume_exists"


def test_both_ends_say_why_a_send_broke_off(
    node: FakeNode,
    versions: Site,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = stream(node, "vol@a")
    at = boundaries(whole)[10]

    def broken(*_: object, **__: object) -> Iterator[bytes]:
        yield whole[:at]
        raise CorruptChunk("chunk 3f: gone")

    monkeypatch.setattr(node.store, "send", broken)
    sent = blockd(environ, "send", "vol@a")
    assert sent.returncode == 1
    assert b"the daemon broke the stream off: chunk 3f: gone" in sent.stderr
    received = blockd(environ, "receive", "copy", stdin=sent.stdout)
    assert received.returncode == 1
    assert b"broke the stream off (chunk 3f: gone); " in received.stderr
    assert "copy" not in versions.heads


def test_a_cut_pipe_says_how_to_go_on(environ: dict[str, str], versions: Site) -> None:
    sent = blockd(environ, "send", "vol@a").stdout
    cut = blockd(environ, "receive", "copy", stdin=sent[: len(sent) // 2])
    assert cut.returncode == 1
    command = cut.stderr.decode().strip().rpartition("go on with: ")[2]
    first, _, second = command.partition(" | ")
    words = first.split()
    assert words[:2] == ["blockd", "send"]
    assert words[2].startswith("origin@commit:")
    assert second == "blockd receive copy"
    token = blockd(environ, "receive", "copy", "--token").stdout.decode().strip()
    assert words[3:] == ["--resume", token]
    listed = blockd(environ, "receive", "--list").stdout.decode()
    assert "broken off" in listed
    rest = blockd(environ, "send", "vol@a", "--resume", token)
    assert rest.returncode == 0
    assert len(rest.stdout) < len(sent)
    assert blockd(environ, "receive", "copy", stdin=rest.stdout).returncode == 0
    assert "copy" in versions.heads


def test_what_was_received_can_be_given_up(environ: dict[str, str]) -> None:
    sent = blockd(environ, "send", "vol@a").stdout
    blockd(environ, "receive", "copy", stdin=sent[:100_000])
    assert blockd(environ, "receive", "copy", "--abort").stdout.startswith(b"forgot")
    assert blockd(environ, "receive", "copy", "--token").returncode == 1
    assert json.loads(blockd(environ, "receive", "--list", "--json").stdout) == []


def test_a_broken_token_is_refused(environ: dict[str, str]) -> None:
    refused = blockd(environ, "send", "vol@a", "--resume", "Axyz")
    assert refused.returncode == 5
    assert b"not whole" in refused.stderr


def test_a_reader_that_goes_away_is_told(environ: dict[str, str], node: FakeNode) -> None:
    command = [sys.executable, "-m", "blockd", "send", "vol@a"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(90) == 1
    assert b"has gone" in said
    assert b"Traceback" not in said


def test_a_stream_without_its_end_fails(
    environ: dict[str, str], node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stream(node, "vol@a")
    monkeypatch.setattr(node.store, "send", lambda *_, **__: iter([whole[:-1]]))
    sent = blockd(environ, "send", "vol@a")
    assert sent.returncode == 1
    assert b"broke the stream off" in sent.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("receive",), "name a volume"),
        (("receive", "copy", "--list"), "name a volume"),
        (("import", "-", "copy"), "no size"),
        (("import", "-", "copy", "--format", "qcow2"), "only raw"),
        (("export", "vol@a", "-", "--format", "qcow2"), "only raw"),
    ],
)
def test_wrong_command_lines(
    environ: dict[str, str], arguments: tuple[str, ...], said: str
) -> None:
    refused = blockd(environ, *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr.decode()


def test_terminals_get_no_binary(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(node.control))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for arguments in (["send", "vol@a"], ["export", "vol@a", "-"]):
        assert entry.run(arguments) == 2
        assert "not for a terminal" in capsys.readouterr().err


# -- progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(30):
        clock.now += 1
        pace.update(pace.done + (1 << 20), 100 << 20)
    assert pace.rate == 1 << 20
    assert pace.left_s == pytest.approx(70)
    assert pace.text() == "30 MiB of 100 MiB, 1 MiB/s, 1:10 left"
    for _ in range(20):
        clock.now += 1
        pace.update(pace.done, 100 << 20)
    assert pace.text() == "30 MiB of 100 MiB, 0 B/s"
    assert pace.summary() == f"30 MiB in 50 s, {format_rate(30 / 50)}"


def format_rate(mib: float) -> str:
    from blockd.sizes import format_size

    return f"{format_size(int(mib * (1 << 20)))}/s"


def test_the_pace_may_follow_a_fraction() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 5
    pace.update(5 << 20, None, 0.25)
    assert pace.text() == "5 MiB (25%), 1 MiB/s, 15 s left"
    pace.update(5 << 20)
    assert pace.text() == "5 MiB, 1 MiB/s"


def test_a_log_gets_a_line_now_and_then() -> None:
    clock, log = Clock(), io.StringIO()
    with Meter("send x", log, clock) as meter:
        for _ in range(25):
            clock.now += 1
            meter.update(meter.pace.done + (1 << 20), 25 << 20)
    lines = log.getvalue().splitlines()
    assert len(lines) == 25 // LINE_EVERY_S + 1
    assert lines[0] == "send x: 10 MiB of 25 MiB, 1 MiB/s, 15 s left"
    assert lines[-1] == "send x: 25 MiB in 25 s, 1 MiB/s"


def test_a_terminal_gets_a_bar_and_nothing_after_a_failure() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()

    def failing() -> None:
        with Meter("send x", terminal) as meter:
            meter.update(1 << 20, 2 << 20)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert "1 MiB of 2 MiB" in terminal.getvalue()
    assert not terminal.getvalue().rstrip().endswith("MiB/s")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.44, "0.4 s"), (59, "59 s"), (61.2, "1:01"), (3661, "1:01:01")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
