"""Socket activation and readiness, as systemd does them."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockd.systemd import ActivationError, Notifier, Passed, take_sockets, watchdog_s

PID = 4711
Pass = Callable[..., int]


@pytest.fixture
def pass_fds() -> Iterator[Pass]:
    """Puts descriptors side by side, as a service manager does; gives the first number."""
    made: list[int] = []

    def place(*files: int) -> int:
        first = 200
        for index, fd in enumerate(files):
            made.append(os.dup2(fd, first + index))
        return first

    yield place
    for fd in made:
        try:
            os.close(fd)
        except OSError:
            continue


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_without_activation_nothing_is_taken() -> None:
    assert take_sockets({}, PID) == Passed()


def test_sockets_for_another_process_are_not_taken() -> None:
    assert take_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, PID) == Passed()


def test_a_control_socket_on_the_network_is_refused(pass_fds: Pass) -> None:
    with listening() as a:
        first = pass_fds(a.fileno())
        environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "control"}
        with pytest.raises(ActivationError, match="not a unix socket"):
            take_sockets(environ, PID, first)


def test_a_control_socket_without_a_file_is_refused(pass_fds: Pass) -> None:
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("")  # the kernel chooses an abstract name
        abstract.listen()
        first = pass_fds(abstract.fileno())
        environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "control"}
        with pytest.raises(ActivationError, match="has no file"):
            take_sockets(environ, PID, first)


def test_a_control_socket_that_is_open_to_all_is_refused(pass_fds: Pass, socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as a:
        a.bind(f"{socket_dir}/control")
        (socket_dir / "control").chmod(0o666)
        a.listen()
        first = pass_fds(a.fileno())
        environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "control"}
        with pytest.raises(ActivationError, match=r"mode 0666.* SocketMode=0600"):
            take_sockets(environ, PID, first)


def test_sockets_are_sorted_by_name(pass_fds: Pass, socket_dir: Path) -> None:
    with (
        listening() as a,
        socket.socket(socket.AF_UNIX) as b,
        listening() as c,
        listening() as d,
    ):
        b.bind(f"{socket_dir}/control")
        b.listen()
        first = pass_fds(a.fileno(), b.fileno(), c.fileno(), d.fileno())
        names = "blockd.socket:control:unknown:iscsi"
        environ = {"LISTEN_FDS": "4", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": names, "A": "1"}
        passed = take_sockets(environ, PID, first)
        addresses = [a.getsockname(), c.getsockname()]
        assert [sock.getsockname() for sock in passed.nbd] == addresses
        assert [sock.getsockname() for sock in passed.control] == [b.getsockname()]
        assert [sock.getsockname() for sock in passed.iscsi] == [d.getsockname()]
        assert environ == {"A": "1"}
        for sock in (*passed.nbd, *passed.control, *passed.iscsi):
            assert not sock.get_inheritable()
        passed.close()


def test_a_unix_socket_for_iscsi_is_refused(pass_fds: Pass, socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as a:
        a.bind(f"{socket_dir}/iscsi")
        a.listen()
        first = pass_fds(a.fileno())
        environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "iscsi"}
        with pytest.raises(ActivationError, match="TCP only"):
            take_sockets(environ, PID, first)


def test_names_are_optional(pass_fds: Pass) -> None:
    with listening() as a:
        first = pass_fds(a.fileno())
        passed = take_sockets({"LISTEN_FDS": "1", "LISTEN_PID": str(PID)}, PID, first)
        assert (len(passed.nbd), passed.control, passed.iscsi) == (1, [], [])
        passed.close()


@pytest.mark.parametrize("count", ["x", "-1", "65", "1.0"])
def test_a_senseless_count_is_refused(count: str) -> None:
    with pytest.raises(ActivationError, match="LISTEN_FDS"):
        take_sockets({"LISTEN_FDS": count, "LISTEN_PID": str(PID)}, PID)


def test_what_is_no_listening_socket_is_refused(pass_fds: Pass, tmp_path: Path) -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(PID)}
    with (tmp_path / "file").open("w") as file:
        first = pass_fds(file.fileno())
        with pytest.raises(ActivationError, match="is not a socket"):
            take_sockets(dict(environ), PID, first)
    with socket.socket() as idle:
        first = pass_fds(idle.fileno())
        with pytest.raises(ActivationError, match="not a listening"):
            take_sockets(dict(environ), PID, first)


def test_a_descriptor_that_is_not_there_is_refused() -> None:
    with pytest.raises(ActivationError, match="Bad file descriptor"):
        take_sockets({"LISTEN_FDS": "1", "LISTEN_PID": str(PID)}, PID, 999)


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(socket_dir: Path, abstract: bool) -> None:
    address = f"@{socket_dir}/notify" if abstract else f"{socket_dir}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1) if abstract else address)
        manager.settimeout(10)
        notifier = Notifier(address, monotonic_ns=lambda: 5_000_000)
        notifier.ready("serving 1 volumes")
        notifier.reloading()
        notifier.stopping()
        messages = [manager.recv(1024).decode() for _ in range(3)]
    assert messages == [
        "READY=1\nSTATUS=serving 1 volumes",
        "RELOADING=1\nMONOTONIC_USEC=5000",
        "STOPPING=1",
    ]


def test_no_service_manager_is_no_problem(tmp_path: Path) -> None:
    Notifier(None).ready("x")
    Notifier(str(tmp_path / "gone")).ready("x")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(PID)}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_told_twice_in_its_time(
    environ: dict[str, str], expected: float | None
) -> None:
    assert watchdog_s(environ, PID) == expected
    assert environ == {}
