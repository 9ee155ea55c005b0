"""Make the movies of one shard: a zoom for each photograph and each settings, one after the other.

Frames are objects until the row of the movie is written, so that another attempt goes on with the next frame.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from dreamcore.batch import Dream, DreamRequest, Limits, observe_photographs
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.keyframes import Moment
from dreamcore.zoom import Zoom
from flows.decoding import decoder
from flows.destination.manifest import Row
from flows.destination.run_record import Run
from flows.folders.folder import S3Folder
from flows.jobs.assets import load_guide_and_mask, network_for
from flows.jobs.noise_source import noise_photograph, noise_size
from flows.jobs.work import PlannedSettings, Shard, Source
from flows.machine.machine import choose_device, max_memory
from flows.movies.movie_frames import MovieFrames, read_frame
from flows.movies.zoom import dream_frames
from flows.movies.zoom_plan import DECODED, ZoomFrames, find_frames, frames_of
from flows.running.delivery import Delivery, failed_row, find_existing, planned_row
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["MovieDreamer"]

_NOT_MEASURED = {"octave_scores": None, "octaves_left_out": None}
"""Columns that describe a single ascent."""


class MovieDreamer:
    """Makes the movies of a shard.

    Args:
        run: the run, with `zoom` in its job.
        shard: the photographs and settings.
        storage: access to S3.
        decode: decodes one photograph, as `flows.decoding.decoder.decode` does.
    """

    def __init__(self, run: Run, shard: Shard, storage: Storage, decode: Callable[..., Photograph]) -> None:
        self.run, self.shard, self.storage, self.decode = run, shard, storage, decode
        self.delivery = Delivery(run.destination, storage)

    def rows(self, on_row: Callable[[Row], None]) -> list[Row]:
        """Return one row for each photograph and settings of the shard, after all movies were delivered."""
        rows = []
        for work in self.shard.works:
            for index in work.settings:
                rows.append(row := self.movie(work.source, self.run.settings[index]))
                on_row(row)
        return rows

    def movie(self, source: Source, planned: PlannedSettings) -> Row:
        """Make one movie, unless it exists, and return its row."""
        row = planned_row(self.run, self.shard.number, source, planned)
        uri = str(row.result_uri)
        if existing := find_existing([uri], self._list).get(uri):
            return self.delivery.deliver(replace(row, result_uri=existing), None, planned.settings.output)
        try:
            return self._make(row, source, planned)
        except ImageError as error:
            return failed_row(row, error)

    def _list(self, folder: str) -> list[str]:
        return sorted(info.uri for info in self.storage.list(folder))

    def _make(self, row: Row, source: Source, planned: PlannedSettings) -> Row:
        """Dream the frames that are missing, and write the movie.

        Raises:
            ImageError: the photograph cannot be read or dreamt.
            Unavailable: S3 failed. The finished frames are kept.
        """
        zoom = planned.settings.movie
        assert zoom is not None  # noqa: S101 - the settings of a job with `zoom` have one
        photograph, identity = self._photograph(source, planned, zoom)
        start = Moment(planned.settings.model_copy(update={"movie": None}), zoom.motion)
        folder = S3Folder(layout.frames_folder(self.run.destination, str(row.result_uri)), self.storage)
        frames = frames_of(start, zoom.options, zoom.moments)
        found = find_frames(frames, identity, photograph.pixels, zoom.options, folder)
        started = time.perf_counter()
        dream_frames(found, lambda _finished, _planned: None)
        dream = self._measured(found, photograph, planned)
        seconds = None if found.finished else round(time.perf_counter() - started, 4)  # of all frames, or of none
        movie = MovieFrames(folder, [frame.name for frame in found.frames], found.size, zoom.fps).encode()
        measured = {**asdict(dream.measurements), **_NOT_MEASURED, "seconds": seconds}
        poster = read_frame(folder, found.frames[0].name)
        return self.delivery.deliver_movie(replace(row, **measured), movie, dream.metadata() | measured, poster)

    def _photograph(self, source: Source, planned: PlannedSettings, zoom: Zoom) -> tuple[Photograph, str]:
        """Return the photograph, and its identity for the names of the frames."""
        if noise_size(source.uri):
            seed = planned.settings.seed
            return noise_photograph(source.uri, seed), f"{source.uri} {seed}"
        decoder.check_size(source.size)
        data = self.storage.read_version(source.uri, source.etag)
        return self.decode(data, max_pixels=DECODED * zoom.width**2), hashlib.sha256(data).hexdigest()

    def _measured(self, found: ZoomFrames, photograph: Photograph, planned: PlannedSettings) -> Dream:
        """Return the last frame as a dream of the photograph at the size of the movie, with the scores of both."""
        last = read_frame(found.folder, found.frames[-1].name)
        device = choose_device()
        network = network_for(planned.settings, device, self.run.job.labels)
        guide, _ = load_guide_and_mask(planned.settings)

        def request(pixels: NDArray[np.uint8]) -> DreamRequest:
            picture = Photograph(pixels, photograph.width, photograph.height)
            return DreamRequest(picture, planned.settings, guide)

        requests = [request(pixels) for pixels in (found.photograph, last)]
        limits = Limits(max_memory(device), self.run.job.stage_scores)
        before, after = observe_photographs(network, requests, planned.settings.layers, limits)
        return Dream(
            pixels=last,
            request=requests[0],
            weights=planned.weights,
            before=before,
            after=after,
            octave_scores=[],
            skipped_octaves=0,
            device=network.device_name,
            precision=network.precisions([planned.settings.layer_names])[0],
            batch=1,
            tile=None,
            seconds=0.0,
        )
