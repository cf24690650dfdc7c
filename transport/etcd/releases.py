"""Which releases of etcd have faults that matter here.

Guarded transactions are sound in all of them: what is warned of costs availability (leases revoked
while live, hints that never come), lets stale reads lose races, or lets strangers in.
"""

import re

# Below these: stale linearizable reads from a paused member (etcd #20418) and an authentication
# bypass (CVE-2026-33413), fixed in 3.4.42; older ones also lose watch events and live leases.
FIXED = {(3, 4): 42, (3, 5): 28, (3, 6): 9}
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:[-+].*)?")


def known_faults(version: str) -> str | None:
    """What is wrong with that release of etcd, with the way out; None if nothing is known."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return f"etcd has version {version!r}, which cannot be judged; use 3.4, 3.5 or 3.6"
    major, minor, patch = (int(part) for part in match.groups())
    if (major, minor) < (3, 4):
        return f"etcd {version} is not supported; upgrade to 3.4.{FIXED[3, 4]} or later"
    fixed = FIXED.get((major, minor))
    if fixed is None or patch >= fixed:
        return None
    return (
        f"etcd {version} has known faults: stale reads from a paused member, leases that are "
        "revoked while they live, an authentication bypass. blockd's decisions are sound with it "
        f"(guarded transactions only); upgrade to {major}.{minor}.{fixed} or later"
    )
