"""How sockets are bound and tuned, and what an operator reads when they cannot be."""

import asyncio
import os
import socket
from pathlib import Path
from unittest import mock

import pytest

from blockd import sockets
from blockd.config import TcpAddress
from blockd.sockets import (
    CONTROL,
    NBD,
    ListenError,
    UnixListener,
    bind_tcp,
    bound_name,
    tune,
    unacknowledged,
)
from tests.aio import run


def test_free_port_is_the_same_for_all_addresses_of_a_name() -> None:
    bound = run(bind_tcp(TcpAddress("", 0)))
    try:
        families = {sock.family for sock in bound}
        assert socket.AF_INET in families
        assert len({sock.getsockname()[1] for sock in bound}) == 1
        assert all(not sock.getblocking() for sock in bound)
    finally:
        for sock in bound:
            sock.close()


def test_bound_name_has_the_real_port() -> None:
    (sock,) = run(bind_tcp(TcpAddress("127.0.0.1", 0)))
    with sock:
        assert bound_name(sock) == f"127.0.0.1:{sock.getsockname()[1]}"
        assert not bound_name(sock).endswith(":0")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_address_is_written_in_brackets() -> None:
    (sock,) = run(bind_tcp(TcpAddress("::1", 0)))
    with sock:
        assert bound_name(sock) == f"[::1]:{sock.getsockname()[1]}"


def test_taken_port_is_an_error_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = TcpAddress("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ListenError, match=f"{address}: Address already in use; .* --nbd"):
            run(bind_tcp(address))


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(ListenError, match=rf"nbd address {host}:0: .*this machine"):
        run(bind_tcp(TcpAddress(host, 0)))


def test_a_localhost_that_other_machines_reach_is_refused() -> None:
    async def bind() -> None:
        loop = asyncio.get_running_loop()

        async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("0.0.0.0", 0))]

        with mock.patch.object(type(loop), "getaddrinfo", staticmethod(resolve)):
            await bind_tcp(TcpAddress("localhost", 0))

    with pytest.raises(ListenError, match=r"localhost:0: stands for 0\.0\.0\.0 here"):
        run(bind())


def test_nothing_stays_bound_when_one_address_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
    targets: list[tuple[int, tuple[object, ...]]] = [
        (socket.AF_INET, ("127.0.0.1", port)),
        (socket.AF_INET, ("192.0.2.1", port)),
    ]
    with pytest.raises(OSError, match="assign requested address"):
        sockets._bind_all(targets, optional_v6=False)
    socket.create_server(("127.0.0.1", port)).close()


def test_stale_socket_file_is_replaced(socket_dir: Path) -> None:
    path = socket_dir / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # and never listens: nobody answers
    listener = UnixListener(path, 0o600)
    with listener.sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.remove()


def test_living_server_keeps_its_socket(socket_dir: Path) -> None:
    path = socket_dir / "s"
    first = UnixListener(path, 0o600)
    with first.sock, socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(ListenError, match=r"another server answers there.*--nbd-socket"):
            UnixListener(path, 0o600)
        client.connect(str(path))
    first.remove()


def test_full_backlog_counts_as_alive(socket_dir: Path) -> None:
    path = socket_dir / "s"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as waiting:
        server.bind(str(path))
        server.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ListenError, match="another server answers there"):
            UnixListener(path, 0o600)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_socket_file_has_the_mode_asked_for(socket_dir: Path, mode: int) -> None:
    listener = UnixListener(socket_dir / "s", mode)
    with listener.sock:
        assert (socket_dir / "s").stat().st_mode & 0o777 == mode
    listener.remove()


def test_remove_leaves_a_successors_socket(socket_dir: Path) -> None:
    path = socket_dir / "s"
    old = UnixListener(path, 0o600)
    old.sock.close()
    new = UnixListener(path, 0o600)
    with new.sock:
        old.remove()
        assert path.exists()
        new.remove()
        assert not path.exists()


def test_path_too_long_for_the_kernel_is_an_error(socket_dir: Path) -> None:
    with pytest.raises(ListenError, match="107 bytes that the kernel takes"):
        UnixListener(socket_dir / ("s" * 108), 0o600)


def test_missing_folder_is_an_error(socket_dir: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory; the directory must exist"):
        UnixListener(socket_dir / "none" / "s", 0o600)


def test_a_file_in_the_way_is_left_alone(socket_dir: Path) -> None:
    path = socket_dir / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="not a socket is there"):
        UnixListener(path, use=CONTROL)
    assert path.read_text() == "data"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_may_write_to_is_refused(socket_dir: Path, mode: int) -> None:
    folder = socket_dir / "open"
    folder.mkdir()
    folder.chmod(mode)
    for use in (NBD, CONTROL):
        with pytest.raises(ListenError, match=f"others may write to {folder} .mode 0{mode:o}"):
            UnixListener(folder / "s", use=use)
    assert not (folder / "s").exists()


def test_a_shared_directory_will_do_for_nbd_and_not_for_control(socket_dir: Path) -> None:
    folder = socket_dir / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    listener = UnixListener(folder / "s")
    listener.sock.close()
    listener.remove()
    with pytest.raises(ListenError, match=r"control socket .*chmod go-w .*--control PATH"):
        UnixListener(folder / "s", use=CONTROL)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away")
def test_a_directory_of_somebody_else_is_refused(socket_dir: Path) -> None:
    folder = socket_dir / "theirs"
    folder.mkdir(0o755)
    os.chown(folder, 12345, -1)
    with pytest.raises(ListenError, match="belongs to user 12345"):
        UnixListener(folder / "s", use=CONTROL)


@pytest.mark.skipif(os.geteuid() != 0, reason="root may give a file to any group")
def test_a_socket_is_given_to_a_group(socket_dir: Path) -> None:
    listener = UnixListener(socket_dir / "s", 0o660, use=CONTROL, group=12345)
    status = (socket_dir / "s").stat()
    assert (status.st_gid, status.st_mode & 0o777) == (12345, 0o660)
    listener.sock.close()
    listener.remove()


def test_a_group_that_the_daemon_is_no_member_of_is_refused(socket_dir: Path) -> None:
    with (
        mock.patch("os.chown", side_effect=PermissionError(1, "Operation not permitted")),
        pytest.raises(ListenError, match=r"cannot be given to group 12345: .* be a member of it"),
    ):
        UnixListener(socket_dir / "s", 0o660, use=CONTROL, group=12345)
    assert not (socket_dir / "s").exists()


def test_a_group_that_cannot_enter_the_directory_is_told_of(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    socket_dir.chmod(0o700)
    listener = UnixListener(socket_dir / "s", 0o660, use=CONTROL, group=os.getegid())
    listener.sock.close()
    listener.remove()
    assert "socket out of reach of its group" in caplog.text


def test_tcp_clients_get_no_nagle_and_keepalive() -> None:
    async def options() -> list[int]:
        (listening,) = await bind_tcp(TcpAddress("127.0.0.1", 0))
        with listening:
            _, writer = await asyncio.open_connection(*listening.getsockname())
            tune(writer.transport)
            sock = writer.transport.get_extra_info("socket")
            found = [
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            ]
            writer.close()
            await writer.wait_closed()
            return found

    assert run(options()) == [1, 1, 60, 15, 4]


def transport_of(sock: socket.socket) -> asyncio.BaseTransport:
    return asyncio.BaseTransport({"socket": sock})


def test_bytes_for_which_the_peer_has_no_room_are_unacknowledged() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(listening.getsockname())
        sock, _ = listening.accept()
        with sock:
            assert unacknowledged(transport_of(sock)) == 0
            sock.setblocking(False)
            sent = sock.send(bytes(1 << 20))
            assert 0 < unacknowledged(transport_of(sock)) <= sent
        assert unacknowledged(transport_of(sock)) == 0  # it is closed


def test_a_unix_socket_has_nothing_unacknowledged() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.send(bytes(4096))
        assert unacknowledged(transport_of(one)) == 0
