"""Whom the daemon may become, by the users of this machine; tests/integration/test_privileges.py
has real daemons do it."""

import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest

from blockd import privileges
from blockd.config import DaemonConfig, NbdConfig, ServeConfig, TcpAddress, check
from blockd.privileges import Identity, PrivilegeError, check_places, drop, give_up_root, identity
from blockd.sockets import EarlySockets
from blockd.toml_decode import ConfigError

NOBODY = pwd.getpwnam("nobody")


def test_a_user_is_found_with_its_groups() -> None:
    assert identity("nobody", None) == Identity(
        "nobody", NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,)
    )


def test_another_group_takes_the_place_of_the_users() -> None:
    found = identity("nobody", "daemon")
    assert found.gid != NOBODY.pw_gid
    assert found.gid in found.groups


@pytest.mark.parametrize(
    ("user", "group", "told"),
    [
        ("no-such-user", None, "useradd --system no-such-user"),
        ("nul\0", None, "not known here"),
        ("nobody", "no-such-group", "groupadd --system no-such-group"),
        ("root", None, "nothing would be given up"),
        ("nobody", "root", "nothing would be given up"),
    ],
)
def test_who_cannot_be_become_is_refused(user: str, group: str | None, told: str) -> None:
    with pytest.raises(PrivilegeError, match=told):
        identity(user, group)


def test_only_root_can_become_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(PrivilegeError, match="only root can become somebody else, this is 54321"):
        drop(identity("nobody", None))


def test_a_root_without_the_power_to_change_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "setgroups", refuse)
    with pytest.raises(PrivilegeError, match="Operation not permitted: this root lacks CAP_SETGID"):
        drop(identity("nobody", None))


STATUS = {
    "Uid": "7\t7\t7\t7",
    "Gid": "8\t8\t8\t8",
    "Groups": "8 9",
    **dict.fromkeys(("CapEff", "CapPrm", "CapAmb"), "0000000000000000"),
    "NoNewPrivs": "1",
}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("Uid", "7\t0\t7\t7"),
        ("Uid", "7\t7\t0\t7"),
        ("Gid", "0\t8\t8\t8"),
        ("Groups", "8 9 0"),
        ("CapEff", "0000000000000400"),
        ("CapPrm", "0000000000000400"),
        ("CapAmb", "0000000000000400"),
        ("NoNewPrivs", "0"),
    ],
)
def test_what_the_kernel_left_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, left: str
) -> None:
    for call in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, call, lambda *_: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(privileges, "_forbid_new_privileges", lambda: None)
    monkeypatch.setattr(privileges, "_status", lambda: {**STATUS, name: left})
    with pytest.raises(PrivilegeError, match=f"the kernel left {name} "):
        drop(Identity("someone", 7, 8, (8, 9)))


@pytest.mark.parametrize("way_back", ["setuid", "seteuid", "setgid", "setegid"])
def test_a_way_back_is_noticed(monkeypatch: pytest.MonkeyPatch, way_back: str) -> None:
    def refuse(_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    def works(_: int) -> None:
        pass

    works.__name__ = way_back
    for call in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, call, lambda *_: None)
    for call in ("setuid", "seteuid", "setgid", "setegid"):
        monkeypatch.setattr(os, call, works if call == way_back else refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(privileges, "_forbid_new_privileges", lambda: None)
    monkeypatch.setattr(privileges, "_status", lambda: STATUS)
    with pytest.raises(PrivilegeError, match=rf"{way_back}\(0\) still works"):
        drop(Identity("someone", 7, 8, (8, 9)))


def test_without_a_user_nothing_happens() -> None:
    assert give_up_root(ServeConfig(), EarlySockets()) is None
    assert os.geteuid() == os.getuid()


def test_a_group_needs_a_user() -> None:
    with pytest.raises(ConfigError, match="add --user NAME"):
        check(ServeConfig(daemon=DaemonConfig(group="daemon")))
    check(ServeConfig(daemon=DaemonConfig(user="nobody", group="daemon")))


def test_sockets_of_the_service_manager_take_the_place_of_early_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound: list[TcpAddress] = []
    monkeypatch.setattr(privileges, "drop", lambda _: None)
    monkeypatch.setattr(privileges, "check_places", lambda _: None)
    monkeypatch.setattr(EarlySockets, "listen", lambda _, address, __: bound.append(address))
    address = TcpAddress("127.0.0.1", 0)
    config = ServeConfig(daemon=DaemonConfig(user="nobody"), nbd=NbdConfig(listen=(address,)))
    give_up_root(config, EarlySockets())
    assert bound == [address]
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    give_up_root(config, EarlySockets())
    assert bound == [address]


def test_a_data_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServeConfig(data=tmp_path)
    check_places(config)
    check_places(replace(config, data=tmp_path / "new"))
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(PrivilegeError, match=f"run: chown -R 54321 {tmp_path}"):
        check_places(config)


def test_a_place_that_is_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: set[Path] = set()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) not in closed)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    config = ServeConfig(data=tmp_path / "new", file=tmp_path / "blockd.toml")
    check_places(config)
    for path, told in {
        tmp_path: f"install -d -o 54321 -m 700 {tmp_path}/new",
        tmp_path / "blockd.toml": f"chown 54321 {tmp_path}/blockd.toml",
        Path(privileges.__file__).parent: "install it where every user can",
    }.items():
        closed = {path}
        with pytest.raises(PrivilegeError, match=told):
            check_places(config)
