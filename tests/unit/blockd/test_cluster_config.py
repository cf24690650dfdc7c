"""[cluster]: what may be said, and what is refused with the way out."""

from pathlib import Path

import pytest

from blockd.config import ClusterConfig, MetaStoreChoice, ServeConfig, check, load_config
from blockd.toml_decode import ConfigError
from tests.command import Blockd

ETCD = MetaStoreChoice.ETCD
GOOD = "http://10.0.0.1:2379"


def test_every_setting_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / "blockd.toml"
    file.write_text(
        f"""
[cluster]
metastore = "etcd"
endpoints = ["{GOOD}", "https://[::1]:2379"]
prefix = "b1/"
ca = "ca.pem"
user = "blockd"
password_file = "secret"
"""
    )
    config = load_config(file, None)
    assert config.cluster == ClusterConfig(
        ETCD,
        (GOOD, "https://[::1]:2379"),
        "b1/",
        tmp_path / "ca.pem",
        "blockd",
        tmp_path / "secret",
    )
    check(config)


@pytest.mark.parametrize(
    ("cluster", "why"),
    [
        (ClusterConfig(ETCD), "needs endpoints"),
        (ClusterConfig(endpoints=(GOOD,)), "of no use"),
        (ClusterConfig(ETCD, ("10.0.0.1:2379",)), "is not http"),
        (ClusterConfig(ETCD, (GOOD + "/",)), "is not http"),
        (ClusterConfig(ETCD, ("http://u:p@h:1",)), "is not http"),
        (ClusterConfig(ETCD, (GOOD,), ""), "has to end with"),
        (ClusterConfig(ETCD, (GOOD,), user="u"), "go together"),
    ],
)
def test_what_cannot_work_is_refused(cluster: ClusterConfig, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check(ServeConfig(cluster=cluster))


def test_serve_does_not_pretend_to_ask_etcd(tmp_path: Path, blockd: Blockd) -> None:
    file = tmp_path / "blockd.toml"
    file.write_text(f'data = "data"\n[cluster]\nmetastore = "etcd"\nendpoints = ["{GOOD}"]\n')
    result = blockd("serve", "--config", str(file))
    assert result.code != 0
    assert "single node" in result.err
    assert not (tmp_path / "data").exists()
    assert blockd("serve", "--config", str(file), "--check-config").code == 0
