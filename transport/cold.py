"""Which packs become stripes, and of how many shards.

Erasure coding in the background is paid twice: the pack is written as copies first, and again as
shards. So only packs that will stay are taken: old ones, since young ones lose chunks to overwrites
and are copied forward by gc, and those that nobody reads, since a read of a stripe goes to one
device and cannot choose among copies (`volume.stripehome` says which these are).
"""

from typing import Final

CODES: Final = ((12, 8, 3), (6, 4, 2), (3, 2, 1))
"""(domains from which it is used, k, m), widest first. With fewer domains than the first packs stay
copies. 8+3 leaves a domain free onto which the shards of a lost one are built; with 4+2 of 6 and
2+1 of 3 they wait for a replacement."""


def code_for(domain_count: int) -> tuple[int, int] | None:
    """(k, m) for a cluster of so many failure domains that have a device in use; None: copies."""
    return next(((data, parity) for least, data, parity in CODES if domain_count >= least), None)
