"""A copy of all of a volume from one replica to another, step by step, without sockets."""

from volume.replica import Replica
from volume.replicacopy import Based, Copied, Heard, Step, Told
from volume.stream import Compare


class Copying:
    """What crosses between the two; `sent` counts bytes, of questions as well."""

    def __init__(
        self, source: Replica, member: Replica, epoch: int, limit: int = 3000, after: int = 0
    ) -> None:
        self.source = source
        self.member = member
        self.epoch = epoch
        self.limit = limit
        self.after = after
        self.names: bytes | None = None
        self.at = 0
        self.pieces = 0
        self.sent = 0
        self.wanted = 0
        """Chunks and nodes that the member lacked."""
        self.last = False
        self.heard: Heard = Based(member.begin_copy(epoch))

    @property
    def base(self) -> bytes:
        assert isinstance(self.heard, Based)
        return self.heard.base

    def step(self, *, again: bool = False) -> Step:
        """One more; `again`: each piece comes twice."""
        step = self.source.copy("a member", self.at, self.limit, self.heard, self.after)
        if isinstance(step, Copied):
            for _ in range(1 + again):
                data = step.data
                self.at = self.member.take_copy(self.epoch, step.at, data, last=step.last)
                assert self.at == step.at + len(data)
            self.sent += len(step.data)
            self.pieces += 1
            self.heard, self.last, self.names = None, step.last, step.names
        elif isinstance(step, Compare):
            nodes = [(*position, node) for position, node in step.nodes]
            self.heard = Told(frozenset(self.member.unlike(self.epoch, nodes)[1]))
            self.sent += 41 * len(nodes) + 2 * len(self.heard.indexes)
        else:
            ids = [node for _, node in step.nodes]
            lacking = set(self.member.lacking(self.epoch, ids))
            indexes = (index for index, each in enumerate(ids) if each in lacking)
            self.heard = Told(frozenset(indexes))
            self.sent += 32 * (len(ids) + len(lacking))
            self.wanted += len(lacking)
        return step

    def run(self, *, again: bool = False) -> "Copying":
        while not self.last:
            self.step(again=again)
        return self
