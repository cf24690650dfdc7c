"""A real etcd that wants TLS and a password."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from tests.clients import FindTool
from tests.etcd_cluster import START_S, EtcdCluster
from tests.tls_fixtures import Authority
from transport.etcd.client import EtcdMetaStore, EtcdSettings
from volume.metastore import Change, Done, Unavailable

PASSWORD = "correct horse"


@dataclass(frozen=True)
class Guarded:
    settings: EtcdSettings
    admin: httpx.Client

    def store(self, password: str = PASSWORD) -> EtcdMetaStore:
        return EtcdMetaStore(replace(self.settings, user="root", password=password))


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("etcd")
    authority = Authority()
    certificate, key, ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    authority.server().write(certificate, key)
    ca.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    tls = ssl.create_default_context(cafile=str(ca))
    cluster = EtcdCluster(client_tool("etcd"), folder, 1, certificate=(certificate, key))
    try:
        cluster.wait_ready(tls)
        with httpx.Client(
            verify=tls, trust_env=False, base_url=cluster.endpoints[0], timeout=START_S
        ) as admin:
            for path, body in (
                ("user/add", {"name": "root", "password": PASSWORD}),
                ("role/add", {"name": "root"}),
                ("user/grant", {"user": "root", "role": "root"}),
                ("enable", {}),
            ):
                admin.post("/v3/auth/" + path, json=body).raise_for_status()
            yield Guarded(EtcdSettings(cluster.endpoints, tls=tls), admin)
    finally:
        cluster.close()


def test_the_right_password_may_commit_and_read(etcd: Guarded) -> None:
    store = etcd.store()
    outcome = store.commit([Change("a", None, b"1")])
    assert isinstance(outcome, Done)
    assert outcome.rows == (store.read("a"),)
    assert store.hint("beat/a", b"1", 60)
    store.close()


def test_a_wrong_password_is_unavailable_and_told(etcd: Guarded) -> None:
    store = etcd.store("wrong")
    outcome = store.commit([Change("b", None, b"1")])
    store.close()
    assert isinstance(outcome, Unavailable)
    assert "user root" in outcome.reason
    assert "wrong" not in outcome.reason


def test_no_password_is_unavailable(etcd: Guarded) -> None:
    store = EtcdMetaStore(etcd.settings)
    assert isinstance(store.commit([Change("c", None, b"1")]), Unavailable)
    store.close()


def test_a_token_that_ran_out_is_renewed(etcd: Guarded) -> None:
    store = etcd.store()
    assert store.read("d") is None
    store._token = "gone.1"
    assert isinstance(store.commit([Change("d", None, b"1")]), Done)
    assert store._token != "gone.1"
    store.close()


def test_a_certificate_of_a_stranger_is_refused_before_anything_is_said(etcd: Guarded) -> None:
    store = EtcdMetaStore(replace(etcd.settings, tls=ssl.create_default_context()))
    outcome = store.commit([Change("e", None, b"1")])
    store.close()
    assert isinstance(outcome, Unavailable)
    assert "CERTIFICATE_VERIFY_FAILED" in outcome.reason


def test_the_password_is_not_shown(etcd: Guarded) -> None:
    assert PASSWORD not in repr(replace(etcd.settings, password=PASSWORD))
