"""URLs and commands that attach targets: what libiscsi, qemu and open-iscsi take."""

import shlex

import pytest

from blockd import iscsi_attach
from blockd.iscsi.targets import IQN_PREFIX

ADDRESS = "127.0.0.1:3260"
TARGET = IQN_PREFIX + "vm1"


def test_a_volume_has_a_target_by_itself() -> None:
    assert iscsi_attach.target_of("vm1") == TARGET
    assert iscsi_attach.target_of("vm1@monday") == TARGET + "@monday"


def test_a_url_is_host_target_and_unit() -> None:
    assert iscsi_attach.url(ADDRESS, TARGET, 3) == f"iscsi://{ADDRESS}/{TARGET}/3"
    assert iscsi_attach.url("[::1]:3260", TARGET) == f"iscsi://[::1]:3260/{TARGET}/0"
    assert iscsi_attach.url(ADDRESS, TARGET, chap=True) == (
        f"iscsi://USER%SECRET@{ADDRESS}/{TARGET}/0"
    )


def test_commands_can_be_pasted() -> None:
    commands = iscsi_attach.commands(ADDRESS, TARGET)
    assert commands[:2] == [
        f"sudo iscsiadm -m discovery -t sendtargets -p {ADDRESS}",
        f"sudo iscsiadm -m node -T {TARGET} -p {ADDRESS} --login",
    ]
    url = f"iscsi://{ADDRESS}/{TARGET}/0"
    assert commands[2:] == [
        f"qemu-img info {url}",
        f"qemu-system-x86_64 -drive format=raw,if=virtio,file={url}",
        f"iscsi-inq {url}",
    ]


def test_chap_is_set_before_the_login() -> None:
    commands = [shlex.split(each) for each in iscsi_attach.commands(ADDRESS, TARGET, chap=True)]
    settings = [each[each.index("-n") + 1 :] for each in commands if "-n" in each]
    assert settings == [
        ["node.session.auth.authmethod", "-v", "CHAP"],
        ["node.session.auth.username", "-v", "USER"],
        ["node.session.auth.password", "-v", "SECRET"],
    ]
    assert commands[4][-1] == "--login"


@pytest.mark.parametrize("name", ["a b", "a;b", "$(id)", "a'b"])
def test_what_a_shell_would_take_apart_is_quoted(name: str) -> None:
    _, login, *_ = iscsi_attach.commands(ADDRESS, IQN_PREFIX + name)
    assert shlex.split(login)[5] == IQN_PREFIX + name
