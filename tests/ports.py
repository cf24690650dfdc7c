"""Ports for servers that have to be told which one to listen on, before they are started.

A port that is found free and let go can be taken before the server comes to it: by another test, or
by a client's end of a connection. So these are below those that the kernel gives to whoever asks
for none, and nobody else gets them: for as long as this process lives it keeps an abstract socket
of that name, of which there is one in a network namespace.
"""

import os
import socket
from itertools import count

FIRST, END = 10000, 20000

_next = count(os.getpid() * 17)  # processes that begin together look at different ones first
_claims: list[socket.socket] = []


def free_ports(number: int) -> list[int]:
    """Ports of the loopback addresses that nobody listens on, and that no other test is given."""
    found: list[int] = []
    for _ in range(FIRST, END):
        port = FIRST + next(_next) % (END - FIRST)
        if _claim(port) and _is_free(port):
            found.append(port)
            if len(found) == number:
                return found
    raise AssertionError("no free ports")


def free_port() -> int:
    return free_ports(1)[0]


def _claim(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0blockd-test-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
