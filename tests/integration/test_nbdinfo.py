"""What nbdinfo sees: exports, sizes, flags, the map of a volume.

Without --no-content it guesses what a volume holds by file(1), and prints stray bytes where that is
not installed.
"""

import json
from typing import Any

import pytest

from tests.clients import FindTool, finish_tool, run_libnbd, run_tool
from tests.daemon import Daemon, StartDaemon

MiB = 1 << 20


@pytest.fixture
def nbdinfo(client_tool: FindTool) -> str:
    return client_tool("nbdinfo")


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    return daemon("--volume", "demo=1G", "--volume", "other=64M")


def export(nbdinfo: str, uri: str) -> dict[str, Any]:
    exports: list[dict[str, Any]] = json.loads(run_tool(nbdinfo, "--json", "--no-content", uri))[
        "exports"
    ]
    assert len(exports) == 1
    return exports[0]


def test_size_is_that_of_the_volume(nbdinfo: str, server: Daemon) -> None:
    assert run_tool(nbdinfo, "--size", server.uri("demo")).strip() == str(1 << 30)


def test_size_is_that_of_the_volume_over_the_unix_socket(nbdinfo: str, server: Daemon) -> None:
    assert run_tool(nbdinfo, "--size", server.unix_uri("other")).strip() == str(64 * MiB)


def test_every_capability_is_offered(nbdinfo: str, server: Daemon) -> None:
    info = export(nbdinfo, server.uri())
    offered = {key for key, value in info.items() if key.startswith("can_") and value}
    assert offered >= {
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    }
    assert info["is_read_only"] is False
    assert "base:allocation" in info["contexts"]


def test_block_sizes_are_offered(nbdinfo: str, server: Daemon) -> None:
    info = export(nbdinfo, server.uri())
    assert info["block_size_minimum"] <= info["block_size_preferred"]
    assert info["block_size_preferred"] >= 4096
    assert info["block_size_maximum"] == 32 * MiB


def test_list_names_every_volume(nbdinfo: str, server: Daemon) -> None:
    listed = run_tool(nbdinfo, "--list", "--json", "--no-content", server.uri(""))
    assert [item["export-name"] for item in json.loads(listed)["exports"]] == ["demo", "other"]


def test_unknown_export_is_refused_by_name(nbdinfo: str, server: Daemon) -> None:
    done = finish_tool(nbdinfo, "--size", server.uri("nosuch"))
    assert done.returncode != 0
    assert "nosuch" in done.stderr


def test_map_shows_what_was_written(nbdinfo: str, server: Daemon, libnbd: None) -> None:
    run_libnbd(server.uri(), "connected().pwrite(b'x' * 65536, 1 << 20)")
    extents = json.loads(run_tool(nbdinfo, "--map", "--json", server.uri()))
    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (0, MiB, 3),
        (MiB, 65536, 0),
        (MiB + 65536, (1 << 30) - MiB - 65536, 3),
    ]
