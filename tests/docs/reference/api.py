"""docs/reference/api.md: the control API, from its OpenAPI schema and the classes behind it."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from blockd.api.app import create_app
from blockd.api.errors import HTTP_STATUS
from blockd.cli import exits
from tests.docs.reference.markdown import attribute_texts, code, page, prose, table
from tests.fake_node import FakeNode

Json = Mapping[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
PACKAGES = ("blockd.", "volume.")

INTRODUCTION = """\
HTTP over the daemon's control socket (`control.sock` in the data directory, mode 0600), JSON in
both directions. Everything that `blockd` does goes through it. Within `/v1` fields may be added;
none is renamed or removed. Sizes and offsets are bytes, names that end in `_ns` are nanoseconds
since 1970, in `_s` seconds. `GET /v1/openapi.json` is the schema that this page is made from."""
EXAMPLE = """\
    curl --unix-socket blockd-data/control.sock http://blockd/v1/status
    curl --unix-socket blockd-data/control.sock http://blockd/v1/volumes \\
      -H 'content-type: application/json' -d '{"name": "vm9", "size": 10737418240}'"""
ERRORS = """\
Every answer that is not a success is `{"error": {"code": "...", "message": "..."}}`. The code is
for programs and stays; the message is for people. Codes that are not listed are faults of the
daemon or of its disk: status 500, exit code 1."""


def page_text() -> str:
    schema = create_app(FakeNode(Path("control.sock")), "v1").openapi()
    return page(
        "Control API",
        "blockd/api",
        prose(INTRODUCTION),
        EXAMPLE,
        *_routes(schema["paths"]),
        "## Errors",
        prose(ERRORS),
        table(("code", "status", "exit code of `blockd`"), _errors()),
        "## Types",
        *_types(schema["components"]["schemas"]),
    )


def _routes(paths: Json) -> Iterator[str]:
    heading = None
    for path, methods in paths.items():
        for method in METHODS:
            if (route := methods.get(method)) is None:
                continue
            (tag,) = route["tags"]
            if tag != heading:
                heading = tag
                yield f"## {tag.capitalize()}"
            yield f"### {method.upper()} {path}"
            yield from _route(route)


def _route(route: Json) -> Iterator[str]:
    yield _text(route.get("description") or route["summary"].capitalize() + ".")
    # What is in the path is in the heading already.
    if parameters := [each for each in route.get("parameters", ()) if each["in"] != "path"]:
        rows = (
            (
                code(each["name"]),
                _type(each["schema"]),
                "required" if each["required"] else _json(each["schema"].get("default")),
                _text(each.get("description", "")),
            )
            for each in parameters
        )
        yield table(("query", "type", "default", "meaning"), rows)
    lines = []
    if body := route.get("requestBody"):
        lines.append(f"Body: {_content(body)}.")
    good = [(status, answer) for status, answer in route["responses"].items() if status[0] == "2"]
    lines += [f"Answer: {status}{_answer(status, answer)}." for status, answer in good]
    yield " ".join(lines)


def _answer(status: str, message: Json) -> str:
    if status == "204":
        return ""
    return f", {_content(message)}" if message.get("content") else ", a body of bytes"


def _content(message: Json) -> str:
    ((kind, content),) = message["content"].items()
    return _type(content.get("schema", {})) if kind == "application/json" else code(kind)


def _json(value: Any) -> str:
    return code(json.dumps(value))


def _text(text: str) -> str:
    """JSON says null where Python says None."""
    return prose(text).replace("None", "null")


def _type(schema: Json) -> str:
    """A schema in words; types have a link to their table."""
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf"):
        return " or ".join(map(_type, options))
    if values := schema.get("enum"):
        return ", ".join(code(f'"{each}"') for each in values)
    kind = schema.get("type", "anything")
    if kind == "array":
        if "prefixItems" in schema:
            return "array of (" + ", ".join(map(_type, schema["prefixItems"])) + ")"
        return f"array of {_type(schema.get('items', {}))}"
    return str(kind)


def _errors() -> Iterator[tuple[str, str, str]]:
    for name, status in sorted(HTTP_STATUS.items(), key=lambda each: (each[1], each[0])):
        yield code(name), str(status), str(exits.EXIT_CODE.get(name, exits.FAILED))


def _types(schemas: Json) -> Iterator[str]:
    classes = _classes()
    for name, schema in schemas.items():
        texts = attribute_texts(classes[name])
        yield f"### {name}"
        text = classes[name].__dict__.get("__doc__") or ""
        if text and not text.startswith(f"{name}("):  # what dataclass makes by itself
            yield _text(text)
        required = schema.get("required", ())
        rows = (
            (
                code(field),
                _type(kind),
                "" if field in required else _json(kind.get("default")),
                _text(kind.get("description") or texts.get(field, "")),
            )
            for field, kind in schema["properties"].items()
        )
        yield table(("field", "type", "default", "meaning"), rows)


def _classes() -> dict[str, type]:
    """Ours that the schema may be made from, by name."""
    return {
        name: each
        for module in list(sys.modules.values())
        if module.__name__.startswith(PACKAGES)
        for name, each in vars(module).items()
        if isinstance(each, type)
        and each.__module__.startswith(PACKAGES)
        and (dataclasses.is_dataclass(each) or issubclass(each, BaseModel))
    }
