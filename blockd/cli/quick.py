"""Words of the command line -> values, without pydantic where the words are the values.

typer asks pydantic about every parameter, whether it was given or not, and loading that takes as
long as a whole command. What was left out, text and paths need nobody's opinion; typer decides
about all else: numbers and choices.
"""

from pathlib import Path
from typing import Any

import typer.main

PLAIN = (str, int, float, bool)


def quickened(command: Any) -> Any:
    """`command`, and those below it, with parameters that are read like that."""
    for parameter in command.params:
        _quicken(parameter)
    command.get_help_option = _QuickHelp(command)
    for below in getattr(command, "commands", {}).values():
        quickened(below)
    return command


def _quicken(parameter: Any) -> None:
    if not isinstance(parameter.process_value, _Quick):
        parameter.process_value = _Quick(parameter)


class _QuickHelp:
    """Stands for `get_help_option` of one command: no list of its parameters has --help."""

    def __init__(self, command: Any) -> None:
        self._get = command.get_help_option

    def __call__(self, context: typer.Context) -> Any:
        option = self._get(context)
        if option is not None:
            _quicken(option)
        return option


class _Quick:
    """Stands for `process_value` of one parameter."""

    def __init__(self, parameter: Any) -> None:
        self._parameter = parameter
        self._slow = parameter.process_value
        described = getattr(parameter, "type_descriptor", None)  # no name that typer documents
        self._annotation = getattr(described, "annotation", None)
        self._many = parameter.multiple or parameter.nargs != 1

    def __call__(self, context: typer.Context, value: Any) -> Any:
        if value is None and not self._parameter.required:
            return self._called(context, () if self._many else None)
        if not self._many:
            if self._annotation in PLAIN and isinstance(value, self._annotation):
                return self._called(context, value)
            if self._annotation is Path and isinstance(value, (str, Path)):
                return self._called(context, Path(value))
        elif self._annotation == list[str] and all(isinstance(each, str) for each in value):
            return self._called(context, list(value))
        return self._slow(context, value)

    def _called(self, context: typer.Context, value: Any) -> Any:
        call = self._parameter.callback
        return value if call is None else call(context, self._parameter, value)
