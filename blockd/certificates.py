"""When certificates end. OpenSSL looks at that only while somebody connects, and from one second to
the next refuses all clients, or is refused by them. So the ends of those that are in use are told
beforehand: by the metrics, in the log at the start and daily, and by `blockd doctor`.
"""

import enum
import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

logger = logging.getLogger(__name__)

NOTICE = timedelta(days=30)  # certbot renews then; who does it by hand has a month for it


class Validity(enum.Enum):
    LASTS = "lasts"
    ENDS_SOON = "ends soon"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A file of certificates that is in use."""

    use: str
    """"server": what clients are shown; "client_ca": who vouches for clients."""
    file: Path
    ends: datetime
    """In UTC; of several in the file, the first that ends: a chain is as good as its worst."""


def read_end(path: Path) -> datetime:
    """When the first of the certificates in a PEM file ends. OSError; ValueError: none is there,
    or one cannot be read."""
    from cryptography import x509  # not for those who have no TLS

    with warnings.catch_warnings(action="ignore"):  # old authorities have odd encodings
        found = x509.load_pem_x509_certificates(path.read_bytes())
        return min(each.not_valid_after_utc for each in found)


def validity(ends: datetime, now: datetime) -> Validity:
    if ends <= now:
        return Validity.ENDED
    return Validity.ENDS_SOON if ends - now < NOTICE else Validity.LASTS


def warn_of_ends(certificates: Mapping[str, Iterable[Certificate]], now: datetime) -> None:
    """Log what has ended, or does soon, of each listener's."""
    for listener, each in ((name, each) for name, all_ in certificates.items() for each in all_):
        found = validity(each.ends, now)
        if found is Validity.LASTS:
            continue
        facts = {
            "listener": listener,
            "use": each.use,
            "file": each.file,
            "ends": f"{each.ends:%Y-%m-%dT%H:%M:%SZ}",
            "days_left": (each.ends - now).days,
        }
        level = logging.ERROR if found is Validity.ENDED else logging.WARNING
        logger.log(level, f"tls certificate {found.value}, renew it", extra=facts)
