"""Targets over a store in memory, and initiators that are logged in to them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blockd.access.book import Everybody, VolumeAccess
from blockd.iscsi.node import Node
from blockd.iscsi.targets import IQN_PREFIX, Portal, Target
from blockd.registry import stored
from blockd.registry.targets import TargetRegistry
from tests import aio
from tests import scsi_cdbs as cdbs
from tests.fake_store import FakeStore
from tests.fakes import MemoryDevice
from tests.iscsi_initiator import Initiator

DB = IQN_PREFIX + "db"
BLOCK = 512
READ = cdbs.read(0, 1)
ISIDS = [bytes.fromhex(f"00023d00000{number}") for number in range(1, 4)]


class Targets:
    """The registry, as an initiator of the tests asks it; past versions are opened at once."""

    def __init__(self, registry: TargetRegistry) -> None:
        self.registry = registry
        self.past: dict[str, Target] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.registry, name)


@dataclass
class Home:
    """A registry over a store in memory; calls that wait for a disk are made at once."""

    store: FakeStore = field(default_factory=FakeStore)
    ignore_isids: bool = False
    access: VolumeAccess = field(default_factory=Everybody)

    def __post_init__(self) -> None:
        for name in ("vm1", "vm2"):
            self.store.create_volume(name, 1 << 20, block_size=BLOCK)
        self.open()

    def open(self) -> None:
        """As at a start of the server."""
        self.registry = TargetRegistry(self.store, ignore_isids=self.ignore_isids)
        self.targets = Targets(self.registry)
        self.node = Node(self.targets, access=self.access)
        self.registry.serve(self.node, _at_once)
        self.registry.listening([Portal("127.0.0.1", 3260, 1)])

    def device(self, name: str) -> MemoryDevice:
        device = self.store.get(name)
        assert device is not None
        return device

    def log_in(self, target: str, number: int = 0) -> Initiator:
        """A session that has heard of what happened before it."""
        initiator = Initiator(self, isid=ISIDS[number])  # type: ignore[arg-type] # what it uses
        initiator.log_in({"TargetName": target})
        return initiator

    def create(self, *volumes: str) -> None:
        async def create() -> None:
            await self.registry.create(DB)
            for volume in volumes:
                await self.registry.add_lun(DB, volume)

        aio.run(create())

    def add(self, volume: str) -> int:
        return aio.run(self.registry.add_lun(DB, volume))

    def remove(self, lun: int) -> None:
        aio.run(self.registry.change(DB, lambda target: stored.without_lun(target, lun)))


def _at_once(call: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
    done(call(), None)


def outcome(
    initiator: Initiator, cdb: bytes = READ, *, lun: int = 0
) -> tuple[int, int, int] | bytes:
    """Sense key, ASC and ASCQ, or the data."""
    [answer] = initiator.ask(cdb, read=BLOCK, lun=lun)
    return answer.data if len(answer.data) == BLOCK else answer.sense
