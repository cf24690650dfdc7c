"""What is well-formed and still must not be served. What concerns one section is in its file."""

from blockd.config.addresses import check_socket_path
from blockd.config.cluster import check_cluster, check_portals
from blockd.config.daemon import check_daemon
from blockd.config.exports import check_exports
from blockd.config.nbd import check_nbd
from blockd.config.serve import ServeConfig
from blockd.config.tls import TlsChoice, check_tls
from blockd.toml_decode import ConfigError


def check(config: ServeConfig) -> None:
    """Refuse settings that must not be served. Raises ConfigError; reads no files."""
    check_exposure(config)
    check_nbd(config.nbd)
    check_tls(config.tls)
    check_exports(config.exports, config.tls)
    check_cluster(config.cluster)
    check_portals(config.cluster, config.iscsi.listen)
    check_daemon(config.daemon)
    for option, path in (("control", config.control_socket), ("nbd-socket", config.nbd_socket)):
        if path is not None:
            check_socket_path(path, option)
    if not config.nbd.listen and not config.nbd.unix and not config.iscsi.listen:
        raise ConfigError("nbd: neither TCP nor a unix socket is left; nobody could attach")


def check_exposure(config: ServeConfig) -> None:
    """Refuse listeners that other machines reach without proving who they are, unless `insecure`
    says that this is meant. Raises ConfigError."""
    exposed = [str(address) for address in config.nbd.listen if not address.loopback]
    if exposed and not config.nbd.insecure:
        if config.tls.mode is not TlsChoice.REQUIRE:
            raise ConfigError(
                f"nbd: {', '.join(exposed)} can be reached by other machines in plain text; use "
                "--tls require with --tls-cert, --tls-key and --tls-client-ca (or --tls-psk), or "
                "say --insecure if that is meant"
            )
        if config.tls.client_ca is None and config.tls.psk is None:
            raise ConfigError(
                f"nbd: {', '.join(exposed)} can be reached by other machines, and nobody would "
                "have to prove who he is: TLS alone proves the server; use --tls-client-ca PEM or "
                "--tls-psk FILE, or say --insecure if that is meant"
            )
    iscsi = config.iscsi
    if iscsi.exposed and iscsi.chap is None and not iscsi.insecure:
        raise ConfigError(
            f"iscsi: {', '.join(iscsi.exposed)} can be reached by other machines, and nobody would "
            "have to prove who he is; use --iscsi-chap FILE, or say --insecure if that is meant"
        )
    exposed = [str(address) for address in config.metrics.listen if not address.loopback]
    if exposed and not config.metrics.insecure:
        raise ConfigError(
            f"metrics: {', '.join(exposed)} can be reached by other machines, and nobody has to "
            "prove who he is; listen on loopback behind a proxy that asks, or set "
            "metrics.insecure = true (--insecure) if that is meant"
        )
    if iscsi.mutual_chap is not None and iscsi.chap is None:
        raise ConfigError(
            f"iscsi: mutual_chap {iscsi.mutual_chap}: targets prove themselves only to initiators "
            "that do; add --iscsi-chap FILE"
        )
