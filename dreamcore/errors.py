"""The errors of Dreamgrid.

DreamgridError
├── InvalidInput    a job, a setting, a file or a permission is wrong. Nothing was started (exit code 2).
│                   If it is found after a run has begun, it stops the run as `Unavailable` does.
├── ImageError      one photograph cannot be dreamt: a manifest row with a kind of error, never a failed run.
└── Unavailable     an infrastructure failure, such as unreachable storage or expired credentials. It is retried;
                    then the run stops and can be resumed (exit code 3).
"""

from typing import Literal

__all__ = ["DreamgridError", "ErrorKind", "ImageError", "InvalidInput", "Unavailable"]

ErrorKind = Literal[
    "not_an_image",  # the bytes are not an image
    "unsupported",  # an image, but its format or variant is not supported
    "damaged",  # truncated or corrupt
    "undecodable",  # decoding exceeded its time limit or crashed the decoder
    "too_large",  # more pixels or bytes than the limit for decoding
    "too_small",  # smaller than the network accepts
    "source_missing",  # deleted between the scan and the read
    "source_changed",  # replaced between the scan and the read
    "source_unreadable",  # exists but cannot be read: archived, or encrypted with an unavailable key
    "non_finite",  # the ascent diverged to NaN or infinity
    "out_of_memory",  # did not fit into memory, even in a batch of one
]
"""Why one photograph failed: the column `error_kind` of the manifest."""


class DreamgridError(Exception):
    """Base class of all errors that Dreamgrid raises. The message says what failed and what to do."""


class InvalidInput(DreamgridError):
    """A job, a setting, a file or a permission is wrong. Nothing was started."""


class ImageError(DreamgridError):
    """One photograph cannot be dreamt.

    Args:
        kind: why, one of `ErrorKind`.
        message: what happened and what to do.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind

    def __reduce__(self) -> tuple[type["ImageError"], tuple[ErrorKind, str]]:
        return ImageError, (self.kind, str(self))


class Unavailable(DreamgridError):
    """An infrastructure failure; the input is valid. Wait, then run again."""
