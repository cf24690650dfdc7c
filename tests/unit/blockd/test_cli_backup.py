"""`blockd backup-meta` and `blockd doctor --rebuild-meta`, on real files."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from blockd.cli import exits
from native import OP_READ, OP_WRITE, Request
from tests.command import Blockd
from tests.daemon import JOURNAL_BYTES
from volume.errors import CorruptData, MetaLost, OldMeta, UnknownFormat
from volume.metabackup import look_at
from volume.options import StoreOptions
from volume.store import Store

DATA = os.urandom(1 << 16)


def submit(store: Store, request: Request) -> Request:
    volume = store.get("vm1")
    assert volume is not None
    done = threading.Event()
    volume.submit([request], lambda _: done.set())
    assert done.wait(30.0)
    assert request.error == 0
    return request


def read(store: Store, offset: int) -> bytes:
    data = submit(store, Request(OP_READ, offset, len(DATA))).data
    assert isinstance(data, bytes)
    return data


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A data directory: a volume with a snapshot in packs, and writes in the journal."""
    path = tmp_path / "stored"
    store = Store.open(path, StoreOptions(journal_limit=JOURNAL_BYTES))
    store.create_volume("vm1", 1 << 20)
    submit(store, Request(OP_WRITE, 0, len(DATA), DATA))
    store.snapshots.create("monday", ["vm1"])
    store.upkeep.submit(store.destage)
    submit(store, Request(OP_WRITE, 1 << 17, len(DATA), DATA))
    store.close()
    return path


def backed_up(stored: Path, blockd: Blockd, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    made = blockd("backup-meta", "--data", str(stored), "--out", str(folder), "--json").json
    return Path(made["path"])


def check(stored: Path) -> None:
    store = Store.open(stored)
    try:
        assert store.names() == ["vm1"]
        assert read(store, 0) == DATA
        assert read(store, 1 << 17) == DATA
        assert [each.name for each in store.snapshots.all("vm1")] == ["monday"]
    finally:
        store.close()


# -- backup-meta


def test_a_copy_says_what_it_is_and_is_private(
    stored: Path, blockd: Blockd, tmp_path: Path
) -> None:
    out = tmp_path / "copy.mdb"
    result = blockd("backup-meta", "--data", str(stored), "--out", str(out))
    assert result.code == 0
    assert ": 1 volume, 1 snapshot, " in result.out
    assert out.stat().st_mode & 0o777 == 0o600
    assert look_at(out).volumes == 1
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_copies_in_a_folder_have_dates_and_the_old_ones_go(
    stored: Path, blockd: Blockd, tmp_path: Path
) -> None:
    folder = tmp_path / "copies"
    first = backed_up(stored, blockd, folder)
    uuid = look_at(first).store_uuid
    assert first.name.startswith(f"blockd-meta-{uuid[:8]}-2")
    other = folder / "blockd-meta-ffffffff-20200101T000000Z.mdb"
    for path in (folder / f"blockd-meta-{uuid[:8]}-20200101T000000Z.mdb", other):
        shutil.copy(first, path)
    options = ("--data", str(stored), "--out", str(folder), "--keep", "1")
    made = blockd("backup-meta", *options, "--json").json
    assert sorted(folder.iterdir()) == sorted({Path(made["path"]), other})


@pytest.mark.parametrize("options", [("--out", "{}/none/x"), ("--out", "{}/file", "--keep", "2")])
def test_a_place_that_is_none_is_refused(
    stored: Path, blockd: Blockd, tmp_path: Path, options: tuple[str, ...]
) -> None:
    given = [option.format(tmp_path) for option in options]
    assert blockd("backup-meta", "--data", str(stored), *given).code == exits.USAGE


def test_what_fails_leaves_the_copy_of_before(stored: Path, blockd: Blockd, tmp_path: Path) -> None:
    out = tmp_path / "copy.mdb"
    blockd("backup-meta", "--data", str(stored), "--out", str(out))
    before = out.read_bytes()
    missing = str(tmp_path / "none")
    assert blockd("backup-meta", "--data", missing, "--out", str(out)).code == exits.FAILED
    assert out.read_bytes() == before
    assert list(tmp_path.glob(".*")) == []


def test_a_directory_in_use_is_refused_without_its_daemon(
    stored: Path, blockd: Blockd, tmp_path: Path
) -> None:
    store = Store.open(stored)
    try:
        result = blockd("backup-meta", "--data", str(stored), "--out", str(tmp_path / "x"))
    finally:
        store.close()
    assert result.code == exits.CONFLICT
    assert f"process {os.getpid()}" in result.err


@pytest.mark.parametrize("length", [0, 100, 4096, 8192, 20000])
def test_a_copy_that_is_cut_short_is_found_out(
    stored: Path, blockd: Blockd, tmp_path: Path, length: int
) -> None:
    copy = backed_up(stored, blockd, tmp_path / "copies")
    os.truncate(copy, min(length, copy.stat().st_size - 1))
    with pytest.raises((CorruptData, UnknownFormat)):
        look_at(copy)


def test_a_copy_with_a_flipped_bit_is_found_out(
    stored: Path, blockd: Blockd, tmp_path: Path
) -> None:
    copy = backed_up(stored, blockd, tmp_path / "copies")
    data = bytearray(copy.read_bytes())
    data[data.rindex(b"BLKDMETA")] ^= 1
    copy.write_bytes(data)
    with pytest.raises(CorruptData, match="fails its checksum"):
        look_at(copy)


def test_a_copy_is_not_opened_as_if_it_were_meta(
    stored: Path, blockd: Blockd, tmp_path: Path
) -> None:
    copy = backed_up(stored, blockd, tmp_path / "copies")
    shutil.copy(copy, stored / "meta" / "data.mdb")
    with pytest.raises(OldMeta, match="made by backup-meta at 2"):
        Store.open(stored)


# -- doctor --rebuild-meta


def test_meta_is_made_of_what_is_there(stored: Path, blockd: Blockd) -> None:
    shutil.rmtree(stored / "meta")
    with pytest.raises(MetaLost):
        Store.open(stored)
    assert not (stored / "meta").exists()
    result = blockd("doctor", "--rebuild-meta", "--data", str(stored))
    assert (result.code, result.err.count("packs: ")) == (0, 1)
    assert "vm1" in result.out
    check(stored)


def test_an_index_that_is_no_index_is_made_anew(stored: Path) -> None:
    (stored / "index" / "data.mdb").write_bytes(b"not a database" * 1000)
    check(stored)


def test_a_dry_run_makes_nothing(stored: Path, blockd: Blockd) -> None:
    shutil.rmtree(stored / "meta")
    options = ("doctor", "--rebuild-meta", "--data", str(stored), "--dry-run")
    assert "nothing was made" in blockd(*options).out
    found = blockd(*options, "--json").json
    assert (found["written"], found["whole"], found["volumes"][0]["name"]) == (False, True, "vm1")
    assert not (stored / "meta").exists()


def test_a_copy_gives_everything_back(stored: Path, blockd: Blockd, tmp_path: Path) -> None:
    copy = backed_up(stored, blockd, tmp_path / "copies")
    shutil.rmtree(stored / "meta")
    options = ("doctor", "--rebuild-meta", "--data", str(stored), "--from", str(copy))
    assert blockd(*options).code == 0
    check(stored)


def test_a_copy_of_the_folder_is_taken_as_well(
    stored: Path, blockd: Blockd, tmp_path: Path
) -> None:
    shutil.move(stored / "meta", tmp_path / "meta")
    options = ("doctor", "--rebuild-meta", "--data", str(stored), "--from", str(tmp_path / "meta"))
    assert blockd(*options).code == 0
    check(stored)


def test_a_meta_that_is_there_is_left_alone(stored: Path, blockd: Blockd) -> None:
    before = (stored / "meta" / "data.mdb").read_bytes()
    result = blockd("doctor", "--rebuild-meta", "--data", str(stored))
    assert result.code == exits.CONFLICT
    assert f"mv {stored}/meta" in result.err
    assert (stored / "meta" / "data.mdb").read_bytes() == before
    check(stored)


def test_what_is_missing_is_said_and_is_the_exit_code(stored: Path, blockd: Blockd) -> None:
    shutil.rmtree(stored / "meta")
    shutil.rmtree(stored / "journal")
    (stored / "packs" / "00000000.pack").write_bytes(os.urandom(5000))
    result = blockd("doctor", "--rebuild-meta", "--data", str(stored))
    assert result.code == exits.DAMAGED
    assert not (stored / "meta").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--rebuild-meta",),
        ("--dry-run",),
        ("--from", "x"),
        ("--rebuild-meta", "--repair-index", "--data", "x"),
    ],
)
def test_options_that_make_no_sense_are_refused(blockd: Blockd, options: tuple[str, ...]) -> None:
    assert blockd("doctor", *options).code == exits.USAGE


def test_a_folder_without_a_store_is_refused(blockd: Blockd, tmp_path: Path) -> None:
    result = blockd("doctor", "--rebuild-meta", "--data", str(tmp_path))
    assert result.code == exits.FAILED
    assert list(tmp_path.iterdir()) == []
