import base64
import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from transport.etcd import codec
from transport.etcd.codec import BadAnswer
from transport.etcd.releases import known_faults
from volume.metastore import Change, Row

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
ROW = Row("a", b"1", 5)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def kv(key: bytes = b"p/a", value: bytes = b"1", revision: str = "5") -> dict[str, Any]:
    return {"key": b64(key), "value": b64(value), "mod_revision": revision, "version": "1"}


def test_a_swap_compares_revision_and_value_and_reads_on_failure() -> None:
    assert codec.txn_body("p/", [Change("a", ROW, b"2")]) == {
        "compare": [
            {"key": b64(b"p/a"), "result": "EQUAL", "target": "MOD", "mod_revision": "5"},
            {"key": b64(b"p/a"), "result": "EQUAL", "target": "VALUE", "value": b64(b"1")},
        ],
        "success": [{"request_put": {"key": b64(b"p/a"), "value": b64(b"2")}}],
        "failure": [{"request_range": {"key": b64(b"p/a")}}],
    }


def test_a_create_compares_with_absence_and_a_delete_deletes() -> None:
    body = codec.txn_body("", [Change("a", None, b"2"), Change("b", Row("b", b"", 1), None)])
    absent = {"key": b64(b"a"), "target": "VERSION", "result": "EQUAL", "version": "0"}
    assert body["compare"][0] == absent
    assert body["success"][1] == {"request_delete_range": {"key": b64(b"b")}}


def test_a_page_starts_past_the_last_key_and_ends_with_the_prefix() -> None:
    body = codec.page_body("p/", "n/", "n/x", 3)
    assert (body["key"], body["range_end"]) == (b64(b"p/n/x\0"), b64(b"p/n0"))
    assert codec.page_body("p/", "n/", "", 3)["key"] == b64(b"p/n/")


def test_rows_come_without_prefix_and_empty_values_are_bytes() -> None:
    empty = {"key": b64(b"p/b"), "mod_revision": "6"}
    rows = codec.range_rows({"kvs": [kv(), empty]}, "p/", 2)
    assert rows == (ROW, Row("b", b"", 6))
    assert codec.range_rows({}, "p/", 2) == ()


@pytest.mark.parametrize(
    "kvs",
    [
        [kv(), kv(b"p/b"), kv(b"p/c")],
        [kv(b"p/b"), kv(b"p/a")],
        [kv(), kv()],
        [kv(b"q/a")],
        [kv(b"p/\xff")],
        [kv(revision="0")],
        [kv(revision="-1")],
        [kv(revision="9" * 19)],
        [kv(revision="\u0665")],
        [{**kv(), "mod_revision": 5}],
        [{**kv(), "value": "*"}],
        [{**kv(), "value": 1}],
        [None],
        {},
    ],
)
def test_rows_that_were_not_asked_for_are_a_bad_answer(kvs: Any) -> None:
    with pytest.raises(BadAnswer):
        codec.range_rows({"kvs": kvs}, "p/", 2)


def test_a_failed_transaction_gives_the_rows_in_order() -> None:
    changes = [Change("b", None, b"2"), Change("a", ROW, b"2")]
    answer = {
        "header": {"revision": "9"},
        "responses": [{"response_range": {}}, {"response_range": {"kvs": [kv()]}}],
    }
    assert codec.txn_answer(answer, "p/", changes).rows == (None, ROW)
    answer["responses"].reverse()  # type: ignore[attr-defined]
    with pytest.raises(BadAnswer, match="row 'a' for 'b'"):
        codec.txn_answer(answer, "p/", changes)


@given(JSON, JSON, JSON)
def test_any_json_is_an_answer_or_a_bad_answer(header: Any, succeeded: Any, rest: Any) -> None:
    answer = {"header": header, "succeeded": succeeded, "responses": rest, "kvs": rest, "ID": rest}
    decoders: list[Callable[[], object]] = [
        lambda: codec.txn_answer(answer, "p/", [Change("a", None, b"")]),
        lambda: codec.range_rows(answer, "p/", 3),
        lambda: codec.lease_id(answer),
        lambda: codec.auth_token({"token": rest}),
        lambda: codec.server_version({"etcdserver": rest}),
        lambda: codec.refusal({"code": rest, "message": header}),
    ]
    for decoder in decoders:
        try:
            decoder()
        except BadAnswer:
            continue


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{", b"[" * 100_000])
def test_what_is_no_json_object_is_a_bad_answer(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        codec.decode_json(body)


def test_a_json_object_is_taken_as_it_is() -> None:
    assert codec.decode_json(json.dumps({"a": 1}).encode()) == {"a": 1}


@pytest.mark.parametrize(
    ("version", "faulty"),
    [
        ("3.4.23", True),
        ("3.4.23+deb", True),
        ("3.4.41", True),
        ("3.4.42", False),
        ("3.5.27", True),
        ("3.5.28", False),
        ("3.6.8", True),
        ("3.6.9", False),
        ("3.7.0", False),
        ("3.3.27", True),
        ("2.3.8", True),
        ("four", True),
        ("", True),
    ],
)
def test_releases_with_known_faults_are_named_with_the_way_out(version: str, faulty: bool) -> None:
    fault = known_faults(version)
    assert (fault is not None) == faulty
    assert fault is None or "upgrade" in fault or "use 3.4" in fault
