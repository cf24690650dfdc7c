"""iSCSI names: what can be one, and how two are compared (RFC 7143 4.2.7, RFC 3722)."""

import re
import unicodedata

MAX_NAME_BYTES = 223  # RFC 7143 4.2.7.1

# 4.2.7.1: iqn.YYYY-MM.domain[:anything], eui. and 16 digits, naa. and 16 or 32 digits.
_NAME = re.compile(
    r"iqn\.[0-9]{4}-[0-9]{2}\.[^\s,;=]+|eui\.[0-9a-f]{16}|naa\.(?:[0-9a-f]{16}){1,2}"
)


def normalised(name: str) -> str:
    """An iSCSI name as names are compared: without regard to case (RFC 7143 4.2.7.2, RFC 3722)."""
    return unicodedata.normalize("NFKC", name.casefold())


def is_name(name: str) -> bool:
    """Whether `name` can be an iSCSI name. Underscores, which RFC 3722 does not have, may be: names
    with them are in use."""
    # In this order: half of a surrogate pair is not printable, and cannot be encoded.
    good = name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES
    return good and _NAME.fullmatch(normalised(name)) is not None


def is_pattern(entry: str) -> bool:
    """Whether `entry` can stand for initiators: a name, or the beginning of some and '*'."""
    return is_name(entry) or (
        entry.endswith("*")
        and entry.isprintable()
        and " " not in entry
        and len(entry.encode()) <= MAX_NAME_BYTES
    )


def matches(entry: str, initiator: str) -> bool:
    """Whether `entry` stands for `initiator`, whose name is normalised."""
    if entry.endswith("*"):
        return initiator.startswith(normalised(entry[:-1]))
    return initiator == normalised(entry)
