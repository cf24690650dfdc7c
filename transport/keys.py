"""Keys of a node, and the file that makes a data directory a node of a cluster.

CURVE is Curve25519: a key is 32 bytes, secret or public. The file `node.json` in the data
directory has the secret key and what goes with it, mode 0600; others being able to read it is an
error, as they could be this node. It is written twice: with `joined` false before the cluster is
told of the key, with true when the cluster has it. Both times it appears whole, synced, or not at
all; so after a crash there is never a node in the cluster whose secret key is lost.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from transport.errors import BadIdentity
from volume.privatefile import NotPrivate, read_private

KEY_BYTES: Final = 32
IDENTITY_NAME: Final = "node.json"
IDENTITY_VERSION: Final = 1
MAX_IDENTITY_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair. The secret is never shown."""

    public: bytes
    secret: bytes = field(repr=False)


def new_key_pair() -> KeyPair:
    """From the random numbers of the kernel."""
    return pair_of(X25519PrivateKey.generate().private_bytes_raw())


def pair_of(secret: bytes) -> KeyPair:
    """The pair that `secret`, 32 bytes, belongs to."""
    public = X25519PrivateKey.from_private_bytes(secret).public_key()
    return KeyPair(public.public_bytes_raw(), secret)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which node of which cluster a data directory is. Ids are 32 hex digits."""

    cluster_id: str
    node_id: str
    name: str
    keys: KeyPair
    joined: bool
    """Whether the cluster has answered that it has this node."""

    @property
    def cluster(self) -> bytes:
        return bytes.fromhex(self.cluster_id)

    @property
    def node(self) -> bytes:
        return bytes.fromhex(self.node_id)


def new_identity(cluster_id: str, name: str) -> Identity:
    """A node that no cluster knows yet, with keys of its own."""
    return Identity(cluster_id, os.urandom(16).hex(), name, new_key_pair(), joined=False)


def identity_path(data: Path) -> Path:
    return data / IDENTITY_NAME


def write_identity(data: Path, identity: Identity) -> None:
    """Durable on return; after a crash the file is the old one, or this. OSError."""
    path = identity_path(data)
    fields = {
        "version": IDENTITY_VERSION,
        "cluster": identity.cluster_id,
        "node": identity.node_id,
        "name": identity.name,
        "public_key": identity.keys.public.hex(),
        "secret_key": identity.keys.secret.hex(),
        "joined": identity.joined,
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            os.fchmod(fd, 0o600)  # a draft that a crash left may have another mode
            file.write(json.dumps(fields, indent=2) + "\n")
            file.flush()
            os.fsync(fd)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_identity(data: Path) -> Identity | None:
    """What the data directory is; None when it is of no cluster. BadIdentity, OSError."""
    path = identity_path(data)
    try:
        # Whose the directory is, his the node is, also where root looks at it.
        text = read_private(path, MAX_IDENTITY_BYTES, owners=[data.stat().st_uid])
    except FileNotFoundError:
        return None
    except NotPrivate as error:
        raise BadIdentity(str(path), str(error)) from error
    try:
        return _parse(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        way_out = "restore it from a backup, or remove the node from the cluster and join again"
        raise BadIdentity(str(path), f"is not what blockd wrote; {way_out}") from None


def _parse(text: bytes) -> Identity:
    fields = json.loads(text.decode("ascii"))
    if fields["version"] != IDENTITY_VERSION:
        raise ValueError
    keys = pair_of(_hex(fields, "secret_key", KEY_BYTES))
    if keys.public != _hex(fields, "public_key", KEY_BYTES):
        raise ValueError
    if not isinstance(fields["name"], str) or type(fields["joined"]) is not bool:
        raise ValueError
    cluster, node = _hex(fields, "cluster", 16), _hex(fields, "node", 16)
    return Identity(cluster.hex(), node.hex(), fields["name"], keys, fields["joined"])


def _hex(fields: dict[str, Any], name: str, length: int) -> bytes:
    value = bytes.fromhex(fields[name])
    if len(value) != length:
        raise ValueError(name)
    return value
