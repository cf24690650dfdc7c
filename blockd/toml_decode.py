"""TOML tables -> frozen dataclasses, by their annotations; every mistake names file and key.

    field type                       TOML
    bool, str, enum                  the same; an enum by its value
    int, float                       a number (never a bool), within `Range`
    Annotated[int, SizeText()]       a size string ("10GiB") or a number of bytes
    Path                             string; a relative one is relative to the file's folder
    Annotated[T, Parsed(function)]   string, through function(text), which raises ValueError
    tuple[T, ...]                    array
    Mapping[str, T]                  table with free keys
    dataclass                        table with the dataclass's fields as keys

A field whose metadata says `{"toml": False}` is set by code only. Unknown keys and wrong types are
errors, never warnings: a limit that is misspelt is a limit that is not there.
"""

import dataclasses
import difflib
import enum
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from blockd.sizes import parse_size

MAX_FILE_BYTES = 1 << 20  # far above any configuration; stops on /dev/zero and disk images
T = TypeVar("T")


class ConfigError(Exception):
    """A configuration that cannot be used; the message says where and what to write instead."""

    code = "invalid_config"


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number, both inclusive."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SizeText:
    """Marks bytes that may be written as a size string."""

    low: int = 0
    high: int = 1 << 60


@dataclass(frozen=True, slots=True)
class Parsed:
    """Marks a value that is written as a string and parsed by `parse`."""

    parse: Callable[[str], object]
    what: str


def load_toml(path: Path) -> dict[str, Any]:
    """The file as tables. Raises ConfigError when it cannot be read or is not TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_FILE_BYTES} bytes; is it a configuration?")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not TOML that anybody wrote: nested too deeply") from None


def decode(cls: type[T], table: Mapping[str, Any], path: Path) -> T:
    """`table`, read from `path`, as an instance of dataclass `cls`. Raises ConfigError."""
    return cast(T, _Decoder(path, cls).dataclass(cls, table, ()))


Key = tuple[str, ...]


class _Decoder:
    def __init__(self, path: Path, root: type) -> None:
        self._path = path
        self._root = root

    def _fail(self, key: Key, problem: str) -> ConfigError:
        return ConfigError(f"{self._path}: {dotted(key)}: {problem}")

    def _expected(self, key: Key, expected: str, value: object) -> ConfigError:
        return self._fail(key, f"expected {expected}, got {_describe(value)}")

    def dataclass(self, cls: type, value: object, key: Key) -> object:
        if not isinstance(value, dict):
            raise self._expected(key, "a table", value)
        fields = toml_fields(cls)
        for name in value:
            if name not in fields:
                raise self._fail((*key, name), self._nearest(name, key, fields))
        return cls(**{n: self._value(fields[n], v, (*key, n)) for n, v in value.items()})

    def _nearest(self, name: str, key: Key, fields: Mapping[str, Any]) -> str:
        """What to say of an unknown key: a near name here, the same name elsewhere, or all."""
        if near := difflib.get_close_matches(name, fields, n=1):
            return f"no such key; did you mean {dotted((*key, near[0]))}?"
        everywhere = {leaf[-1]: leaf for leaf in _leaves(self._root, ())}
        if near := difflib.get_close_matches(name, everywhere, n=1, cutoff=0.8):
            return f"no such key; did you mean {dotted(everywhere[near[0]])}?"
        return f"no such key; valid here: {', '.join(sorted(fields))}"

    def _value(self, kind: Any, value: object, key: Key) -> object:
        origin = get_origin(kind)
        if origin is Annotated:
            base, *marks = get_args(kind)
            return self._annotated(base, marks, value, key)
        if origin in (Union, types.UnionType):
            (inner,) = (arg for arg in get_args(kind) if arg is not types.NoneType)
            return self._value(inner, value, key)
        if origin is tuple:
            return self._array(get_args(kind)[0], value, key)
        if origin is not None and issubclass(origin, Mapping):
            return self._table(get_args(kind)[1], value, key)
        if dataclasses.is_dataclass(kind):
            return self.dataclass(cast(type, kind), value, key)
        return self._scalar(kind, value, key)

    def _annotated(self, base: Any, marks: list[Any], value: object, key: Key) -> object:
        for mark in marks:
            if isinstance(mark, Parsed):
                return self._parsed(mark, value, key)
            if isinstance(mark, SizeText):
                value = self._size(value, key)
                mark = Range(mark.low, mark.high)
            if isinstance(mark, Range):
                value = self._scalar(base, value, key)
                if not mark.low <= cast(float, value) <= mark.high:
                    raise self._expected(key, f"{mark.low} to {mark.high}", value)
        return value

    def _parsed(self, mark: Parsed, value: object, key: Key) -> object:
        if not isinstance(value, str):
            raise self._expected(key, mark.what, value)
        try:
            return mark.parse(value)
        except ValueError as error:
            raise self._fail(key, str(error)) from error

    def _size(self, value: object, key: Key) -> object:
        if not isinstance(value, str):
            if isinstance(value, bool) or not isinstance(value, int):
                raise self._expected(key, 'a size such as "10GiB"', value)
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            raise self._fail(key, str(error)) from error

    def _array(self, inner: Any, value: object, key: Key) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise self._expected(key, "an array", value)
        return tuple(self._value(inner, v, (*key, str(i))) for i, v in enumerate(value))

    def _table(self, inner: Any, value: object, key: Key) -> object:
        if not isinstance(value, dict):
            raise self._expected(key, "a table", value)
        return types.MappingProxyType(
            {name: self._value(inner, v, (*key, name)) for name, v in value.items()}
        )

    def _scalar(self, kind: Any, value: object, key: Key) -> object:
        if kind is Path:
            if not isinstance(value, str) or not value:
                raise self._expected(key, "a path", value)
            try:
                return self._path.parent / Path(value).expanduser()
            except RuntimeError:
                raise self._fail(key, f"{value!r}: there is no such user's home") from None
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            allowed = [member.value for member in kind]
            if value not in allowed:
                raise self._expected(key, "one of " + ", ".join(map(repr, allowed)), value)
            return kind(value)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise self._expected(key, _NAMES[kind], value)
        return value


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def toml_fields(cls: type) -> dict[str, Any]:
    """The keys that a table for `cls` may have, with their types."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(cls)
        if field.metadata.get("toml", True)
    }


def dotted(key: Key) -> str:
    """A key as it is written in TOML: `exports."vm 1".clients`."""
    return ".".join(
        part if part.replace("-", "").replace("_", "").isalnum() and part.isascii() else f'"{part}"'
        for part in key
    )


def _leaves(cls: type, key: Key) -> list[Key]:
    found: list[Key] = []
    for name, kind in toml_fields(cls).items():
        found.append((*key, name))
        if dataclasses.is_dataclass(kind):
            found += _leaves(cast(type, kind), (*key, name))
    return found


def _describe(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    return f"the string {value!r}" if isinstance(value, str) else str(value)
