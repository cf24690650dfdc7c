"""The `blockd` command against a real control API: output, errors, exit codes."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from blockd.api.types import ConnectionInfo
from blockd.cli import exits
from blockd.cli.options import ENVIRONMENT, SERVICE_CONTROL
from blockd.config import ServeConfig
from tests.command import Blockd, Result
from tests.fake_node import FakeNode
from volume.errors import CorruptChunk, OutOfSpace, StoreSealed, VolumeError

GiB = 1 << 30


def test_create_says_what_it_made(node: FakeNode, blockd: Blockd) -> None:
    result = blockd("volume", "create", "vm1", "10G", "--block-size", "512", "--chunk-size", "4K")
    assert result == Result(0, "created volume vm1, 10 GiB\n", "")
    info = node.store.info("vm1")
    assert (info.size, info.block_size, info.chunk_size) == (10 * GiB, 512, 4096)


def test_create_prints_the_volume_as_json(node: FakeNode, blockd: Blockd) -> None:
    result = blockd("volume", "create", "vm1", "4096", "--json")
    assert result.json == {**asdict(node.store.info("vm1")), "clients": []}


def test_list_is_one_line_a_volume(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("a", 10 * GiB)
    node.store.create_volume("long-name", 3 << 39)
    assert blockd("volume", "list").out.splitlines() == [
        "NAME          SIZE  BLOCK   CHUNK  NOT DESTAGED  SNAPSHOTS  CLIENTS",
        "a           10 GiB   4096  64 KiB           0 B          0        0",
        "long-name  1.5 TiB   4096  64 KiB           0 B          0        0",
    ]


def test_lines_in_a_pipe_are_whole(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("x" * 128, GiB)
    assert blockd("volume", "list").out.splitlines()[1].startswith("x" * 128 + "  1 GiB")


def test_list_of_nothing_is_empty_json(blockd: Blockd) -> None:
    assert blockd("volume", "list", "--json").json == []


def test_names_are_not_read_as_markup(node: FakeNode, blockd: Blockd) -> None:
    node.clients = [connection("[red]x[/red]")]
    assert "[red]x[/red]" in blockd("status").out


def test_show_has_facts_and_commands(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("a", GiB)
    node.store.attach("a", "10.0.0.1:5")
    out = blockd("volume", "show", "a").out
    assert f"size          1 GiB ({GiB} bytes)" in out
    assert "clients       10.0.0.1:5" in out
    assert "\n  nbdinfo nbd://127.0.0.1/a\n" in out
    assert "\n  nbdinfo 'nbd+unix:///a?socket=/run/nbd.sock'\n" in out


def test_resize_and_rename(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("a", GiB)
    assert blockd("volume", "resize", "a", "2G").out == "volume a is now 2 GiB\n"
    assert blockd("volume", "resize", "a", "1G").code == exits.CONFLICT
    assert blockd("volume", "resize", "a", "1G", "--force").code == 0
    assert blockd("volume", "rename", "a", "b").out == "volume a is now b\n"
    assert node.store.info("b").size == GiB


def test_delete_does_not_ask_scripts(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("a", GiB)
    assert blockd("volume", "delete", "a").out == "deleted volume a\n"
    assert node.store.names() == []


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, []), ("n", 130, ["a"])])
def test_delete_asks_people(
    node: FakeNode,
    blockd: Blockd,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    left: list[str],
) -> None:
    node.store.create_volume("a", GiB)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text: answer == "y")
    assert blockd("volume", "delete", "a").code == code
    assert node.store.names() == left


def test_delete_of_what_is_attached_needs_force(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("a", GiB)
    node.store.attach("a", "10.0.0.1:5")
    assert blockd("volume", "delete", "a", "--yes").code == exits.CONFLICT
    assert blockd("volume", "delete", "a", "--force", "--json").json == {"deleted": "a"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfSpace("no space is left"), exits.NO_WRITES),
        (StoreSealed("EIO"), exits.NO_WRITES),
        (CorruptChunk("chunk 3f"), exits.DAMAGED),
        (VolumeError("odd"), exits.FAILED),
        (ZeroDivisionError(), exits.FAILED),
    ],
)
def test_what_the_daemon_refuses_has_an_exit_code(
    node: FakeNode, blockd: Blockd, error: Exception, code: int
) -> None:
    node.store.fail_with = error
    result = blockd("volume", "list")
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("blockd: ")


def test_no_such_volume(blockd: Blockd) -> None:
    for command in (["show", "x"], ["delete", "x"], ["resize", "x", "1G"], ["show", "a/b"]):
        assert blockd("volume", *command).code == exits.NOT_FOUND


def test_errors_are_json_on_request(blockd: Blockd) -> None:
    result = blockd("volume", "show", "x", "--json")
    assert (result.code, result.out) == (exits.NOT_FOUND, "")
    assert result.error["code"] == "no_such_volume"
    assert "volume x" in result.error["message"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["volume", "create", "a", "10GB"], "write 10GiB"),
        (["volume", "create", "a"], "Missing argument 'SIZE'"),
        (["volume", "lst"], "Did you mean 'list'"),
        (["volume", "list", "--colour"], "--colour"),
        (["serve", "--volume", "a"], "write NAME=SIZE"),
        (["serve", "--volume", "a=1GB"], "write 1GiB"),
        (["serve", "--nbd", "here"], "write HOST:PORT"),
        (["serve", "--nbd", "0.0.0.0:0", "--check-config"], "--insecure"),
        (["serve", "--tls", "require", "--check-config"], "--tls-cert"),
        (["serve", "--config", "none.toml"], "none.toml: cannot be read"),
        (["serve", "--data", "d" * 100, "--check-config"], "shorter path"),
        (["doctor", "--unseal"], "--data"),
    ],
)
def test_wrong_command_lines(blockd: Blockd, arguments: list[str], says: str) -> None:
    result = blockd(*arguments)
    assert (result.code, result.out) == (exits.USAGE, "")
    assert result.err.startswith("blockd: ")
    assert says in result.err
    assert blockd(*arguments, "--json").error["message"]


def test_serve_options_go_over_the_file(
    blockd: Blockd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[ServeConfig] = []
    monkeypatch.setattr("blockd.cli.serve.check", served.append)
    (tmp_path / "blockd.toml").write_text("[nbd]\nmax_connections = 7\n")
    for option in ([], ["--list-versions"]):
        assert blockd("serve", "--data", str(tmp_path), "--check-config", *option).code == 0
    assert [config.nbd.list_versions for config in served] == [False, True]
    assert [config.nbd.max_connections for config in served] == [7, 7]


def test_no_daemon_is_said_plainly(blockd: Blockd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setattr("blockd.cli.options.SERVICE_CONTROL", Path("none"))
    monkeypatch.setattr("blockd.cli.options.SERVICE_DATA", Path("none"))
    result = blockd("volume", "list")
    assert result.code == exits.NO_DAEMON
    assert "blockd-data/control.sock" in result.err
    assert "blockd serve" in result.err
    assert blockd("status", "--control", "x", "--json").error["code"] == "no_daemon"


def test_control_beats_the_environment(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/none")
    assert blockd("volume", "list", "--control", str(node.control)).code == 0
    assert blockd("volume", "list").code == exits.NO_DAEMON


def test_the_daemon_in_this_directory_is_found(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT)
    Path("blockd-data").mkdir()
    Path("blockd-data/control.sock").symlink_to(node.control)
    assert blockd("volume", "list").code == 0


def test_the_daemon_of_the_service_manager_is_found(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = Path(__file__).parents[3] / "packaging/systemd"
    assert f"ListenStream={SERVICE_CONTROL}\n" in (units / "blockd-control.socket").read_text()
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setattr("blockd.cli.options.SERVICE_CONTROL", node.control)
    assert blockd("volume", "list").code == 0


def test_status_for_people(node: FakeNode, blockd: Blockd) -> None:
    node.clients = [connection("10.0.0.1:5")]
    out = blockd("status").out
    assert "state         ok\n" in out
    assert "nbd           127.0.0.1:10809, /run/nbd.sock (tls off)\n" in out
    assert "journal       8 KiB of 4 GiB\n" in out
    assert "10.0.0.1:5 host1  vm1     yes  12.5 s" in out


def test_status_for_programs(node: FakeNode, blockd: Blockd) -> None:
    node.clients = [connection("10.0.0.1:5")]
    status = blockd("status", "--json").json
    assert status["store"]["journal_limit"] == 4 * GiB
    assert [each["peer"] for each in status["connections"]] == ["10.0.0.1:5"]


def test_a_sealed_store_fails_status(node: FakeNode, blockd: Blockd) -> None:
    node.store.state = "sealed"
    result = blockd("status")
    assert result.code == exits.NO_WRITES
    assert "sealed: a sync of" in result.out


def test_status_says_what_holds_up_destaging(node: FakeNode, blockd: Blockd) -> None:
    assert "destaging" not in blockd("status").out
    node.store.held_up = "volume vm1 is not destaged: manifest node 3f"
    result = blockd("status")
    assert result.code == 0
    assert "destaging     held up: volume vm1 is not destaged: manifest node" in result.out
    assert blockd("status", "--json").json["store"]["destage_held_up"] == node.store.held_up


def test_version(blockd: Blockd) -> None:
    assert blockd("version").out.startswith("blockd ")
    assert blockd("--version").out == blockd("version").out
    assert set(blockd("version", "--json").json) == {"version", "python"}


def test_help_documents_the_exit_codes(blockd: Blockd) -> None:
    out = blockd("--help").out
    for code, meaning in exits.MEANING.items():
        assert f"{code}  {meaning.split(';')[0]}" in out


def test_help_shows_what_people_need_first(blockd: Blockd) -> None:
    lines = blockd("--help").out.splitlines()
    shown = [line.split()[1] for line in lines if line.startswith("│ ") and line[2].isalpha()]
    assert shown[:4] == ["serve", "volume", "snapshot", "target"]
    assert shown[-1] == "version"


def test_every_exit_code_of_an_error_is_documented() -> None:
    assert set(exits.EXIT_CODE.values()) <= set(exits.MEANING)


def test_a_good_configuration_is_called_valid(blockd: Blockd) -> None:
    Path("ok.toml").write_text("[volumes]\na = '1G'")
    assert blockd("serve", "--config", "ok.toml", "--check-config").out == "ok.toml: valid\n"
    valid = blockd("serve", "--config", "ok.toml", "--check-config", "--json").json
    assert valid == {"valid": True, "file": "ok.toml"}


def test_a_configuration_whose_secrets_cannot_be_used_is_not_valid(blockd: Blockd) -> None:
    (users := Path("users")).touch(mode=0o600)
    users.write_text("host1:twelve bytes at least\n")
    Path("some.toml").write_text("[iscsi]\nchap = 'users'\nmutual_chap = 'own'")
    assert "own: No such file" in blockd("serve", "--config", "some.toml", "--check-config").err
    Path("some.toml").write_text("[iscsi]\nchap = 'users'")
    assert blockd("serve", "--config", "some.toml", "--check-config").code == exits.OK
    users.chmod(0o640)
    result = blockd("serve", "--config", "some.toml", "--check-config")
    assert result.code == exits.USAGE
    assert "chmod 600 users" in result.err


def test_doctor_sees_the_daemon(node: FakeNode, blockd: Blockd) -> None:
    findings = {each["check"]: each for each in blockd("doctor", "--json").json}
    assert findings["daemon"]["level"] == "ok"
    assert "4711" in findings["daemon"]["message"]


def test_doctor_fails_when_a_volume_is_not_destaged(node: FakeNode, blockd: Blockd) -> None:
    node.store.held_up = "volume vm1 is not destaged: manifest node 3f"
    result = blockd("doctor", "--json")
    assert result.code == exits.FAILED
    [found] = [each for each in result.json if each["check"] == "daemon"]
    assert found["level"] == "fail"
    assert node.store.held_up in found["message"]


def test_doctor_fails_on_a_failure(node: FakeNode, blockd: Blockd) -> None:
    Path("bad.toml").write_text("nbdd = 1")
    result = blockd("doctor", "--config", "bad.toml")
    assert result.code == exits.FAILED
    assert "fail  configuration" in result.out
    assert "did you mean nbd?" in result.out


def test_names_are_completed(node: FakeNode, blockd: Blockd) -> None:
    for name in ("vm1", "vm2", "db"):
        node.store.create_volume(name, GiB)
    command = [sys.executable, "-m", "blockd"]
    environ = {
        **os.environ,
        "_BLOCKD_COMPLETE": "complete_bash",
        "COMP_WORDS": "blockd volume show v",
        "COMP_CWORD": "3",
    }
    # The program's name decides the variable's, as in a shell.
    code = "import sys; sys.argv[0] = 'blockd'; from blockd.cli import main; main()"
    run = subprocess.run(
        [command[0], "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.split() == ["vm1", "vm2"]


def test_a_closed_pipe_is_no_traceback(node: FakeNode, blockd: Blockd) -> None:
    for number in range(200):
        node.store.create_volume(f"volume-{number}", GiB)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "blockd", "volume", "list", "--json"]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert run.stderr == ""


HEAVY = ("fastapi", "uvicorn", "uvloop", "native", "cryptography", "pydantic", "httpx", "rich")


@pytest.mark.parametrize(
    ("arguments", "spared"),
    [
        (("--version",), (*HEAVY, "http.client", "blockd.config", "blockd.api.client")),
        (("volume", "list"), (*HEAVY, "blockd.config", "prometheus_client")),
        (("volume", "create", "a", "1G", "--block-size", "512"), HEAVY),
    ],
)
def test_a_command_loads_only_what_it_needs(
    node: FakeNode, blockd: Blockd, arguments: tuple[str, ...], spared: tuple[str, ...]
) -> None:
    code = (
        f"import sys; from blockd.cli import entry; ended = entry.run({arguments!r});"
        f"print([m for m in {spared!r} if m in sys.modules], ended)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.splitlines()[-1] == "[] 0"


def test_a_wrong_command_is_told_which_was_meant(blockd: Blockd) -> None:
    assert "Did you mean 'snapshot'?" in blockd("snapshots").err
    assert "Did you mean 'list'" in blockd("volume", "lists").err


def connection(peer: str) -> ConnectionInfo:
    return ConnectionInfo(
        peer=peer,
        export="vm1",
        tls=True,
        names=("host1",),
        age_s=12.5,
        in_flight=3,
        read_count=1,
        read_bytes=4096,
        write_count=2,
        write_bytes=8192,
        error_count=0,
    )
