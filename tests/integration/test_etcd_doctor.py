"""`blockd doctor` on a real etcd of an old release, and on one that is not there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockd.config import ClusterConfig, ServeConfig
from blockd.doctor import FAIL, OK, WARN, Finding, Machine, examine
from blockd.doctor_etcd import etcd_settings
from tests.clients import FindTool
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from transport.etcd.releases import known_faults
from transport.keys import identity_path, new_identity, write_identity

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


def look(tmp_path: Path, *endpoints: str, password_file: Path | None = None) -> list[Finding]:
    cluster = ClusterConfig(
        endpoints,
        user=None if password_file is None else "blockd",
        password_file=password_file,
    )
    config = ServeConfig(data=tmp_path / "none", cluster=cluster)
    found = examine(config, config.data, Machine())
    return [each for each in found if each.check.startswith("etcd")]


def test_the_release_is_judged_and_a_quorum_asked(etcd: EtcdCluster, tmp_path: Path) -> None:
    release, quorum = look(tmp_path, *etcd.endpoints)
    version = release.message.split("etcd 3.")[1].split()[0]
    faulty = known_faults("3." + version) is not None
    assert (release.level, release.fix is not None) == (WARN if faulty else OK, faulty)
    assert quorum.level == OK


def test_an_endpoint_that_does_not_answer_is_named(etcd: EtcdCluster, tmp_path: Path) -> None:
    _, silent, quorum = look(tmp_path, *etcd.endpoints, NOBODY)
    assert (silent.level, silent.message) == (WARN, f"{NOBODY} does not answer")
    assert quorum.level == OK


def test_whether_it_is_a_node_is_told(tmp_path: Path) -> None:
    data = tmp_path / "none"
    cluster = ClusterConfig((NOBODY,))
    config = ServeConfig(data=data, cluster=cluster)

    def told() -> Finding:
        return next(each for each in examine(config, data, Machine()) if each.check == "node")

    assert (told().level, told().fix) == (WARN, "blockd cluster init NAME, or join TOKEN")
    data.mkdir()
    write_identity(data, replace(new_identity("c" * 32, "n1"), joined=True))
    assert (told().level, told().message) == (OK, f"n1 of cluster {'c' * 32}")
    identity_path(data).chmod(0o644)
    assert told().level == FAIL


def test_without_any_etcd_the_quorum_is_missed(tmp_path: Path) -> None:
    _, quorum = look(tmp_path, NOBODY)
    assert quorum.level == WARN
    assert quorum.fix


def test_a_password_file_that_cannot_be_read_fails(tmp_path: Path) -> None:
    found = look(tmp_path, NOBODY, password_file=tmp_path / "none")
    assert {each.level for each in found} == {FAIL}
    assert all(each.fix for each in found)


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"secret\n", 0o644, "mode 0644 opens it to others; run: chmod 600"),
        (b"s" * 4097, 0o600, "longer than 4096 bytes"),
        (b"\xff\xff", 0o600, "not UTF-8 text"),
    ],
)
def test_a_password_file_that_is_unfit_fails(
    tmp_path: Path, content: bytes, mode: int, says: str
) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(mode)
    (finding,) = look(tmp_path, NOBODY, password_file=path)
    assert finding.level == FAIL
    assert finding.message.startswith(f"cluster: password_file {path}: {says}")


def test_the_first_line_of_a_password_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text("secret\r\nfor etcd\n")
    cluster = ClusterConfig(etcd=(NOBODY,), user="us", password_file=path)
    assert etcd_settings(cluster).password == "secret"


def test_a_machine_without_etcd_is_not_asked_for_one(tmp_path: Path) -> None:
    config = ServeConfig(data=tmp_path / "none")
    assert not [each for each in examine(config, config.data, Machine()) if "etcd" in each.check]
