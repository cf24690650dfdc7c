"""What can go wrong with a version stream, beside what `volume.errors` has.

VolumeError
  InvalidStream  StreamInterrupted  StreamRefused
"""

from volume.errors import VolumeError


class InvalidStream(VolumeError):
    """A stream that is damaged, of an unknown version, or that no sender of ours writes. Nothing
    of it is visible; sound parts that came before stay, to go on from."""

    code = "invalid_stream"


class StreamInterrupted(VolumeError):
    """A stream ended before its end. `token` is for the sender to go on from there."""

    code = "stream_interrupted"

    def __init__(self, message: str, token: str) -> None:
        super().__init__(message)
        self.token = token


class StreamRefused(VolumeError):
    """A stream that is sound but does not fit what is here: its base, its volume, its position."""

    code = "stream_refused"
