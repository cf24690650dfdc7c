"""docs/peer-protocol.md has the tables that the code has."""

from pathlib import Path

import pytest

from tests.peer_tables import codes, heading, table
from transport.peer import wire
from transport.peer.messages import ALL
from transport.peer.wire import Message

DOCUMENT = (Path(__file__).parents[4] / "docs" / "peer-protocol.md").read_text()
SECTIONS = dict(part.split("\n", 1) for part in DOCUMENT.split("\n### ")[1:])


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_message_has_its_table(kind: type[Message]) -> None:
    section = SECTIONS[heading(kind).removeprefix("### ")]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    wanted = table(kind)
    assert rows[: len(wanted)] == wanted
    if kind.__name__ != "Error":
        assert len(rows) == len(wanted)


def test_there_is_no_other_message() -> None:
    assert len(SECTIONS) == len(ALL)


def test_codes_of_errors_are_those_of_the_code() -> None:
    rows = [line.rsplit("|", 2)[0] + "|" for line in DOCUMENT.splitlines() if line.startswith("|")]
    assert [row for row in rows if row in codes()] == codes()


def test_header_and_bounds_are_those_of_the_code() -> None:
    assert wire.HEADER_BYTES == 40
    assert f"magic `{wire.MAGIC.decode()}`" in DOCUMENT
    assert f"| version, {wire.VERSION} |" in DOCUMENT
    for bound, text in (
        (wire.MAX_FIELDS_BYTES, "fields of one message | {} bytes"),
        (wire.MAX_FRAMES, "payload frames of one message | {}"),
        (wire.MAX_FRAME_BYTES, "one payload frame | 1 to {} bytes"),
        (wire.MAX_PAYLOAD_BYTES, "payload of one message | {} bytes"),
    ):
        assert f"| {text.format(bound)} |" in DOCUMENT
