"""Memory that nobody has written to yet, and memory that was freed and goes back to the system.

A round of destaging, and clients under load, leave heaps in glibc's arenas of which little is in
use; glibc keeps what is not at their very end. `give_back` is for moments of rest: it takes the
locks of all arenas in turn, a few milliseconds for some hundred MiB.
"""

import ctypes
import mmap


def zeros(length: int) -> mmap.mmap:
    """A buffer of `length` zeros, at least one, that takes memory page by page as it is written to;
    a bytearray has all of it filled at once."""
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def give_back() -> None:
    """Return freed pages to the system. Does nothing where the C library has no `malloc_trim`.
    Releases the GIL."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
