"""Quiet runs of targets: what they read is damaged, and warned of, thousands of times."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Nothing is logged; afterwards logging is as it was. Decorates as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
