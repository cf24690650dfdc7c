"""The file that says which node a data directory is: whole, secret, and never guessed."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from transport.errors import BadIdentity
from transport.keys import (
    IDENTITY_NAME,
    Identity,
    identity_path,
    new_identity,
    new_key_pair,
    pair_of,
    read_identity,
    write_identity,
)

CLUSTER = "c" * 32


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    made = new_identity(CLUSTER, "n1")
    write_identity(tmp_path, made)
    return made


def test_what_is_written_is_read(tmp_path: Path, identity: Identity) -> None:
    assert read_identity(tmp_path) == identity
    assert not identity.joined
    write_identity(tmp_path, replace(identity, joined=True))
    assert read_identity(tmp_path) == replace(identity, joined=True)


def test_a_directory_without_it_is_of_no_cluster(tmp_path: Path) -> None:
    assert read_identity(tmp_path) is None


def test_nobody_else_can_read_it(tmp_path: Path, identity: Identity) -> None:
    assert stat.S_IMODE(identity_path(tmp_path).stat().st_mode) == 0o600
    identity_path(tmp_path).chmod(0o640)
    with pytest.raises(BadIdentity, match="mode 0640 opens it to others; run: chmod 600"):
        read_identity(tmp_path)


def test_a_draft_that_a_crash_left_is_not_in_the_way(tmp_path: Path, identity: Identity) -> None:
    draft = tmp_path / f".{IDENTITY_NAME}.1"
    draft.write_text("half")
    assert read_identity(tmp_path) == identity
    assert [path.name for path in tmp_path.iterdir() if path != draft] == [IDENTITY_NAME]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("cluster", "c" * 31),
        ("node", None),
        ("name", 5),
        ("joined", 1),
        ("secret_key", "00" * 31),
        ("public_key", "00" * 32),
    ],
)
def test_what_blockd_did_not_write_is_refused(
    tmp_path: Path, identity: Identity, field: str, value: object
) -> None:
    path = identity_path(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(BadIdentity, match="is not what blockd wrote"):
        read_identity(tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b"{" * 5000])
def test_garbage_is_refused(tmp_path: Path, identity: Identity, text: bytes) -> None:
    identity_path(tmp_path).write_bytes(text)
    with pytest.raises(BadIdentity):
        read_identity(tmp_path)


def test_a_secret_is_not_shown(identity: Identity) -> None:
    assert identity.keys.secret.hex() not in repr(identity)
    assert str(identity.keys.secret) not in repr(identity)


def test_a_pair_is_that_of_its_secret() -> None:
    keys = new_key_pair()
    assert pair_of(keys.secret) == keys
    assert new_key_pair() != keys
