"""Rules of stripes that worlds break on purpose, to see whether that is noticed."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

from tests.sim.cluster.rules import Rule
from transport import stripejoining, stripeupkeep
from transport.packrow import PackRow
from transport.shardfile import ShardFile, ShardWriter
from transport.stripejoining import Joining
from transport.stripeupkeep import Upkeep
from transport.striping import Striper
from volume.stripehome import StripeHome


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


def _nothing(*_: Any) -> None:
    pass


def _no_user(joining: Joining, row: PackRow) -> PackRow:
    return row


_removed = Striper._remove_all
_finish = ShardWriter.finish


def _unused(striper: Striper, rows: Mapping[bytes, PackRow], devices: Any, nodes: Any) -> None:
    _removed(striper, rows, devices, (striper._me,))


def _unseen(writer: ShardWriter, stripe: Any) -> None:
    """Whatever was written is what its header says."""
    hashes = list(stripe.hashes)
    with patch.object(ShardWriter, "hash", hashes[writer.name.number]):
        _finish(writer, stripe)


def _all_known(home: StripeHome, entries: Any) -> set[Any]:
    return set(entries)


RULES: Mapping[str, Rule] = {
    "copies go unread": Rule(
        "a chunk's copy goes only after the chunk was read through the stripe",
        (
            (stripejoining, "is_whole", _always),
            (stripejoining, "_check_all_there", _nothing),
            (StripeHome, "whole_of", _all_known),
        ),
    ),
    "who finds chunks there is no user": Rule(
        "a node is a user of a stripe before it finds chunks in it",
        ((Joining, "_become_user", _no_user),),
    ),
    "only its own need counts": Rule(
        "no shard goes while any node of the cluster uses the stripe",
        ((Striper, "_remove_all", _unused),),
    ),
    "strays go whoever needs them": Rule(
        "a shard that no row names stays until all that the row names are there",
        ((Upkeep, "_is_needed", _never),),
    ),
    "what was computed is believed": Rule(
        "a shard that was computed is what was lost, or it is not written",
        (
            (ShardFile, "check_pages", _nothing),
            (ShardFile, "verify", _nothing),
            (ShardWriter, "finish", _unseen),
        ),
    ),
    "damaged shards are taken for whole": Rule(
        "a shard that is damaged is made again of the others",
        ((stripeupkeep.Upkeep, "_is_sound", _always),),
    ),
}


@contextlib.contextmanager
def broken_rule(name: str | None) -> Iterator[None]:
    """Break a rule while the context lasts. KeyError."""
    with contextlib.ExitStack() as stack:
        if name is not None:
            for owner, attribute, instead in RULES[name].broken:
                stack.enter_context(patch.object(owner, attribute, instead))
        yield
