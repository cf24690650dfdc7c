"""What stands in README.md and docs/ holds: commands run, settings load, links lead somewhere."""

import shutil
from pathlib import Path

import pytest

from tests.clients import FindTool
from tests.docs.machine import Machine, console_steps, first_missing
from tests.docs.pages import (
    CHECKED,
    DATA,
    ROOT,
    Block,
    anchors,
    blocks,
    blocks_of,
    links,
    our_paths,
    pages,
)
from tests.mounts import find_mount_tools

PAGES = pages()
TOOLS = (
    *("nbdinfo", "nbdcopy", "nbdsh", "nbdfuse", "fusermount3", "nbdkit", "nbd-client"),
    *("qemu-img", "qemu-io", "qemu-nbd", "fio", "iscsi-ls", "iscsi-inq"),
    *("mkfs.ext4", "debugfs", "openssl", "psktool", "curl"),
)
"""Programs that the pages use, beside those of every system."""


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    assert [complaint for block in blocks(page) if (complaint := complaint_about(block))] == []


def complaint_about(block: Block) -> str | None:
    """What is wrong with the kind of a block, or with the comment in front of it."""
    if not block.kind:
        return f"{block}: say what it is, as ```sh or ```text"
    if block.kind not in CHECKED | DATA and not block.not_run:
        return f"{block}: {block.kind} is never run; say why: <!-- not run: ... -->"
    for path in our_paths(block.not_run):
        if not (ROOT / path).exists():
            return f"{block}: its comment names {path}, which is not there"
    return None


RUNNING = [page for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", RUNNING, ids=names(RUNNING))
def test_the_blocks_of_a_page_do_what_they_say(
    page: Path, blockd: Path, client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for tool in TOOLS:
        client_tool(tool)
    if any(block.runs and "mount " in block.text for block in blocks(page)):
        find_mount_tools(client_tool)
    folder = tmp_path_factory.mktemp("d")  # short enough for unix sockets
    with Machine(folder, blockd) as machine:
        for block in blocks(page):
            if block.runs:
                machine.run(block)
    shutil.rmtree(folder)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_pages_and_headings_that_are_there(page: Path) -> None:
    dead = []
    for link in links(page):
        path, _, anchor = link.target.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(str(link))
    assert dead == []


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    seen = {index}
    waiting = [index]
    while waiting:
        page = waiting.pop()
        for link in links(page):
            target = (page.parent / link.target.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in seen:
                seen.add(target)
                waiting.append(target)
    assert sorted(set(PAGES) - seen) == []


def parsed(text: str) -> list[Block]:
    return list(blocks_of(ROOT / "README.md", text))


def test_a_comment_before_a_block_belongs_to_it() -> None:
    comment = "<!-- not run: needs a kernel; tests/conftest.py -->"
    text = f"{comment}\n\n    modprobe nbd\n\nText.\n\n    ls\n"
    first, second = parsed(text)
    assert (first.not_run, first.runs) == ("needs a kernel; tests/conftest.py", False)
    assert (second.not_run, second.runs, second.line) == ("", True, 7)


@pytest.mark.parametrize(
    "text",
    [
        "```\nls\n```\n",
        "```powershell\nGet-Disk\n```\n",
        "<!-- not run: tests/no-such-test.py does -->\n```sh\nls\n```\n",
    ],
    ids=["no kind", "commands of another system", "a test that is not there"],
)
def test_a_block_that_nobody_checks_is_complained_about(text: str) -> None:
    (block,) = parsed(text)
    assert complaint_about(block) is not None


def test_console_blocks_are_commands_with_what_they_print() -> None:
    text = "$ blockd volume list\nNAME  SIZE\n...\n$ cat <<EOF\n> one\n> EOF\none\n"
    assert list(console_steps(text)) == [
        ("blockd volume list", ["NAME  SIZE", "..."]),
        ("cat <<EOF\none\nEOF", ["one"]),
    ]


def test_what_is_printed_is_compared_line_by_line_with_gaps() -> None:
    printed = "NAME   SIZE\ndemo   10 GiB\nvm1    1 GiB\n"
    assert first_missing(["NAME SIZE", "vm1 ... GiB"], printed) is None
    assert first_missing(["vm1 1 GiB", "demo 10 GiB"], printed) == "demo 10 GiB"


def test_a_block_that_does_not_do_what_it_says_fails(
    blockd: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("d")
    no_such, wrong_output, wrong_key = parsed(
        "    blockd volume show no-such-volume\n\n"
        "```console\n$ blockd volume list\nNAME ...\nno-such-volume ...\n```\n\n"
        "```toml\n[nbd]\nlisen = []\n```\n"
    )
    with Machine(folder, blockd) as machine:
        with pytest.raises(pytest.fail.Exception, match=r"README.md:1: exited with 4"):
            machine.run(no_such)
        with pytest.raises(pytest.fail.Exception, match=r"printed no line 'no-such-volume \.\.\.'"):
            machine.run(wrong_output)
        with pytest.raises(pytest.fail.Exception, match=r"exited with 2:(.|\n)*nbd\.listen"):
            machine.run(wrong_key)
    shutil.rmtree(folder)
