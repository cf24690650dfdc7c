"""Files of secrets: who may own and open them, what is refused, and that errors show nothing."""

import os
import socket
from pathlib import Path

import pytest

from blockd.secrets import SecretError, read_secret
from volume import privatefile
from volume.privatefile import read_private, user_name

SECRET = b"correct horse battery staple"
STRANGER = 54321  # nobody of this machine
DAEMON = 54322


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret file"  # a space, as a way out has to quote it
    path.touch(mode=0o600)
    path.write_bytes(SECRET)
    return path


def refusal(path: Path, max_bytes: int = 4096) -> str:
    with pytest.raises(SecretError) as caught:
        read_secret(path, "psk file", max_bytes)
    assert str(caught.value).startswith(f"psk file {path}: ")
    assert SECRET.decode() not in str(caught.value)
    return str(caught.value).removeprefix(f"psk file {path}: ")


def owned_by_a_stranger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, give the file away; as anybody else, be somebody else."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, -1)
    monkeypatch.setattr(os, "geteuid", lambda: DAEMON)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_secret(file, "psk file", len(SECRET)) == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o444, 0o777])
def test_a_file_that_is_open_to_others_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert refusal(file) == f"mode {mode:04o} opens it to others; run: chmod 600 '{file}'"


def test_a_file_of_somebody_else_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned_by_a_stranger(file, monkeypatch)
    owner = user_name(file.stat().st_uid)
    assert refusal(file) == (
        f"belongs to user {owner}, who could read and change it; run: chown {DAEMON} '{file}'"
    )


def test_a_file_of_who_is_named_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned_by_a_stranger(file, monkeypatch)
    assert read_private(file, 4096, [file.stat().st_uid]) == SECRET


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of root's")
def test_a_file_of_root_serves_every_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: DAEMON)
    assert read_secret(file, "psk file", 4096) == SECRET


@pytest.mark.parametrize("guard", ["systemd", "container"])
def test_what_a_runtime_guards_may_have_any_mode_and_owner(
    file: Path, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    if guard == "systemd":
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
    else:
        monkeypatch.setattr(privatefile, "CONTAINER_SECRETS", file.parent)
    file.chmod(0o444)
    owned_by_a_stranger(file, monkeypatch)
    assert read_secret(file, "psk file", 4096) == SECRET


@pytest.mark.parametrize("place", ["", "relative", "elsewhere"])
def test_only_below_the_guarded_folder_modes_do_not_matter(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    names = {"": "", "relative": tmp_path.name, "elsewhere": str(tmp_path / "elsewhere")}
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", names[place])
    file.chmod(0o644)
    assert "chmod 600" in refusal(file)


def test_a_link_out_of_the_guarded_folder_is_not_guarded(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "credentials").mkdir()
    (link := folder / "key").symlink_to(file)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    file.chmod(0o644)
    assert "chmod 600" in refusal(link)


def test_a_link_is_followed_to_what_is_checked(file: Path, tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(file)
    assert read_secret(link, "psk file", 4096) == SECRET
    file.chmod(0o640)
    assert "mode 0640" in refusal(link)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe", 0o600)
    assert refusal(pipe) == "not a regular file; name one that is"
    assert "not a regular file" in refusal(tmp_path)
    assert "not a regular file" in refusal(Path("/dev/null"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        assert "check the path" in refusal(tmp_path / "socket")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == "No such file or directory; check the path"


def test_a_file_that_may_not_be_opened_names_who_has_to(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: DAEMON)
    assert refusal(file) == (
        f"Permission denied; user {DAEMON} has to be let into its folders, and run: "
        f"chown {DAEMON} '{file}'"
    )


def test_a_file_that_is_too_long_is_refused_unread(file: Path) -> None:
    assert refusal(file, len(SECRET) - 1) == (
        f"longer than {len(SECRET) - 1} bytes; name the right file"
    )


def test_nothing_stays_open(file: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    read_secret(file, "psk file", 4096)
    file.chmod(0o640)
    refusal(file)
    refusal(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
