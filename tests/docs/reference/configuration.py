"""docs/reference/configuration.md: the dataclasses of blockd.config, field by field.

Types and ranges come from the annotations that the decoder obeys, texts from the strings behind
the fields; a key without a text is an error here.
"""

import dataclasses
import enum
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from blockd.config import ServeConfig, StoreConfig
from blockd.sizes import exact_size
from blockd.toml_decode import Parsed, Range, SizeText, toml_fields
from tests.docs.reference.markdown import attribute_texts, code, page, prose, table
from volume.options import StoreOptions

INTRODUCTION = """\
`blockd serve` reads `blockd.toml` in the data directory, or the file named by `--config`; the
command line wins over the file, the file over the defaults below. `blockd serve --check-config`
says whether the settings can be served. An unknown key is an error that names the nearest valid
one. A size is a number of bytes or a string such as `"512M"` or `"10GiB"`, always 1024-based. A
relative path is relative to the file's folder. Times whose names end in `_s` are seconds."""

STORE_NAMES = {
    "reserve": "reserve_bytes",
    "cache": "cache_bytes",
    "hot_map": "hot_map_bytes",
    "window": "window_bytes",
    "keep": "history_keep",
    "pack_size": "pack_bytes",
}
"""Keys of [store] that `volume.options.StoreOptions` calls otherwise."""


def page_text() -> str:
    return page("Configuration", "blockd/config/", prose(INTRODUCTION), *_sections(ServeConfig, ""))


def _sections(cls: type, name: str) -> Iterator[str]:
    """The keys of a table, then the tables in it."""
    plain: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for key, kind in toml_fields(cls).items():
        (inner if _table_of(kind) else plain)[key] = kind
    if name:
        yield f"## {code(f'[{name}]')}"
        yield _opening(cls)
    else:
        yield "## At the top"
    fields = {each.name: each for each in dataclasses.fields(cls)}
    texts = attribute_texts(cls)
    rows = [
        (code(key), _type(kind), _default(cls, fields[key]), _text(cls, key, texts))
        for key, kind in plain.items()
    ]
    yield table(("key", "type", "default", "meaning"), rows)
    for key, kind in inner.items():
        below = _table_of(kind)
        assert below is not None
        path = f"{name}.{key}" if name else key
        yield from _sections(below, f'{path}."NAME"' if _mapped(kind) else path)


def _table_of(kind: Any) -> type | None:
    """The dataclass of a table, or of each table in a table with free keys."""
    if dataclasses.is_dataclass(kind):
        return kind if isinstance(kind, type) else None
    inner = get_args(kind)[1] if _mapped(kind) else None
    return inner if dataclasses.is_dataclass(inner) and isinstance(inner, type) else None


def _mapped(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _opening(cls: type) -> str:
    """The docstring behind its "[name]: "."""
    text = prose(cls.__doc__ or "")
    _, mark, rest = text.partition("]: ")
    opening = rest if mark else text
    return _unset(opening[:1].upper() + opening[1:])


def _text(cls: type, key: str, texts: Mapping[str, str]) -> str:
    if key not in texts:
        raise ValueError(f"{cls.__name__}.{key}: has no text behind it in its source")
    return _unset(texts[key])


def _unset(text: str) -> str:
    """TOML has no None: a key is there or not."""
    return text.replace("None", "not set")


def _type(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *marks = get_args(kind)
        return _marked(base, marks)
    if origin in (Union, types.UnionType):
        (inner,) = (each for each in get_args(kind) if each is not types.NoneType)
        return _type(inner)
    if origin is tuple:
        return f"array of {_type(get_args(kind)[0])}"
    if _mapped(kind):
        return f"table of names, each with a {_type(get_args(kind)[1])}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(code(f'"{each.value}"') for each in kind)
    return {bool: "true or false", int: "whole number", float: "number", str: "string"}.get(
        kind, "path" if kind is Path else str(kind)
    )


def _marked(base: Any, marks: list[Any]) -> str:
    for mark in marks:
        if isinstance(mark, Parsed):
            return f"`{mark.what}`"
        if isinstance(mark, SizeText):
            free = mark == SizeText()
            return "size" if free else f"size, {exact_size(mark.low)} to {exact_size(mark.high)}"
        if isinstance(mark, Range):
            return f"{_type(base)}, {_number(mark.low)} to {_number(mark.high)}"
    return _type(base)


def _default(cls: type, field: "dataclasses.Field[Any]") -> str:
    if "default" in field.metadata:
        return str(field.metadata["default"])
    if cls is StoreConfig:
        return _store_default(field.name)
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if value or not isinstance(value, Mapping):
            raise ValueError(f'{cls.__name__}.{field.name}: say metadata={{"default": TEXT}}')
        return "none"
    return _value(field.default, cls, field.name)


def _store_default(key: str) -> str:
    name = STORE_NAMES.get(key, key)
    value = getattr(StoreOptions(), name)
    if value is not None:
        sized = name.endswith("_bytes") or key.endswith("_limit")
        return code(f'"{exact_size(value)}"') if sized else _value(value, StoreOptions, name)
    _, mark, rest = attribute_texts(StoreOptions)[name].partition("None: ")
    if not mark:
        raise ValueError(f"StoreOptions.{name}: its text does not say what None is")
    return rest.split(". ")[0].rstrip(".")


def _value(value: Any, cls: type, name: str) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, enum.Enum):
        return code(f'"{value.value}"')
    if isinstance(value, tuple):
        return code("[" + ", ".join(f'"{each}"' for each in value) + "]")
    if isinstance(value, int) and _is_size(cls, name):
        return code(f'"{exact_size(value)}"')
    if isinstance(value, int | float):
        return code(_number(value))
    return code(f'"{value}"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _is_size(cls: type, name: str) -> bool:
    marks = get_args(toml_fields(cls)[name])
    return any(isinstance(mark, SizeText) for mark in marks)
