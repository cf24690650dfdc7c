"""Who may attach: TLS for NBD, CHAP for iSCSI."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.iscsi.targets import IQN_PREFIX
from tests.daemon import Daemon
from tests.kernel.rig import MiB, Rig
from tests.tls_fixtures import TlsFiles, make_tls_files

SECRET, MUTUAL = "a secret of the guest", "a secret of the target"
CHAP = {
    "node.session.auth.authmethod": "CHAP",
    "node.session.auth.username": "guest",
    "node.session.auth.password": SECRET,
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_server(tls: TlsFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Serves those only who show a certificate of its authority."""
    options = ["--tls", "require", "--tls-client-ca", str(tls.ca), "--volume", "secret=128M"]
    options += ["--tls-cert", str(tls.server_certificate), "--tls-key", str(tls.server_key)]
    server = Daemon(tmp_path_factory.mktemp("t") / "data", options)
    server.start()
    yield server
    server.discard()


def tls_options(rig: Rig, tls: TlsFiles) -> str:
    rig.put("/etc/tls/ca", tls.ca.read_text())
    rig.put("/etc/tls/cert", tls.client_certificate.read_text())
    rig.put("/etc/tls/key", tls.client_key.read_text())
    files = "-certfile /etc/tls/cert -keyfile /etc/tls/key -cacertfile /etc/tls/ca"
    return f"{files} -tlshostname localhost"


def test_writes_over_tls_verify(rig: Rig, tls: TlsFiles, tls_server: Daemon) -> None:
    device = rig.nbd("secret", tls_options(rig, tls), server=tls_server)
    assert rig.size(device) == 128 * MiB
    rig.fio(device, "--rw=randwrite --bsrange=4k-64k --iodepth=16 --size=16m")


def test_a_server_that_requires_tls_refuses_plain_text(rig: Rig, tls_server: Daemon) -> None:
    rig.fails(rig.nbd_command("secret", "/dev/nbd0", server=tls_server))


def test_a_client_of_another_authority_is_refused(
    rig: Rig, tls: TlsFiles, tls_server: Daemon, tmp_path: Path
) -> None:
    options = tls_options(rig, make_tls_files(tmp_path)).replace("/etc/tls/ca ", "/etc/tls/server ")
    rig.put("/etc/tls/server", tls.ca.read_text())
    rig.fails(f"{rig.nbd_command('secret', '/dev/nbd0', server=tls_server)} {options}")


@pytest.fixture
def guarded(rig: Rig) -> str:
    """A volume whose target asks for CHAP, and proves itself to who asks back."""
    volume = rig.volume()
    target = f"{IQN_PREFIX}{volume}-guarded"
    with rig.server.control() as client:
        client.create_target(target)
        client.add_lun(target, volume)
        client.set_chap(target, "guest", SECRET)
        client.set_chap(target, "target", MUTUAL, mutual=True)
    return f"{volume}-guarded"


def test_chap_lets_in_who_knows_the_secret(rig: Rig, guarded: str) -> None:
    device = rig.login(guarded, settings=CHAP)
    rig.fio(device, "--rw=randwrite --bs=16k --iodepth=8 --size=4m")


def test_mutual_chap_proves_the_target_to_the_kernel(rig: Rig, guarded: str) -> None:
    back = {
        "node.session.auth.username_in": "target",
        "node.session.auth.password_in": MUTUAL,
    }
    rig.login(guarded, settings={**CHAP, **back})


def test_a_wrong_secret_is_refused(rig: Rig, guarded: str) -> None:
    wrong = {**CHAP, "node.session.auth.password": "some other secret"}
    with pytest.raises(AssertionError, match="authorization failure"):
        rig.login(guarded, settings=wrong)


def test_a_target_that_cannot_prove_itself_is_refused(rig: Rig, guarded: str) -> None:
    back = {
        "node.session.auth.username_in": "target",
        "node.session.auth.password_in": "what the target does not know",
    }
    with pytest.raises(AssertionError, match="non-retryable iSCSI login failure"):
        rig.login(guarded, settings={**CHAP, **back})
