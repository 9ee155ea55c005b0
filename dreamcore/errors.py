"""The errors of Dreamgrid, all in one small tree.

DreamgridError
├── InvalidInput    a job, a setting, a file or an access that is wrong: nothing is started (exit code 2);
│                   found after a run has begun, it stops the run as `Unavailable` does
├── ImageError      trouble with one photograph: a row in the manifest with a kind, never a failed run
└── Unavailable     trouble of the world (storage away, credentials expired): retried, then the run
                    stops so that it can be resumed (exit code 3)
"""

from typing import Literal

ErrorKind = Literal[
    "not_an_image",  # the bytes are no picture at all
    "unsupported",  # a picture, but of a format or kind that is not dreamt
    "damaged",  # truncated or corrupt
    "undecodable",  # took longer than the limit for decoding, or broke the decoder
    "too_large",  # more pixels or bytes than the limit for decoding
    "too_small",  # smaller than the network can see
    "source_missing",  # deleted between the scan and the read
    "source_changed",  # replaced between the scan and the read
    "source_unreadable",  # there, and not given out: archived, or encrypted with a key that is not to be had
    "non_finite",  # the ascent gave NaN or infinity
    "out_of_memory",  # did not fit, even alone
]


class DreamgridError(Exception):
    """Every error that Dreamgrid raises on purpose; its message names the thing and the remedy."""


class InvalidInput(DreamgridError):
    """A job, a setting, a file or an access is wrong; nothing was started."""


class ImageError(DreamgridError):
    """One photograph cannot be dreamt; ``kind`` says why in one word of a closed list."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind

    def __reduce__(self) -> tuple[type["ImageError"], tuple[ErrorKind, str]]:
        return ImageError, (self.kind, str(self))


class Unavailable(DreamgridError):
    """The world is in trouble, not the input: wait, then run again."""
