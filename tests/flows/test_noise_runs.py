"""Runs that dream from noise instead of photographs, on the real store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamcore.errors import ImageError
from dreamcore.models import load_network
from dreamcore.noise import noise_image
from dreamcore.ranking import ranked_channels
from dreamcore.results import to_tensor
from dreamcore.settings import BUNDLED
from dreamcore.sweeps import Ranking
from flows.contact_sheets.sheets import draw_sheets
from flows.decoding.decoder import decode
from flows.destination import manifest
from flows.gallery.thumbnails import Thumbnails
from flows.jobs.job import DreamJob
from flows.jobs.noise_source import noise_photograph
from flows.planning.scan import plan_settings
from flows.results.redream import redream
from flows.results.verify import verify
from flows.s3.storage import Storage
from tests.support.collections import Collection, executor
from tests.support.command import Command
from tests.support.shards import put_photograph

pytestmark = pytest.mark.slow

NOISE = "noise:64x48"
UNCHANGED = {"layers": ["blocks.0", "blocks.1"], "octaves": [1], "steps": [0], "keep_colors": [0], "seed": [0, 1]}
"""Settings without steps: the dream is the noise itself."""


@pytest.fixture
def collection(storage: Storage, destination: str) -> Collection:
    """Noise and a destination."""
    return Collection(storage, NOISE, destination)


def rows_of(collection: Collection) -> list[dict[str, Any]]:
    return [dict(row) for row in manifest.read(collection.storage, collection.destination).to_pylist()]


def test_a_grid_is_dreamt_from_the_noise_of_each_seed(
    collection: Collection, dreamgrid_inprocess: Command, tmp_path: Path
) -> None:
    storage, destination = collection.storage, collection.destination
    job = collection.job(grid=UNCHANGED, sheets=1)
    text = {"source": NOISE, "destination": destination, "grid": UNCHANGED}
    (tmp_path / "job.yaml").write_text(json.dumps(text))
    planned = dreamgrid_inprocess("plan", "job.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)
    assert (found["photographs"], found["planned"], found["source"]) == (1, 4, NOISE)

    assert collection.run_job(job, executor(storage)).report.done == 4
    rows = rows_of(collection)
    assert {(row["source_uri"], row["source_etag"], row["source_bytes"]) for row in rows} == {(NOISE, "noise-64x48", 0)}
    assert {(row["source_width"], row["source_height"], row["width"], row["height"]) for row in rows} == {
        (64, 48, 64, 48)
    }
    for row in rows:
        dream = decode(storage.read(row["result_uri"]) or b"").pixels
        assert np.array_equal(dream, np.asarray(noise_image(64, 48, row["seed"]))), "which noise depends on the seed"
        assert row["result_uri"].startswith(f"{destination}images/noise:64x48/")
    scores = {(row["seed"], row["layers"][0]["name"]): row["score_before"] for row in rows}
    assert len(set(scores.values())) == 4, "each seed has its own noise, which each layer scores"

    assert collection.run_job(job, executor(storage)).report.why_nothing == "every photograph has its dreams"
    assert not verify(storage, destination, lambda *_: None).problems
    warnings: list[str] = []
    (sheet,) = draw_sheets(destination, storage, [(NOISE, "noise-64x48")], warnings.append)
    assert (sheet.name, warnings) == (NOISE, [])
    assert len(decode(sheet.jpeg).pixels) > 200


def test_a_dream_from_noise_is_reproduced_and_enlarged(collection: Collection, tmp_path: Path) -> None:
    storage, destination = collection.storage, collection.destination
    collection.run_job(collection.job("blocks.0", grid={**UNCHANGED, "steps": [1], "seed": [3]}), executor(storage))
    row, _ = rows_of(collection)
    again = redream(row["result_uri"], tmp_path / "again.png", None, lambda *_: None)
    assert (again.equal, again.same_settings, again.differences) == (True, True, ())

    enlarge = {"dreams": [row["result_id"]], "max_pixels": 12_288}
    job = DreamJob.model_validate({"source": NOISE, "destination": destination, "enlarge": enlarge, "sheets": 0})
    assert collection.run_job(job, executor(storage)).report.done == 1
    (large,) = [each for each in rows_of(collection) if each["enlarged_from"]]
    assert (large["width"], large["height"], large["source_uri"]) == (128, 96, NOISE)
    small = np.asarray(Image.fromarray(decode(storage.read(large["result_uri"]) or b"").pixels).resize((64, 48)))
    dream = decode(storage.read(row["result_uri"]) or b"").pixels
    other = np.asarray(noise_image(64, 48, 4)).astype(int)
    assert np.abs(small.astype(int) - dream).mean() < np.abs(other - dream).mean() / 2, "it goes on from its noise"


def test_noise_and_photographs_are_one_job(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, f"{source}cat.png")
    both = Collection(storage, source, destination)
    job = both.job("blocks.0", source=None, sources=["noise:064x48", "noise:48x64", source, NOISE])
    assert job.addresses == ("noise:48x64", NOISE, source), "one spelling for each size"
    assert both.run_job(job, executor(storage)).report.done == 3
    assert {row["source_uri"] for row in rows_of(both)} == {NOISE, "noise:48x64", f"{source}cat.png"}


def test_the_noise_of_each_seed_gets_its_own_channels(collection: Collection) -> None:
    job = collection.job(grid={**UNCHANGED, "layers": ["blocks.1:top2"], "seed": [0, 1, 2]})
    collection.run_job(job, executor(collection.storage))
    network, ranking = load_network(BUNDLED, "cpu"), Ranking("top", 2, "blocks.1", None)
    found = {seed: set[int]() for seed in range(3)}
    for row in rows_of(collection):
        found[row["seed"]].add(row["layers"][0]["channels"][0])
    for seed, channels in found.items():
        image = to_tensor(noise_photograph(NOISE, seed).pixels)[0]
        assert channels == set(ranked_channels(network, image, ranking))


def test_the_settings_of_a_job_from_noise_have_the_identities_of_any_other_job(source: str, destination: str) -> None:
    fields = {"destination": destination, "grid": UNCHANGED}
    one, other = (DreamJob.model_validate({"source": each, **fields}) for each in (NOISE, source))
    assert one.job_id != other.job_id
    assert [each.settings_id for each in plan_settings(one)] == [each.settings_id for each in plan_settings(other)]


def test_the_gallery_shows_the_noise_of_a_dream(collection: Collection, tmp_path: Path) -> None:
    thumbnails = Thumbnails(collection.destination, collection.storage, tmp_path, read_only=True)
    shown = [thumbnails.photograph(NOISE, "noise-64x48", 3072, seed) for seed in (0, 1)]
    expected = np.asarray(noise_image(64, 48, 1)).astype(int)
    assert np.abs(decode(shown[1]).pixels - expected).mean() < 3 < np.abs(decode(shown[0]).pixels - expected).mean()
    assert thumbnails.photograph(NOISE, "noise-64x48", 3072, 1) == shown[1]
    with pytest.raises(ImageError, match="noise:9000x9000 has more than 4,000,000 pixels and is not shown"):
        thumbnails.of_photograph("noise:9000x9000", "noise-9000x9000")
