"""How several processes share the shards of one run.

If a job is started several times, all its processes continue one run. Each process goes through the plan from a random
place, so that the processes are in different places. Just before a worker process dreams a shard, it writes a hint. It
removes the hint when the shard is finished:

    DEST/_runs/<run_id>/started/<run of the part>-<shard>    the token of the process that has begun the shard

A shard with the hint of another process is put off. After all other shards, a process dreams the shards that are still
unfinished, whatever their hints say, because the other process may have died. A hint therefore saves work, and no
result depends on it: if two processes dream one shard, the first dream and the first part win.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination.run_record import Run, unfinished
from flows.jobs.plan import Plan
from flows.jobs.work import Shard
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["begin_shard", "end_shard", "remaining_shards", "remove_hints"]

LOOK_AGAIN = 64
"""After this many shards, the parts are listed again, so that shards of other processes are left out."""
_random = secrets.SystemRandom()


def remaining_shards(
    run: Run,
    plan: Plan,
    storage: Storage,
    process: str | None,
    on_elsewhere: Callable[[Shard], None] = lambda _shard: None,
) -> Iterator[Shard]:
    """Yield the unfinished shards, each built when it is needed, because all of them may not fit into memory.

    Args:
        run: the run.
        plan: its frozen plan.
        storage: access to S3.
        process: the token of this process, for hints. If it is None, shards are dreamt whatever their hints say; their
            photographs then are in a random order, so that several processes share the dreams of one shard.
        on_elsewhere: called with each shard that another process has finished in the meantime.
    """
    is_unfinished = unfinished(run.destination, run.run_id, plan, storage)
    shards = filter(is_unfinished, _rotated(plan, _random.randrange(len(plan))))
    while chunk := list(islice(shards, LOOK_AGAIN)):
        for shard in chunk:
            if is_unfinished(shard):
                works = shard.works if process else tuple(_random.sample(shard.works, len(shard.works)))
                yield replace(shard, works=works, process=process)
            else:
                on_elsewhere(shard)
        if len(chunk) == LOOK_AGAIN:
            is_unfinished = unfinished(run.destination, run.run_id, plan, storage)


def _rotated(plan: Plan, first: int) -> Iterator[Shard]:
    """Yield the shards of a plan from the one at the place `first` on, then those before it."""
    return chain(islice(plan, first, None), islice(plan, first))


def begin_shard(run: Run, shard: Shard, storage: Storage) -> bool:
    """Write the hint that a process has begun a shard; return False if another process has done so before.

    A second attempt of the same process finds its own hint. It may begin the shard.
    """
    if shard.process is None:
        return True
    return storage.write_if_absent(_hint(run, shard), shard.process.encode(), "text/plain")


def end_shard(run: Run, shard: Shard, storage: Storage) -> None:
    """Remove the hint of a finished shard."""
    if shard.process is not None:
        _remove(_hint(run, shard), storage)


def remove_hints(destination: str, run_id: str, storage: Storage) -> None:
    """Remove the hints that killed processes have left."""
    for info in storage.list(layout.started_folder(destination, run_id)):
        _remove(info.uri, storage)


def _hint(run: Run, shard: Shard) -> str:
    """Return the address of a shard's hint. Two shards of a retry may have the same number, in parts of two runs."""
    return f"{layout.started_folder(run.destination, run.run_id)}{shard.run_of_part(run.run_id)}-{shard.number:06d}"


def _remove(uri: str, storage: Storage) -> None:
    with suppress(InvalidInput, Unavailable):  # a run that may not delete leaves its hints, which do no harm
        storage.delete(uri)
