"""Doctor: each thing that can be wrong is found, and has a way out."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from blockd.access.kept import volume_key
from blockd.api.limit_types import VolumeLimits, encode
from blockd.cli import exits
from blockd.config import (
    ControlConfig,
    DaemonConfig,
    IscsiConfig,
    ServeConfig,
    StoreConfig,
    TlsChoice,
    TlsConfig,
)
from blockd.doctor import FAIL, MODULES, OK, TOOLS, WARN, Finding, Machine, examine
from blockd.toml_decode import ConfigError
from native import OP_WRITE, Request
from tests.command import Blockd
from tests.daemon import JOURNAL_BYTES
from volume import layout
from volume.datadir import META_MAP_BYTES
from volume.disk import SystemClock
from volume.framing import framed
from volume.kv import LmdbKeyValue
from volume.layout import META_PREFIX_STATE
from volume.meta import Meta
from volume.options import StoreOptions
from volume.store import Store

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DAEMON = 54322  # a user, of whom this machine has none


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with every tool and module."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "modules").write_text("nbd 53248 0 - Live 0x0\niscsi_tcp 24576 0 - Live 0x0\n")
    return Machine(
        proc=proc,
        sys_module=tmp_path / "sys",
        which=lambda tool: f"/usr/bin/{tool}",
        modinfo=lambda module: False,
        now=lambda: NOW,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as the store makes it."""
    data = tmp_path / "data"
    for folder in ("meta", "journal", "packs"):
        (data / folder).mkdir(parents=True)
    (data / "journal" / "00000001.seg").write_bytes(bytes(4096))
    data.chmod(0o700)
    with meta(data) as records:
        records.begin_epoch()
    return data


@contextlib.contextmanager
def meta(data: Path) -> Iterator[Meta]:
    kv = LmdbKeyValue(data / "meta", synced=True, map_size=META_MAP_BYTES)
    yield Meta(kv, SystemClock())
    kv.close()


def look(
    check: str, data: Path, machine: Machine, config: ServeConfig | ConfigError | None = None
) -> Finding:
    """The one finding of `check`."""
    config = config or ServeConfig(data=data)
    (finding,) = [each for each in examine(config, data, machine) if each.check == check]
    return finding


def test_a_healthy_machine_has_nothing_to_do(data: Path, machine: Machine) -> None:
    assert {each.level for each in examine(ServeConfig(data=data), data, machine)} == {OK}


def test_whatever_is_not_well_has_a_way_out(tmp_path: Path, machine: Machine) -> None:
    bare = replace(machine, which=lambda tool: None, proc=tmp_path / "none")
    findings = examine(ConfigError("x"), tmp_path / "none", bare)
    unwell = [each for each in findings if each.level != OK]
    assert len(unwell) == 2 + len(MODULES) + len(TOOLS)
    assert all(each.fix for each in unwell)


def test_a_missing_data_directory_is_made_by_serve(tmp_path: Path, machine: Machine) -> None:
    finding = look("data directory", tmp_path / "none", machine)
    assert finding.level == WARN
    assert "is not there" in finding.message


def test_a_file_is_no_data_directory(tmp_path: Path, machine: Machine) -> None:
    path = tmp_path / "file"
    path.touch()
    assert look("data directory", path, machine).level == FAIL


def test_an_open_data_directory_is_named_with_its_mode(data: Path, machine: Machine) -> None:
    data.chmod(0o755)
    finding = look("data directory", data, machine)
    assert finding == Finding(
        "data directory", WARN, f"{data} is open to others (mode 755)", f"chmod 700 {data}"
    )


def test_somebody_elses_data_directory_fails(data: Path, machine: Machine) -> None:
    finding = look("data directory", data, replace(machine, uid=os.getuid() + 1))
    assert finding.level == FAIL
    assert "belongs to user" in finding.message


def test_the_holder_of_the_lock_is_named(data: Path, machine: Machine) -> None:
    lock = data / "lock"
    lock.touch()
    line = f"1: FLOCK  ADVISORY  WRITE 4711 08:01:{lock.stat().st_ino} 0 EOF\n"
    (machine.proc / "locks").write_text("2: POSIX  ADVISORY  WRITE 1 08:01:1 0 EOF\n" + line)
    assert "process 4711" in look("lock", data, machine).message


def test_a_real_lock_is_seen(data: Path, machine: Machine) -> None:
    with (data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finding = look("lock", data, replace(machine, proc=Path("/proc")))
    assert finding.message == f"process {os.getpid()} serves the directory"


def test_a_damaged_access_list_fails(data: Path, machine: Machine) -> None:
    assert look("access lists", data, machine).level == OK
    key = volume_key(bytes(16))
    kv = LmdbKeyValue(data / "meta", synced=True, map_size=META_MAP_BYTES)
    kv.update({META_PREFIX_STATE + key.encode(): b"\x01 not as it was written"})
    kv.close()
    finding = look("access lists", data, machine)
    assert (finding.level, finding.message) == (
        FAIL,
        f"{key} is damaged: that volume lets nobody in",
    )


def test_a_damaged_access_list_of_a_volume_is_named_with_it(data: Path, machine: Machine) -> None:
    with meta(data) as records:
        volume = records.create(
            "vm1",
            uuid=bytes(range(16)),
            size=1 << 20,
            block_size=512,
            chunk_size=65536,
            created_ns=0,
        )
        key = META_PREFIX_STATE + volume_key(volume.uuid).encode()
        records.put_rows({key: framed(b"{}")})
    finding = look("access lists", data, machine)
    assert "of volume vm1, is damaged" in finding.message
    assert finding.fix
    assert "blockd volume access clear vm1" in finding.fix


def test_sockets_where_others_may_write_fail(data: Path, machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o1777)
    config = ServeConfig(data=data, control=ControlConfig(folder / "c"))
    assert look("nbd socket", data, machine, config).level == OK
    finding = look("control socket", data, machine, config)
    assert (finding.level, "others may write" in finding.message) == (FAIL, True)


def test_half_a_store_fails(data: Path, machine: Machine) -> None:
    (data / "packs").rmdir()
    finding = look("format", data, machine)
    assert (finding.level, finding.message) == (FAIL, f"{data} lacks packs")


def test_a_sealed_store_is_found_without_a_daemon(data: Path, machine: Machine) -> None:
    with meta(data) as records:
        records.seal("EIO while writing to the disk")
    finding = look("format", data, machine)
    assert finding.level == FAIL
    assert "EIO while writing" in finding.message
    assert finding.fix
    assert f"blockd doctor --unseal --data {data}" in finding.fix


@pytest.mark.parametrize("broken", ["row", "checksum"])
def test_limits_that_cannot_be_read_are_found(data: Path, machine: Machine, broken: str) -> None:
    assert look("limits", data, machine).level == OK
    with meta(data) as records:
        volume = records.create(
            "vm1", uuid=bytes(16), size=1 << 20, block_size=512, chunk_size=65536, created_ns=0
        )
        value = framed(b"{" if broken == "row" else encode(VolumeLimits(iops=5)))
        value = value if broken == "row" else value[:-1] + bytes([value[-1] ^ 1])
        key = layout.META_PREFIX_STATE + b"limits/" + volume.uuid.hex().encode()
        records.put_rows({key: value})
    finding = look("limits", data, machine)
    assert finding.level == WARN
    assert "those of volume vm1 cannot be read, nothing is limited" in finding.message
    assert finding.fix
    assert "blockd volume limit vm1" in finding.fix


def test_a_store_of_another_version_fails(data: Path, machine: Machine) -> None:
    (data / "meta" / "data.mdb").write_bytes(b"not a database" * 1000)
    assert look("format", data, machine).level == FAIL


def test_looking_at_an_empty_meta_leaves_it_empty(data: Path, machine: Machine) -> None:
    for file in (data / "meta").iterdir():
        file.unlink()
    assert look("format", data, machine).level == FAIL
    assert list((data / "meta").iterdir()) == []


def test_an_empty_directory_is_a_new_store(tmp_path: Path, machine: Machine) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    assert look("format", empty, machine).level == OK


def test_a_journal_that_leaves_no_room_is_warned_of(data: Path, machine: Machine) -> None:
    config = ServeConfig(data=data, store=StoreConfig(journal_limit=1 << 59))
    finding = look("journal", data, machine, config)
    assert finding.level == WARN
    assert "512 PiB" in finding.message


def test_a_broken_configuration_fails_and_the_rest_is_still_looked_at(
    data: Path, machine: Machine
) -> None:
    finding = look("configuration", data, machine, ConfigError("blockd.toml: nbd.x: no such key"))
    assert (finding.level, finding.message) == (FAIL, "blockd.toml: nbd.x: no such key")
    assert look("format", data, machine, ConfigError("x")).level == OK


def test_settings_that_serve_refuses_fail(data: Path, machine: Machine) -> None:
    config = ServeConfig(data=data, tls=TlsConfig(key=Path("k")))
    assert look("configuration", data, machine, config).level == FAIL


def test_missing_tools_come_with_their_package(data: Path, machine: Machine) -> None:
    bare = replace(machine, which=lambda tool: None)
    assert look("client nbdcopy", data, bare).fix == "sudo apt install libnbd-bin"
    assert look("client iscsiadm", data, bare).fix == "sudo apt install open-iscsi"


def test_a_module_is_loaded_available_or_missing(data: Path, machine: Machine) -> None:
    name = "kernel module nbd"
    assert look(name, data, machine).message == "loaded"
    (machine.proc / "modules").write_text("nbdx 1 0 - Live 0x0\n")
    assert look(name, data, machine).level == WARN
    loadable = replace(machine, modinfo=lambda module: module == "nbd")
    assert "modprobe nbd" in look(name, data, loadable).message
    (machine.sys_module / "nbd").mkdir(parents=True)  # built into the kernel
    assert look(name, data, machine).message == "loaded"


def key_pair(folder: Path, ends: datetime) -> TlsConfig:
    """A self-signed certificate, valid until `ends`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "storage1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1000))
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
    )
    tls = TlsConfig(mode=TlsChoice.REQUIRE, cert=folder / "cert.pem", key=folder / "key.pem")
    assert tls.cert
    assert tls.key
    tls.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls.key.touch(mode=0o600)
    tls.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return tls


@pytest.mark.parametrize(("days", "level"), [(365, OK), (10, WARN), (-1, FAIL)])
def test_the_end_of_a_certificate_is_watched(
    data: Path, machine: Machine, tmp_path: Path, days: int, level: str
) -> None:
    tls = key_pair(tmp_path, NOW + timedelta(days=days))
    finding = look("tls certificate", data, machine, ServeConfig(data=data, tls=tls))
    assert finding.level == level


def test_an_open_private_key_fails_as_it_does_in_serve(
    data: Path, machine: Machine, tmp_path: Path
) -> None:
    tls = key_pair(tmp_path, NOW + timedelta(days=365))
    assert tls.key
    assert look("tls key", data, machine, ServeConfig(data=data, tls=tls)).level == OK
    tls.key.chmod(0o644)
    finding = look("tls", data, machine, ServeConfig(data=data, tls=tls))
    assert finding.level == FAIL
    assert f"run: chmod 600 {tls.key}" in finding.message


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of several users")
def test_root_looks_at_secrets_as_the_user_of_the_data_directory(machine: Machine) -> None:
    with tempfile.TemporaryDirectory(prefix="blockd-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # pytest's own are for their owner only
        (data := folder / "data").mkdir(mode=0o700)
        (users := folder / "users").touch(mode=0o600)
        users.write_text("host:twelve bytes at least\n")
        config = ServeConfig(data=data, iscsi=IscsiConfig(chap=users))
        os.chown(data, DAEMON, -1)
        found = look("iscsi chap users", data, machine, config)
        assert found.level == FAIL
        assert f"chown {DAEMON} {users}" in found.message
        os.chown(users, DAEMON, -1)
        assert look("iscsi chap users", data, machine, config).level == OK
        assert os.geteuid() == 0


@pytest.mark.parametrize(
    ("daemon", "level", "says"),
    [
        (DaemonConfig(user="no-such-user"), FAIL, "useradd --system no-such-user"),
        (DaemonConfig(user="root"), FAIL, "nothing would be given up"),
        (DaemonConfig(user="nobody"), FAIL, "the daemon becomes nobody"),
    ],
)
def test_a_user_that_the_daemon_cannot_be_is_told(
    data: Path, machine: Machine, daemon: DaemonConfig, level: str, says: str
) -> None:
    found = look("user", data, machine, ServeConfig(data=data, daemon=daemon))
    assert found.level == level
    assert says in found.message
    assert found.fix


def test_a_user_that_owns_the_data_directory_is_well(
    data: Path, machine: Machine, tmp_path: Path
) -> None:
    config = ServeConfig(data=tmp_path / "none", daemon=DaemonConfig(user="nobody"))
    assert look("user", tmp_path / "none", machine, config).level == OK


@pytest.mark.parametrize(
    ("content", "mode", "level", "says"),
    [
        ("host:twelve bytes at least\n", 0o600, OK, "1 user(s)"),
        ("host:twelve bytes at least\n", 0o644, FAIL, "opens it to others"),
        ("host:short\n", 0o600, FAIL, "line 1"),
        (None, 0o600, FAIL, "No such file"),
    ],
)
@pytest.mark.parametrize("setting", ["chap", "mutual_chap"])
def test_files_of_chap_users_are_read_as_serve_does(
    data: Path,
    machine: Machine,
    tmp_path: Path,
    content: str | None,
    mode: int,
    level: str,
    says: str,
    setting: str,
) -> None:
    path = tmp_path / "users"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    iscsi = IscsiConfig(chap=path) if setting == "chap" else IscsiConfig(mutual_chap=path)
    config = ServeConfig(data=data, iscsi=iscsi)
    name = "iscsi chap users" if setting == "chap" else "iscsi mutual chap user"
    found = look(name, data, machine, config)
    assert found.level == level
    assert says in found.message
    assert "twelve" not in found.message


def test_tls_files_that_serve_refuses_fail(data: Path, machine: Machine, tmp_path: Path) -> None:
    tls = replace(key_pair(tmp_path, NOW + timedelta(days=365)), key=tmp_path / "none.pem")
    finding = look("tls", data, machine, ServeConfig(data=data, tls=tls))
    assert finding.level == FAIL
    assert "none.pem" in finding.message


# -- doctor --repair-index


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A data directory with a volume that has chunks in packs."""
    path = tmp_path / "stored"
    store = Store.open(path, StoreOptions(journal_limit=JOURNAL_BYTES))
    store.create_volume("vm1", 1 << 20)
    volume = store.get("vm1")
    assert volume is not None
    written = threading.Event()
    volume.submit([Request(OP_WRITE, 0, 65536, os.urandom(65536))], lambda _: written.set())
    assert written.wait(30.0)
    store.upkeep.submit(store.destage)
    store.close()
    return path


def test_repair_index_tells_what_it_made(stored: Path, blockd: Blockd) -> None:
    shutil.rmtree(stored / "index")
    result = blockd("doctor", "--repair-index", "--data", str(stored))
    assert result.code == 0
    assert "3 chunks of 1 packs are in the index" in result.out
    assert "versions are whole" in result.out
    assert "packs: 1 of 1" in result.err
    again = blockd("doctor", "--repair-index", "--data", str(stored), "--json").json
    assert (again["chunks"], again["missing"]) == (3, [])


def test_repair_index_fails_when_something_is_missing(stored: Path, blockd: Blockd) -> None:
    (stored / "packs" / "00000000.pack").unlink()
    result = blockd("doctor", "--repair-index", "--data", str(stored))
    assert result.code == exits.DAMAGED
    assert "missing: vm1 offset 0 +1048576: chunk" in result.out
    assert "restore the packs" in result.out


def test_repair_index_wants_a_directory_that_nobody_serves(stored: Path, blockd: Blockd) -> None:
    assert blockd("doctor", "--repair-index").code == exits.USAGE
    store = Store.open(stored)
    try:
        result = blockd("doctor", "--repair-index", "--data", str(stored))
    finally:
        store.close()
    assert result.code != 0
    assert "in use" in result.err


def test_a_file_of_somebody_else_is_named(data: Path, machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("root is missing, to change owners")
    os.chown(data / "meta" / "data.mdb", 4711, -1)
    finding = look("owners", data, machine)
    assert finding.level == FAIL
    assert f"{data}/meta/data.mdb belongs to user 4711" in finding.message
    assert finding.fix == f"chown -R --reference={data} {data}"
