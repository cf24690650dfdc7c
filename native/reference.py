"""Slow, obvious Python twins of the C kernels: the tests' oracle, never imported by the daemon."""

_CASTAGNOLI = 0x82F63B78  # reflected polynomial of CRC-32C


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def crc32c_pages(data: bytes) -> bytes:
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    return b"".join(crc32c(page).to_bytes(4, "little") for page in pages)


def is_zero(data: bytes) -> bool:
    return not any(data)
