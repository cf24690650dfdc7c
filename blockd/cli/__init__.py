"""The `blockd` command: one module per noun, one small function per command.

Only the module of the command that is run is loaded, and modules load what is heavy (rich, the
daemon) inside their functions, so that a command that lists volumes is done in a tenth of a second.
Whatever goes wrong ends in `blockd.cli.entry`, which prints one line and chooses the exit code;
`blockd.cli.exits` has the table.
"""

from blockd.cli.entry import main

__all__ = ["main"]
