"""Fuzz target of what people write or hand on: the configuration, sizes, addresses, files of
secrets, tokens, the file of a node's keys. Any text

- is taken, or refused by the documented error with a message that names the file or the text;
- that is taken means the same when it is written as we write it;
- of a file with secrets shows none of them in the message.

Input: one byte that says what the rest is (see `_KINDS`), then the text, which need not be UTF-8.
"""

import atexit
import base64
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from blockd.chap_file import read_chap, read_mutual_chap
from blockd.config import ServeConfig, check, load_config, parse_address, parse_portal
from blockd.sizes import MAX_TEXT, exact_size, format_size, parse_size
from blockd.tls import TlsConfigError, read_psk_file
from blockd.toml_decode import ConfigError
from native import crc32c
from transport.errors import BadIdentity, BadToken
from transport.join import MARK, parse_token
from transport.keys import identity_path, read_identity, write_identity

MAX_SIZE = 10**MAX_TEXT << 60


def config_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    kind = data[0] % len(_KINDS) if data else 0
    _KINDS[kind](data[1:])


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="blockd-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _file(data: bytes) -> Path:
    path = _folder() / "file"
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


def _toml(data: bytes) -> None:
    path = _file(data)
    try:
        config = load_config(path, None)
    except ConfigError as error:
        _says(error, str(path))
        return
    assert isinstance(config, ServeConfig)
    assert config.file == path
    with contextlib.suppress(ConfigError):
        check(config)
    for address in config.nbd.listen:
        assert parse_address(str(address)) == address


def _says(error: Exception, *beginnings: str) -> None:
    assert str(error).startswith(beginnings), str(error)


def _size(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        size = parse_size(text)
    except ValueError as error:
        _says(error, "size ")
        return
    assert 0 <= size <= MAX_SIZE
    if len(exact_size(size)) <= MAX_TEXT:
        assert parse_size(exact_size(size)) == size
    if size < 1 << 60:
        assert abs(_loosely(format_size(size)) - size) <= size // 100


def _loosely(text: str) -> float:
    number, unit = text.split(" ")
    return float(number) * 1024.0 ** ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(unit)


def _address(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        portal = parse_portal(text)
    except ValueError as error:
        _says(error, "address ", "portal ")
        return
    assert 0 <= portal.address.port <= 65535
    assert portal.address.loopback in (True, False)
    assert parse_portal(str(portal)) == portal


def _chap(data: bytes) -> None:
    path = _file(data)
    for read in (read_chap, read_mutual_chap):
        try:
            read(path)
        except ConfigError as error:
            _says(error, str(path))
            _shows_no_secret(str(error).replace(str(path), ""), data)


def _psk(data: bytes) -> None:
    path = _file(data)
    try:
        keys = read_psk_file(path)
    except TlsConfigError as error:
        _says(error, f"psk file {path}")
        _shows_no_secret(str(error).replace(str(path), ""), data)
    else:
        assert keys
        assert all(keys.values())


def _shows_no_secret(message: str, data: bytes) -> None:
    for line in data.decode(errors="replace").splitlines():
        secret = line.rpartition(":")[2].strip()
        if len(secret) >= 16:  # shorter ones may be part of our own words
            assert secret not in message


def _token(data: bytes) -> None:
    whole = base64.urlsafe_b64encode(data + crc32c(data).to_bytes(4, "little")).decode()
    for text in (data.decode(errors="replace"), MARK + whole):
        try:
            token = parse_token(text)
        except BadToken as error:
            _says(error, "join token: ")
            _shows_no_secret(str(error), text.encode())
        else:
            assert parse_token(token.text()) == token
            assert token.keys.secret.hex() not in repr(token)


def _node(data: bytes) -> None:
    path = identity_path(_folder())
    path.touch(mode=0o600)
    path.write_bytes(data)
    try:
        identity = read_identity(path.parent)
    except BadIdentity as error:
        _says(error, str(path))
        return
    assert identity is not None
    write_identity(path.parent, identity)
    assert read_identity(path.parent) == identity


_KINDS: tuple[Callable[[bytes], None], ...] = (
    *(_toml, _size, _address, _chap, _psk),
    *(_token, _node),
)
