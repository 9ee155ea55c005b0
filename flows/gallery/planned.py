"""What an unfinished run of a destination will dream: the cells of a grid that wait for their pictures."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dreamcore.errors import DreamgridError
from flows.destination.run_record import load_active_run
from flows.gallery.points import Point, read_point
from flows.s3.storage import Storage

__all__ = ["Planned", "read_planned"]


@dataclass(frozen=True)
class Planned:
    """The settings of an unfinished run, for every photograph of its sources."""

    run_id: str
    sources: tuple[str, ...]
    points: tuple[Point, ...]

    def covers(self, source_uri: str) -> bool:
        """Return whether the photograph is in one of the sources of the run."""
        return source_uri.startswith(self.sources)

    def has(self, values: Mapping[str, str]) -> bool:
        """Return whether the run has settings with these values, given as text by name."""
        return any(all(point.value(name) == value for name, value in values.items()) for point in self.points)

    def values(self, name: str) -> Iterator[str]:
        """Yield the values of one setting in the order of the job's grid, each once."""
        yield from dict.fromkeys(point.value(name) for point in self.points)


def read_planned(destination: str, storage: Storage) -> Planned | None:
    """Return what the unfinished run of a destination will dream; None if there is none that this version can read."""
    try:
        run = load_active_run(destination, storage)
    except DreamgridError:
        return None
    if run is None:
        return None
    points = [
        read_point(planned.settings_id, json.dumps(planned.settings.model_dump(mode="json")))
        for planned in run.settings
    ]
    return Planned(run.run_id, tuple(run.job.addresses), tuple(points))
