"""Messages of etcd's v3 JSON gateway: bodies to send, answers to believe. No I/O.

The gateway writes protobuf as JSON: bytes in base64, 64-bit integers as strings, and fields that
are zero or empty not at all. Answers come from a network, so each is looked at before use: a wrong
type, a key outside of what was asked for or too many rows is `BadAnswer`.

A transaction compares, for each row, `version = 0` (absent), or `mod_revision` and the value; it
reads all of its rows when a comparison fails. As it contains writes it goes through the log of
etcd, in both cases: unlike a plain range, its answer is never stale.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from volume.metastore import Change, Row

MAX_REVISION = (1 << 63) - 1

# gRPC codes in error bodies after which a transaction surely did not happen. All others, like
# UNAVAILABLE ("leader changed", "request timed out"), may come after it was proposed.
INVALID_ARGUMENT = 3
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8  # too many requests, or the space quota: refused before or while applied
FAILED_PRECONDITION = 9
UNAUTHENTICATED = 16
REFUSALS = frozenset(
    {INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNAUTHENTICATED}
)


class BadAnswer(Exception):
    """What came is not an answer of etcd's to what was asked."""


@dataclass(frozen=True, slots=True)
class TxnAnswer:
    succeeded: bool
    revision: int
    """Of the store; the mod_revision of what a successful transaction put."""
    rows: tuple[Row | None, ...]
    """The rows as they are, when it did not succeed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    code: int
    message: str


def range_body(prefix: str, key: str) -> dict[str, Any]:
    return {"key": _b64(prefix + key)}


def page_body(prefix: str, under: str, after: str, limit: int) -> dict[str, Any]:
    """A range of up to `limit` keys that start with `under` and are past `after`."""
    start = prefix + max(under, after + "\0" if after else "")
    return {
        "key": _b64(start),
        "range_end": base64.b64encode(_range_end(prefix + under)).decode(),
        "limit": str(limit),
        "sort_order": "ASCEND",
        "sort_target": "KEY",
    }


def txn_body(prefix: str, changes: Sequence[Change]) -> dict[str, Any]:
    compare: list[dict[str, Any]] = []
    success: list[dict[str, Any]] = []
    for change in changes:
        key = _b64(prefix + change.key)
        if change.before is None:
            compare.append({"key": key, "target": "VERSION", "result": "EQUAL", "version": "0"})
        else:
            revision = str(change.before.revision)
            value = _b64(change.before.value)
            guard = {"key": key, "result": "EQUAL"}
            compare.append({**guard, "target": "MOD", "mod_revision": revision})
            compare.append({**guard, "target": "VALUE", "value": value})
        if change.value is None:
            success.append({"request_delete_range": {"key": key}})
        else:
            success.append({"request_put": {"key": key, "value": _b64(change.value)}})
    failure = [{"request_range": {"key": _b64(prefix + change.key)}} for change in changes]
    return {"compare": compare, "success": success, "failure": failure}


def put_body(prefix: str, key: str, value: bytes, lease: int) -> dict[str, Any]:
    return {"key": _b64(prefix + key), "value": _b64(value), "lease": str(lease)}


def lease_body(ttl_s: int) -> dict[str, Any]:
    return {"TTL": str(ttl_s), "ID": "0"}


def password_body(user: str, password: str) -> dict[str, Any]:
    return {"name": user, "password": password}


def decode_json(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswer("not JSON") from None
    if not isinstance(answer, dict):
        raise BadAnswer("not a JSON object")
    return answer


def range_rows(answer: dict[str, Any], prefix: str, most: int) -> tuple[Row, ...]:
    """The rows of a range's answer, in key order; keys without `prefix`."""
    found = answer.get("kvs", [])
    if not isinstance(found, list) or len(found) > most:
        raise BadAnswer(f"not up to {most} rows")
    rows = tuple(_row(item, prefix) for item in found)
    if any(a.key >= b.key for a, b in pairwise(rows)):
        raise BadAnswer("rows out of order")
    return rows


def txn_answer(answer: dict[str, Any], prefix: str, changes: Sequence[Change]) -> TxnAnswer:
    header = answer.get("header")
    revision = _integer(header.get("revision") if isinstance(header, dict) else None)
    succeeded = answer.get("succeeded", False)
    if succeeded is True:
        return TxnAnswer(True, revision, ())
    responses = answer.get("responses", [])
    if succeeded is not False or not isinstance(responses, list):
        raise BadAnswer("neither succeeded nor failed")
    if len(responses) != len(changes):
        raise BadAnswer(f"{len(responses)} responses to {len(changes)} ranges")
    rows: list[Row | None] = []
    for change, response in zip(changes, responses, strict=True):
        part = response.get("response_range") if isinstance(response, dict) else None
        if not isinstance(part, dict):
            raise BadAnswer("a response is not that of a range")
        found = range_rows(part, prefix, 1)
        if found and found[0].key != change.key:
            raise BadAnswer(f"row {found[0].key!r} for {change.key!r}")
        rows.append(found[0] if found else None)
    return TxnAnswer(False, revision, tuple(rows))


def lease_id(answer: dict[str, Any]) -> int:
    return _integer(answer.get("ID"))


def auth_token(answer: dict[str, Any]) -> str:
    token = answer.get("token")
    if not isinstance(token, str) or not 0 < len(token) <= 4096 or not token.isascii():
        raise BadAnswer("no token")
    return token


def server_version(answer: dict[str, Any]) -> str:
    version = answer.get("etcdserver")
    if not isinstance(version, str) or len(version) > 64:
        raise BadAnswer("no version")
    return version


def refusal(answer: dict[str, Any]) -> Refusal:
    """The error of an answer whose HTTP status is not 200."""
    code, message = answer.get("code"), answer.get("message", answer.get("error"))
    return Refusal(code if type(code) is int else 0, str(message)[:256])


def _row(item: Any, prefix: str) -> Row:
    if not isinstance(item, dict):
        raise BadAnswer("a row is not an object")
    try:
        key = _unb64(item.get("key")).decode()
    except UnicodeDecodeError:
        raise BadAnswer("a key is not UTF-8") from None
    if not key.startswith(prefix):
        raise BadAnswer(f"key {key[:64]!r} is outside of {prefix!r}")
    value = _unb64(item.get("value", ""))
    return Row(key[len(prefix) :], value, _integer(item.get("mod_revision")))


def _integer(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        number = int(value)
        if 0 < number <= MAX_REVISION:
            return number
    raise BadAnswer(f"not a positive 64-bit integer: {str(value)[:32]!r}")


def _b64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def _unb64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise BadAnswer("bytes are not base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadAnswer("bytes are not base64") from None


def _range_end(prefix: str) -> bytes:
    """The first key after all that start with `prefix`: UTF-8 never ends in 0xff."""
    data = prefix.encode()
    return data[:-1] + bytes([data[-1] + 1])
