"""Sizes as people write and read them: 4096, 512MiB, 10G, 1.5T, 1EiB.

Units are binary, always: K, M, G, T, P and E (also Ki and KiB, in any case) are powers of 1024, as
in qemu-img, nbdkit and fdisk. "10GB" is refused: it is 10^10 bytes to a disk vendor and 10 * 2^30
to the tools above, and a volume that is 7 % smaller than meant is found out late.
"""

import re

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
MAX_TEXT = 40  # characters; the longest sensible size, 1 EiB in bytes, takes 19

_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*(?:([KMGTPE])(?:iB?)?|B)?", re.ASCII | re.IGNORECASE)
_DECIMAL = re.compile(r"([\d.]+)\s*([KMGTPE])B", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes that `text` means. Raises ValueError with a message that names `text` and a way out."""
    text = text.strip()
    if len(text) > MAX_TEXT:
        raise ValueError(f"size {text[:MAX_TEXT]!r}...: longer than {MAX_TEXT} characters")
    if decimal := _DECIMAL.fullmatch(text):
        number, unit = decimal.groups()
        raise ValueError(
            f"size {text!r}: {unit}B is ambiguous; write {number}{unit.upper()}iB (1024-based)"
        )
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"size {text!r}: not a size; write bytes or a unit, as 4096, 512M, 10GiB")
    whole, fraction, letter = match.groups()
    unit_bytes = 1 << (10 * " KMGTPE".index(letter.upper())) if letter else 1
    size = int(whole) * unit_bytes
    if fraction:
        part, rest = divmod(int(fraction) * unit_bytes, 10 ** len(fraction))
        if rest:
            raise ValueError(f"size {text!r}: not a whole number of bytes; use a smaller unit")
        size += part
    return size


def format_size(size: int) -> str:
    """`size` bytes for people, to three digits: "10 GiB", "1.46 TiB", "512 B"."""
    assert size >= 0
    for power in range(len(UNITS)):
        value = size / (1 << (10 * power))
        # 1023.6 of a unit would print as 1024: it is 1 of the next one.
        if value < 1023.5 or power == len(UNITS) - 1:
            break
    digits = 0 if value == int(value) or value >= 100 else (1 if value >= 10 else 2)
    number = f"{value:.{digits}f}"
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {UNITS[power]}"


def exact_size(size: int) -> str:
    """`size` bytes so that parse_size gives it back: "10GiB", "1536MiB", "4097B"."""
    assert size >= 0
    power = 0
    while size and size % 1024 == 0 and power < len(UNITS) - 1:
        size //= 1024
        power += 1
    return f"{size}{UNITS[power]}"
