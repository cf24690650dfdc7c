"""How clients attach a volume: addresses as NBD URIs, and commands that can be pasted.

URIs follow the NBD URI specification (doc/uri.md of NetworkBlockDevice/nbd): nbd://host:port/name,
nbd+unix:///name?socket=path, and with TLS nbds and nbds+unix. An address is HOST:PORT, or the path
of a unix socket when it starts with "/".
"""

import shlex
from urllib.parse import quote

DEFAULT_PORT = "10809"
CREDENTIALS = "tls-certificates=DIR"  # the reader puts the folder of ca-cert.pem etc. for DIR


def uri(address: str, volume: str, *, tls: bool = False) -> str:
    """The NBD URI of `volume`, or of a version of it (vol@ref), at `address`."""
    scheme = "nbds" if tls else "nbd"
    name = quote(volume, safe=":@")
    if address.startswith("/"):
        return f"{scheme}+unix:///{name}?socket={quote(address)}"
    return f"{scheme}://{address.removesuffix(':' + DEFAULT_PORT)}/{name}"


def commands(address: str, volume: str, *, tls: bool = False) -> list[str]:
    """Shell commands that attach `volume` at `address`: kernel, qemu, libnbd."""
    plain = uri(address, volume, tls=tls)
    with_keys = plain
    if tls:
        with_keys += ("&" if "?" in plain else "?") + CREDENTIALS
    qemu = _qemu_tls(address, volume) if tls else _qemu(plain)
    return [
        _nbd_client(address, volume, tls),
        *qemu,
        shlex.join(["nbdinfo", with_keys]),
        shlex.join(["nbdcopy", "--progress", with_keys, f"{volume}.img"]),
    ]


def _nbd_client(address: str, volume: str, tls: bool) -> str:
    where = ["-unix", address] if address.startswith("/") else [*split(address)]
    keys = ["-cacertfile", "DIR/ca-cert.pem"] if tls else []
    return shlex.join(["sudo", "nbd-client", *where, "/dev/nbd0", "-N", volume, *keys])


def _qemu(plain: str) -> list[str]:
    drive = f"format=raw,if=virtio,file={_qemu_value(plain)}"
    return [
        shlex.join(["qemu-img", "info", plain]),
        shlex.join(["qemu-system-x86_64", "-drive", drive]),
    ]


def _qemu_tls(address: str, volume: str) -> list[str]:
    """qemu takes credentials as an object and knows no nbds:// URI: the parts are spelt out."""
    if address.startswith("/"):
        server = f"server.type=unix,server.path={_qemu_value(address)}"
    else:
        host, port = split(address)
        server = f"server.type=inet,server.host={host},server.port={port}"
    image = f"driver=nbd,{server},export={_qemu_value(volume)},tls-creds=tls0"
    secret = "tls-creds-x509,id=tls0,endpoint=client,dir=DIR"
    return [shlex.join(["qemu-img", "info", "--object", secret, "--image-opts", image])]


def _qemu_value(text: str) -> str:
    return text.replace(",", ",,")  # qemu's way to write a comma inside an option


def split(address: str) -> tuple[str, str]:
    """Host (without brackets) and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def reachable(address: str, hostname: str) -> str:
    """`address` as a client would write it: `hostname` where it means every interface."""
    if address.startswith("/"):
        return address
    host, port = split(address)
    return f"{hostname}:{port}" if host in ("", "0.0.0.0", "::") else address
