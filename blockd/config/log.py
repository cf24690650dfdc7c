"""Section [log]."""

import enum
from dataclasses import dataclass
from pathlib import Path


class LogFormat(enum.StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogConfig:
    """[log]: lines on stderr, which the service manager keeps, or in a file."""

    format: LogFormat = LogFormat.TEXT
    """Lines for people, or a JSON object each."""
    level: LogLevel = LogLevel.INFO
    """The least important line that is shown."""
    file: Path | None = None
    """Append to this file instead. One that was renamed or removed is made anew with the next line,
    so logrotate needs no signal."""
