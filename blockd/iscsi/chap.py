"""CHAP: who an initiator is, and if it asks, who we are. RFC 1994, RFC 7143 12.1.3.

    initiator   CHAP_A=7,5                        algorithms, in its order
    we          CHAP_A=7 CHAP_I=id CHAP_C=challenge
    initiator   CHAP_N=name CHAP_R=response       and for the other direction CHAP_I, CHAP_C
    we          nothing more, or CHAP_N, CHAP_R

A response is H(identifier, secret, challenge). What this keeps from happening, beside the plain
rules (9.2.1): a challenge of ours that comes back as the initiator's would make us compute the
response that it needs; so do equal secrets in both directions. Names that are not known cost the
same hash and get the same answer as wrong secrets. Nothing in here puts a secret into a text.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any, Final

from blockd.iscsi import text
from blockd.iscsi.targets import Access

MIN_SECRET_BYTES: Final = 12  # 96 bits: RFC 7143 9.2.1
MAX_SECRET_BYTES: Final = 255
MAX_CHALLENGE_BYTES: Final = 1024
CHALLENGE_BYTES: Final = 32  # as long as the longest hash

Hash = Callable[[bytes], Any]
ALGORITHMS: Final[Mapping[int, Hash]] = {
    8: hashlib.sha3_256,
    7: hashlib.sha256,
    6: lambda data: hashlib.sha1(data, usedforsecurity=False),
    5: lambda data: hashlib.md5(data, usedforsecurity=False),
}
"""By number (IANA, RFC 7143 12.1.3), strongest first."""


class ChapFailed(Exception):
    """The initiator is not who it says, or does not keep to the rules. The text has no secrets."""


def check_secret(secret: bytes, what: str) -> None:
    """Refuse a secret that the RFC does not allow. ValueError, with `what` it is for."""
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"{what}: the secret is {len(secret)} bytes long; CHAP takes {MIN_SECRET_BYTES} to "
            f"{MAX_SECRET_BYTES}"
        )


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """What proves that one knows `secret`."""
    digest: bytes = ALGORITHMS[algorithm](bytes((identifier,)) + secret + challenge).digest()
    return digest


def decode_binary(value: str) -> bytes:
    """A value in hexadecimal (0x) or base64 (0b); RFC 7143 6.1. ChapFailed."""
    try:
        if value[:2] in ("0x", "0X"):
            digits = value[2:]
            return binascii.unhexlify("0" * (len(digits) % 2) + digits)
        if value[:2] in ("0b", "0B"):
            return base64.b64decode(value[2:], validate=True)
    except ValueError:
        pass
    raise ChapFailed("a value that is neither hexadecimal nor base64")


def _byte(value: str) -> int | None:
    """A number of one byte, decimal or hexadecimal (12.1.3: CHAP_A and CHAP_I are numbers)."""
    try:
        return text.number(value, 0, 255)
    except ValueError:
        return None


def encode_binary(data: bytes) -> str:
    return "0x" + data.hex()


class Chap:
    """The target's part for one login. `step` is called with the CHAP keys of each request."""

    def __init__(self, access: Access, random: Callable[[int], bytes]) -> None:
        self._access = access
        self._random = random
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self.user: str | None = None
        """Set once the initiator has proved it."""

    def step(self, keys: Mapping[str, str]) -> list[tuple[str, str]]:
        """Our answer. ChapFailed."""
        if self.user is not None:
            raise ChapFailed("CHAP keys after the end")
        if "CHAP_A" in keys:
            if self._challenge or len(keys) > 1:
                raise ChapFailed("CHAP_A out of turn")
            return self._challenged(keys["CHAP_A"])
        if not self._challenge or not {"CHAP_N", "CHAP_R"} <= keys.keys():
            raise ChapFailed("CHAP keys out of turn")
        return self._answered(keys)

    def _challenged(self, offered: str) -> list[tuple[str, str]]:
        numbers = {_byte(part) for part in offered.split(",")}
        self._algorithm = next((each for each in ALGORITHMS if each in numbers), 0)
        if not self._algorithm:
            raise ChapFailed("no algorithm that both know")
        self._identifier = self._random(1)[0]
        self._challenge = self._random(CHALLENGE_BYTES)
        return [
            ("CHAP_A", str(self._algorithm)),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", encode_binary(self._challenge)),
        ]

    def _answered(self, keys: Mapping[str, str]) -> list[tuple[str, str]]:
        got = decode_binary(keys["CHAP_R"])
        user = keys["CHAP_N"]
        known = next((each for each in self._access.chap if each.user == user), None)
        # Nobody's secret is compared with, rather than nothing, when there is no such name.
        secret = known.secret if known else self._random(MIN_SECRET_BYTES)
        wanted = response(self._algorithm, self._identifier, secret, self._challenge)
        if not hmac.compare_digest(got, wanted) or known is None:
            raise ChapFailed("wrong name or secret")
        answer = self._mutual(keys)
        self.user = user
        return answer

    def _mutual(self, keys: Mapping[str, str]) -> list[tuple[str, str]]:
        """Prove ourselves, if the initiator asks."""
        if "CHAP_I" not in keys and "CHAP_C" not in keys:
            return []
        if not {"CHAP_I", "CHAP_C"} <= keys.keys():
            raise ChapFailed("half a challenge")
        mutual = self._access.mutual
        if mutual is None:
            raise ChapFailed("the initiator wants us to prove ourselves, and we have no secret")
        identifier = _byte(keys["CHAP_I"])
        if identifier is None:
            raise ChapFailed("an identifier that is not 0 to 255")
        challenge = decode_binary(keys["CHAP_C"])
        if not 0 < len(challenge) <= MAX_CHALLENGE_BYTES:
            raise ChapFailed(f"a challenge of {len(challenge)} bytes")
        if hmac.compare_digest(challenge, self._challenge):
            raise ChapFailed("our own challenge came back")
        # Not only this initiator's: our response would do for whoever has the same secret.
        if any(hmac.compare_digest(mutual.secret, each.secret) for each in self._access.chap):
            raise ChapFailed("the secrets of both directions are the same; set different ones")
        proof = response(self._algorithm, identifier, mutual.secret, challenge)
        return [("CHAP_N", mutual.user), ("CHAP_R", encode_binary(proof))]
