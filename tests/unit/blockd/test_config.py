"""Settings: what may be said, how mistakes are named, what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from blockd.config import (
    Compression,
    ExportConfig,
    IscsiConfig,
    LogFormat,
    MetricsConfig,
    NbdConfig,
    PortalAddress,
    ServeConfig,
    TcpAddress,
    TlsChoice,
    TlsConfig,
    TlsVersion,
    check,
    check_socket_path,
    load_config,
    parse_address,
    parse_portal,
    portal_groups,
)
from blockd.iscsi.limits import Limits as IscsiLimits
from blockd.nbd.limits import Limits
from blockd.toml_decode import MAX_FILE_BYTES, ConfigError

EVERYTHING = """
data = "/srv/data"
drain_s = 5

[nbd]
listen = ["0.0.0.0:0", "[::1]:10809"]
unix = true
socket = "/run/nbd.sock"
insecure = true
handshake_timeout_s = 2.5
reply_timeout_s = 60
max_connections = 10
max_in_flight_requests = 20
max_in_flight_bytes = "8MiB"
max_payload = 4194304
list_versions = true

[iscsi]
listen = ["127.0.0.1:3260", "[::1]:3261,7"]
insecure = true
chap = "users"
mutual_chap = "/etc/us"
auto_targets = false
ignore_isids = true
login_timeout_s = 5
keepalive_s = 0
reply_timeout_s = 30
max_connections = 11
max_sessions = 12
max_in_flight_bytes = "8M"
sanitize_rate = "10M"

[tls]
mode = "allow"
cert = "keys/cert.pem"
key = "/etc/key.pem"
client_ca = "ca.pem"
psk = "psk.txt"
min_version = "1.3"

[store]
journal_limit = "4G"
reserve = "1G"
cache = "256M"
hot_map = "128M"
destage_age_s = 60
read_threads = 8
compression = "lz4"

[log]
format = "json"
level = "debug"

[control]
socket = "control"

[volumes]
demo = "10GiB"
"vm:1" = 4096

[exports.demo]
tls_required = true
clients = ["host1", "host2"]
read_only = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "blockd.toml"


def load(file: Path, text: str) -> ServeConfig:
    file.write_text(text)
    return load_config(file, None)


def mistake(file: Path, text: str) -> str:
    """What `text` is refused with, without the file's name, which must lead."""
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_every_setting_can_be_in_the_file(file: Path) -> None:
    config = load(file, EVERYTHING)
    assert config.data == Path("/srv/data")
    assert config.drain_s == 5.0
    assert config.nbd == NbdConfig(
        listen=(TcpAddress("0.0.0.0", 0), TcpAddress("::1", 10809)),
        socket=Path("/run/nbd.sock"),
        insecure=True,
        handshake_timeout_s=2.5,
        reply_timeout_s=60.0,
        max_connections=10,
        max_in_flight_requests=20,
        max_in_flight_bytes=8 << 20,
        max_payload=4 << 20,
        list_versions=True,
    )
    assert config.iscsi == IscsiConfig(
        listen=(
            PortalAddress(TcpAddress("127.0.0.1", 3260)),
            PortalAddress(TcpAddress("::1", 3261), 7),
        ),
        insecure=True,
        chap=file.parent / "users",
        mutual_chap=Path("/etc/us"),
        auto_targets=False,
        ignore_isids=True,
        login_timeout_s=5.0,
        keepalive_s=0.0,
        reply_timeout_s=30.0,
        max_connections=11,
        max_sessions=12,
        max_in_flight_bytes=8 << 20,
        sanitize_rate=10 << 20,
    )
    assert config.tls == TlsConfig(
        mode=TlsChoice.ALLOW,
        cert=file.parent / "keys/cert.pem",
        key=Path("/etc/key.pem"),
        client_ca=file.parent / "ca.pem",
        psk=file.parent / "psk.txt",
        min_version=TlsVersion.TLS_1_3,
    )
    assert (config.store.journal_limit, config.store.reserve) == (4 << 30, 1 << 30)
    assert (config.store.cache, config.store.hot_map) == (256 << 20, 128 << 20)
    assert (config.store.destage_age_s, config.store.read_threads) == (60.0, 8)
    assert config.store.compression is Compression.LZ4
    assert config.log.format is LogFormat.JSON
    assert config.control_socket == file.parent / "control"
    assert dict(config.volumes) == {"demo": 10 << 30, "vm:1": 4096}
    assert dict(config.exports) == {"demo": ExportConfig(True, ("host1", "host2"), True)}
    assert config.file == file
    check(config)


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    config = load_config(None, tmp_path)
    assert config == ServeConfig(data=tmp_path)
    assert config.control_socket == tmp_path / "control.sock"
    assert config.nbd_socket == tmp_path / "nbd.sock"
    check(config)


def test_defaults_of_limits_are_those_of_the_protocol_engine() -> None:
    shared = {name for name in NbdConfig.__slots__ if name in Limits.__slots__}
    assert len(shared) == 5
    for name in shared:
        assert getattr(NbdConfig(), name) == getattr(Limits(), name), name


def test_defaults_of_limits_are_those_of_the_iscsi_engine() -> None:
    shared = {name for name in IscsiConfig.__slots__ if name in IscsiLimits.__slots__}
    assert len(shared) == 5
    for name in shared:
        assert getattr(IscsiConfig(), name) == getattr(IscsiLimits(), name), name


def test_the_data_directory_may_hold_the_file(tmp_path: Path) -> None:
    (tmp_path / "blockd.toml").write_text("drain_s = 1")
    config = load_config(None, tmp_path)
    assert (config.drain_s, config.data) == (1.0, tmp_path)


def test_the_data_directory_cannot_move_itself(tmp_path: Path) -> None:
    (tmp_path / "blockd.toml").write_text('data = "/elsewhere"')
    with pytest.raises(ConfigError, match="use --config"):
        load_config(None, tmp_path)


def test_the_command_lines_directory_beats_the_files(file: Path, tmp_path: Path) -> None:
    file.write_text('data = "/elsewhere"')
    assert load_config(file, tmp_path / "mine").data == tmp_path / "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("datta = 1", "datta: no such key; did you mean data?"),
        (
            "[nbd]\nmax_conections = 1",
            "nbd.max_conections: no such key; did you mean nbd.max_connections?",
        ),
        ("max_payload = 1", "max_payload: no such key; did you mean nbd.max_payload?"),
        ('[exports."vm 1"]\nclient = []', 'did you mean exports."vm 1".clients?'),
        ("[log]\nzzz = 1", "log.zzz: no such key; valid here: file, format, level"),
        ("file = 'x'", "file: no such key"),
    ],
)
def test_unknown_keys_name_the_nearest(file: Path, text: str, says: str) -> None:
    assert says in mistake(file, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nbd = 1", "nbd: expected a table, got 1"),
        ("drain_s = true", "drain_s: expected a number, got true"),
        ("drain_s = -1", "drain_s: expected 0.0 to 3600.0, got -1"),
        ("data = ''", "data: expected a path, got the string ''"),
        ("[nbd]\ninsecure = 1", "nbd.insecure: expected true or false, got 1"),
        ("[nbd]\nmax_connections = 1.0", "nbd.max_connections: expected a whole number, got 1.0"),
        ("[nbd]\nmax_connections = 0", "nbd.max_connections: expected 1 to 1048576, got 0"),
        ("[nbd]\nmax_payload = '2GB'", "nbd.max_payload: size '2GB'"),
        ("[nbd]\nmax_payload = true", 'nbd.max_payload: expected a size such as "10GiB", got true'),
        ("[nbd]\nlisten = '1:2'", "nbd.listen: expected an array, got the string '1:2'"),
        ("[nbd]\nlisten = [1]", "nbd.listen.0: expected HOST:PORT, got 1"),
        ("[nbd]\nlisten = ['1']", "nbd.listen.0: address '1'"),
        ("[volumes]\na = []", 'volumes.a: expected a size such as "10GiB", got an array'),
        ("volumes = 1", "volumes: expected a table, got 1"),
        ("[exports.a]\nclients = [1]", "exports.a.clients.0: expected a string, got 1"),
        ("[log]\nlevel = 'loud'", "log.level: expected one of 'debug', 'info'"),
        ("x =", "not TOML"),
    ],
)
def test_wrong_values_name_key_expected_and_got(file: Path, text: str, says: str) -> None:
    assert mistake(file, text).startswith(says)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml", None)


def test_a_file_that_is_no_configuration_is_refused(file: Path) -> None:
    assert "not TOML" in mistake(file, "\0")
    assert "is it a configuration" in mistake(file, "#" * (MAX_FILE_BYTES + 1))


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:10809", TcpAddress("127.0.0.1", 10809), True),
        ("127.9.9.9:1", TcpAddress("127.9.9.9", 1), True),
        ("localhost:0", TcpAddress("localhost", 0), True),
        ("[::1]:10809", TcpAddress("::1", 10809), True),
        (":10809", TcpAddress("", 10809), False),
        ("0.0.0.0:1", TcpAddress("0.0.0.0", 1), False),
        ("[::]:1", TcpAddress("::", 1), False),
        ("storage1:10809", TcpAddress("storage1", 10809), False),
    ],
)
def test_addresses(text: str, address: TcpAddress, loopback: bool) -> None:
    parsed = parse_address(text)
    assert parsed == address
    assert parsed.loopback is loopback
    assert str(parsed) == text


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "host:65536", "::1:5", "h:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write "):
        parse_address(text)


def exposed(**nbd: object) -> ServeConfig:
    listen = (TcpAddress("0.0.0.0", 10809),)
    return ServeConfig(nbd=replace(NbdConfig(listen=listen), **nbd))  # type: ignore[arg-type]


def test_plain_text_on_the_network_must_be_meant() -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0:10809 .* --insecure"):
        check(exposed())
    check(exposed(insecure=True))


def test_tls_that_clients_may_leave_out_protects_nothing() -> None:
    tls = TlsConfig(mode=TlsChoice.ALLOW, cert=Path("c"), key=Path("k"))
    with pytest.raises(ConfigError, match="plain text"):
        check(replace(exposed(), tls=tls))
    check(replace(exposed(), tls=replace(tls, mode=TlsChoice.REQUIRE, client_ca=Path("ca"))))


def test_tls_that_proves_only_the_server_lets_everybody_in() -> None:
    tls = TlsConfig(mode=TlsChoice.REQUIRE, cert=Path("c"), key=Path("k"))
    with pytest.raises(ConfigError, match=r"prove who he is.*--tls-client-ca PEM or --tls-psk"):
        check(replace(exposed(), tls=tls))
    check(replace(exposed(insecure=True), tls=tls))
    check(replace(exposed(), tls=TlsConfig(mode=TlsChoice.REQUIRE, psk=Path("keys"))))


@pytest.mark.parametrize(
    "host",
    [
        *("", "0.0.0.0", "::", "::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.1", "127.1"),
        *("0177.0.0.1", "2130706433", "localhost.example.org", "127.0.0.1.example.org"),
    ],
)
def test_what_is_not_surely_loopback_counts_as_the_network(host: str) -> None:
    address = TcpAddress(host, 4000)
    for config in (
        ServeConfig(nbd=NbdConfig(listen=(address,))),
        ServeConfig(iscsi=IscsiConfig(listen=(PortalAddress(address),))),
        ServeConfig(metrics=MetricsConfig(listen=(address,))),
    ):
        with pytest.raises(ConfigError, match="can be reached by other machines"):
            check(config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ServeConfig(tls=TlsConfig(mode=TlsChoice.REQUIRE)), "needs a certificate"),
        (ServeConfig(tls=TlsConfig(key=Path("k"))), "add --tls-cert"),
        (ServeConfig(exports={"a": ExportConfig(tls_required=True)}), "TLS is off"),
        (ServeConfig(exports={"a": ExportConfig(clients=("x",))}), "--tls-client-ca"),
        (ServeConfig(nbd=NbdConfig(listen=(), unix=False)), "nobody could attach"),
        (ServeConfig(nbd=NbdConfig(max_payload=1 << 27)), "would never fit"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: ServeConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(config)


def test_socket_paths_have_a_limit() -> None:
    check_socket_path(Path("/" + "a" * 106), "control")
    with pytest.raises(ConfigError, match=r"108 bytes long, .* 107; .* --control"):
        check_socket_path(Path("/" + "a" * 107), "control")


def test_a_deep_data_directory_is_told_of_sockets() -> None:
    with pytest.raises(ConfigError, match="shorter path with --control"):
        check(ServeConfig(data=Path("/" + "a" * 100)))


def test_a_version_cannot_have_settings_of_its_own(file: Path) -> None:
    with pytest.raises(ConfigError, match=r'use exports."vm"'):
        check(load(file, '[exports."vm@monday"]\nread_only = true\n'))


# --- iSCSI --------------------------------------------------------------------------------------


def iscsi(*listen: str, **settings: object) -> ServeConfig:
    portals = tuple(parse_portal(text) for text in listen)
    return ServeConfig(iscsi=IscsiConfig(listen=portals, **settings))  # type: ignore[arg-type]


def test_a_portal_is_an_address_and_perhaps_a_group() -> None:
    assert parse_portal("127.0.0.1:3260") == PortalAddress(TcpAddress("127.0.0.1", 3260))
    assert parse_portal("[::1]:3260,65535") == PortalAddress(TcpAddress("::1", 3260), 65535)
    assert str(parse_portal("[::1]:3260,7")) == "[::1]:3260,7"
    assert str(parse_portal(":3260")) == ":3260"


@pytest.mark.parametrize("group", ["", "0", "65536", "-1", "x", "1,2", "\u0661"])
def test_a_group_that_no_portal_can_have_is_refused(group: str) -> None:
    with pytest.raises(ValueError, match="1 to 65535"):
        parse_portal(f"127.0.0.1:3260,{group}")


def test_portals_without_a_group_have_one_of_their_own() -> None:
    portals = [parse_portal(f"127.0.0.1:{text}") for text in ("1", "2,1", "3", "4,3", "5,3")]
    assert portal_groups(portals) == [2, 1, 4, 3, 3]


def test_a_network_has_to_prove_who_it_is() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:3260 .* --iscsi-chap FILE.*--insecure"):
        check(iscsi("127.0.0.1:3260", "192.0.2.1:3260"))
    check(iscsi("192.0.2.1:3260", insecure=True))
    check(iscsi("192.0.2.1:3260", chap=Path("users")))
    check(iscsi("127.0.0.1:3260", "localhost:3261", "[::1]:3262"))


def test_targets_prove_themselves_only_to_who_does() -> None:
    with pytest.raises(ConfigError, match="--iscsi-chap FILE"):
        check(iscsi("127.0.0.1:3260", mutual_chap=Path("us")))
    check(iscsi("127.0.0.1:3260", chap=Path("users"), mutual_chap=Path("us")))


@pytest.mark.parametrize(
    ("listen", "settings", "expected"),
    [
        ("127.0.0.1:3260", {}, True),
        ("127.0.0.1:3260", {"auto_targets": False}, False),
        ("192.0.2.1:3260", {"chap": Path("users")}, False),
        ("192.0.2.1:3260", {"chap": Path("users"), "auto_targets": True}, True),
        ("192.0.2.1:3260", {"insecure": True}, True),
        ("192.0.2.1:3260", {"insecure": True, "auto_targets": False}, False),
    ],
)
def test_volumes_are_targets_by_themselves_where_that_is_no_news_to_a_network(
    listen: str, settings: dict[str, object], expected: bool
) -> None:
    config = iscsi(listen, **settings)
    check(config)
    assert config.iscsi.has_auto_targets is expected


def test_iscsi_alone_is_enough_to_serve() -> None:
    nothing = NbdConfig(listen=(), unix=False)
    with pytest.raises(ConfigError, match="nobody could attach"):
        check(ServeConfig(nbd=nothing))
    check(replace(iscsi("127.0.0.1:3260"), nbd=nothing))
