"""How stripes are: for `blockd cluster status`, for metrics, and told to other nodes.

Which stripes there are this node knows from its last round, whose age is shown. How their shards
are is asked of the nodes that have them, each about its own device; one that does not answer is
taken for away, as nobody can tell then.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final

from blockd.api.cluster_types import LocalStripes, StripeCount, StripeNodeInfo, StripesInfo
from blockd.api.types import ClusterInfo
from blockd.cluster.asking import ask_all
from transport.devicemap import DeviceMap
from transport.measured import Measured, time_left
from transport.peer import messages as m
from transport.sessions import Sessions
from transport.stripestate import StripeState
from transport.stripetally import Count, Judge, Tally, Told, tally, told_by
from transport.striping import Striper

MAX_PROBLEMS: Final = 64  # in an answer


class StripeStatus:
    """Any thread; `look` asks other nodes and waits."""

    def __init__(
        self,
        striper: Striper,
        devices: Callable[[], DeviceMap],
        me: str,
        connected: Callable[[], Iterable[str]],
        reachable: Callable[[str], bool],
    ) -> None:
        """`devices`: as they were read last. `connected`: ids of nodes that can be asked.
        `reachable`: a device, just now, which is not the same: its node may have another one."""
        self._striper = striper
        self._devices = devices
        self._me = me
        self._connected = connected
        self._reachable = reachable

    # -- what this node tells

    def told(self) -> m.StripeStatus:
        striper, upkeep = self._striper, self._striper.upkeep
        listed_s, lacking = self._listed_s(), upkeep.lacking
        looked_ms = m.NEVER_MS
        if listed_s is not None and lacking is not None:
            looked_ms = min(round(listed_s * 1000), m.NEVER_MS - 1)
        lacking = lacking or frozenset()
        return m.StripeStatus(
            looked_ms,
            striper.doing,
            *_work(striper.converting),
            *_work(striper.coming),
            *_work(upkeep.work),
            tuple((*name,) for name in islice(lacking, m.MAX_LACKING)),
            int(len(lacking) > m.MAX_LACKING),
        )

    def here(self) -> LocalStripes:
        striper, counters, reads = self._striper, self._striper.counters, self._striper.reads
        use, own = striper.state.devices.get(striper.device), striper.upkeep.lacking
        heard, there = striper.trust.told, frozenset(self._connected())
        told = {node: names for node, names in heard.items() if node in there}
        states = {} if striper.listed_at is None else _states(self._tally(told))
        return LocalStripes(
            states=states,
            listed_s=self._listed_s(),
            shards=0 if use is None else use.shards,
            shard_bytes=0 if use is None else use.shard_bytes,
            broken=None if own is None else len(own),
            left={
                "convert": striper.converting.left,
                "move": striper.coming.left,
                "repair": striper.upkeep.work.left,
            },
            done={
                "convert": (counters.converted, counters.converted_bytes),
                "move": (counters.moved, counters.moved_bytes),
                "repair": (counters.repaired, counters.repaired_bytes),
            },
            reads=reads.counters.reads,
            degraded_reads=reads.counters.degraded,
            failed_reads=reads.counters.failed,
            failures=counters.failed,
        )

    # -- for people

    def look(self, sessions: Sessions, info: ClusterInfo) -> StripesInfo:
        names = {each.node: each.name for each in info.nodes}
        return self.shown(self.ask(sessions, info), names)

    def ask(self, sessions: Sessions, info: ClusterInfo) -> dict[str, m.StripeStatus | str]:
        """What nodes say of their devices, by id."""
        asked = {
            each.node: (each.node, m.Stripes())
            for each in info.nodes
            if each.connected and not each.me
        }
        answers: dict[str, m.StripeStatus | str] = {self._me: self.told()}
        return answers | ask_all(sessions, asked, m.StripeStatus)

    def judge(self, answers: Mapping[str, m.StripeStatus | str]) -> Judge:
        """Of single rows."""
        return self._judge(told_by(answers))

    def shown(
        self, answers: Mapping[str, m.StripeStatus | str], names: Mapping[str, str]
    ) -> StripesInfo:
        """`answers` of nodes, by id; of one that is not there, that it is not connected."""
        nodes = tuple(
            _node(node, names[node], answers.get(node, "not connected"))
            for node in sorted(names, key=lambda each: names[each])
        )
        listed_s, state = self._listed_s(), self._striper.state
        found = None if listed_s is None else self._tally(told_by(answers))
        counts = {} if found is None else _states(found)
        broken = [each for each in nodes if each.broken]
        rebuilds = StripeCount(
            state.rebuilding + sum(each.broken or 0 for each in broken),
            state.rebuilding_bytes + sum(each.broken_bytes or 0 for each in broken),
        )
        moves = StripeCount(
            state.waiting - state.rebuilding, state.waiting_bytes - state.rebuilding_bytes
        )
        return StripesInfo(
            listed_s=listed_s,
            all=None if found is None else StripeCount(found.stripes, found.bytes),
            shard_bytes=None if found is None else found.shard_bytes,
            degraded=counts.get("degraded"),
            unreadable=counts.get("unreadable"),
            lost=counts.get("lost"),
            given_up=counts.get("given_up"),
            making=counts.get("making"),
            removing=counts.get("removing"),
            moves=None if found is None else moves,
            rebuilds=None if found is None else rebuilds,
            cold_bytes=_most(each.cold_bytes for each in nodes),
            cold_left_s=_longest(each.cold_left_s for each in nodes),
            shards_left_s=_shards_left_s(nodes, state),
            lost_packs=() if found is None else tuple(each.hex() for each in found.lost),
            problems=tuple(f"{what}: {why}" for what, why in sorted(state.problems.items()))[
                :MAX_PROBLEMS
            ],
            nodes=nodes,
        )

    # -- inner

    def _listed_s(self) -> float | None:
        return self._striper.listed_age_s

    def _tally(self, told: Told) -> Tally:
        return tally(self._striper.rows.all(), self._judge(told))

    def _judge(self, told: Told) -> Judge:
        """`told` by other nodes; of its own device this one need not be told."""
        own = self._striper.upkeep.lacking
        others = {node: names for node, names in told.items() if node != self._me}
        return Judge(
            self._devices(),
            others if own is None else {**others, self._me: own},
            lambda device: self._reachable(device.device_id),
        )


def _work(work: Measured) -> tuple[int, int]:
    return work.left, round(work.rate() or 0)


def _states(found: Tally) -> dict[str, StripeCount]:
    counts: dict[str, Count] = {str(state): each for state, each in found.states.items()}
    counts |= {"given_up": found.given_up, "making": found.making, "removing": found.removing}
    return {name: StripeCount(each.stripes, each.bytes) for name, each in counts.items()}


def _node(node: str, name: str, told: m.StripeStatus | str) -> StripeNodeInfo:
    if isinstance(told, str):
        return StripeNodeInfo(node, name, False, told, *(None,) * 9)
    listed_s = None if told.listed_ms == m.NEVER_MS else told.listed_ms / 1000
    if listed_s is None:  # it has not looked yet what there is to do
        return StripeNodeInfo(node, name, True, "", None, told.doing, *(None,) * 7)
    return StripeNodeInfo(
        *(node, name, True, "", listed_s, told.doing),
        cold_bytes=told.cold,
        cold_left_s=time_left(told.cold, told.cold_rate),
        coming_bytes=told.coming,
        coming_left_s=time_left(told.coming, told.coming_rate),
        broken=None if told.more else len(told.lacking),
        broken_bytes=told.broken,
        broken_left_s=time_left(told.broken, told.broken_rate),
    )


def _shards_left_s(nodes: Iterable[StripeNodeInfo], state: StripeState) -> float | None:
    """Devices work side by side; each first takes what comes, then makes what is broken."""
    longest = 0.0
    for each in nodes:
        if each.coming_left_s is None or each.broken_left_s is None:
            return None
        longest = max(longest, each.coming_left_s + each.broken_left_s)
    return None if state.waiting and not longest else longest


def _most(values: Iterable[int | None]) -> int | None:
    """Of those that are known."""
    return max((each for each in values if each is not None), default=None)


def _longest(values: Iterable[float | None]) -> float | None:
    """None when one is not known."""
    longest = 0.0
    for each in values:
        if each is None:
            return None
        longest = max(longest, each)
    return longest
