"""Writes the seeds of all fuzz targets into their folders: `python -m tests.fuzz.seeds`."""

from collections.abc import Callable

from tests.fuzz import (
    api_corpus,
    config_corpus,
    iscsi_corpus,
    journal_corpus,
    loop_corpus,
    manifest_corpus,
    meta_corpus,
    native_corpus,
    nbd_corpus,
    pack_corpus,
    peer_corpus,
    records_corpus,
    scsi_corpus,
    shard_corpus,
    stream_corpus,
)
from tests.fuzz.targets import CORPORA

GENERATORS: dict[str, Callable[[], dict[str, bytes]]] = {
    "nbd": nbd_corpus.inputs,
    "iscsi-pdu": iscsi_corpus.pdus,
    "iscsi-text": iscsi_corpus.texts,
    "scsi": scsi_corpus.inputs,
    "stream": stream_corpus.inputs,
    "pack": pack_corpus.inputs,
    "records": records_corpus.inputs,
    "shard": shard_corpus.inputs,
    "journal": journal_corpus.inputs,
    "manifest": manifest_corpus.inputs,
    "meta": meta_corpus.inputs,
    "api": api_corpus.inputs,
    "peer": peer_corpus.inputs,
    "config": config_corpus.inputs,
    "c-record": native_corpus.records,
    "c-replay": native_corpus.segments,
    "c-journal": native_corpus.journals,
    "c-extent-map": native_corpus.extent_maps,
    "c-codec": native_corpus.codecs,
    "c-nbd": loop_corpus.nbd,
    "c-iscsi": loop_corpus.iscsi,
    "c-packed": native_corpus.packed,
}
"""Target -> what makes its seeds: name -> input."""


def write_all() -> None:
    for target, generate in GENERATORS.items():
        folder = CORPORA / target
        folder.mkdir(parents=True, exist_ok=True)
        inputs = generate()
        for path in folder.iterdir():
            if path.name not in inputs:
                path.unlink()
        for name, data in inputs.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    write_all()
