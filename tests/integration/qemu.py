"""Running qemu-io on a volume, over whatever protocol its URI names."""

from tests.clients import run_tool


def io(qemu_io: str, uri: str, *commands: str) -> str:
    """Run qemu-io commands on a volume; a pattern that differs or an error fails the test."""
    flat = [part for command in commands for part in ("-c", command)]
    output = run_tool(qemu_io, "-f", "raw", *flat, uri)
    assert "Pattern verification failed" not in output, output
    assert "error" not in output.lower(), output
    return output
