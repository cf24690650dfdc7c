"""libiscsi by ctypes: sessions that a test drives command by command, and the ways that ALUA tells.

    with Session(portal, target) as session:
        session.run(cdb, read=512)         `Answer` with status, sense and data
        session.groups()                   REPORT TARGET PORT GROUPS: state and ports by group

Written for libiscsi 1.19 (Debian 12): the layout of `scsi_task` up to its data is that of
scsi-lowlevel.h.
"""

import ctypes
import ctypes.util
import struct
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_ubyte, c_void_p
from dataclasses import dataclass
from typing import Any, Final

NAME: Final = b"iqn.2026-11.test:libiscsi"
GOOD, CHECK_CONDITION, RESERVATION_CONFLICT = 0, 2, 0x18
STANDBY: Final = (0x2, 0x04, 0x0B)
TRANSITION: Final = (0x2, 0x04, 0x0A)
STATE_CHANGED: Final = (0x6, 0x2A, 0x06)
OPTIMIZED, STANDBY_STATE, UNAVAILABLE, TRANSITIONING = 0x0, 0x2, 0x3, 0xF
_NORMAL: Final = 2
_NO_XFER, _READ, _WRITE = 0, 1, 2


class _Sense(Structure):
    _fields_ = (
        ("error_type", c_ubyte),
        ("key", c_int),
        ("ascq", c_int),
        ("pointers", c_ubyte * 4),
    )


class _Task(Structure):
    _fields_ = (
        *(("status", c_int), ("cdb_size", c_int), ("xfer_dir", c_int), ("expxferlen", c_int)),
        ("cdb", c_ubyte * 16),
        *(("residual_status", c_int), ("residual", c_size_t)),
        ("sense", _Sense),
        *(("size", c_int), ("data", POINTER(c_ubyte))),
    )


class _Data(Structure):
    _fields_ = (("size", c_size_t), ("data", c_char_p))


def _library() -> Any:
    found = CDLL(ctypes.util.find_library("iscsi") or "libiscsi.so.7")
    for name in ("iscsi_create_context", "iscsi_get_error", "scsi_create_task"):
        getattr(found, name).restype = c_void_p
    found.iscsi_get_error.restype = c_char_p
    found.iscsi_scsi_command_sync.restype = POINTER(_Task)
    found.iscsi_create_context.argtypes = (c_char_p,)
    for name, arguments in {
        "iscsi_set_targetname": (c_void_p, c_char_p),
        "iscsi_set_session_type": (c_void_p, c_int),
        "iscsi_set_noautoreconnect": (c_void_p, c_int),
        "iscsi_set_timeout": (c_void_p, c_int),
        "iscsi_full_connect_sync": (c_void_p, c_char_p, c_int),
        "iscsi_get_error": (c_void_p,),
        "iscsi_logout_sync": (c_void_p,),
        "iscsi_destroy_context": (c_void_p,),
        "scsi_create_task": (c_int, c_char_p, c_int, c_int),
        "scsi_free_scsi_task": (POINTER(_Task),),
        "iscsi_scsi_command_sync": (c_void_p, c_int, c_void_p, POINTER(_Data)),
    }.items():
        getattr(found, name).argtypes = arguments
    return found


class Gone(OSError):
    """No login, or no session any more."""


@dataclass(frozen=True)
class Answer:
    status: int
    sense: tuple[int, int, int]
    data: bytes


@dataclass(frozen=True)
class Group:
    state: int
    ports: tuple[int, ...]


class Session:
    """Logged in to one portal, without a TEST UNIT READY: a unit may be standby."""

    def __init__(
        self, portal: str, target: str, timeout_s: int = 20, initiator: bytes = NAME
    ) -> None:
        self._library = _library()
        self._context = self._library.iscsi_create_context(initiator)
        assert self._context
        self._library.iscsi_set_targetname(self._context, target.encode())
        self._library.iscsi_set_session_type(self._context, _NORMAL)
        self._library.iscsi_set_noautoreconnect(self._context, 1)
        self._library.iscsi_set_timeout(self._context, timeout_s)
        if self._library.iscsi_full_connect_sync(self._context, portal.encode(), -1):
            text = self._error()
            self._library.iscsi_destroy_context(self._context)
            raise Gone(f"{portal}: {text}")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._library.iscsi_logout_sync(self._context)
        self._library.iscsi_destroy_context(self._context)

    def _error(self) -> str:
        return str(self._library.iscsi_get_error(self._context).decode())

    def run(self, cdb: bytes, *, read: int = 0, data: bytes = b"") -> Answer:
        direction = _READ if read else _WRITE if data else _NO_XFER
        task = self._library.scsi_create_task(len(cdb), cdb, direction, read or len(data))
        sent = byref(_Data(len(data), data)) if data else None
        done = self._library.iscsi_scsi_command_sync(self._context, 0, task, sent)
        if not done:
            raise Gone(self._error())
        found = done.contents
        taken = bytes(found.data[: found.size]) if read and found.status == GOOD else b""
        what = found.sense
        sense = (what.key, what.ascq >> 8, what.ascq & 0xFF)
        answer = Answer(found.status, sense, taken)
        self._library.scsi_free_scsi_task(done)
        if answer.status not in (GOOD, CHECK_CONDITION, RESERVATION_CONFLICT):
            raise Gone(f"status {answer.status:#x}: {self._error()}")  # of the library: lost
        return answer

    def good(self, cdb: bytes, *, read: int = 0, data: bytes = b"") -> bytes:
        """The data of a command that has to end well; unit attentions are passed over."""
        answer = self.told(cdb, read=read, data=data)
        assert answer.status == GOOD, answer
        return answer.data

    def told(self, cdb: bytes, *, read: int = 0, data: bytes = b"") -> Answer:
        """How a command ends once unit attentions have been passed over."""
        for _ in range(8):
            answer = self.run(cdb, read=read, data=data)
            if answer.sense[0] != 0x6:
                return answer
        raise AssertionError(answer)

    def groups(self) -> dict[int, Group]:
        data = self.good(bytes.fromhex("a30a00000000000004000000"), read=1024)
        end = 4 + int.from_bytes(data[:4], "big")
        at, found = 4, {}
        while at < end:
            state, _, number, _, _, _, count = struct.unpack_from(">BBHBBBB", data, at)
            ports = struct.unpack_from(">" + "2xH" * count, data, at + 8)
            found[number] = Group(state & 0xF, ports)
            at += 8 + 4 * count
        return found

    def designators(self) -> dict[tuple[int, int], bytes]:
        """Page 83: by association and type."""
        page = self.good(bytes.fromhex("120183040000"), read=1024)
        at, end, found = 4, 4 + int.from_bytes(page[2:4], "big"), {}
        while at < end:
            length = page[at + 3]
            found[page[at + 1] >> 4 & 3, page[at + 1] & 0xF] = page[at + 4 : at + 4 + length]
            at += 4 + length
        return found
