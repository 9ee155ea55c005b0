"""Amounts of memory as people write them, default batch sizes, and the size limit of guides and masks."""

import re

from dreamcore.errors import InvalidInput

__all__ = ["BATCH", "REFERENCE_PIXELS", "default_batch_size", "parse_size"]

BATCH = 16
"""Largest default batch size."""
CPU_BATCH_PIXELS = 600_000
"""Pixels of a default batch on a CPU, unless a single image already has more."""
REFERENCE_PIXELS = 4_000_000
"""Guides and masks with more pixels are shrunk to this many."""


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `2GiB`, `500 MB` or `1000000`.

    Example:
        >>> parse_size("2GiB")
        2147483648

    Raises:
        InvalidInput: `text` is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    power = " KMGT".index((match[2] or " ").upper()) if match else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if not size:
        raise InvalidInput(f"{text!r} is not an amount of memory: write for example 2GiB or 500MB")
    return size


def default_batch_size(device: str, pixels: int) -> int:
    """Return how many images of one size are dreamt together, if memory allows.

    The batch size is `BATCH` on a GPU, which a single image does not fill. On a CPU it is as many images as have
    `CPU_BATCH_PIXELS` together: batches make small octaves up to three times faster, while large ones overflow the
    caches.

    Args:
        device: the device of the network, such as `cpu` or `cuda:0`.
        pixels: pixels of one image.
    """
    return BATCH if device.startswith("cuda") else max(1, min(BATCH, CPU_BATCH_PIXELS // pixels))
