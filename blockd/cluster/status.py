"""What the cluster is like now: found out by asking, never remembered.

The MetaStore says which volumes there are; each member of each is asked how the volume is there,
the primary first, so that *behind* is counted against what it had before. Whoever does not answer
is shown as not known, with the reason. Nothing here decides anything.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from blockd.api.cluster_types import ClusterNodeInfo, ClusterStatus, ClusterVolume, CopyInfo
from blockd.api.types import ClusterInfo
from blockd.cluster.asking import ask_all
from blockd.cluster.lags import Behind, behind, heard_of, lags_of
from transport.group.partstatus import PartStatus
from transport.peer import messages as m
from transport.sessions import Sessions
from volume.errors import VolumeError
from volume.metastore import ClusterRecords
from volume.metastore_records import GroupState, VolumeGroup

MEMBER, COMING, LEAVING = "member", "coming", "leaving"
MAX_VOLUMES: Final = 4096  # that are asked about for one answer

Looks = dict[tuple[str, str], m.Looked | str]  # by volume and node
Mine = Mapping[str, PartStatus]
Lagging = dict[str, Mapping[str, Behind]]  # by volume, then node


class Asking:
    """Asks for one status; on a thread that may wait."""

    def __init__(self, sessions: Sessions, records: ClusterRecords, info: ClusterInfo) -> None:
        self._sessions = sessions
        self._records = records
        self._me = info.node
        self._info = info
        self._names = {each.node: each.name for each in info.nodes}

    def status(self, parts: Callable[[], Iterable[PartStatus]]) -> ClusterStatus:
        """`parts`: gives those of this node, as they are then."""
        began = time.monotonic()
        problem = ""
        groups: list[VolumeGroup] = []
        try:
            rows = self._records.volumes()
            groups = [row.record for row in rows if row.record.state is not GroupState.DELETED]
        except VolumeError as error:
            problem = str(error)
        groups = groups[:MAX_VOLUMES]
        looks = self._ask((group.volume_id, group.primary) for group in groups if group.primary)
        others = [
            (group.volume_id, node)
            for group in groups
            for node in _roles(group)
            if node != group.primary
        ]
        served = {each.volume.hex(): each for each in parts() if each.doing == "serving"}
        looks |= self._ask(others)
        # A primary was looked at before the others: none is compared with what came later.
        mine = {each.volume.hex(): each for each in parts()} | served
        looks |= {
            (volume, self._me): _own(part)
            for volume, part in mine.items()
            if not isinstance(looks.get((volume, self._me)), m.Looked)
        }
        lags = self._lags(groups, looks, mine)
        volumes = [
            self._volume(group, looks, mine, lags.get(group.volume_id, {})) for group in groups
        ]
        known = {group.volume_id for group in groups}
        volumes += [self._unknown(part) for volume, part in mine.items() if volume not in known]
        return ClusterStatus(
            node=self._info.name,
            metastore=problem,
            took_s=time.monotonic() - began,
            nodes=tuple(
                ClusterNodeInfo(each.node, each.name, each.connected, each.since_s, each.reason)
                for each in self._info.nodes
            ),
            volumes=tuple(sorted(volumes, key=lambda each: each.name)),
        )

    def _ask(self, what: Iterable[tuple[str, str]]) -> Looks:
        """LOOK to all of them at once; this node is not asked."""
        asked = {
            (volume, node): (node, m.Look(bytes.fromhex(volume)))
            for volume, node in what
            if node != self._me
        }
        return dict(ask_all(self._sessions, asked, m.Looked))

    def _lags(self, groups: Iterable[VolumeGroup], looks: Looks, mine: Mine) -> Lagging:
        """Of volumes with members that are behind, or do not answer, what their primary knows."""
        found: Lagging = {}
        asked: dict[str, tuple[str, m.Request]] = {}
        for group in groups:
            primary = group.primary
            if primary is None:
                continue
            if primary == self._me:
                if group.volume_id in mine:
                    found[group.volume_id] = lags_of(mine[group.volume_id])
                continue
            look = looks.get((group.volume_id, primary))
            if isinstance(look, m.Looked) and look.serving:
                others = [looks.get((group.volume_id, node)) for node in _roles(group)]
                if any(not isinstance(e, m.Looked) or e.received < look.received for e in others):
                    asked[group.volume_id] = (primary, m.Lag(bytes.fromhex(group.volume_id)))
        for volume, answer in ask_all(self._sessions, asked, m.Lags).items():
            if isinstance(answer, m.Lags):
                found[volume] = heard_of(answer)
        return found

    def _volume(
        self, group: VolumeGroup, looks: Looks, mine: Mine, lags: Mapping[str, Behind]
    ) -> ClusterVolume:
        roles = _roles(group)
        found = {node: looks.get((group.volume_id, node), "not asked") for node in roles}
        serving = [
            (node, look)
            for node, look in found.items()
            if isinstance(look, m.Looked) and look.serving
        ]
        # Of two that say so the later epoch counts: the other one does not know yet.
        primary, newest = max(serving, key=lambda each: each[1].epoch, default=(None, None))
        shown = tuple(
            behind(
                replace(self._copy(node, look, newest), role=roles[node]),
                lags.get(node) if newest is not None else None,
            )
            for node, look in found.items()
        )
        members = tuple(each for each in shown if each.role == MEMBER)
        part = mine.get(group.volume_id)
        copies = sum(each.in_sync is True for each in members) if newest is not None else None
        return ClusterVolume(
            name=group.name,
            volume=group.volume_id,
            epoch=group.epoch,
            state=group.state.value,
            primary=None if primary is None else self._name(primary),
            mode=group.mode.value,
            copies=copies,
            wanted=group.replicas,
            write_quorum=group.write_quorum,
            members=shown,
            doing="" if part is None else part.doing,
            problem=_problem(group, members, copies, part),
            change=self._change(group, newest, found, part),
        )

    def _change(
        self,
        group: VolumeGroup,
        primary: m.Looked | None,
        found: Mapping[str, m.Looked | str],
        part: PartStatus | None,
    ) -> str:
        """What the row says, and what the node that comes has; the primary knows more of it."""
        if group.coming is None or group.replaces is None:
            return ""
        look = found.get(group.coming)
        if isinstance(look, m.Looked) and primary is not None:
            left = max(0, primary.received - look.received)
            how = "has all" if not left else f"lacks {left} of {primary.received} records"
        else:
            how = f"not known: {look}"
        text = f"{self._name(group.coming)} comes for {self._name(group.replaces)}: {how}"
        if part is not None and part.change is not None:
            state = next(
                (each.state for each in part.members if each.member == group.coming),
                "is asked to make its part",
            )
            problem = f", {part.change.problem}" if part.change.problem else ""
            text += f", {state} since {part.change.for_s:.0f} s{problem}"
        return text

    def _copy(self, node: str, look: m.Looked | str, primary: m.Looked | None) -> CopyInfo:
        if isinstance(look, str):
            nothing = (None,) * 8
            return CopyInfo(node, self._name(node), False, look, *nothing)
        behind = in_sync = None
        if primary is not None:
            behind = max(0, primary.received - look.received)
            in_sync = look.epoch == primary.epoch and behind == 0
        return CopyInfo(
            *(node, self._name(node), True, ""),
            *(look.epoch, look.promise, look.received, look.durable),
            *(behind, look.quiet_ms / 1000, bool(look.serving), in_sync),
        )

    def _unknown(self, part: PartStatus) -> ClusterVolume:
        """A volume that this node has a part of, without its record."""
        own = self._copy(self._me, _own(part), None)
        return ClusterVolume(
            name=part.name,
            volume=part.volume.hex(),
            epoch=None,
            state="unknown",
            primary=self._info.name if own.serving else None,
            mode="unknown",
            copies=None,
            wanted=None,
            write_quorum=None,
            members=(own,),
            doing=part.doing,
            problem="its record cannot be read: only this node's part is shown",
        )

    def _name(self, node: str) -> str:
        return self._names.get(node, node)


def _roles(group: VolumeGroup) -> dict[str, str]:
    """Who is asked, and as what."""
    roles = dict.fromkeys(group.leaving, LEAVING)
    if group.coming is not None:
        roles[group.coming] = COMING
    return {**dict.fromkeys(group.members, MEMBER), **roles}


def _own(part: PartStatus) -> m.Looked:
    """As this node would answer LOOK."""
    return m.Looked(
        *(part.epoch, part.promised, part.received, part.durable),
        *(min(int(part.quiet_s * 1000), (1 << 32) - 1), int(part.doing == "serving")),
    )


def _problem(
    group: VolumeGroup,
    members: tuple[CopyInfo, ...],
    copies: int | None,
    part: PartStatus | None,
) -> str:
    failure = f"; here: {part.last_failure}" if part is not None and part.last_failure else ""
    if copies is None:
        return f"no member says that it serves it{failure}"
    silent = [each.name for each in members if not each.answered]
    late = [_lag(each) for each in members if each.answered and not each.in_sync]
    texts = []
    if silent:
        texts.append(f"not known: {', '.join(silent)}")
    if late:
        texts.append(f"behind: {', '.join(late)}")
    if len(group.members) < group.replicas:
        texts.append(f"{len(group.members)} members, {group.replicas} wanted")
    return "; ".join(texts)


def _lag(copy: CopyInfo) -> str:
    if copy.behind_bytes is None or copy.behind_s is None:
        return copy.name
    left = "unknown" if copy.left_s is None else f"{copy.left_s:.0f} s"
    return f"{copy.name} ({copy.behind_bytes} bytes, {copy.behind_s:.0f} s; {left} left)"
