"""`blockd volume access ...`: who may attach a volume, over NBD and over iSCSI.

A volume without a list is as open as the listeners. The first `allow` closes it to everybody else,
and only `clear` opens it again: taking the last rule away leaves a list that lets nobody in.
"""

import pwd
from collections.abc import Sequence
from typing import Annotated

import typer

from blockd.access.rules import Rule
from blockd.api.client import Client
from blockd.api.types import AccessInfo
from blockd.cli.options import ControlOption, JsonOption, UsageError, complete_volume, connect
from blockd.cli.output import print_json, print_table

app = typer.Typer(
    no_args_is_help=True,
    short_help="Who may attach a volume, over NBD and over iSCSI.",
    help="Who may attach a volume, over NBD and over iSCSI. A volume without a list is open to all "
    "that reach the listeners. With one, a client needs an allow rule that fits, and no deny rule "
    "that does; to all others there is no such volume. Past versions have the list of their "
    "volume, clones get that of their source. Changes hold at once: who is attached and not let in "
    "any more is cut. The options of one rule have to fit together; give a rule for each client.",
)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The volume.", autocompletion=complete_volume)
]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="NETWORK", help="Clients on TCP from there, as 192.0.2.0/24."),
]
UserOption = Annotated[
    str | None,
    typer.Option("--uid", metavar="USER", help="Clients of a unix socket: a user's name or id."),
]
CertificateOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A name in the client's TLS certificate."),
]
FingerprintOption = Annotated[
    str | None,
    typer.Option(metavar="SHA256", help="That very certificate, by its fingerprint."),
]
PskOption = Annotated[
    str | None, typer.Option(metavar="IDENTITY", help="The client's TLS pre-shared key.")
]
InitiatorOption = Annotated[
    str | None,
    typer.Option(
        metavar="IQN",
        help="An iSCSI initiator, or the beginning of a name and '*'. Names prove nothing: better "
        "with --chap-user.",
    ),
]
ChapUserOption = Annotated[
    str | None,
    typer.Option(metavar="USER", help="Whom an iSCSI initiator proves to be by CHAP."),
]
EverybodyOption = Annotated[
    bool, typer.Option("--everybody", help="Everybody: for exceptions by `deny`.")
]


@app.command()
def show(name: NameArgument, control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show the rules of a volume."""
    with connect(control) as client:
        access = client.access(name)
    if as_json:
        print_json(access)
        return
    print(_summary(access))
    if access.rules:
        print_table(
            ("RULE", "ACTION", "WHO", "ACCESS"),
            (
                (str(number), "deny" if rule.deny else "allow", _who(rule), _may(rule))
                for number, rule in enumerate(access.rules, start=1)
            ),
            right=("RULE",),
        )


@app.command()
def allow(
    name: NameArgument,
    address: AddressOption = None,
    uid: UserOption = None,
    certificate: CertificateOption = None,
    fingerprint: FingerprintOption = None,
    psk: PskOption = None,
    initiator: InitiatorOption = None,
    chap_user: ChapUserOption = None,
    everybody: EverybodyOption = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="They may read, unless another rule fits.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let clients in whom all of the options fit. The first rule shuts everybody else out."""
    who = Rule(
        read_only=read_only,
        address=address,
        uid=_uid(uid),
        certificate=certificate,
        fingerprint=fingerprint,
        psk=psk,
        initiator=initiator,
        chap_user=chap_user,
    )
    if bool(who.conditions) == everybody:
        raise UsageError("access allow: say whom, by one of its options, or --everybody")
    with connect(control) as client:
        before = client.access(name)
        after = _changed(client, before, [*_rules(before), who])
    _report(after, "rule added", as_json)


@app.command()
def deny(
    name: NameArgument,
    address: AddressOption = None,
    uid: UserOption = None,
    certificate: CertificateOption = None,
    fingerprint: FingerprintOption = None,
    psk: PskOption = None,
    initiator: InitiatorOption = None,
    chap_user: ChapUserOption = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep clients out whom an allow rule lets in: exceptions from it."""
    whom = Rule(
        deny=True,
        address=address,
        uid=_uid(uid),
        certificate=certificate,
        fingerprint=fingerprint,
        psk=psk,
        initiator=initiator,
        chap_user=chap_user,
    )
    if not whom.conditions:
        raise UsageError("access deny: say whom, by one of its options")
    with connect(control) as client:
        before = client.access(name)
        if before.rules is None:
            raise UsageError(
                f"volume {name} has no access list, so all are let in: say first who may attach, "
                f"with `blockd volume access allow {name}` and an option, or --everybody"
            )
        after = _changed(client, before, [*_rules(before), whom])
    _report(after, "rule added", as_json)


@app.command()
def remove(
    name: NameArgument,
    rule: Annotated[
        int, typer.Argument(metavar="RULE", min=1, help="Its number, as `show` has it.")
    ],
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a rule away. Without any that allows, nobody is let in."""
    with connect(control) as client:
        before = client.access(name)
        rules = _rules(before)
        if rule > len(rules):
            raise UsageError(f"volume {name}: there is no rule {rule}; it has {len(rules)}")
        after = _changed(client, before, rules[: rule - 1] + rules[rule:])
    _report(after, "rule removed", as_json)


@app.command()
def clear(name: NameArgument, control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Take the list away: all that reach the listeners may attach again."""
    with connect(control) as client:
        after = client.set_access(name, None)
    _report(after, "list removed", as_json)


def _rules(access: AccessInfo) -> list[Rule]:
    if access.damaged:
        raise UsageError(
            f"volume {access.volume}: its access list is damaged, and nobody is let in; what was "
            f"in it is not known: `blockd volume access clear {access.volume}`, then allow"
        )
    return list(access.rules or ())


def _changed(client: Client, before: AccessInfo, rules: Sequence[Rule]) -> AccessInfo:
    return client.set_access(before.volume, rules, before.revision)


def _uid(user: str | None) -> int | None:
    if user is None:
        return None
    if user.isascii() and user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(f"--uid {user}: there is no user of that name here") from None


def _who(rule: Rule) -> str:
    words = [f"{name.replace('_', '-')} {value}" for name, value in rule.conditions.items()]
    return ", ".join(words) or "everybody"


def _may(rule: Rule) -> str:
    return "none" if rule.deny else "read-only" if rule.read_only else "read-write"


def _summary(access: AccessInfo) -> str:
    volume = f"volume {access.volume}"
    if access.damaged:
        return f"{volume}: the access list is damaged, nobody is let in; clear it, then allow"
    if access.rules is None:
        return f"{volume}: no access list; all that reach the listeners are let in"
    if all(rule.deny for rule in access.rules):
        return f"{volume}: no rule allows anybody; nobody is let in"
    return f"{volume}: {len(access.rules)} rule(s); all others are kept out"


def in_short(access: AccessInfo) -> str:
    """For `blockd volume show`."""
    if access.damaged:
        return "list damaged, nobody is let in"
    if access.rules is None:
        return "all that reach the listeners"
    return f"{len(access.rules)} rule(s), see: blockd volume access show {access.volume}"


def _report(access: AccessInfo, done: str, as_json: bool) -> None:
    if as_json:
        print_json(access)
        return
    cut = f"; cut: {', '.join(access.cut)}" if access.cut else ""
    print(f"{_summary(access)} ({done}{cut})")
