"""How initiators attach a target: URLs, and commands that can be pasted. As `blockd.attach`.

URLs are libiscsi's: iscsi://HOST:PORT/IQN/LUN, with USER%SECRET@ in front of the host for CHAP. A
secret does not belong into a command line, so the commands have USER and SECRET to be filled in.
"""

import shlex
from urllib.parse import quote

PREFIX = "iqn.2026-11.io.blockd:"  # as `blockd.iscsi.targets`, which would load the engine
CREDENTIALS = "USER%SECRET@"


def target_of(volume: str) -> str:
    """The target that a volume, or vol@version, has by itself."""
    return PREFIX + volume


def url(address: str, target: str, lun: int = 0, *, chap: bool = False) -> str:
    return f"iscsi://{CREDENTIALS if chap else ''}{address}/{quote(target, safe=':@')}/{lun}"


def commands(address: str, target: str, lun: int = 0, *, chap: bool = False) -> list[str]:
    """Shell commands that attach a unit of `target` at `address`: open-iscsi, qemu, libiscsi."""
    where = url(address, target, lun, chap=chap)
    drive = f"format=raw,if=virtio,file={where.replace(',', ',,')}"
    return [
        *_open_iscsi(address, target, chap),
        shlex.join(["qemu-img", "info", where]),
        shlex.join(["qemu-system-x86_64", "-drive", drive]),
        shlex.join(["iscsi-inq", where]),
    ]


def discovery(address: str) -> str:
    """The command that lists the targets at `address`."""
    return shlex.join(["sudo", *_iscsiadm("discovery", "-t", "sendtargets", "-p", address)])


def _open_iscsi(address: str, target: str, chap: bool) -> list[str]:
    node = _iscsiadm("node", "-T", target, "-p", address)
    settings = [
        ("node.session.auth.authmethod", "CHAP"),
        ("node.session.auth.username", "USER"),
        ("node.session.auth.password", "SECRET"),
    ]
    return [
        discovery(address),
        *(
            shlex.join(["sudo", *node, "-o", "update", "-n", name, "-v", value])
            for name, value in (settings if chap else ())
        ),
        shlex.join(["sudo", *node, "--login"]),
    ]


def _iscsiadm(mode: str, *options: str) -> list[str]:
    return ["iscsiadm", "-m", mode, *options]
