"""nbd-client's negotiation, as far as it goes without a kernel device."""

from tests.clients import FindTool, run_tool
from tests.daemon import StartDaemon


def test_listing_names_every_volume(client_tool: FindTool, daemon: StartDaemon) -> None:
    nbd_client = client_tool("nbd-client")
    server = daemon("--volume", "demo=64M", "--volume", "other=64M")
    host, port = server.host_port
    listed = run_tool(nbd_client, "-l", host, str(port)).split()
    assert {"demo", "other"} <= set(listed)


def test_listing_over_the_unix_socket(client_tool: FindTool, daemon: StartDaemon) -> None:
    nbd_client = client_tool("nbd-client")
    server = daemon("--volume", "demo=64M")
    assert "demo" in run_tool(nbd_client, "-unix", server.socket, "-l").split()
