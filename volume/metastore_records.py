"""What a cluster's `MetaStore` remembers: records, and their one canonical form.

    blockd1 <crc32c of the JSON, 8 hex digits> <JSON>

The JSON is an object in ASCII with sorted keys, no spaces, whole numbers and lower-case hex, so
that a person can read it with `etcdctl get` and there is exactly one text for one record. A value
comes from a disk or from etcd, where anybody with a password may have written it: decoding checks
length, version, checksum, every field's type and bounds, that the record belongs under its key, and
last that encoding what was read gives the same bytes (so no field is doubled, unknown or written
in two ways). What fails is `CorruptRecord`, never a guess.

| key | record | about |
| --- | --- | --- |
| `cluster` | `ClusterRecord` | identity, epoch of the device map |
| `node/<node id>` | `NodeRecord` | addresses and public key of a node |
| `join/<public key>` | `JoinRecord` | a token to join with that nobody has used |
| `volume/<volume id>` | `VolumeGroup` | who may write a volume, in which epoch |
| `name/<volume name>` | `NameRecord` | keeps names unique: which volume has it |
| `access/<volume id>` | `AccessRecord` | who may attach a volume that several nodes have |
| `settings/<volume id>` | `SettingsRecord` | limits, schedule and history policy of such a volume |
| `reserved/<volume id>` | `ReservationsRecord` | SCSI reservations of such a volume |
| `beat/<node id>` | `Heartbeat` | a hint that a node lives; decides nothing |
| `exports` | `ExportsRecord` (blockd/cluster/exports.py) | where each node exports volumes |
| `devices` | `DeviceMap` (transport/devicemap.py) | devices, weights, domains |
| `pack/<pack id>` | `PackRecord` (transport/packrecords.py) | shards of a pack, who needs them |

Ids are 32 hex digits. Each record carries the `token` of the transaction that wrote it, 32 hex
digits chosen at random: by it a retry whose first answer was lost sees that it already happened.
"""

import enum
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from native import crc32c
from volume.errors import CorruptData, InvalidName
from volume.refs import check_volume_name

MAGIC = b"blockd1 "
MAX_VALUE_BYTES = 4096  # all fields at their longest are below 2 KiB
MAX_MEMBERS = 8
MAX_LEAVING = 32
MAX_ADDRESSES = 8
MAX_ADDRESS_CHARS = 128
MAX_EPOCH = (1 << 63) - 1

_ID = re.compile(r"[0-9a-f]{32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PRINTABLE = re.compile(r"[ -~]*")
_ADDRESS = re.compile(rf"[!-~]{{1,{MAX_ADDRESS_CHARS}}}")  # printable ASCII without blanks


class CorruptRecord(CorruptData):
    """A value of the MetaStore that is not a record, or not the one of its key."""

    code = "corrupt_record"

    def __init__(self, key: str, what: str) -> None:
        super().__init__(
            f"metastore: value of {key!r} {what}; nothing is decided by it. Restore the metastore "
            "from a backup, or delete this key and enter it again"
        )
        self.key = key


class Mode(enum.StrEnum):
    """When a write is acknowledged: see the table of acks in the README."""

    LOCAL = "local"
    MIRROR = "mirror"
    STRICT = "strict"


class GroupState(enum.StrEnum):
    OPEN = "open"
    """The primary serves it, or did when this was written."""
    SEALING = "sealing"
    """`epoch` was raised and its owner is collecting seals: nobody serves it."""
    CLOSED = "closed"
    """Nobody serves it."""
    DELETED = "deleted"
    """A tombstone: see `ClusterRecords.delete_volume`."""


class Record(Protocol):
    """What has a canonical form. Constructors check nothing; `encode` and `decode` both do."""

    prefix: ClassVar[str]
    max_bytes: ClassVar[int]
    """Of its value."""

    @property
    def token(self) -> str: ...
    @property
    def key(self) -> str: ...
    def fields(self) -> dict[str, Any]: ...
    @classmethod
    def parse(cls, fields: "Fields") -> "Record": ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    cluster_id: str
    map_epoch: int
    """Of the device map; only grows."""
    token: str = ""

    prefix: ClassVar[str] = "cluster"
    max_bytes: ClassVar[int] = MAX_VALUE_BYTES

    @property
    def key(self) -> str:
        return self.prefix

    def fields(self) -> dict[str, Any]:
        return {"cluster": self.cluster_id, "map_epoch": self.map_epoch}

    @classmethod
    def parse(cls, fields: "Fields") -> "ClusterRecord":
        return cls(fields.id("cluster"), fields.number("map_epoch"), fields.id("token"))


@dataclass(frozen=True, slots=True)
class NodeRecord:
    node_id: str
    name: str
    addresses: tuple[str, ...]
    """Where peers reach it, best first."""
    public_key: str
    """CURVE, 64 hex digits."""
    token: str = ""
    draining: bool = False
    """Volumes are to have other members in its place, and it is not to be one of any."""

    prefix: ClassVar[str] = "node/"
    max_bytes: ClassVar[int] = MAX_VALUE_BYTES

    @property
    def key(self) -> str:
        return self.prefix + self.node_id

    def fields(self) -> dict[str, Any]:
        return {
            "node": self.node_id,
            "name": self.name,
            "addresses": list(self.addresses),
            "public_key": self.public_key,
            "draining": int(self.draining),
        }

    @classmethod
    def parse(cls, fields: "Fields") -> "NodeRecord":
        return cls(
            fields.id("node"),
            fields.matching("name", _LABEL),
            fields.texts("addresses", _ADDRESS, 1, MAX_ADDRESSES),
            fields.matching("public_key", _HASH),
            fields.id("token"),
            bool(fields.number("draining", 0, 1)),
        )


@dataclass(frozen=True, slots=True)
class JoinRecord:
    """Who shows the secret key of this may become a node, once. The secret is in the token only."""

    public_key: str
    """CURVE, 64 hex digits."""
    expires_s: int
    """Since 1970, by the clock of the node that is asked."""
    token: str = ""

    prefix: ClassVar[str] = "join/"
    max_bytes: ClassVar[int] = MAX_VALUE_BYTES

    @property
    def key(self) -> str:
        return self.prefix + self.public_key

    def fields(self) -> dict[str, Any]:
        return {"public_key": self.public_key, "expires_s": self.expires_s}

    @classmethod
    def parse(cls, fields: "Fields") -> "JoinRecord":
        return cls(
            fields.matching("public_key", _HASH),
            fields.number("expires_s"),
            fields.id("token"),
        )


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """Who may write a volume. Every change of `primary` raises `epoch`; one of `members` is made
    by the primary within its epoch (transport/group/changing.py)."""

    volume_id: str
    name: str
    epoch: int
    primary: str | None
    """Node id; one of `members`, or None when nobody is."""
    members: tuple[str, ...]
    """Node ids of the journal group."""
    replicas: int
    """R: journals that there should be."""
    write_quorum: int
    """W: journals that have to have a write before it is acknowledged; at most R."""
    mode: Mode
    head: str | None
    """Commit id that the volume was last opened or created from; None before the first."""
    branch: str
    state: GroupState
    token: str = ""
    coming: str | None = None
    """Node id of who is to be a member: it gets all of the volume, and counts for nothing yet."""
    replaces: str | None = None
    """The member in whose place it comes."""
    leaving: tuple[str, ...] = ()
    """Node ids of who is no member any more, or comes no more, and has not let its part go yet."""

    prefix: ClassVar[str] = "volume/"
    max_bytes: ClassVar[int] = MAX_VALUE_BYTES

    @property
    def key(self) -> str:
        return self.prefix + self.volume_id

    def fields(self) -> dict[str, Any]:
        return {
            "volume": self.volume_id,
            "name": self.name,
            "epoch": self.epoch,
            "primary": self.primary,
            "members": list(self.members),
            "r": self.replicas,
            "w": self.write_quorum,
            "mode": str(self.mode),
            "head": self.head,
            "branch": self.branch,
            "state": str(self.state),
            "coming": self.coming,
            "replaces": self.replaces,
            "leaving": list(self.leaving),
        }

    @classmethod
    def parse(cls, fields: "Fields") -> "VolumeGroup":
        group = cls(
            volume_id=fields.id("volume"),
            name=fields.volume_name("name"),
            epoch=fields.number("epoch", 1),
            primary=fields.optional("primary", _ID),
            members=fields.texts("members", _ID, 1, MAX_MEMBERS),
            replicas=fields.number("r", 1, MAX_MEMBERS),
            write_quorum=fields.number("w", 1, MAX_MEMBERS),
            mode=fields.choice("mode", Mode),
            head=fields.optional("head", _HASH),
            branch=fields.matching("branch", _LABEL),
            state=fields.choice("state", GroupState),
            token=fields.id("token"),
            coming=fields.optional("coming", _ID),
            replaces=fields.optional("replaces", _ID),
            leaving=fields.texts("leaving", _ID, 0, MAX_LEAVING),
        )
        if len(set(group.members)) != len(group.members):
            fields.fail("names a member twice")
        if group.primary is not None and group.primary not in group.members:
            fields.fail("has a primary that is no member")
        if group.write_quorum > group.replicas:
            fields.fail(f"has W={group.write_quorum} above R={group.replicas}")
        if len(group.members) > group.replicas:
            fields.fail(f"has {len(group.members)} members above R={group.replicas}")
        if group.replaces is not None and group.replaces not in group.members:
            fields.fail("replaces who is no member")
        if (group.coming is None) != (group.replaces is None):
            fields.fail("names one of who comes and who is replaced")
        here = [*group.members, *([group.coming] if group.coming else [])]
        if group.state is GroupState.DELETED:
            here = []  # who has been a member has to let its part go
        if len({*here, *group.leaving}) != len(here) + len(group.leaving):
            fields.fail("names a node twice")
        return group


@dataclass(frozen=True, slots=True)
class NameRecord:
    name: str
    volume_id: str
    token: str = ""

    prefix: ClassVar[str] = "name/"
    max_bytes: ClassVar[int] = MAX_VALUE_BYTES

    @property
    def key(self) -> str:
        return self.prefix + self.name

    def fields(self) -> dict[str, Any]:
        return {"name": self.name, "volume": self.volume_id}

    @classmethod
    def parse(cls, fields: "Fields") -> "NameRecord":
        return cls(fields.volume_name("name"), fields.id("volume"), fields.id("token"))


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """The access list of a volume, on whichever node it is served; opaque here."""

    volume_id: str
    rules: str
    """"" for a volume that has none any more, and is open."""
    token: str = ""

    prefix: ClassVar[str] = "access/"
    max_bytes: ClassVar[int] = 256 << 10  # 256 rules at their longest, and quoted

    @property
    def key(self) -> str:
        return self.prefix + self.volume_id

    def fields(self) -> dict[str, Any]:
        return {"volume": self.volume_id, "rules": self.rules}

    @classmethod
    def parse(cls, fields: "Fields") -> "AccessRecord":
        return cls(fields.id("volume"), fields.matching("rules", _PRINTABLE), fields.id("token"))


@dataclass(frozen=True, slots=True)
class SettingsRecord:
    """Limits, schedule and history policy of a volume, on whichever node it is served; opaque."""

    volume_id: str
    settings: str
    token: str = ""

    prefix: ClassVar[str] = "settings/"
    max_bytes: ClassVar[int] = MAX_VALUE_BYTES

    @property
    def key(self) -> str:
        return self.prefix + self.volume_id

    def fields(self) -> dict[str, Any]:
        return {"volume": self.volume_id, "settings": self.settings}

    @classmethod
    def parse(cls, fields: "Fields") -> "SettingsRecord":
        return cls(fields.id("volume"), fields.matching("settings", _PRINTABLE), fields.id("token"))


@dataclass(frozen=True, slots=True)
class ReservationsRecord:
    """What a volume's SCSI unit keeps, on whichever node it is served; opaque here."""

    volume_id: str
    term: int
    """Epoch of the last primary that has looked at it; 0: none yet."""
    state: str
    """Base64."""
    token: str = ""

    prefix: ClassVar[str] = "reserved/"
    max_bytes: ClassVar[int] = 512 << 10  # 1024 registrations with the longest names

    @property
    def key(self) -> str:
        return self.prefix + self.volume_id

    def fields(self) -> dict[str, Any]:
        return {"volume": self.volume_id, "term": self.term, "state": self.state}

    @classmethod
    def parse(cls, fields: "Fields") -> "ReservationsRecord":
        return cls(
            fields.id("volume"),
            fields.number("term"),
            fields.matching("state", _PRINTABLE),
            fields.id("token"),
        )


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A node said that it lives. A hint for people and for when to begin a takeover."""

    node_id: str
    time_ns: int
    """The node's own wall clock."""
    token: str = ""

    prefix: ClassVar[str] = "beat/"
    max_bytes: ClassVar[int] = MAX_VALUE_BYTES

    @property
    def key(self) -> str:
        return self.prefix + self.node_id

    def fields(self) -> dict[str, Any]:
        return {"node": self.node_id, "time_ns": self.time_ns}

    @classmethod
    def parse(cls, fields: "Fields") -> "Heartbeat":
        return cls(fields.id("node"), fields.number("time_ns"), fields.id("token"))


def encode(record: Record) -> bytes:
    """The value of `record`. CorruptRecord when it is out of bounds: nothing bad is written."""
    value = _canonical(record)
    decode(type(record), record.key, value)
    return value


def decode(kind: type[R], key: str, value: bytes) -> R:
    """The record of a value found under `key`. CorruptRecord."""
    if len(value) > kind.max_bytes:
        raise CorruptRecord(key, f"is {len(value)} bytes long, above {kind.max_bytes}")
    if not value.startswith(MAGIC):
        raise CorruptRecord(key, f"has another version than {MAGIC.decode().strip()}")
    checksum, body = value[8:16], value[17:]
    if checksum != b"%08x" % crc32c(body):
        raise CorruptRecord(key, "fails its checksum")
    try:
        fields = json.loads(body.decode("ascii"))
    except (ValueError, RecursionError):
        raise CorruptRecord(key, "is not JSON in ASCII") from None
    if not isinstance(fields, dict):
        raise CorruptRecord(key, "is not a JSON object")
    record = kind.parse(Fields(key, fields))
    assert isinstance(record, kind)
    if record.key != key:
        raise CorruptRecord(key, f"belongs under {record.key!r}")
    if _canonical(record) != value:
        raise CorruptRecord(key, "is not in canonical form")
    return record


def canonical_json(fields: dict[str, Any]) -> bytes:
    """The one text of these fields."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def _canonical(record: Record) -> bytes:
    body = canonical_json({**record.fields(), "token": record.token})
    return MAGIC + b"%08x " % crc32c(body) + body


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a decoded object, each looked at before it is believed."""

    key: str
    values: dict[str, Any]

    def fail(self, what: str) -> None:
        raise CorruptRecord(self.key, what)

    def _text(self, name: str, fits: Callable[[str], object], value: Any) -> str:
        if not isinstance(value, str) or not fits(value):
            raise CorruptRecord(self.key, f"has a bad {name!r}: {str(value)[:64]!r}")
        return value

    def matching(self, name: str, pattern: re.Pattern[str]) -> str:
        return self._text(name, pattern.fullmatch, self.values.get(name))

    def optional(self, name: str, pattern: re.Pattern[str]) -> str | None:
        return None if self.values.get(name) is None else self.matching(name, pattern)

    def id(self, name: str) -> str:
        return self.matching(name, _ID)

    def texts(self, name: str, pattern: re.Pattern[str], least: int, most: int) -> tuple[str, ...]:
        found = self.values.get(name)
        if not isinstance(found, list) or not least <= len(found) <= most:
            raise CorruptRecord(self.key, f"has not {least} to {most} {name!r}")
        return tuple(self._text(name, pattern.fullmatch, value) for value in found)

    def number(self, name: str, least: int = 0, most: int = MAX_EPOCH) -> int:
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise CorruptRecord(self.key, f"has a bad {name!r}, not {least} to {most}")
        return value

    def choice(self, name: str, kind: type["_Choice"]) -> "_Choice":
        try:
            return kind(str(self.values.get(name)))
        except ValueError:
            raise CorruptRecord(self.key, f"has an unknown {name!r}") from None

    def volume_name(self, name: str) -> str:
        value = self.values.get(name)
        try:
            check_volume_name(value if isinstance(value, str) else "")
        except InvalidName:
            raise CorruptRecord(self.key, f"has a bad {name!r}: {str(value)[:64]!r}") from None
        return str(value)


_Choice = TypeVar("_Choice", bound=enum.StrEnum)
