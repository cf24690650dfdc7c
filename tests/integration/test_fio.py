"""fio writes in random order from several jobs and verifies every block's crc32c."""

import json
from pathlib import Path

import pytest

from tests.clients import FindTool, run_tool
from tests.daemon import StartDaemon

JOBS = 4
JOB_MiB = 64


@pytest.mark.parametrize("block", ["4k", "512-64k"])
def test_random_writes_verify(
    client_tool: FindTool, daemon: StartDaemon, tmp_path: Path, block: str
) -> None:
    fio = client_tool("fio")
    server = daemon()
    server.create("demo", JOBS * JOB_MiB << 20)
    output = run_tool(
        fio,
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={server.uri()}",
        "--rw=randwrite",
        f"--bsrange={block}" if "-" in block else f"--bs={block}",
        "--iodepth=16",
        f"--numjobs={JOBS}",
        f"--size={JOB_MiB}m",
        f"--offset_increment={JOB_MiB}m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=1",
        "--output-format=json",
        f"--aux-path={tmp_path}",
    )
    jobs = json.loads(output[output.index("{") :])["jobs"]
    assert [job["error"] for job in jobs] == [0] * JOBS
    for job in jobs:
        assert job["write"]["io_bytes"] == JOB_MiB << 20
        assert job["read"]["io_bytes"] == JOB_MiB << 20


def test_flushes_and_trims_among_writes(
    client_tool: FindTool, daemon: StartDaemon, tmp_path: Path
) -> None:
    fio = client_tool("fio")
    server = daemon("--volume", "demo=64M")
    for mix in ("randtrim", "randrw"):
        output = run_tool(
            fio,
            "--name=mix",
            "--ioengine=nbd",
            f"--uri={server.uri()}",
            f"--rw={mix}",
            "--bs=4k",
            "--iodepth=32",
            "--size=32m",
            "--fsync=64",
            "--randseed=1",
            "--output-format=json",
            f"--aux-path={tmp_path}",
        )
        assert json.loads(output[output.index("{") :])["jobs"][0]["error"] == 0
