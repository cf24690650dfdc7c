"""The embedded MetaStore against the dict twin: any transactions, guards of any age, lost answers.

Both count one revision for each commit that changes something, so outcomes are equal to the letter.
"""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from tests.metastore_twin import DictMetaStore
from volume.kv import MemoryKeyValue
from volume.metastore import Change, Done, Lost, Row
from volume.metastore_embedded import EmbeddedMetaStore

KEYS = st.sampled_from(["a", "a/1", "a/2", "b"])


class MetaStoreMachine(RuleBasedStateMachine):
    rows = Bundle("rows")
    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.kv = MemoryKeyValue()
        self.real = EmbeddedMetaStore(self.kv)
        self.twin = DictMetaStore()
        self.tokens = 0

    @rule(target=rows, key=KEYS)
    def read(self, key: str) -> Row | None:
        row = self.real.read(key)
        assert row == self.twin.read(key)
        return row

    @rule(
        target=sent,
        keys=st.lists(KEYS, min_size=1, max_size=3, unique=True),
        stale=st.lists(rows, max_size=2),
        deletes=st.sets(KEYS),
        lost=st.booleans(),
    )
    def commit(
        self, keys: list[str], stale: list[Row | None], deletes: set[str], lost: bool
    ) -> tuple[Change, ...]:
        """Guards are the rows as they are, but for those that `stale` has from earlier."""
        older = {row.key: row for row in stale if row is not None}
        self.tokens += 1
        value = b"token-%d" % self.tokens
        changes = []
        for key in keys:
            before = older.get(key, self.twin.read(key))
            delete = key in deletes and before is not None
            changes.append(Change(key, before, None if delete else value))
        self.send(tuple(changes))
        if lost:  # the caller did not hear it
            self.send(tuple(changes))
        return tuple(changes)

    @rule(changes=sent)
    def commit_again(self, changes: tuple[Change, ...]) -> None:
        self.send(changes)

    def send(self, changes: tuple[Change, ...]) -> None:
        before = dict(self.twin.rows)
        outcome = self.real.commit(changes)
        assert outcome == self.twin.commit(changes)
        if isinstance(outcome, Lost):
            assert self.twin.rows == before
        else:
            assert isinstance(outcome, Done)
            for change, row in zip(changes, outcome.rows, strict=True):
                assert (row.value if row else None) == change.value

    @rule(target=rows, key=KEYS)
    def hint(self, key: str) -> Row | None:
        self.tokens += 1
        value = b"hint-%d" % self.tokens
        assert self.real.hint(key, value, 5)
        assert self.twin.hint(key, value, 5)
        return self.real.read(key)

    @rule(target=rows, prefix=st.sampled_from(["", "a", "a/"]), after=KEYS, limit=st.integers(1, 4))
    def list(self, prefix: str, after: str, limit: int) -> object:
        page = list(self.real.list(prefix, after, limit))
        assert page == list(self.twin.list(prefix, after, limit))
        return multiple(*page)

    @rule()
    def restart(self) -> None:
        self.real = EmbeddedMetaStore(MemoryKeyValue(self.kv.snapshot()))
        self.kv = self.real._kv  # type: ignore[assignment]

    @invariant()
    def rows_agree(self) -> None:
        assert list(self.real.list("")) == list(self.twin.list(""))


MetaStoreMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, derandomize=True
)
TestEmbeddedAgainstTwin = MetaStoreMachine.TestCase
