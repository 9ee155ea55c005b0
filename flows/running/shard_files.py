"""The files of a shard: its photographs, which are read and decoded, and its dreams, which are encoded and written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from dreamcore.errors import ImageError
from dreamcore.fields import Output
from dreamcore.images import Photograph
from flows.decoding import decoder
from flows.destination.manifest import Row
from flows.destination.run_record import Run
from flows.jobs.noise_source import noise_photograph, noise_size
from flows.jobs.work import Work
from flows.planning.enlargements import Originals, large_photographs, load_originals
from flows.running.delivery import Delivery, Picture, find_existing
from flows.s3.storage import Storage

__all__ = ["Files", "Loaded", "ShardFiles"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A decoded photograph, or the reason why it cannot be dreamt."""

    work: Work
    existing: dict[str, str]
    """The dreams that an earlier attempt wrote: their real address by their planned address."""
    photographs: dict[int, Photograph]
    """The photograph by `max_pixels`."""
    error: ImageError | None = None
    originals: Originals = field(default_factory=lambda: Originals({}, {}))
    """The dreams to enlarge."""

    @property
    def size(self) -> int:
        """The number of pixels in memory."""
        images = [*self.photographs.values(), *self.originals.dreams.values()]
        return sum(image.pixels.size // 3 for image in images)


class Files(Protocol):
    """Access to the files of a shard. Several threads may call it.

    All methods raise:
        InvalidInput: another object is in the place of a dream, or access is refused.
        Unavailable: S3 failed.
    """

    def load(self, work: Work, /) -> Loaded:
        """Read and decode a photograph, unless all its dreams exist."""

    def deliver(self, row: Row, picture: Picture | None, output: Output, /) -> Row:
        """Write a dream if none exists, and return the row of the dream that exists then; see `Delivery.deliver`."""


class ShardFiles:
    """Reads and writes the files of a shard in the threads that call it; see `Files`.

    Args:
        run: the run that the shard belongs to.
        storage: access to S3.
        decode: decodes one photograph, as `flows.decoding.decoder.decode` does.
    """

    def __init__(self, run: Run, storage: Storage, decode: Callable[..., Photograph] = decoder.decode) -> None:
        self.run, self.storage, self.decode = run, storage, decode
        self.delivery = Delivery(run.destination, storage)
        # All dreams from one noise are in one folder, and each seed looks for its own.
        self.list_folder = lru_cache(maxsize=1)(lambda folder: sorted(info.uri for info in storage.list(folder)))

    def load(self, work: Work) -> Loaded:
        """Read and decode a photograph, unless all its dreams exist."""
        results = {self.run.result_uri(work.source, self.run.settings[index]) for index in work.settings}
        existing = find_existing(results, self.list_folder)
        if existing.keys() == results:
            return Loaded(work, existing, {})
        try:
            photographs = self._read(work)
            if not self.run.job.enlarge:
                return Loaded(work, existing, photographs)
            originals = load_originals((self.run.settings[index] for index in work.settings), self.storage)
            return Loaded(work, existing, large_photographs(photographs), originals=originals)
        except ImageError as error:
            return Loaded(work, existing, {}, error)

    def deliver(self, row: Row, picture: Picture | None, output: Output) -> Row:
        """Write a dream if none exists, and return the row of the dream that exists then."""
        return self.delivery.deliver(row, picture, output)

    def _read(self, work: Work) -> dict[int, Photograph]:
        """Return the picture of a work by `max_pixels`."""
        settings = [self.run.settings[index].settings for index in work.settings]
        sizes = {each.max_pixels for each in settings}
        if noise_size(work.source.uri):
            return dict.fromkeys(sizes, noise_photograph(work.source.uri, settings[0].seed))
        decoder.check_size(work.source.size)
        data = self.storage.read_version(work.source.uri, work.source.etag)
        return {size: self.decode(data, max_pixels=size) for size in sizes}
