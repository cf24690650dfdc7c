"""What a person sees of a volume beside its sizes."""

from tests.sim.store_rig import KIB, StoreRig


def test_a_volume_tells_its_codec() -> None:
    store = StoreRig().store
    store.create_volume("v", 64 * KIB, compression="lz4")
    store.create_volume("w", 64 * KIB)
    assert store.info("v").compression == "lz4"
    assert store.info("w").compression == store.options.compression
    assert [info.compression for info in store.volumes()] == ["lz4", store.options.compression]


def test_a_volume_counts_its_snapshots() -> None:
    rig = StoreRig()
    rig.store.create_volume("v", 64 * KIB)
    rig.store.create_volume("w", 64 * KIB)
    rig.tend()
    rig.store.snapshots.create("one", ["v", "w"])
    rig.store.snapshots.create("two", ["v"])
    assert [info.snapshot_count for info in rig.store.volumes()] == [2, 1]
    rig.store.snapshots.delete("v", "one")
    assert rig.store.info("v").snapshot_count == 1
    rig.store.delete_volume("v", force=True)
    rig.store.create_volume("v", 64 * KIB)
    assert rig.store.info("v").snapshot_count == 0


def test_a_list_of_snapshots_is_what_each_one_says() -> None:
    rig = StoreRig()
    rig.store.create_volume("v", 64 * KIB)
    rig.store.create_volume("w", 64 * KIB)
    rig.tend()
    snapshots = rig.store.snapshots
    rig.write("v", 0, b"a" * 512)
    snapshots.create("stored", ["v"])
    rig.store.destage()
    rig.write("v", 512, b"b" * 512)
    snapshots.create("b-journal", ["v", "w"], pinned=True)
    snapshots.create("a-journal", ["v"])
    for volume in ("v", "w", None):
        assert snapshots.all(volume) == [
            snapshots.get(each.volume, each.name) for each in snapshots.all(volume)
        ]
    listed = [(each.name, each.commit is not None) for each in snapshots.all("v")]
    assert sorted(listed) == [("a-journal", False), ("b-journal", False), ("stored", True)]
