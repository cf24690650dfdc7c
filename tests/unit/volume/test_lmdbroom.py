import os
import random
from pathlib import Path

import lmdb
import pytest

from volume.lmdbroom import STEP_BYTES, FileRoom, Tree, pages_of_update


@pytest.mark.parametrize("value_length", [0, 26, 300, 1500, 2100, 9000])
@pytest.mark.parametrize("count", [1, 30, 1000])
def test_an_update_adds_no_more_pages_than_foretold(
    tmp_path: Path, value_length: int, count: int
) -> None:
    """So none of its writes runs into the end of what was allocated: its EIO is the disk's."""
    env = lmdb.Environment(str(tmp_path), map_size=1 << 30, sync=False)
    source = random.Random(value_length * count)
    known: list[bytes] = []
    for _ in range(12):
        puts = [(source.randbytes(33), source.randbytes(value_length)) for _ in range(count)]
        deletes = source.sample(known, min(len(known), source.randrange(2 * count)))
        stat, before = env.stat(), env.info()["last_pgno"]
        with env.begin(write=True) as txn:
            for key in deletes:
                txn.delete(key)
            for key, value in sorted(puts):
                txn.put(key, value)
        tree = Tree(stat["psize"], stat["depth"], stat["leaf_pages"], stat["branch_pages"])
        assert env.info()["last_pgno"] <= before + pages_of_update(tree, puts, deletes)
        known += [key for key, _ in puts]
    env.close()


def test_room_is_allocated_blocks_and_in_steps(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    os.truncate(path, 100_000)  # mostly a hole
    room = FileRoom(path)
    assert room.reach(200_000)
    assert path.stat().st_blocks * 512 >= STEP_BYTES
    assert path.read_bytes()[:6] == b"before"
    assert room.reach(STEP_BYTES)
    assert path.stat().st_size == STEP_BYTES
    assert room.reach(STEP_BYTES + 1)
    assert path.stat().st_size == 2 * STEP_BYTES
