"""A cluster of two nodes as its node tells of it, without sockets."""

import errno
from collections.abc import Callable, Collection
from dataclasses import replace

from blockd.api.cluster_types import (
    DeviceInfo,
    DeviceList,
    Draining,
    LocalStripes,
    LostStripes,
    RebuiltRows,
    StripeCount,
)
from blockd.api.types import ClusterInfo, PeerInfo, TokenInfo
from blockd.api.volume_settings import Change
from blockd.paths import Way, WayState
from blockd.shared_state import Held, NotServing, Now, T, Unsettled
from tests.fake_volumes import FakeVolumes

N1 = PeerInfo("1" * 32, "n1", ("10.0.0.1:10811",), True, True, 61.0, "", False, False, 0)
N2 = replace(N1, node="2" * 32, name="n2", me=False, asks_us=True)
D1 = DeviceInfo("d1" * 16, "n1", True, "site", "rack", "n1", 1 << 40, "in", 7, 7 << 20, 0, 0)
D2 = replace(
    D1,
    device="d2" * 16,
    node="n2",
    here=False,
    host="n2",
    state="draining",
    leaving=7,
    leaving_bytes=7 << 20,
)
DEVICES = DeviceList(5, "", 7, 0, 7, 7 << 20, (), (D1, D2))
INFO = ClusterInfo(
    "c" * 32, "1" * 32, "n1", ("10.0.0.1:10811",), "", 3, (N1, N2), (("append", 70),)
)
LOCAL_STRIPES = LocalStripes(
    states={"whole": StripeCount(5, 5 << 20), "lost": StripeCount(1, 1 << 20)},
    listed_s=12.0,
    shards=7,
    shard_bytes=7 << 20,
    broken=2,
    left={"convert": 3 << 20, "move": 0, "repair": 1 << 20},
    done={"convert": (4, 4 << 20), "move": (0, 0), "repair": (1, 1 << 19)},
    reads=99,
    degraded_reads=3,
    failed_reads=1,
    failures=6,
)


class FakeDevices:
    """Satisfies blockd.api.node.Devices."""

    def __init__(self) -> None:
        self.shown = DEVICES
        self.acts: list[tuple[str, str, str | None]] = []
        self.error: Exception | None = None

    def list(self) -> DeviceList:
        return self.shown

    def act(self, action: str, device: str, other: str | None = None) -> DeviceList:
        if self.error:
            raise self.error
        self.acts.append((action, device, other))
        return self.shown


class FakeStripeOrders:
    """Satisfies blockd.api.node.StripeOrders."""

    def __init__(self) -> None:
        self.rebuilt = RebuiltRows(False, 5, 2, 1, 0, 0, (), ())
        self.shown = LostStripes((), (), False)
        self.ordered: list[object] = []
        self.error: Exception | None = None

    def rebuild_rows(self, *, force: bool, dry_run: bool) -> RebuiltRows:
        if self.error:
            raise self.error
        self.ordered.append(("rebuild", force, dry_run))
        return replace(self.rebuilt, dry_run=dry_run)

    def lost(self) -> LostStripes:
        return self.shown

    def give_up(self, packs: Collection[str] | None, *, dry_run: bool = False) -> LostStripes:
        if self.error:
            raise self.error
        self.ordered.append(("would give up" if dry_run else "give up", packs))
        named = [
            each
            for each in self.shown.stripes
            if packs is None or any(each.pack.startswith(text) for text in packs)
        ]
        return replace(self.shown, stripes=tuple(named))


class AloneSettings:
    """No volume is on other nodes as well."""

    def share(self, name: str, change: Change) -> bool:
        return False

    def rename(self, name: str, new_name: str) -> bool:
        return False


class FakeShared:
    """Satisfies blockd.shared_state.SharedState, for one node; what is kept may be shared by those
    of several nodes. This one serves, in term 1, unless it is told otherwise."""

    def __init__(self, kept: list[Held] | None = None, term: int = 1) -> None:
        self.kept = [Held(0, 1, b"")] if kept is None else kept
        """One thing: what is kept now."""
        self.fails = False
        self.loses: bool | None = None
        """The answer to the next change is lost; True: it happens all the same."""
        self.known: Held | None = None
        self.term = 0
        if term:
            self.serve(term)

    @property
    def now(self) -> Now:
        return Now(self.term, self.known)

    def serve(self, term: int) -> None:
        self.term = term
        self.note(self.change(term, lambda value: (value, None))[0])

    def move_away(self) -> None:
        self.term = 0

    def settle(self) -> None:
        """It is known what is kept, whatever answers were lost."""
        self.note(self.change(self.term, lambda value: (value, None))[0])

    def note(self, held: Held) -> None:
        if self.known is None or held.revision > self.known.revision:
            self.known = held

    def read(self) -> Held:
        if self.fails:
            raise OSError(errno.EIO, "the fake metastore is silent")
        return self.kept[0]

    def change(self, term: int, apply: Callable[[bytes], tuple[bytes, T]]) -> tuple[Held, T]:
        old = self.read()
        if term and (old.term > term or self.term != term):
            raise NotServing(errno.ESHUTDOWN, "another node serves it")
        value, result = apply(old.value)
        loses, self.loses = self.loses, None
        if loses is not False:
            self.kept[0] = Held(max(old.term, term), old.revision + 1, value)
        if loses is not None:
            raise Unsettled("the answer was lost", old.revision, value, result)
        return self.kept[0], result


class FakePaths:
    """Satisfies blockd.paths.Paths: the same ways to every volume, until a test says otherwise."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.known: tuple[Way, ...] = ()
        self.refused: str | None = None
        self.asked: list[bytes] = []
        self.watchers: list[Callable[[], None]] = []
        self.settlers: list[Callable[[], None]] = []
        self.state = FakeShared()

    def shared(self, volume: bytes) -> FakeShared:
        return self.state

    def ways(self, volume: bytes) -> tuple[Way, ...]:
        return self.known

    def refusal(self, volume: bytes) -> str | None:
        self.asked.append(volume)
        return self.refused

    def watch(self, changed: Callable[[], None], settle: Callable[[], None] | None = None) -> None:
        self.watchers.append(changed)
        if settle is not None:
            self.settlers.append(settle)

    def are(self, *states: str) -> None:
        """Nodes n1, n2, ... are in these states; this one is among them."""
        self.known = tuple(
            Way(
                *(f"n{number}", number, number == self.number, WayState(state)),
                *((f"10.0.0.{number}:10809",), (f"10.0.0.{number}:3260,{number << 8 | 1}",)),
            )
            for number, state in enumerate(states, 1)
        )


class FakeCluster:
    """Satisfies blockd.api.node.Cluster."""

    def __init__(self) -> None:
        self.volumes = FakeVolumes()
        self.devices = FakeDevices()
        self.stripe_orders = FakeStripeOrders()
        self.settings = AloneSettings()
        self.paths = FakePaths()
        self.shown = INFO
        self.stripes = LOCAL_STRIPES
        self.ttl_s = 0
        self.removed: list[str] = []
        self.left = Draining("n2", False, ("vm1", "vm2"), ("vm1",), ())
        self.error: Exception | None = None

    def info(self) -> ClusterInfo:
        return self.shown

    def stripes_here(self) -> LocalStripes:
        return self.stripes

    def make_token(self, ttl_s: int) -> TokenInfo:
        if self.error:
            raise self.error
        self.ttl_s = ttl_s
        return TokenInfo("blockd-join-1-abc", 1_800_000_000 * 10**9)

    def remove(self, name: str, *, lost: bool = False) -> None:
        if self.error:
            raise self.error
        self.removed.append(f"{name}, lost" if lost else name)

    def drain(self, name: str, *, drain: bool) -> Draining:
        if self.error:
            raise self.error
        self.left = replace(self.left, node=name, draining=drain)
        return self.left

    def draining(self, name: str) -> Draining:
        """One volume less each time."""
        left, self.left = self.left, replace(self.left, member_of=self.left.member_of[1:])
        return left
