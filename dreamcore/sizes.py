"""Amounts of memory as people write them, default batch sizes, and the size limits of sources, guides and masks."""

import re

from dreamcore.errors import InvalidInput

__all__ = ["BATCH", "MAX_SOURCE_PIXELS", "REFERENCE_PIXELS", "default_batch_size", "parse_size"]

BATCH = 16
"""Largest default batch size on a CPU."""
CPU_BATCH_PIXELS = 600_000
"""Pixels of a default batch on a CPU, unless a single image already has more."""
GPU_BATCH = 256
"""Largest default batch size on a GPU: the CPU chooses the view of each sample in each step."""
GPU_BATCH_PIXELS = 16_000_000
"""Pixels of a default batch on a GPU, unless a single image already has more. So many pixels keep a GPU busy for longer
than a CPU needs to launch the kernels of a step; this is a calculation, not a measurement."""
MAX_SOURCE_PIXELS = 100_000_000
"""Largest number of pixels of a source, by default. Decoding needs at most about 1 GB. Pillow refuses over 179
million."""
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

    The images of a batch have at most `GPU_BATCH_PIXELS` together on a GPU, which a single image does not fill, and at
    most `CPU_BATCH_PIXELS` on a CPU: batches make small octaves up to three times faster, while large ones overflow
    the caches.

    Args:
        device: the device of the network, such as `cpu` or `cuda:0`.
        pixels: pixels of one image.

    Example:
        >>> [default_batch_size(device, 150_000) for device in ("cpu", "cuda:0")]
        [4, 106]
    """
    if device.startswith("cuda"):
        return max(1, min(GPU_BATCH, GPU_BATCH_PIXELS // pixels))
    return max(1, min(BATCH, CPU_BATCH_PIXELS // pixels))
