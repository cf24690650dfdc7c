"""The seeds of the iSCSI fuzz targets.

Each is one input of tests.fuzz.iscsi_text_target or iscsi_pdu_target, named for what it shows.
"""

import struct

from blockd.iscsi import pdu
from tests import scsi_cdbs as cdbs
from tests.fuzz.iscsi_pdu_target import (
    BAD_DATA,
    BAD_HEADER,
    DIGESTS,
    DISCOVERY,
    NOTHING,
    PLAIN,
    login,
)
from tests.fuzz.iscsi_text_target import CLOSED, MOVED, OPEN, PAST, USER

FULL, GONE, CLOSED_DISCOVERY, PIECES = 1, 2, 4, 8
TRANSIT, CONTINUE = pdu.TRANSIT, pdu.CONTINUE
SECURITY_ONLY = 0x00  # stage 0, stays
TO_OPERATIONAL = TRANSIT | 0x01
TO_FULL_FEATURE = TRANSIT | 0x07  # from stage 1
STRAIGHT = TRANSIT | 0x03  # from stage 0 to stage 3

NAME = "InitiatorName=iqn.2026-11.test:host"
OPEN_ISCSI = (
    "HeaderDigest=None,CRC32C",
    "DataDigest=CRC32C,None",
    "DefaultTime2Wait=2",
    "DefaultTime2Retain=0",
    "IFMarker=No",
    "OFMarker=No",
    "ErrorRecoveryLevel=0",
    "InitialR2T=No",
    "ImmediateData=Yes",
    "MaxBurstLength=16776192",
    "FirstBurstLength=262144",
    "MaxOutstandingR2T=1",
    "MaxConnections=1",
    "DataPDUInOrder=Yes",
    "DataSequenceInOrder=Yes",
    "MaxRecvDataSegmentLength=262144",
)
ODD = (
    "HeaderDigest=Bogus,None",
    "DataDigest=Bogus",
    "MaxConnections=0x8",
    "InitialR2T=Maybe",
    "MaxBurstLength=0xFFFFFF",
    "FirstBurstLength=511",
    "MaxOutstandingR2T=99999",
    "DefaultTime2Wait=-1",
    "ErrorRecoveryLevel=2",
    "IFMarkInt=1~2",
    "X-com.example.key=1",
    "TaskReporting=FastAbort,RFC3720",
    "iSCSIProtocolLevel=2",
    "MaxRecvDataSegmentLength=0",
)


def request(flags: int, *keys: str) -> bytes:
    data = b"".join(key.encode() + b"\0" for key in keys)
    return bytes((flags,)) + len(data).to_bytes(2, "big") + data


def texts() -> dict[str, bytes]:
    """Name -> input of iscsi_text_target."""
    to_open = (NAME, f"TargetName={OPEN}", "SessionType=Normal")
    to_closed = (NAME, f"TargetName={CLOSED}", "AuthMethod=CHAP,None")
    offer = request(SECURITY_ONLY, "CHAP_A=7,5")
    proof = request(TO_OPERATIONAL, f"CHAP_N={USER}", "CHAP_R=!")
    mutual = request(TO_OPERATIONAL, f"CHAP_N={USER}", "CHAP_R=!", "CHAP_I=9", "CHAP_C=0x0102")
    known = "0x" + bytes(range(1, 33)).hex()  # the challenge, which the target draws by a fake
    reflected = request(TO_OPERATIONAL, f"CHAP_N={USER}", "CHAP_R=!", "CHAP_I=1", f"CHAP_C={known}")
    keys = request(TO_FULL_FEATURE, *OPEN_ISCSI)
    inputs = {
        "open": (0, request(TO_OPERATIONAL, *to_open, "AuthMethod=None") + keys),
        "open-in-pieces": (PIECES, request(TO_OPERATIONAL, *to_open) + keys),
        "open-at-once": (0, request(TO_FULL_FEATURE, *to_open, *OPEN_ISCSI)),
        "open-straight": (0, request(STRAIGHT, *to_open)),
        "odd-values": (PIECES, request(TO_FULL_FEATURE, *to_open, *ODD)),
        "no-session": (FULL, request(TO_FULL_FEATURE, *to_open)),
        "discovery": (0, request(TO_FULL_FEATURE, NAME, "SessionType=Discovery", *ODD)),
        "discovery-chap": (
            CLOSED_DISCOVERY,
            request(SECURITY_ONLY, NAME, "SessionType=Discovery", "AuthMethod=CHAP")
            + offer
            + proof
            + keys,
        ),
        "discovery-chap-left-out": (
            CLOSED_DISCOVERY,
            request(TO_FULL_FEATURE, NAME, "SessionType=Discovery"),
        ),
        "chap": (PIECES, request(SECURITY_ONLY, *to_closed) + offer + proof + keys),
        "chap-mutual": (0, request(SECURITY_ONLY, *to_closed) + offer + mutual + keys),
        "chap-reflected": (0, request(SECURITY_ONLY, *to_closed) + offer + reflected + keys),
        "chap-wrong": (
            0,
            request(SECURITY_ONLY, *to_closed)
            + offer
            + request(TO_OPERATIONAL, "CHAP_N=bob", "CHAP_R=0b" + "A" * 44)
            + keys,
        ),
        "chap-skipped": (0, request(SECURITY_ONLY, *to_closed) + offer + keys),
        "chap-straight": (0, request(STRAIGHT, *to_closed) * 3),
        "chap-odd-algorithms": (
            0,
            request(SECURITY_ONLY, *to_closed) + request(SECURITY_ONLY, "CHAP_A=,x,\u0665,99"),
        ),
        "version": (0, request(TO_FULL_FEATURE, NAME, f"TargetName={PAST}")),
        "version-gone": (GONE, request(TO_FULL_FEATURE, NAME, f"TargetName={PAST}")),
        "moved": (0, request(TO_FULL_FEATURE, NAME, f"TargetName={MOVED}")),
        "no-name": (0, request(TO_FULL_FEATURE, f"TargetName={OPEN}")),
        "no-target": (0, request(TO_FULL_FEATURE, NAME)),
        "name-too-long": (0, request(TO_FULL_FEATURE, NAME + "x" * 300, f"TargetName={OPEN}")),
        "name-twice": (0, request(TO_FULL_FEATURE, NAME, NAME)),
        "name-later": (0, request(SECURITY_ONLY, *to_open) + request(TO_OPERATIONAL, NAME)),
        "transit-and-continue": (0, request(TO_FULL_FEATURE | CONTINUE, *to_open)),
        "continue-for-ever": (0, request(CONTINUE, NAME) * 40),
        "requests-for-ever": (0, request(SECURITY_ONLY, *to_open) + request(0x00) * 40),
        "backwards": (0, request(TO_OPERATIONAL, *to_open) + request(TRANSIT | 0x04)),
        "many-keys": (0, request(0, *(f"X-{n}=" for n in range(300)))),
        "long-value": (0, request(0, NAME, "X-a=" + "v" * 256)),
        "no-equals": (0, request(0, NAME, "nonsense")),
        "not-utf-8": (0, bytes((0, 0, 8)) + b"X-a=\xff\xfe\0\0"),
    }
    return {name: bytes((switches,)) + sent for name, (switches, sent) in inputs.items()}


DEFERRED, LAZY, CAREFUL, NUMBERED, AT_ONCE, DRAIN = (1 << bit for bit in range(2, 8))
UNTAGGED = pdu.RESERVED_TAG
READ, WRITE, FINAL = pdu.READ, pdu.WRITE, pdu.FINAL
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))
REPORT_LUNS = bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0))
LONG_CDB = bytes((0x7F, *bytes(6), 0x18, 0, 0x09, *bytes(6)))


def lengths(data: bytes, ahs: bytes = b"") -> int:
    return len(ahs) // 4 << 24 | len(data)


def whole(bhs: bytes, data: bytes = b"", ahs: bytes = b"") -> bytes:
    return bhs + ahs + data.ljust(pdu.padded(len(data)), b"\0")


def scsi(
    itt: int,
    cdb: bytes,
    flags: int = FINAL,
    expected: int = 0,
    data: bytes = b"",
    *,
    lun: int = 0,
    immediate: bool = False,
    ahs: bytes = b"",
) -> bytes:
    bhs = pdu.SCSI_COMMAND_BHS.pack(
        *(pdu.SCSI_COMMAND | pdu.IMMEDIATE * immediate, flags, lengths(data, ahs)),
        *(bytes((0, lun, *bytes(6))), itt, expected, 0, 0, cdb.ljust(16, b"\0")),
    )
    return whole(bhs, data, ahs)


def data_out(
    itt: int, ttt: int, data: bytes, *, data_sn: int = 0, offset: int = 0, final: bool = True
) -> bytes:
    bhs = pdu.DATA_OUT_BHS.pack(
        *(pdu.DATA_OUT, FINAL * final, lengths(data), bytes(8), itt, ttt, 0, data_sn, offset)
    )
    return whole(bhs, data)


def common(
    opcode: int,
    itt: int,
    flags: int = FINAL,
    ttt: int = UNTAGGED,
    data: bytes = b"",
    *,
    immediate: bool = False,
    lun: int = 0,
) -> bytes:
    bhs = pdu.COMMON_BHS.pack(
        *(opcode | pdu.IMMEDIATE * immediate, flags, lengths(data)),
        *(bytes((0, lun, *bytes(6))), itt, ttt, 0, 0),
    )
    return whole(bhs, data)


def sends() -> list[bytes]:
    """Writes whose data comes in every way that there is, then reads of it."""
    block = b"block of" * 64
    return [
        scsi(1, cdbs.write(0, 1), FINAL | WRITE, 512, block),
        scsi(2, cdbs.write(1, 4), WRITE, 2048, block),
        data_out(2, UNTAGGED, block * 2, offset=512, final=False),
        data_out(2, UNTAGGED, block, data_sn=1, offset=1536),
        scsi(3, cdbs.write(5, 4), FINAL | WRITE, 2048, block),
        data_out(3, 0, block * 3, offset=512),
        scsi(4, cdbs.write(9, 2), FINAL | WRITE, 512, block),
        scsi(5, cdbs.write(9, 1), FINAL | WRITE, 1024, block * 2),
        scsi(6, cdbs.read(0, 12), FINAL | READ, 12 * 512),
        scsi(7, cdbs.read(0, 12), FINAL | READ, 512),
        scsi(8, cdbs.read(0, 1), FINAL | READ, 4096),
        scsi(9, cdbs.compare_and_write(0, 1), FINAL | WRITE, 1024, block * 2),
    ]


def by_r2t() -> list[bytes]:
    """With small bursts: one R2T after the other."""
    piece = b"p" * 1024
    return [
        scsi(1, cdbs.write(0, 6), FINAL | WRITE, 3072),
        data_out(1, 0, piece),
        data_out(1, 1, piece[:512], offset=1024, final=False),
        data_out(1, 1, piece[:512], data_sn=1, offset=1536),
        common(pdu.NOP_OUT, 2, data=b"ping"),
        data_out(1, 2, piece, offset=2048),
        scsi(3, cdbs.write(0, 4), FINAL | WRITE, 2048),
        data_out(3, 3, piece, offset=512),
        data_out(3, 3, piece),
        scsi(4, cdbs.read(0, 6), FINAL | READ, 3072),
    ]


def questions() -> list[bytes]:
    all_targets = b"SendTargets=All\0"
    return [
        common(pdu.NOP_OUT, 1, data=b"are you there?"),
        common(pdu.NOP_OUT, UNTAGGED, immediate=True),
        common(pdu.NOP_OUT, 2, ttt=7),
        common(pdu.TEXT, 3, data=all_targets),
        common(pdu.TEXT, 4, data=b"SendTargets=\0MaxRecvDataSegmentLength=512\0X-a=1\0"),
        common(pdu.TEXT, 5, flags=CONTINUE, data=all_targets[:5]),
        common(pdu.TEXT, 5, ttt=1, data=all_targets[5:]),
        common(pdu.TEXT, 6, flags=FINAL | CONTINUE, data=all_targets),
        common(pdu.TEXT, 7, data=b"nonsense"),
        common(pdu.SNACK, 8),
        common(0x1F, 9),
        common(pdu.LOGOUT, 10, flags=FINAL | pdu.CLOSE_CONNECTION, ttt=9 << 16),
        common(pdu.LOGOUT, 11, flags=FINAL | pdu.CLOSE_SESSION, ttt=0),
        common(pdu.NOP_OUT, 12),
    ]


def aborts() -> list[bytes]:
    tmf = pdu.TASK_MANAGEMENT
    found = [
        scsi(1, cdbs.write(0, 4), FINAL | WRITE, 2048),
        scsi(2, cdbs.read(0, 4), FINAL | READ, 2048),
        common(tmf, 3, FINAL | pdu.ABORT_TASK, 1, immediate=True),
        data_out(1, 0, b"late" * 512),
        common(tmf, 4, FINAL | pdu.ABORT_TASK, 99, immediate=True),
        scsi(5, cdbs.sanitize(2), FINAL),
    ]
    for number, function in enumerate((2, 3, 4, 5, 6, 8, 77, 7)):
        found.append(scsi(10 + number, cdbs.write(9, 9), FINAL | WRITE, 9 * 512))
        found.append(common(tmf, 30 + number, FINAL | function, immediate=bool(number & 1)))
        found.append(scsi(50 + number, cdbs.read(9, 1), FINAL | READ, 512))
    found.insert(9, common(tmf, 70, FINAL | pdu.LOGICAL_UNIT_RESET, lun=9))
    return found


def odd_ones() -> list[bytes]:
    extended = struct.pack(">HBB", 17, 1, 0) + bytes(16)
    return [
        scsi(1, INQUIRY, FINAL | READ, 36, lun=9),
        scsi(2, REPORT_LUNS, FINAL | READ, 256, lun=9),
        scsi(3, b"\xff", FINAL | READ | WRITE, 100, b"x" * 99),
        scsi(4, LONG_CDB, FINAL, ahs=extended),
        scsi(5, LONG_CDB, FINAL, ahs=b"\0\0\1\0"),
        scsi(6, LONG_CDB, FINAL, ahs=b"\xff\xff\1\0"),
        scsi(7, cdbs.write(0, 1), WRITE, 512),
        data_out(7, UNTAGGED, b"d" * 600),
        data_out(99, 5, b"of nobody"),
        scsi(8, cdbs.read(0, 2048), FINAL | READ, 1 << 20),
        scsi(9, cdbs.read(0, 2048), FINAL | READ, 1 << 20),
        *(scsi(100 + n, INQUIRY, FINAL | READ, 36, immediate=True) for n in range(40)),
    ]


def damaged(one: bytes, how: int) -> bytes:
    """The same PDU, to be sent with a wrong digest."""
    return one[:2] + bytes((how,)) + one[3:]


def pdus() -> dict[str, bytes]:
    """Name -> input of iscsi_pdu_target."""
    keys = [("InitiatorName", "iqn.2026-11.test:me"), ("TargetName", OPEN)]
    past = [("InitiatorName", "iqn.2026-11.test:me"), ("TargetName", PAST)]
    window = [scsi(n, cdbs.read(0, 1), FINAL | READ, 512) for n in range(140)]
    inputs: dict[str, tuple[int, int, list[bytes]]] = {
        "nothing-before-login": (NOTHING, 0, [common(pdu.TEXT, 1, data=b"SendTargets=All\0")]),
        "login": (NOTHING, 7, [login(keys), *sends()]),
        "login-again": (NOTHING, 0, [login(keys), login(keys)]),
        "login-to-a-version": (NOTHING | NUMBERED, 5, [login(past), *questions()]),
        "garbage": (NOTHING, 3, [bytes(range(256)) * 3]),
        "too-long": (PLAIN, 0, [b"\0\x80\0\0\0\x10\0\0" + bytes(60)]),
        "cut-off": (PLAIN | NUMBERED, 11, [sends()[0][:-7]]),
        "sends": (PLAIN | NUMBERED, 0, sends()),
        "sends-by-bytes": (PLAIN | NUMBERED, 1, sends()),
        "sends-digests": (DIGESTS | NUMBERED, 13, sends()),
        "sends-bad-data-digests": (
            DIGESTS | NUMBERED,
            13,
            [
                damaged(one, BAD_DATA) if number % 3 == 1 else one
                for number, one in enumerate(sends())
            ],
        ),
        "sends-bad-header-digest": (
            DIGESTS | NUMBERED,
            13,
            [*sends()[:3], damaged(sends()[3], BAD_HEADER), *sends()[4:]],
        ),
        "sends-deferred": (PLAIN | NUMBERED | DEFERRED, 100, sends()),
        "sends-at-once": (PLAIN | NUMBERED | AT_ONCE, 0, sends()),
        "sends-careful": (PLAIN | NUMBERED | CAREFUL, 33, sends()),
        "by-r2t": (PLAIN | NUMBERED | CAREFUL, 33, by_r2t()),
        "by-r2t-digests": (DIGESTS | NUMBERED | CAREFUL, 0, by_r2t()),
        "by-r2t-drain": (PLAIN | NUMBERED | CAREFUL | DRAIN, 0, by_r2t()),
        "questions": (PLAIN | NUMBERED, 17, questions()),
        "questions-discovery": (DISCOVERY | NUMBERED, 17, questions()),
        "questions-lazy": (PLAIN | NUMBERED | LAZY, 0, questions()),
        "aborts": (PLAIN | NUMBERED, 50, aborts()),
        "aborts-deferred": (PLAIN | NUMBERED | DEFERRED, 50, aborts()),
        "aborts-at-once": (PLAIN | NUMBERED | AT_ONCE | DEFERRED, 0, aborts()),
        "odd-ones": (PLAIN | NUMBERED, 0, odd_ones()),
        "odd-ones-lazy": (PLAIN | NUMBERED | LAZY | DEFERRED | AT_ONCE, 0, odd_ones()),
        "not-numbered": (PLAIN, 0, sends()),
        "past-the-window": (PLAIN | NUMBERED | DEFERRED | LAZY, 0, window),
        "drain": (PLAIN | NUMBERED | DRAIN | DEFERRED, 0, sends()),
    }
    return {
        name: bytes((switches, piece)) + b"".join(sent)
        for name, (switches, piece, sent) in inputs.items()
    }
