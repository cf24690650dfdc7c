"""Which errors of the disk end a store, and which pass: native/src/disk_error.h has the table."""

from native import error_seals


class SyncFailed(OSError):
    """A sync failed, or something of which a sync is a part. Whatever the errno: what was not on
    the disk yet may be gone, and the next sync would not say so."""


def seals(error: OSError) -> bool:
    """Whether the disk cannot be trusted any more after `error`. Else nothing has come of what was
    tried, and it can be tried again: there is no space, or the kernel refused."""
    return isinstance(error, SyncFailed) or error_seals(error.errno or 0)
