import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from native import crc32c
from volume.metastore_records import (
    MAX_VALUE_BYTES,
    AccessRecord,
    ClusterRecord,
    CorruptRecord,
    GroupState,
    Heartbeat,
    Mode,
    NameRecord,
    NodeRecord,
    Record,
    VolumeGroup,
    decode,
    encode,
)

A, B, TOKEN = "a" * 32, "b" * 32, "0" * 31 + "1"
GROUP = VolumeGroup(
    volume_id="7" * 32,
    name="vm1",
    epoch=3,
    primary=A,
    members=(A, B),
    replicas=3,
    write_quorum=2,
    mode=Mode.STRICT,
    head=None,
    branch="main",
    state=GroupState.SEALING,
    token=TOKEN,
)
RECORDS: list[Record] = [
    GROUP,
    replace(GROUP, primary=None, head="ef" * 32),
    ClusterRecord(A, 7, TOKEN),
    NodeRecord(A, "node-1", ("10.0.0.1:7000", "[fe80::1]:7000"), "cd" * 32, TOKEN),
    NameRecord("vm1", A, TOKEN),
    AccessRecord(A, '{"rules": []}', TOKEN),
    Heartbeat(A, 1_700_000_000_000_000_000, TOKEN),
]


def framed(body: bytes) -> bytes:
    return b"blockd1 %08x " % crc32c(body) + body


def with_fields(**changes: Any) -> bytes:
    """GROUP's value with other fields, in canonical form and with a good checksum."""
    fields = {**GROUP.fields(), "token": TOKEN, **changes}
    return framed(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_is_encoded_is_decoded(record: Record) -> None:
    assert decode(type(record), record.key, encode(record)) == record


def test_the_canonical_form_is_this() -> None:
    body = b'{"cluster":"%s","map_epoch":7,"token":"%s"}' % (A.encode(), TOKEN.encode())
    assert encode(ClusterRecord(A, 7, TOKEN)) == framed(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", 0),
        ("epoch", -1),
        ("epoch", 1 << 63),
        ("epoch", 1.0),
        ("epoch", True),
        ("epoch", "3"),
        ("primary", "c" * 32),
        ("primary", A.upper()),
        ("members", []),
        ("members", [A, A]),
        ("members", A),
        ("members", [f"{n:032x}" for n in range(9)]),
        ("members", [A, B, "c" * 32, "d" * 32]),
        ("r", 1),
        ("w", 4),
        ("w", 0),
        ("mode", "raid0"),
        ("mode", None),
        ("head", "ef"),
        ("branch", ""),
        ("branch", "x" * 65),
        ("name", ""),
        ("name", "a\nb"),
        ("name", 7),
        ("state", {}),
        ("token", ""),
        ("extra", 1),
    ],
)
def test_a_field_out_of_bounds_is_refused(field: str, value: Any) -> None:
    with pytest.raises(CorruptRecord, match=f"{GROUP.key}.*Restore"):
        decode(VolumeGroup, GROUP.key, with_fields(**{field: value}))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda value: value[:-1] + b"]", id="checksum"),
        pytest.param(lambda value: value.replace(b"blockd1", b"blockd2"), id="version"),
        pytest.param(lambda value: framed(value[17:].replace(b":", b": ", 1)), id="blank"),
        pytest.param(lambda value: framed(b'{"epoch":3,' + value[18:]), id="doubled field"),
        pytest.param(lambda value: value + b" " * MAX_VALUE_BYTES, id="length"),
        pytest.param(lambda value: framed(b"[" * 4000), id="nesting"),
        pytest.param(lambda value: framed(b"[]"), id="no object"),
        pytest.param(lambda value: framed(b"\xff"), id="not ASCII"),
        pytest.param(lambda value: framed(b'{"epoch":' + b"9" * 4000 + b"}"), id="digits"),
        pytest.param(lambda value: framed(b'{"epoch":NaN}'), id="NaN"),
        pytest.param(lambda value: value.replace(b"vm1", b"vm2"), id="flipped"),
    ],
)
def test_a_value_in_another_form_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CorruptRecord):
        decode(VolumeGroup, GROUP.key, change(encode(GROUP)))


def test_a_record_under_another_key_is_refused() -> None:
    with pytest.raises(CorruptRecord, match="belongs under"):
        decode(VolumeGroup, "volume/" + "8" * 32, encode(GROUP))


def test_a_record_out_of_bounds_is_not_encoded() -> None:
    with pytest.raises(CorruptRecord, match="W=4 above R=3"):
        encode(replace(GROUP, write_quorum=4))


@given(st.binary(max_size=200), st.sampled_from([type(record) for record in RECORDS]))
@example(b"", VolumeGroup)
def test_any_bytes_are_refused_as_corrupt(body: bytes, kind: type[Record]) -> None:
    for value in (body, framed(body)):
        with pytest.raises(CorruptRecord):
            decode(kind, "cluster", value)


@given(st.dictionaries(st.sampled_from(sorted(GROUP.fields())), st.none() | st.text(max_size=4)))
def test_fields_of_any_type_are_refused_or_decode_to_the_same_bytes(changes: Any) -> None:
    value = with_fields(**changes)
    try:
        record = decode(VolumeGroup, GROUP.key, value)
    except CorruptRecord:
        return
    assert encode(record) == value
