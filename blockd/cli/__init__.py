"""The `blockd` command: one module per noun, one small function per command.

Modules load what is heavy (httpx, rich, the daemon) inside their functions, so that a command that
lists volumes is done in well under half a second. Whatever goes wrong ends in `blockd.cli.entry`,
which prints one line and chooses the exit code; `blockd.cli.exits` has the table.
"""

from blockd.cli.entry import main

__all__ = ["main"]
