"""Files of CHAP users: what is read, what is refused, and that no error shows a secret."""

from pathlib import Path

import pytest

from blockd.chap_file import MAX_BYTES, read_chap, read_mutual_chap
from blockd.iscsi.targets import Credentials
from blockd.toml_decode import ConfigError

SECRET = "correct horse"


def written(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "users"
    path.write_bytes(text.encode())
    path.chmod(mode)
    return path


def test_users_come_line_by_line(tmp_path: Path) -> None:
    text = f"# hosts\n\nhost1:{SECRET}\nhost2:with:colons:in:it\n"
    assert read_chap(written(tmp_path, text)) == (
        Credentials("host1", SECRET.encode()),
        Credentials("host2", b"with:colons:in:it"),
    )


def test_of_two_lines_for_a_user_the_later_counts(tmp_path: Path) -> None:
    text = f"host1:some other secret\nhost1:{SECRET}\n"
    assert read_chap(written(tmp_path, text)) == (Credentials("host1", SECRET.encode()),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no CHAP user"),
        ("host1\n", "line 1: write user:secret"),
        ("\nhost1:short\n", "line 2"),
        (f":{SECRET}\n", "user name"),
    ],
)
def test_what_is_no_list_of_users_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        read_chap(written(tmp_path, text))
    assert "short" not in str(error.value)


def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chap file .* chmod 600"):
        read_chap(written(tmp_path, f"host1:{SECRET}\n", 0o640))


def test_a_file_that_is_too_long_is_refused_and_not_cut(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"longer than {MAX_BYTES} bytes"):
        read_chap(written(tmp_path, f"host1:{SECRET}\n" + "#" * MAX_BYTES))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: No such file"):
        read_chap(tmp_path / "absent")


def test_a_target_proves_itself_by_one_user(tmp_path: Path) -> None:
    assert read_mutual_chap(written(tmp_path, f"us:{SECRET}\n")).user == "us"
    with pytest.raises(ConfigError, match="2 users"):
        read_mutual_chap(written(tmp_path, f"us:{SECRET}\nthem:{SECRET}\n"))
