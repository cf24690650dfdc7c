"""Ends of certificates: read from files, judged by the clock, told in the log."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blockd.certificates import Certificate, Validity, read_end, validity, warn_of_ends
from tests.tls_fixtures import Authority

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_the_first_end_of_a_file_counts(tmp_path: Path) -> None:
    authority = Authority()
    texts = []
    for days in (60, 20, 90):
        authority.server(days=days).write(tmp_path / "cert.pem", tmp_path / "key.pem")
        texts.append((tmp_path / "cert.pem").read_text())
    (tmp_path / "chain.pem").write_text("a note\n" + "\n".join(texts))
    left = read_end(tmp_path / "chain.pem") - datetime.now(UTC)
    assert timedelta(days=19) < left < timedelta(days=20)


def test_a_key_beside_the_certificate_does_not_matter(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    Authority().server().write(certificate, key)
    end = read_end(certificate)
    certificate.write_bytes(key.read_bytes() + certificate.read_bytes())
    assert read_end(certificate) == end


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_is_an_error(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "cert.pem").write_text(text)
    with pytest.raises(ValueError, match=r"PEM"):
        read_end(path)


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (timedelta(days=30), Validity.LASTS),
        (timedelta(days=30) - SECOND, Validity.ENDS_SOON),
        (SECOND, Validity.ENDS_SOON),
        (timedelta(0), Validity.ENDED),
        (-SECOND, Validity.ENDED),
    ],
)
def test_a_month_before_its_end_a_certificate_ends_soon(left: timedelta, found: Validity) -> None:
    assert validity(NOW + left, NOW) is found


def test_the_log_tells_of_those_that_end_and_of_no_other(caplog: pytest.LogCaptureFixture) -> None:
    lasting, soon, ended = (
        Certificate("server", Path(f"/etc/{days}.pem"), NOW + timedelta(days=days))
        for days in (31, 29, -2)
    )
    with caplog.at_level(logging.INFO):
        warn_of_ends({"nbd": [lasting, soon], "control": [ended]}, NOW)
    told = [
        (record.levelname, record.getMessage(), *(vars(record)[key] for key in FIELDS))
        for record in caplog.records
    ]
    assert told == [
        ("WARNING", "tls certificate ends soon, renew it", "nbd", Path("/etc/29.pem"), 29),
        ("ERROR", "tls certificate ended, renew it", "control", Path("/etc/-2.pem"), -2),
    ]


FIELDS = ("listener", "file", "days_left")
