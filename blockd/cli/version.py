"""`blockd version`, and `blockd --version`."""

import importlib.metadata

from blockd.cli.options import JsonOption
from blockd.cli.output import print_json


def version(as_json: JsonOption = False) -> None:
    """Show the version of this program."""
    blockd = importlib.metadata.version("blockd")
    if as_json:
        import platform

        print_json({"version": blockd, "python": platform.python_version()})
    else:
        print(f"blockd {blockd}")
