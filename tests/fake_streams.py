"""Streams for tests.fake_store: real ones, between stores on simulated disks."""

from collections.abc import Iterator

from tests.unit.volume.stream_rig import Site
from volume.errors import NoSuchVersion
from volume.layout import ChunkId
from volume.model import ReceiveInfo
from volume.receive import Receiver
from volume.stream import send
from volume.stream_wire import ResumeToken


class FakeStreams:
    """The part of blockd.api.node.Store that moves versions; all refs are in `versions`."""

    def __init__(self) -> None:
        self.site = Site()
        self.versions: dict[str, ChunkId] = {}

    def send(
        self, source: str, base: str | None = None, resume: str | None = None
    ) -> Iterator[bytes]:
        token = None if resume is None else ResumeToken.decode(resume)
        named = None if base is None else self._named(base)
        base_id = token.base if named is None and token is not None else named
        rig = self.site.rig
        return send(rig.store, rig.manifests, self._named(source), base_id, token)

    def receive(self, name: str) -> Receiver:
        return self.site.receiver(name)

    def receives(self) -> list[ReceiveInfo]:
        return self.site.receives.infos()

    def abort_receive(self, name: str) -> None:
        self.site.receives.abort(name)

    def _named(self, ref: str) -> ChunkId:
        volume, _, version = ref.partition("@")
        if ref not in self.versions:
            raise NoSuchVersion(volume, version)
        return self.versions[ref]
