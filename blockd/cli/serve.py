"""`blockd serve`: settings from file and command line, then the daemon until a signal.

Standard output says where it listens and how to attach; the log goes to standard error.
"""

import contextlib
import json
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from blockd import attach, iscsi_attach
from blockd.cli.options import UsageError, size_argument
from blockd.config import (
    LogFormat,
    LogLevel,
    ServeConfig,
    TlsChoice,
    check,
    load_config,
    parse_address,
    parse_portal,
)
from blockd.sizes import format_size

if TYPE_CHECKING:
    from blockd.ready import Ready

logger = logging.getLogger(__name__)

T = TypeVar("T")

NONE = "none"  # switches an address off
MAX_SHOWN_VOLUMES = 3  # `blockd volume show NAME` has the commands of the others

_NBD = "Where NBD listens; port 0 takes a free one, 'none' leaves TCP out. May be repeated."
_ISCSI = "Where iSCSI listens, as 127.0.0.1:3260 or HOST:PORT,GROUP. May be repeated. [none]"
_Path = Path | None


def serve(
    data: Annotated[
        _Path, typer.Option(metavar="DIR", help="Data directory. [./blockd-data]")
    ] = None,
    nbd: Annotated[list[str] | None, typer.Option(metavar="HOST:PORT", help=_NBD)] = None,
    nbd_socket: Annotated[
        str | None, typer.Option(metavar="PATH", help="NBD unix socket, or 'none'. [DIR/nbd.sock]")
    ] = None,
    iscsi: Annotated[list[str] | None, typer.Option(metavar="HOST:PORT", help=_ISCSI)] = None,
    iscsi_chap: Annotated[
        _Path, typer.Option(metavar="FILE", help="CHAP users of initiators, user:secret lines.")
    ] = None,
    control: Annotated[
        _Path, typer.Option(metavar="PATH", help="Control socket. [DIR/control.sock]")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT", help="Where Prometheus finds /metrics. May be repeated. [none]"
        ),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZE", help="Create it if there is none. May be repeated."),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Started by root: become this user once TCP is bound."),
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --user: its main group. [the user's]")
    ] = None,
    config: Annotated[
        _Path, typer.Option(metavar="FILE", help="Settings. [DIR/blockd.toml if there]")
    ] = None,
    tls: Annotated[TlsChoice | None, typer.Option(help="TLS for NBD clients. [off]")] = None,
    tls_cert: Annotated[_Path, typer.Option(metavar="PEM", help="Server certificate.")] = None,
    tls_key: Annotated[_Path, typer.Option(metavar="PEM", help="Its private key.")] = None,
    tls_client_ca: Annotated[
        _Path, typer.Option(metavar="PEM", help="Clients need a certificate of this authority.")
    ] = None,
    tls_psk: Annotated[_Path, typer.Option(metavar="FILE", help="Pre-shared keys.")] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure",
            help="NBD without proof of the client, iSCSI without CHAP, metrics, on a network.",
        ),
    ] = None,
    list_versions: Annotated[
        bool | None,
        typer.Option("--list-versions", help="Show NBD clients snapshots as exports, too."),
    ] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Log lines on stderr.")] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="Least important line shown.")] = None,
    ready_file: Annotated[
        _Path, typer.Option(metavar="PATH", help="Write addresses as JSON here when ready.")
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Check the settings and exit.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line when ready, no text.")
    ] = False,
) -> None:
    """Serve volumes over NBD and iSCSI until Ctrl-C or SIGTERM; requests in flight finish first.

    Settings come from the command line, then the file, then built-in defaults.
    SIGHUP reads TLS files and log settings again; a second Ctrl-C does not wait.
    """
    options = _Options(
        data=data,
        nbd=nbd,
        nbd_socket=nbd_socket,
        iscsi=iscsi,
        iscsi_chap=iscsi_chap,
        control=control,
        metrics=metrics,
        volume=volume or (),
        daemon={"user": user, "group": group},
        tls=tls,
        tls_files={"cert": tls_cert, "key": tls_key, "client_ca": tls_client_ca, "psk": tls_psk},
        insecure=insecure,
        list_versions=list_versions,
        log={"format": log_format, "level": log_level},
    )
    settings = options.over(load_config(config, data))
    check(settings)
    if check_config:
        from blockd.privileges import give_up_root

        give_up_root(settings, None)  # what the user could not read is no valid setting
        _report_valid(settings, as_json)
        return
    _run(
        settings,
        reload=lambda: options.over(load_config(config, data)),
        announce=_print_json if as_json else _print_text,
        ready_file=ready_file,
    )


def _run(
    settings: ServeConfig,
    *,
    reload: Callable[[], ServeConfig],
    announce: "Callable[[Ready], None]",
    ready_file: Path | None,
) -> None:
    from blockd.privileges import give_up_root
    from blockd.sockets import EarlySockets

    with contextlib.closing(EarlySockets()) as sockets:
        who = give_up_root(settings, sockets)
        # Not before: what root does not load, root does not run.
        if settings.cluster.etcd:
            from blockd.cluster.identity import node_identity

            node_identity(settings)  # or else a store would be made in what is to be no node
        from blockd.control import loaded_for_good

        with loaded_for_good():
            from blockd import daemon, logs, wiring

        logs.setup(settings.log)
        if who is not None:
            logger.info("root given up", extra={"user": who.user, "uid": who.uid, "gid": who.gid})
        parts = daemon.Parts(
            open_store=wiring.open_store,
            open_targets=wiring.open_targets,
            make_listener=partial(wiring.make_listener, bind=sockets.take),
            make_iscsi=partial(wiring.make_iscsi, bind=sockets.take),
            make_cluster=wiring.make_cluster,
            reload=reload,
            announce=announce,
            ready_file=ready_file,
            bind=sockets.take,
        )
        daemon.run(settings, parts)


class _Options:
    """What the command line said; None and empty is "nothing"."""

    def __init__(
        self,
        *,
        data: Path | None,
        nbd: Sequence[str] | None,
        nbd_socket: str | None,
        iscsi: Sequence[str] | None,
        iscsi_chap: Path | None,
        control: Path | None,
        metrics: Sequence[str] | None,
        volume: Sequence[str],
        daemon: dict[str, str | None],
        tls: TlsChoice | None,
        tls_files: dict[str, Path | None],
        insecure: bool | None,
        list_versions: bool | None,
        log: dict[str, LogFormat | LogLevel | None],
    ) -> None:
        self._data = data
        self._control = control
        self._volumes = dict(_volume(text) for text in volume)
        self._daemon = {key: value for key, value in daemon.items() if value}
        self._tls = {key: value for key, value in {**tls_files, "mode": tls}.items() if value}
        self._log = {key: value for key, value in log.items() if value}
        self._nbd: dict[str, object] = {}
        if nbd is not None:
            self._nbd["listen"] = _addresses("--nbd", nbd, parse_address)
        if nbd_socket is not None:
            unix = nbd_socket != NONE
            self._nbd |= {"unix": unix, "socket": Path(nbd_socket) if unix else None}
        self._iscsi: dict[str, object] = {}
        if iscsi is not None:
            self._iscsi["listen"] = _addresses("--iscsi", iscsi, parse_portal)
        if iscsi_chap is not None:
            self._iscsi["chap"] = iscsi_chap
        self._metrics: dict[str, object] = {}
        if metrics is not None:
            self._metrics["listen"] = _addresses("--metrics", metrics, parse_address)
        if insecure is not None:
            for section in (self._nbd, self._iscsi, self._metrics):
                section["insecure"] = insecure
        if list_versions is not None:
            self._nbd["list_versions"] = list_versions

    def over(self, config: ServeConfig) -> ServeConfig:
        """`config` with what the command line said put over it."""
        config = replace(
            config,
            daemon=replace(config.daemon, **self._daemon),
            nbd=replace(config.nbd, **self._nbd),  # type: ignore[arg-type]
            iscsi=replace(config.iscsi, **self._iscsi),  # type: ignore[arg-type]
            tls=replace(config.tls, **self._tls),  # type: ignore[arg-type]
            log=replace(config.log, **self._log),  # type: ignore[arg-type]
            metrics=replace(config.metrics, **self._metrics),  # type: ignore[arg-type]
            volumes=MappingProxyType({**config.volumes, **self._volumes}),
        )
        if self._control:
            config = replace(config, control=replace(config.control, socket=self._control))
        return replace(config, data=self._data) if self._data else config


def _volume(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--volume {text!r}: write NAME=SIZE, as demo=10G")
    return name, size_argument(size)


def _addresses(option: str, texts: Sequence[str], parse: Callable[[str], T]) -> tuple[T, ...]:
    if list(texts) == [NONE]:
        return ()
    try:
        return tuple(parse(text) for text in texts)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _report_valid(settings: ServeConfig, as_json: bool) -> None:
    """After `check`; files of TLS and of CHAP users are read as well, as a start would."""
    if settings.tls.mode is not TlsChoice.OFF:
        from blockd.tls import TlsProvider

        TlsProvider(settings.tls.settings())
    if settings.iscsi.chap is not None:
        from blockd.chap_file import read_chap, read_mutual_chap

        read_chap(settings.iscsi.chap)
        if settings.iscsi.mutual_chap is not None:
            read_mutual_chap(settings.iscsi.mutual_chap)
    where = str(settings.file) if settings.file else None
    if as_json:
        print(json.dumps({"valid": True, "file": where}))
    else:
        print(f"{where or 'the settings'}: valid")


def _print_json(ready: "Ready") -> None:
    print(json.dumps(ready.to_json()), flush=True)


def _print_text(ready: "Ready") -> None:
    tls = ready.tls == TlsChoice.REQUIRE
    lines = [f"blockd serves {ready.data}"]
    lines += [f"  nbd      {address}" for address in ready.nbd]
    lines += [f"  iscsi    {address}" for address in ready.iscsi]
    lines.append(f"  control  {ready.control}")
    lines += [f"  metrics  http://{address}/metrics" for address in ready.metrics]
    lines += [f"  peers    {address}" for address in ready.peers]
    if not ready.volumes:
        where = f" --control {ready.control}"
        lines += ["", f"no volumes yet; make one: blockd volume create NAME 10G{where}"]
    hostname = socket.gethostname()
    for name, size in ready.volumes[:MAX_SHOWN_VOLUMES]:
        lines += ["", f"volume {name}, {format_size(size)}; attach it with one of"]
        address = attach.reachable(ready.nbd[0], hostname)
        lines += ["  " + command for command in attach.commands(address, name, tls=tls)]
        if ready.iscsi and ready.auto_targets:
            address = attach.reachable(ready.iscsi[0], hostname)
            target, chap = iscsi_attach.target_of(name), ready.iscsi_chap
            commands = iscsi_attach.commands(address, target, chap=chap)
            lines += ["or, over iSCSI,", *("  " + command for command in commands)]
    more = len(ready.volumes) - MAX_SHOWN_VOLUMES
    if more > 0:
        lines += ["", f"{more} more: blockd volume list, blockd volume show NAME"]
    lines += ["", "Ctrl-C stops."]
    print("\n".join(lines), flush=True)
