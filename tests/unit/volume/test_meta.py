from collections.abc import Callable

import pytest

from tests.sim.simclock import SimClock
from volume.errors import CorruptData, InvalidName, NoSuchVolume, UnknownFormat, VolumeExists
from volume.framing import framed
from volume.kv import MemoryKeyValue
from volume.layout import (
    META_CRC,
    META_KEY_NEXT_VOLUME,
    META_KEY_NODE_EPOCH,
    META_KEY_SEALED,
    META_U64,
    ZERO_ID,
)
from volume.meta import MAX_EPOCH, Head, Meta, VolumeRecord
from volume.refs import check_volume_name

GIB = 1 << 30


@pytest.fixture
def kv() -> MemoryKeyValue:
    return MemoryKeyValue()


@pytest.fixture
def meta(kv: MemoryKeyValue) -> Meta:
    return Meta(kv, SimClock())


def create(meta: Meta, name: str, size: int = GIB) -> VolumeRecord:
    return meta.create(
        name, uuid=bytes(16), size=size, block_size=4096, chunk_size=65536, created_ns=7
    )


def again(kv: MemoryKeyValue) -> Meta:
    return Meta(kv, SimClock(seed=1))


def test_identity_stays(kv: MemoryKeyValue, meta: Meta) -> None:
    assert again(kv).uuid == meta.uuid
    assert again(kv).created_ns == meta.created_ns


def test_every_opening_begins_a_higher_epoch(kv: MemoryKeyValue, meta: Meta) -> None:
    assert [meta.begin_epoch(), again(kv).begin_epoch(), again(kv).begin_epoch()] == [1, 2, 3]


def test_an_epoch_that_cannot_be_raised_is_named(kv: MemoryKeyValue, meta: Meta) -> None:
    kv.update({META_KEY_NODE_EPOCH: framed(META_U64.pack(MAX_EPOCH))})
    with pytest.raises(CorruptData, match="is 18446744073709551615"):
        again(kv).begin_epoch()
    assert again(kv).node_epoch == MAX_EPOCH


def test_a_created_volume_is_found_after_reopening(kv: MemoryKeyValue, meta: Meta) -> None:
    record = create(meta, "vm1")
    assert again(kv).volume("vm1") == record
    assert again(kv).numbered(record.number) == record
    assert record.head == Head(ZERO_ID, ZERO_ID, 1, 0)


def test_names_are_unique(meta: Meta) -> None:
    create(meta, "vm1")
    with pytest.raises(VolumeExists, match="vm1"):
        create(meta, "vm1")


def test_numbers_are_never_used_again(kv: MemoryKeyValue, meta: Meta) -> None:
    first = create(meta, "a").number
    meta.delete("a")
    assert create(again(kv), "a").number > first


def test_a_deleted_volume_is_gone(kv: MemoryKeyValue, meta: Meta) -> None:
    create(meta, "a")
    meta.delete("a")
    for opened in (meta, again(kv)):
        assert opened.volumes() == []
        with pytest.raises(NoSuchVolume, match="a"):
            opened.volume("a")


def test_rename_frees_the_old_name(kv: MemoryKeyValue, meta: Meta) -> None:
    number = create(meta, "old").number
    meta.rename("old", "new")
    create(meta, "old")
    opened = again(kv)
    assert opened.volume("new").number == number
    assert [record.name for record in opened.volumes()] == ["new", "old"]


def test_rename_to_a_taken_name_changes_nothing(meta: Meta) -> None:
    create(meta, "a")
    create(meta, "b")
    with pytest.raises(VolumeExists):
        meta.rename("a", "b")
    assert [record.name for record in meta.volumes()] == ["a", "b"]


def test_resize_and_replaced_head_are_kept(kv: MemoryKeyValue, meta: Meta) -> None:
    create(meta, "a")
    meta.resize("a", 5 * GIB)
    assert again(kv).volume("a").size == 5 * GIB
    meta.replace_head("a", Head(seq=7), 6 * GIB, {b"row": b"x"})
    record = again(kv).volume("a")
    assert (record.size, record.epoch, record.head.seq) == (6 * GIB, 2, 7)
    assert kv.get(b"row") == b"x"


def test_heads_and_checkpoint_move_in_one_update(
    kv: MemoryKeyValue, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = create(meta, "a"), create(meta, "b")
    updates = []
    real: Callable[..., None] = kv.update

    def counted(puts: dict[bytes, bytes], deletes: list[bytes] | None = None) -> None:
        updates.append(sorted(puts))
        real(puts, deletes or [])

    monkeypatch.setattr(kv, "update", counted)
    head = Head(b"c" * 32, b"r" * 32, 2, 99)
    meta.move_heads({a.number: head, b.number: head}, b"checkpoint")
    assert len(updates) == 1
    opened = again(kv)
    assert opened.volume("a").head == opened.volume("b").head == head
    assert opened.checkpoint == meta.checkpoint == b"checkpoint"


def test_the_head_of_a_deleted_volume_is_passed_over(kv: MemoryKeyValue, meta: Meta) -> None:
    number = create(meta, "a").number
    meta.delete("a")
    meta.move_heads({number: Head(seq=5)}, b"x")
    assert again(kv).volumes() == []
    assert again(kv).checkpoint == b"x"


def test_a_failed_update_leaves_memory_as_it_was(
    kv: MemoryKeyValue, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(meta, "a")

    def refuse(puts: object, deletes: object = ()) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(kv, "update", refuse)
    changes: list[Callable[[], object]] = [
        lambda: create(meta, "b"),
        lambda: meta.delete("a"),
        lambda: meta.rename("a", "c"),
        lambda: meta.resize("a", 1),
    ]
    for change in changes:
        with pytest.raises(OSError, match="Input/output"):
            change()
    assert [(record.name, record.size) for record in meta.volumes()] == [("a", GIB)]


def test_the_first_reason_for_sealing_stays_until_unsealed(kv: MemoryKeyValue, meta: Meta) -> None:
    meta.seal("packs/0: EIO")
    meta.seal("something later")
    assert again(kv).sealed_reason == "packs/0: EIO"
    meta.unseal()
    assert again(kv).sealed_reason is None


def test_an_index_is_trusted_after_a_kill_but_not_after_another_boot(
    kv: MemoryKeyValue, meta: Meta
) -> None:
    assert not meta.index_trusted("boot-1")
    meta.mark_index_open("boot-1")
    assert again(kv).index_trusted("boot-1")
    assert not again(kv).index_trusted("boot-2")


def test_a_cleanly_closed_index_is_trusted_after_another_boot(
    kv: MemoryKeyValue, meta: Meta
) -> None:
    meta.mark_index_open("boot-1")
    meta.mark_index_clean("boot-1")
    assert again(kv).index_trusted("boot-2")
    meta.distrust_index()
    assert not again(kv).index_trusted("boot-1")


@pytest.mark.parametrize("key", [META_KEY_NODE_EPOCH, b"v/\0\0\0\1", b"store"])
def test_a_flipped_bit_is_corrupt_data_naming_the_key(
    kv: MemoryKeyValue, meta: Meta, key: bytes
) -> None:
    meta.begin_epoch()
    create(meta, "a")
    value = kv.get(key)
    assert value is not None
    kv.update({key: value[:3] + bytes([value[3] ^ 1]) + value[4:]})
    with pytest.raises(CorruptData, match="checksum"):
        again(kv)


def test_a_value_of_a_newer_version_is_refused(kv: MemoryKeyValue, meta: Meta) -> None:
    from native import crc32c

    meta.begin_epoch()
    body = b"\x02" + bytes(8)
    kv.update({META_KEY_NODE_EPOCH: body + META_CRC.pack(crc32c(body))})
    with pytest.raises(UnknownFormat, match="version 2"):
        again(kv)


@pytest.mark.parametrize(
    ("key", "body"),
    [
        (META_KEY_NODE_EPOCH, b""),
        (META_KEY_NODE_EPOCH, bytes(7)),
        (META_KEY_NODE_EPOCH, bytes(9)),
        (META_KEY_SEALED, b"sync failed: \xff"),
    ],
)
def test_a_value_of_a_wrong_form_is_damage(
    kv: MemoryKeyValue, meta: Meta, key: bytes, body: bytes
) -> None:
    kv.update({key: framed(body)})
    with pytest.raises(CorruptData, match=rf"meta: value of b'{key.decode()}' .*; restore meta"):
        again(kv)


@pytest.mark.parametrize("body", [b"", bytes(3), bytes(8)])
def test_a_next_volume_of_a_wrong_length_is_damage(
    kv: MemoryKeyValue, meta: Meta, body: bytes
) -> None:
    kv.update({META_KEY_NEXT_VOLUME: framed(body)})
    with pytest.raises(CorruptData, match=r"b'next-volume' is \d bytes long"):
        create(meta, "a")
    assert meta.volumes() == []


def test_a_volume_whose_name_is_no_text_is_damage(kv: MemoryKeyValue, meta: Meta) -> None:
    create(meta, "name")
    key = b"v/\0\0\0\1"
    value = kv.get(key)
    assert value is not None
    kv.update({key: framed(value[1:-4].replace(b"name", b"n\xffme"))})
    with pytest.raises(CorruptData, match="not UTF-8; restore meta"):
        again(kv)


def test_somebody_elses_environment_is_refused() -> None:
    with pytest.raises(UnknownFormat):
        Meta(MemoryKeyValue({b"foo": b"bar"}), SimClock())


@pytest.mark.parametrize("name", ["a", "vm-1.disk_2:x", "9" * 128])
def test_good_names(name: str) -> None:
    check_volume_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ä", "a@b", "a" * 129])
def test_bad_names_are_refused(meta: Meta, name: str) -> None:
    with pytest.raises(InvalidName):
        create(meta, name)
