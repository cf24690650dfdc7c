"""Where things are when nobody says; commands that need no more of the settings load this alone."""

from pathlib import Path

DEFAULT_DATA = Path("blockd-data")
CONTROL_NAME = "control.sock"
