"""Log lines on stderr, or in a file: one root handler, nothing else prints.

Text is `time level logger event key=value ...`; JSON is one object a line with the same names. The
event is the message; fields come as `logger.info("attached", extra={"volume": name})`. Whatever a
client can influence is escaped, so that one event is always one line (a traceback follows indented
in text, as the field `exception` in JSON). Times are UTC with milliseconds.
"""

import contextlib
import json
import logging
import os
import shlex
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TextIO

from blockd.config import LogConfig, LogFormat
from volume.privatefile import user_name

logger = logging.getLogger(__name__)

# Attributes that every LogRecord has: what is not among them came in by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",  # uvicorn's second copy of the message, with escape codes
}
_NEEDS_QUOTES = frozenset(' "=')

# Libraries that report at INFO what is of no use to an operator.
_QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore", "asyncio")


def setup(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send all logging to `stream` (stderr), or to the file that `config` names; may be called
    again to change what it says. OSError: the file cannot be written, and nothing has changed."""
    handler: logging.Handler
    if config.file is not None:
        handler = _LogFile(config.file, encoding="utf-8")
    else:
        handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if config.format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers:
        if isinstance(old, WatchedFileHandler):
            old.close()
    root.handlers[:] = [handler]
    level = getattr(logging, config.level.upper())
    root.setLevel(level)
    logging.captureWarnings(True)
    if config.file is not None:
        _warn_of_folder(config.file.absolute().parent)
    for name in _QUIET:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(level, logging.WARNING))


def _warn_of_folder(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        me = user_name(os.geteuid())
        fix = f"chown {me} {shlex.quote(str(folder))}, or have logrotate create it"
        logger.warning("log file could not be made anew once rotated away", extra={"fix": fix})


class _LogFile(WatchedFileHandler):
    """One that was rotated away and cannot be made anew (its folder is not ours, the disk is full)
    must not break what logs: lines go to stderr until it can."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError as error:
            line = self.format(record)
            with contextlib.suppress(OSError, ValueError):  # stderr may be gone as well
                print(line, f"(log file {self.baseFilename}: {error.strerror})", file=sys.stderr)


class TextFormatter(logging.Formatter):
    """`2026-11-22T10:31:05.123Z info blockd.daemon serving volumes=3`."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname.lower(), record.name, _escape(record.getMessage())]
        parts += [f"{key}={_text_value(value)}" for key, value in _fields(record).items()]
        line = " ".join(parts)
        for trace in _traces(self, record):
            line += "\n    " + trace.replace("\n", "\n    ")
        return line


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "event": ..., <fields>}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for key, value in _fields(record).items():
            line.setdefault(key, value)
        if traces := _traces(self, record):
            line["exception"] = "\n".join(traces)
        return json.dumps(line, default=str)


def _time(record: logging.LogRecord) -> str:
    stamp = datetime.fromtimestamp(record.created, UTC)
    return stamp.strftime("%Y-%m-%dT%H:%M:%S.") + f"{stamp.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _traces(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    traces = []
    if record.exc_info:
        traces.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        traces.append(formatter.formatStack(record.stack_info))
    return traces


def _escape(text: str) -> str:
    """`text` without anything that a terminal or a line reader would act upon."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text_value(value: object) -> str:
    text = str(value)
    if not text or not text.isprintable() or not _NEEDS_QUOTES.isdisjoint(text):
        return json.dumps(text)
    return text
