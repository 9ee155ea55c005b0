"""Runs whose dreams are zooms: one movie for each photograph and settings, resumed at its frame, on the real store."""

import io
import json
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.settings import DreamSettings
from flows.contact_sheets.sheets import draw_sheets
from flows.decoding.decoder import decode
from flows.destination import manifest, run_record
from flows.destination.movie_metadata import read_movie_metadata, without_metadata
from flows.destination.selection import select
from flows.gallery.export import export
from flows.gallery.export_target import FolderTarget
from flows.gallery.records import Filters
from flows.gallery.security import Access
from flows.gallery.server import create_app
from flows.gallery.share import ChosenDream, stream_share_pack
from flows.gallery.site import slug_of
from flows.jobs.cost import CORE, estimate_seconds
from flows.jobs.job import DreamJob, explain_validation
from flows.jobs.plan import Sources, make_plan
from flows.jobs.work import Source
from flows.local.stack import Stack
from flows.planning.estimate import estimate
from flows.planning.scan import plan_settings, scan
from flows.results.prune import preview, prune
from flows.results.redream import redream
from flows.results.verify import verify
from flows.running import protocol
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.collections import Collection, executor
from tests.support.gallery_pages import served
from tests.support.shards import put_photograph

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ZOOM = {"seconds": 1, "fps": 5, "width": 56, "zoom": 1.5}
GRID = {"layers": ["blocks.0"], "octaves": [1]}
ADDRESSES = {"source": "s3://photos/", "destination": "s3://dreams/"}


@pytest.fixture
def collection(storage: Storage, source: str, destination: str) -> Collection:
    """One photograph of 56 x 40 pixels."""
    put_photograph(storage, f"{source}cat.png")
    return Collection(storage, source, destination)


def movie_job(collection: Collection, zoom: dict[str, Any] = ZOOM, **fields: Any) -> DreamJob:
    return collection.job(**{"grid": GRID, "zoom": zoom, **fields})


def frames_left(collection: Collection) -> list[str]:
    folder = layout.frames_folder(collection.destination)
    return [info.uri.removeprefix(folder) for info in collection.storage.list(folder)]


def frames_of(movie: bytes) -> list[Any]:
    with av.open(io.BytesIO(movie), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


class FailingStore(Storage):
    """The real store, until it has written a number of frames. It counts them."""

    limit, frames = 10**6, 0

    def write(self, uri: str, data: bytes, content_type: str) -> None:
        if "/frames/" in uri:
            if self.frames == self.limit:
                raise Unavailable("the store is gone")
            self.frames += 1
        super().write(uri, data, content_type)


def test_a_job_makes_movies_that_go_on_at_their_frame(collection: Collection, stack: Stack) -> None:
    storage, job = collection.storage, movie_job(collection)
    settings = plan_settings(job)
    failing = FailingStore(environment=stack.environment())
    failing.limit = 3
    with pytest.raises(Unavailable, match="the store is gone"):
        collection.run_job(job, executor(failing))
    assert len(frames_left(collection)) == 3
    found = verify(storage, collection.destination, lambda *_: None)
    assert (found.problems, bool(found.unfinished)) == ([], True), "frames of an unfinished run are no orphans"

    failing.limit = 5
    report = collection.run_job(job, executor(failing)).report
    assert (report.planned, report.done) == (1, 1)
    assert failing.frames == 5, "the run goes on with the fourth frame"
    assert frames_left(collection) == []

    (row,) = manifest.read(storage, collection.destination).to_pylist()
    assert row["result_uri"].endswith(f"images/cat.png/blocks.0-1x1-{row['result_id']}.mp4")
    assert (row["width"], row["height"], row["source_width"], row["seconds"]) == (56, 40, 56, None)
    assert row["score_after"] > row["score_before"]
    assert (row["octave_scores"], row["settings_id"]) == (None, settings[0].settings_id)
    movie = storage.read(row["result_uri"]) or b""
    frames = frames_of(movie)
    assert [frame.shape for frame in frames] == [(40, 56, 3)] * 5
    assert len({frame.tobytes() for frame in frames}) == 5
    inside = read_movie_metadata(movie) or {}
    assert inside["settings"] == json.loads(row["settings"])
    assert (inside["source_uri"], inside["score_after"]) == (row["source_uri"], row["score_after"])
    with Image.open(
        io.BytesIO(storage.read(layout.thumb_uri(collection.destination, row["result_uri"])) or b"")
    ) as image:
        poster = np.asarray(image.convert("RGB")).astype(int)
    assert poster.shape == (40, 56, 3)
    assert np.abs(poster - frames[0]).mean() < 12 < np.abs(poster - frames[-1]).mean()

    assert not verify(storage, collection.destination, lambda *_: None).problems
    assert collection.run_job(job, executor(storage)).report.why_nothing == "every photograph has its dreams"
    (sheet,) = draw_sheets(collection.destination, storage, [(row["source_uri"], row["source_etag"])], pytest.fail)
    with Image.open(io.BytesIO(sheet.jpeg)) as image:
        cells = np.asarray(image.convert("RGB")).astype(int)
    assert cells[:, image.width // 2 :].std() > 20, "the poster is on the sheet"
    with pytest.raises(InvalidInput, match=r"is a movie: this command takes single dreams"):
        redream(row["result_uri"], Path("again.png"), None, lambda *_: None)
    enlarge = DreamJob.model_validate(
        {"source": job.source, "destination": job.destination, "enlarge": {"dreams": [row["result_id"]]}}
    )
    with pytest.raises(InvalidInput, match=f"enlarge: {row['result_id']} is a movie, which cannot be enlarged"):
        plan_settings(enlarge)


def test_a_movie_of_noise_and_one_of_each_grid_point(storage: Storage, destination: str, tmp_path: Path) -> None:
    noise = Collection(storage, "noise:64x48", destination)
    zoom = {**ZOOM, "seconds": 0.4, "loop": True, "keyframes": [{"at": 0.2, "rotate": -9}]}
    job = movie_job(noise, zoom, grid={**GRID, "seed": [0, 7]})
    assert noise.run_job(job, executor(storage)).report.done == 2
    one, other = manifest.read(storage, destination).to_pylist()
    assert (one["seed"], other["seed"], one["width"], one["seconds"] > 0) == (0, 7, 56, True)
    first, second = (frames_of(storage.read(row["result_uri"]) or b"") for row in (one, other))
    assert len(first) == len(second) == 2
    assert not np.array_equal(first[0], second[0])
    check_gallery(storage, destination, one)
    written = export(destination, storage, FolderTarget(tmp_path), Filters())
    assert (written.dreams, written.missing) == (2, 0)
    files = {f"{row['result_id']}{end}" for row in (one, other) for end in ("-small.webp", ".mp4")}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == files
    again = movie_job(noise, {**zoom, "keyframes": []}, grid={**GRID, "seed": [0]})
    assert plan_settings(again)[0].settings_id not in {one["settings_id"], other["settings_id"]}


def check_gallery(storage: Storage, destination: str, row: dict[str, Any]) -> None:
    """Check the pages of a gallery that show a movie of noise."""
    with served(create_app([destination], storage, Access(read_only=True))) as url:

        def ask(path: str) -> tuple[str, bytes]:
            with urllib.request.urlopen(f"{url}/d/{slug_of(destination)}/{path}", timeout=60) as response:
                return response.headers.get_content_type(), response.read()

        assert row["result_id"].encode() in ask("library")[1]
        grid = ask("grid?photo=noise:64x48")[1].decode()
        assert row["result_id"] in grid
        assert "seconds 0.4, fps 5" in grid, "the options of the movie are among its settings"
        loupe = ask(f"loupe?id={row['result_id']}")[1].decode()
        assert f'/full/{row["result_id"]}">Play</a>' in loupe
        assert f'class="full" src="/d/{slug_of(destination)}/thumb/{row["result_id"]}.webp"' in loupe
        assert "dreamgrid redream" not in loupe
        assert ask(f"full/{row['result_id']}") == ("video/mp4", storage.read(row["result_uri"]))
        kind, noise = ask(f"photograph/{row['result_id']}")
        assert (kind, decode(noise).pixels.shape) == ("image/webp", (48, 64, 3))


def test_frames_without_a_run_are_orphans_and_go_with_their_movie(collection: Collection) -> None:
    storage, destination = collection.storage, collection.destination
    job = movie_job(collection, {**ZOOM, "seconds": 0.2})
    finished = collection.run_job(job, executor(storage))
    (row,) = manifest.read(storage, destination).to_pylist()
    left = layout.frames_folder(destination, row["result_uri"]) + "000000-0123456789abcdef.png"
    storage.write(left, b"frame", "image/png")
    (problem,) = verify(storage, destination, lambda *_: None).problems
    assert (problem.kind, problem.uri) == ("orphan", left)
    protocol.finish(finished.run, finished.plan, 1.0, storage)
    assert frames_left(collection) == [], "the end of a run removes what killed processes have left"

    storage.write(left, b"frame", "image/png")
    prune(storage, preview(storage, destination, select(where="status = 'done'")), lambda *_: None)
    assert frames_left(collection) == []
    assert list(storage.list(layout.images_folder(destination))) == []
    assert list(storage.list(layout.thumbs_folder(destination))) == []


def test_a_movie_that_exists_is_taken_over(collection: Collection) -> None:
    """The process was killed after it wrote the movie and before it wrote the part."""
    storage, job = collection.storage, movie_job(collection, {**ZOOM, "seconds": 0.4})
    collection.run_job(job, executor(storage))
    (before,) = manifest.read(storage, collection.destination).to_pylist()
    settings = plan_settings(job)
    (shard,) = make_plan(scan(job, storage).sources, settings, lambda _: False)
    again = run_record.Run(run_id="again", job=job, settings=settings)
    assert dream_shard(again, shard, storage, decode=pytest.fail) == {"done": 1}
    (after,) = manifest.read(storage, collection.destination, run_id="again").to_pylist()
    assert after == {**before, "run_id": "again", "job_id": after["job_id"]}


def test_an_image_that_cannot_be_dreamt_is_a_failed_row(collection: Collection) -> None:
    storage = collection.storage
    storage.write(f"{collection.source}broken.png", b"no photograph", "image/png")
    report = collection.run_job(movie_job(collection, {**ZOOM, "seconds": 0.2}), executor(storage)).report
    assert (report.done, dict(report.failures)) == (1, {"not_an_image": 1})
    assert frames_left(collection) == []


def test_a_movie_is_planned_by_its_frames(collection: Collection) -> None:
    job = movie_job(collection, {"seconds": 60, "width": 640}, grid={**GRID, "layers": ["blocks.0", "blocks.4"]})
    settings = plan_settings(job)
    assert {(each.settings.octaves, each.settings.steps, each.settings.calm) for each in settings} == {(1, 1, 0.0)}
    photograph = Source("s3://photos/a.jpg", "a.jpg", "e", 2**22)
    still = settings[1].model_copy(update={"settings": settings[1].settings.model_copy(update={"movie": None})})
    assert estimate_seconds(photograph, settings[1], CORE) > 1000 * estimate_seconds(photograph, still, CORE) / 2
    sources = Sources([photograph, Source("s3://photos/b.jpg", "b.jpg", "f", 2**22)])
    shards = list(make_plan(sources, settings, lambda _: False))
    assert [shard.dreams for shard in shards] == [1, 1, 1, 1], "a long movie is a shard of its own"
    short = movie_job(collection, {**ZOOM, "seconds": 0.4}, grid={**GRID, "layers": ["blocks.0", "blocks.4"]})
    found = estimate(short)
    assert (found["planned"], found["movie_frames"]) == (2, 4)
    still_job = collection.job(grid={**GRID, "layers": ["blocks.0", "blocks.4"], "steps": [1]})
    assert found["estimated_requests"]["put"] == estimate(still_job)["estimated_requests"]["put"] + 4


def test_what_does_not_go_with_a_movie_is_refused(collection: Collection) -> None:
    def refusal(**fields: Any) -> str:
        with pytest.raises(ValidationError) as caught:
            movie_job(collection, **fields)
        return explain_validation(caught.value)

    assert "max_pixels does not limit a movie: leave it out, and give zoom.width" in refusal(max_pixels=5000)
    assert "the movies of zoom are MP4 files: leave out output" in refusal(output={"format": "jpg"})
    with pytest.raises(ValidationError, match="enlarge and zoom are both given: write two jobs"):
        DreamJob.model_validate({**ADDRESSES, "zoom": ZOOM, "enlarge": {"dreams": ["0" * 16]}})
    assert "zoom.fps: input should be greater than or equal to 1" in refusal(zoom={"fps": 0})
    assert "zoom.keyframes[0]: a keyframe is a mapping" in refusal(zoom={"keyframes": ["soon"]})
    assert "movie cannot be a point of a grid" in refusal(grid={"points": [{"movie": {}}]})
    for keyframe, message in (
        ({"at": 5, "steps": 2}, "zoom: there is a keyframe at 5 s, but the movie ends at 1 s"),
        ({"at": 0.5, "layers": "blocks.99"}, "zoom: keyframe at 0.5 s: .*blocks.99"),
        ({"at": 0.5, "model": "resnet50"}, "zoom: keyframe at 0.5 s: model cannot change within a movie"),
    ):
        with pytest.raises(InvalidInput, match=message):
            plan_settings(movie_job(collection, {**ZOOM, "keyframes": [keyframe]}))


def test_the_identity_of_a_movie_holds_its_zoom(collection: Collection) -> None:
    still = collection.job(grid=GRID)
    jobs = [still, movie_job(collection), *(movie_job(collection, {**ZOOM, **each}) for each in CHANGES)]
    assert len({job.job_id for job in jobs}) == len(jobs)
    settings = [plan_settings(job)[0] for job in jobs]
    assert len({each.settings_id for each in settings}) == len(jobs)
    assert all(DreamSettings.model_validate_json(each.settings.canonical_json()) == each.settings for each in settings)
    spelled = movie_job(collection, {**ZOOM, "seconds": 1.0, "keyframes": [json.dumps({"steps": 2, "at": 1})]})
    assert spelled.job_id == movie_job(collection, {**ZOOM, "keyframes": [{"at": 1, "steps": 2}]}).job_id


CHANGES: list[dict[str, Any]] = [
    {"seconds": 2}, {"fps": 6}, {"width": 64}, {"loop": True}, {"free_colors": True}, {"zoom": 1.4}, {"rotate": 0},
    {"center": "0.4,0.5"}, {"keyframes": [{"at": 1, "steps": 2}]},
]  # fmt: skip


def test_a_shared_movie_names_no_address(collection: Collection) -> None:
    storage = collection.storage
    collection.run_job(movie_job(collection, {**ZOOM, "seconds": 0.2}), executor(storage))
    (row,) = manifest.read(storage, collection.destination).to_pylist()
    chosen = ChosenDream(row["result_id"], row["result_uri"], row["source_uri"], row["model"], "blocks.0", 1, 1)
    with zipfile.ZipFile(
        io.BytesIO(b"".join(stream_share_pack([chosen], storage, lambda dream: pytest.fail(str(dream)))))
    ) as pack:
        (name,) = [each for each in pack.namelist() if each.endswith(".mp4")]
        shared = pack.read(name)
    whole = storage.read(row["result_uri"]) or b""
    assert b"s3://" in whole
    assert b"s3://" not in shared
    assert len(frames_of(shared)) == 1
    assert without_metadata(shared) == shared == without_metadata(whole)
