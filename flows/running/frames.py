"""The frames of movies that are not finished: objects from which a stopped movie goes on.

    DEST/frames/<source key>/<result_id>/000000-<identity>.png

They are deleted when the row of the movie is in the manifest, and once more at the end of the run, because a process
may be killed in between.
"""

import logging
from collections.abc import Iterable

from dreamcore.errors import InvalidInput
from flows.destination import run_record
from flows.destination.run_record import Run
from flows.jobs.work import Shard
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["remove_frames", "remove_remaining_frames"]

_logger = logging.getLogger(__name__)


def remove_frames(run: Run, shard: Shard, storage: Storage) -> None:
    """Delete the frames of the movies of a shard whose rows are written.

    Args:
        run: the run with the settings of the shard.
        shard: the shard.
        storage: access to S3.
    """
    results = [run.result_uri(work.source, run.settings[index]) for work in shard.works for index in work.settings]
    movies = filter(layout.is_movie, results)
    _remove((info.uri for uri in movies for info in storage.list(layout.frames_folder(run.destination, uri))), storage)


def remove_remaining_frames(run: Run, storage: Storage) -> None:
    """Delete the frames that killed or slow processes of a run have left."""
    if not run.job.zoom and not run.job.retry_failed:
        return
    found = [info.uri for info in storage.list(layout.frames_folder(run.destination))]
    if found:
        planned = set(run_record.planned_results(run, storage))
        _remove((uri for uri in found if f"{uri.rpartition('/')[0]}/" in planned), storage)


def _remove(uris: Iterable[str], storage: Storage) -> None:
    """Delete objects. Credentials that were made for an earlier version may not allow this. Then the frames stay."""
    try:
        storage.delete_many(uris)
    except InvalidInput as error:
        _logger.warning("frames of a finished movie are left: %s", error)
