"""The mark of a compaction, `_runs/compaction.json`. It excludes runs that try failed dreams again.

Both a compaction and a retry rewrite parts of finished runs. Each writes its own mark and then looks for the mark of
the other, so that at least one of them sees the other and gives up. `run_record.check_no_compaction` is what a retry
does.
"""

import json
import secrets

from dreamcore.errors import InvalidInput
from flows.destination import run_record
from flows.destination.pruned import check_no_prune
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["claim", "release"]


def claim(destination: str, storage: Storage) -> tuple[bytes, bool]:
    """Write the mark of a compaction, or take over the mark of another one, which was stopped or still works.

    The mark says `checking` until no retry was found, and then `working`. A compaction that takes over a mark with
    `working` need not look for a retry: since that mark was written, every retry has seen it and given up.

    Returns:
        The mark, and whether the mark of a working compaction was taken over.

    Raises:
        InvalidInput: failed dreams are tried again in the destination, or a prune is unfinished. Nothing was changed.
    """
    uri, identity = layout.compaction_uri(destination), secrets.token_hex(8)
    checking, working = (json.dumps({"id": identity, "state": state}).encode() for state in ("checking", "working"))
    while True:
        other = storage.read(uri)
        resumes = other is not None and json.loads(other)["state"] == "working"
        if not _swap(uri, other, working if resumes else checking, storage):
            continue
        if resumes:
            return working, True
        try:
            run_record.read_mark_of_no_retry(destination, storage, "compact")
            check_no_prune(destination, storage)
        except InvalidInput:
            storage.delete_if_unchanged(uri, checking)
            raise
        if _swap(uri, checking, working, storage):
            return working, False


def release(destination: str, mark: bytes, storage: Storage) -> None:
    """Remove the mark of a compaction that is finished, unless another compaction has taken it over."""
    storage.delete_if_unchanged(layout.compaction_uri(destination), mark)


def _swap(uri: str, old: bytes | None, new: bytes, storage: Storage) -> bool:
    """Replace the mark `old` by `new`; return False if there is another mark now."""
    if old is None:
        return storage.write_if_absent(uri, new, run_record.JSON)
    found = storage.find(uri)
    if found is None or storage.read(uri) != old:
        return False
    return storage.write_if_unchanged(uri, new, run_record.JSON, found.etag)
