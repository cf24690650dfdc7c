"""Commands that are shown must work when pasted."""

import shlex

import pytest

from blockd.attach import commands, reachable, uri

TCP = "127.0.0.1:10809"


@pytest.mark.parametrize(
    ("address", "tls", "expected"),
    [
        (TCP, False, "nbd://127.0.0.1/vm1"),
        ("127.0.0.1:4000", False, "nbd://127.0.0.1:4000/vm1"),
        ("[::1]:4000", True, "nbds://[::1]:4000/vm1"),
        ("/run/nbd.sock", False, "nbd+unix:///vm1?socket=/run/nbd.sock"),
        ("/a b&c", True, "nbds+unix:///vm1?socket=/a%20b%26c"),
    ],
)
def test_uris(address: str, tls: bool, expected: str) -> None:
    assert uri(address, "vm1", tls=tls) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("vm1@monday", "nbd://127.0.0.1/vm1@monday"),
        ("vm1@2026-11-22T10:31:05+01:00", "nbd://127.0.0.1/vm1@2026-11-22T10:31:05%2B01:00"),
    ],
)
def test_versions_have_uris(version: str, expected: str) -> None:
    assert uri(TCP, version) == expected


def test_plain_commands() -> None:
    assert commands(TCP, "vm1") == [
        "sudo nbd-client 127.0.0.1 10809 /dev/nbd0 -N vm1",
        "qemu-img info nbd://127.0.0.1/vm1",
        "qemu-system-x86_64 -drive format=raw,if=virtio,file=nbd://127.0.0.1/vm1",
        "nbdinfo nbd://127.0.0.1/vm1",
        "nbdcopy --progress nbd://127.0.0.1/vm1 vm1.img",
    ]


def test_unix_commands() -> None:
    shown = commands("/run/nbd.sock", "vm1")
    assert shown[0] == "sudo nbd-client -unix /run/nbd.sock /dev/nbd0 -N vm1"
    assert shown[3] == "nbdinfo 'nbd+unix:///vm1?socket=/run/nbd.sock'"


def test_tls_commands_say_where_keys_go() -> None:
    shown = commands(TCP, "vm1", tls=True)
    assert all("DIR" in command for command in shown)
    assert "tls-creds=tls0" in shown[1]


def test_a_shell_reads_back_what_was_meant() -> None:
    words = [shlex.split(command) for command in commands("/tmp/it's, here", "vm1")]
    assert words[0][3] == "/tmp/it's, here"
    assert words[2][2].endswith("file=nbd+unix:///vm1?socket=/tmp/it%27s%2C%20here")


def test_every_interface_is_shown_by_host_name() -> None:
    assert reachable("0.0.0.0:5", "storage1") == "storage1:5"
    assert reachable("[::]:5", "storage1") == "storage1:5"
    assert reachable(TCP, "storage1") == TCP
    assert reachable("/run/s", "storage1") == "/run/s"
