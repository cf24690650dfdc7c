"""The fuzz targets: one for each parser of bytes from a socket or a disk.

A target is a function of bytes that returns nothing and raises when its invariant does not hold;
what the invariant is, and how an input is built, says the head of its module. Targets in C are
programs with the entry point of libFuzzer (native/fuzz).

An input is kept as a file in one of two folders: `corpus/NAME` holds the seeds, which a generator
writes and which show what there is; `found/NAME` holds inputs that once broke the invariant, named
for the bug. Both are run by plain pytest (Python) and ctest (C), and both are where coverage-guided
runs (`scripts/fuzz`) start from.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

HERE = Path(__file__).parent
CORPORA = HERE / "corpus"
FOUND = HERE / "found"

Run = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A target and what one input of it may cost."""

    name: str
    parses: str
    """For people: whose bytes these are."""
    function: str = ""
    """module:function of a Python target; empty for a program in C."""
    max_length: int = 4096
    """Bytes of an input that a fuzzer makes; seeds may be longer."""
    limit_s: int = 10
    """Wall clock for one input: far above what any takes, far below a hang."""

    @property
    def in_c(self) -> bool:
        return not self.function

    @property
    def program(self) -> str:
        """Of a C target: its name in native/fuzz and in the build."""
        return "fuzz_" + self.name.removeprefix("c-").replace("-", "_")

    @property
    def folders(self) -> list[Path]:
        """Where its kept inputs are; those that exist."""
        return [root / self.name for root in (CORPORA, FOUND) if (root / self.name).is_dir()]

    def inputs(self) -> list[Path]:
        """The files in these folders, in order."""
        return [path for folder in self.folders for path in sorted(folder.iterdir())]

    def load(self) -> Run:
        """The function of a Python target."""
        module, _, name = self.function.partition(":")
        return cast(Run, getattr(importlib.import_module(module), name))


def _python(name: str, parses: str, *, max_length: int = 4096, limit_s: int = 20) -> Target:
    module = name.replace("-", "_") + "_target"
    return Target(name, parses, f"tests.fuzz.{module}:{module}", max_length, limit_s)


TARGETS = (
    _python("nbd", "NBD clients: handshake and transmission"),
    _python("iscsi-pdu", "iSCSI initiators: PDUs of a whole connection"),
    _python("iscsi-text", "iSCSI initiators: login keys, CHAP", max_length=2048),
    _python("scsi", "SCSI commands and their parameter lists"),
    _python("stream", "streams of versions that are received", max_length=16384),
    _python("pack", "packs: entries, footers, what crashes leave", max_length=8192),
    _python("records", "rows of a cluster's MetaStore: device map, volumes, nodes"),
    _python("shard", "shards of stripes: header, page table, payload", max_length=8192),
    _python("journal", "journal: its folder, POINT records, what is read again", max_length=8192),
    _python("manifest", "manifest nodes and commits, trees of them", max_length=8192),
    _python("meta", "rows of meta/ and index/: history, volumes, targets, reservations"),
    _python("api", "the control API: requests over its socket", limit_s=30),
    _python("peer", "messages of other nodes, whole sessions of them", max_length=8192),
    _python("config", "configuration, sizes, addresses, files of secrets", max_length=2048),
    Target("c-record", "journal: one record, one segment header", max_length=256),
    Target("c-replay", "journal: the records of a segment"),
    Target("c-journal", "journal: what crashes leave of it, and the hot map"),
    Target("c-extent-map", "hot map: sequences of operations", max_length=3072),
    Target("c-codec", "packs: stored bytes of chunks, each codec", max_length=8192),
    Target("c-nbd", "the request loop: NBD requests in transmission"),
    Target("c-iscsi", "the request loop: iSCSI PDUs in full feature phase"),
    Target("c-packed", "packs: reads of parts of stored chunks", max_length=8192),
)


def named(name: str) -> Target:
    """KeyError for a name that no target has."""
    return {target.name: target for target in TARGETS}[name]
