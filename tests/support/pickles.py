"""Pickles that would run code if something loaded them."""

import os


class Mischief:
    """What a pickle may hold besides tensors: a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["MISCHIEF"],)
