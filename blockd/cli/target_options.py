"""What the `blockd target` commands share: how targets are named, completed and listed."""

from collections.abc import Sequence
from typing import Annotated

import typer

from blockd.api.iscsi_types import SessionInfo
from blockd.cli.options import COMPLETION_TIMEOUT_S, connect
from blockd.cli.output import print_table
from blockd.iscsi_attach import PREFIX

KINDS = ("iqn.", "eui.", "naa.")


def full_name(text: str) -> str:
    """An iSCSI name; one of ours may be given without its prefix."""
    return text if text[:4].lower() in KINDS or not text else PREFIX + text


def short_name(name: str) -> str:
    return name.removeprefix(PREFIX)


def complete_target(context: typer.Context, incomplete: str) -> list[str]:
    """Names of targets for the shell, as short as they were begun."""
    try:
        with connect(context.params.get("control"), COMPLETION_TIMEOUT_S) as client:
            names = [target.name for target in client.targets(automatic=False)]
    except Exception:  # a completion that fails must not print
        return []
    if incomplete[:4].lower() not in KINDS:
        names = [short_name(name) for name in names]
    return [name for name in names if name.startswith(incomplete)]


NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The target.", autocompletion=complete_target)
]


def print_sessions(sessions: Sequence[SessionInfo]) -> None:
    columns = ("INITIATOR", "TARGET", "FROM", "USER", "ISID", "COMMANDS")
    print_table(
        columns,
        (
            (
                each.initiator,
                "(discovery)" if each.target is None else short_name(each.target),
                each.peer,
                each.user or "-",
                each.isid,
                str(each.commands),
            )
            for each in sessions
        ),
        right=columns[-1:],
    )
