import errno

import pytest

from blockd.nbd import wire
from blockd.nbd.errors import MAX_MESSAGE_BYTES, message_bytes, wire_error

ALLOWED = {1, 5, 12, 22, 28, 75, 95, 108}


def test_only_the_protocols_values_cross_the_wire() -> None:
    every_errno = [
        wire_error(code, fast_zero=fast, unfragmented=df)
        for code in errno.errorcode
        for fast in (False, True)
        for df in (False, True)
    ]
    assert set(every_errno) <= ALLOWED


@pytest.mark.parametrize(
    ("device_error", "value"),
    [
        (errno.EPERM, wire.EPERM),
        (errno.EROFS, wire.EPERM),
        (errno.EIO, wire.EIO),
        (errno.EINVAL, wire.EINVAL),
        (errno.ENOSPC, wire.ENOSPC),
        (errno.EFBIG, wire.ENOSPC),
        (errno.EDQUOT, wire.ENOSPC),
        (errno.ESHUTDOWN, wire.ESHUTDOWN),
        (errno.ENOTCONN, wire.EIO),
    ],
)
def test_errno_is_translated(device_error: int, value: int) -> None:
    assert wire_error(device_error) == value


def test_enotsup_answers_only_fast_zero() -> None:
    assert wire_error(errno.EOPNOTSUPP, fast_zero=True) == wire.ENOTSUP
    assert wire_error(errno.EOPNOTSUPP) == wire.EINVAL


def test_eoverflow_answers_only_an_unfragmented_read() -> None:
    assert wire_error(errno.EOVERFLOW, unfragmented=True) == wire.EOVERFLOW
    assert wire_error(errno.EOVERFLOW) == wire.EINVAL


def test_message_is_cut_between_characters_and_has_no_nul() -> None:
    message = message_bytes("a\0b" + "é" * MAX_MESSAGE_BYTES)
    assert MAX_MESSAGE_BYTES - 1 <= len(message) <= MAX_MESSAGE_BYTES
    assert message.decode().startswith("a bé")


def test_no_message_is_no_bytes() -> None:
    assert message_bytes(None) == message_bytes("") == b""
