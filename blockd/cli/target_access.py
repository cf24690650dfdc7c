"""`blockd target acl ...` and `blockd target chap ...`: who may log in to a target.

Secrets are read from a file, from standard input, or from the terminal without showing them. There
is no option that takes one: what is on a command line, `ps` shows to everybody.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from blockd.api.iscsi_types import TargetInfo
from blockd.cli.options import ControlOption, JsonOption, UsageError, connect
from blockd.cli.output import print_json
from blockd.cli.target_options import NameArgument, full_name, short_name
from blockd.secrets import read_secret

MAX_SECRET_BYTES = 4096  # of a file; far above any secret, stops on what is none

acl = typer.Typer(
    no_args_is_help=True,
    help="Initiators and networks that may log in. An empty list lets in all; both lists have to "
    "be fulfilled, and CHAP as well. Who is logged in stays.",
)
chap = typer.Typer(
    no_args_is_help=True,
    help="CHAP: initiators prove who they are, and targets too, to who asks. Secrets have 12 to "
    "255 bytes.",
)

EntryArgument = Annotated[
    str,
    typer.Argument(
        metavar="ENTRY", help="An initiator's name, its beginning and '*', or a network."
    ),
]


@acl.command("add")
def add_entry(
    name: NameArgument,
    entry: EntryArgument,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an initiator, or a network, log in."""
    with connect(control) as client:
        target = client.add_acl(full_name(name), entry)
    _report(target, f"{entry} may log in", as_json)


@acl.command("remove")
def remove_entry(
    name: NameArgument,
    entry: EntryArgument,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take an entry off the list."""
    with connect(control) as client:
        target = client.remove_acl(full_name(name), entry)
    left = target.initiators or target.addresses
    _report(target, f"{entry} removed" + ("" if left else "; the list is empty: all may"), as_json)


@acl.command("list")
def list_entries(
    name: NameArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """List who may log in."""
    with connect(control) as client:
        target = client.target(full_name(name))
    if as_json:
        print_json({"initiators": target.initiators, "addresses": target.addresses})
        return
    for each in (*target.initiators, *target.addresses):
        print(each)


@chap.command("set")
def set_secret(
    name: NameArgument,
    user: Annotated[str, typer.Option(metavar="USER", help="The CHAP name.")],
    secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read the secret here (mode 0600); one newline at its end is none."
        ),
    ] = None,
    secret_stdin: Annotated[
        bool, typer.Option("--secret-stdin", help="Read it from standard input.")
    ] = False,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="What the target proves itself by.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the secret of a user. Asks for it on a terminal."""
    secret = _secret(user, secret_file, secret_stdin)
    with connect(control) as client:
        target = client.set_chap(full_name(name), user, secret, mutual=mutual)
    who = "it proves itself as" if mutual else "initiators prove themselves as"
    _report(target, f"{who} {user}", as_json)


@chap.command("clear")
def clear_secret(
    name: NameArgument,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Only this one. [all]")] = None,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="Only what the target proves itself by.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget secrets."""
    if mutual and user is not None:
        raise UsageError("chap clear: give --user or --mutual, not both")
    with connect(control) as client:
        target = client.clear_chap(full_name(name), user, mutual=mutual)
    left = ", ".join(target.chap_users)
    _report(target, f"CHAP users: {left or 'none, initiators log in without'}", as_json)


def _secret(user: str, file: Path | None, from_stdin: bool) -> str:
    if file is not None and from_stdin:
        raise UsageError("chap set: give --secret-file or --secret-stdin, not both")
    if file is not None:
        return _text(read_secret(file, "secret file", MAX_SECRET_BYTES), str(file))
    if from_stdin:
        return _text(sys.stdin.buffer.read(MAX_SECRET_BYTES + 1), "standard input")
    if not sys.stdin.isatty():
        raise UsageError("chap set: give the secret with --secret-file FILE or --secret-stdin")
    secret: str = typer.prompt(f"Secret of {user}", hide_input=True, confirmation_prompt=True)
    return secret


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_SECRET_BYTES:
        raise UsageError(f"{where}: longer than {MAX_SECRET_BYTES} bytes; is it a secret?")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8 text, as a secret has to be") from None
    return text.removesuffix("\n").removesuffix("\r")


def _report(target: TargetInfo, text: str, as_json: bool) -> None:
    if as_json:
        print_json(target)
    else:
        print(f"target {short_name(target.name)}: {text}")
