"""Networks of clients, as every access list has them: 192.0.2.0/24, 2001:db8::/32, 192.0.2.7.

An IPv4 address that came in through an IPv6 socket is ::ffff:192.0.2.7 there; here it is the IPv4
address that it stands for, in lists and of clients, so that one network is written in one way.
"""

import ipaddress
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS = 96  # before the IPv4 address in ::ffff:0:0/96
_KNOWN = 4096  # networks that need not be parsed again


@lru_cache(_KNOWN)
def network(text: str, *, strict: bool = True) -> Network:
    """ValueError; when `strict` for an address with bits beyond its prefix, too: one host may be
    meant by it, and a whole network would be let in."""
    found = ipaddress.ip_network(text, strict)
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= _MAPPED_BITS:
        mapped = found.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, found.prefixlen - _MAPPED_BITS))
    return found


def address(text: str) -> Address | None:
    """The address that a socket tells, with or without a zone (%eth0); None for what is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found
