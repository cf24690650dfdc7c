"""An access list as it is kept in meta/: a JSON object, framed with a checksum by the store.

    access/volume/UUID    the list of the volume with that uuid (hexadecimal)
    access/coming/NAME    the list that the volume of that name, which is being made, is to have

    version     1
    volume      the uuid again, "" of one to come: a list under a key that is not its own is damaged
    rules       [{deny, read_only, and the conditions that there are}]

What cannot be read is a list that lets nobody in; so is one of a later version.
"""

import json
from typing import Any, Final

from blockd.access.rules import AccessError, AccessList, Rule, checked

PREFIX: Final = "access/"
VOLUME: Final = PREFIX + "volume/"
COMING: Final = PREFIX + "coming/"
VERSION: Final = 1
DAMAGED: Final = AccessList(damaged=True)


def volume_key(uuid: bytes) -> str:
    return VOLUME + uuid.hex()


def coming_key(name: str) -> str:
    return COMING + name


def encode(key: str, access: AccessList) -> bytes:
    """`access` as it is kept under `key`; a damaged list stays one."""
    if access.damaged:
        return b"damaged"
    rules = [
        {"deny": rule.deny, "read_only": rule.read_only, **rule.conditions} for rule in access.rules
    ]
    value = {"version": VERSION, "volume": _volume(key), "rules": rules}
    return json.dumps(value).encode()


def decode(key: str, value: bytes) -> AccessList:
    """What `encode` made, or `DAMAGED`; raises nothing."""
    try:
        fields = json.loads(value)
        if fields["version"] != VERSION or fields["volume"] != _volume(key):
            return DAMAGED
        rules = tuple(map(_rule, fields["rules"]))
        access = checked(rules)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, AccessError):
        return DAMAGED
    return access if access.rules == rules else DAMAGED


def volume_told(value: bytes) -> bytes | None:
    """The uuid that a list says it is of, whatever it is kept under."""
    try:
        uuid = bytes.fromhex(json.loads(value)["volume"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return uuid or None


def _volume(key: str) -> str:
    return key.removeprefix(VOLUME) if key.startswith(VOLUME) else ""


def _rule(given: dict[str, Any]) -> Rule:
    """TypeError for what a rule does not have."""
    for name, value in given.items():
        wanted = bool if name in ("deny", "read_only") else int if name == "uid" else str
        if type(value) is not wanted:
            raise TypeError(f"{name}: {type(value).__name__}")
    return Rule(**given)
