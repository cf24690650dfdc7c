"""nbdcopy moves images in and out, bit for bit, and keeps holes."""

from pathlib import Path

from tests.clients import FindTool, run_tool
from tests.daemon import StartDaemon
from tests.integration.images import sparse_image

MiB = 1 << 20


def test_image_comes_back_bit_for_bit_and_sparse(
    client_tool: FindTool, daemon: StartDaemon, tmp_path: Path
) -> None:
    nbdcopy = client_tool("nbdcopy")
    original, copy = tmp_path / "original", tmp_path / "copy"
    sparse_image(original, 128 * MiB, seed=1)
    server = daemon("--volume", "demo=128M")
    run_tool(nbdcopy, "--flush", "--destination-is-zero", original, server.uri())
    copy.touch()
    run_tool(nbdcopy, server.unix_uri(), copy)
    run_tool("cmp", original, copy)
    assert copy.stat().st_blocks * 512 < 64 * MiB


def test_copy_over_older_data_leaves_nothing_of_it(
    client_tool: FindTool, daemon: StartDaemon, tmp_path: Path
) -> None:
    nbdcopy = client_tool("nbdcopy")
    server = daemon("--volume", "demo=64M")
    for seed in (1, 2):
        image, copy = tmp_path / f"image{seed}", tmp_path / f"copy{seed}"
        sparse_image(image, 64 * MiB, seed)
        run_tool(nbdcopy, "--connections=4", "--requests=16", image, server.uri())
        run_tool(nbdcopy, "--connections=4", server.uri(), copy)
        run_tool("cmp", image, copy)


def test_volume_to_volume(client_tool: FindTool, daemon: StartDaemon, tmp_path: Path) -> None:
    nbdcopy = client_tool("nbdcopy")
    image, copy = tmp_path / "image", tmp_path / "copy"
    sparse_image(image, 32 * MiB, seed=3)
    server = daemon("--volume", "one=32M", "--volume", "two=32M")
    run_tool(nbdcopy, image, server.uri("one"))
    run_tool(nbdcopy, server.uri("one"), server.unix_uri("two"))
    run_tool(nbdcopy, server.uri("two"), copy)
    run_tool("cmp", image, copy)
