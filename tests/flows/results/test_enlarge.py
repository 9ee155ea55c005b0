"""Enlarging a dream by the command: from S3 by its id, and from files, with the errors that users make."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dreamcore.errors import InvalidInput
from dreamcore.fields import Reference
from dreamcore.images import encode, read_metadata
from dreamcore.settings import DreamSettings
from flows.destination import history, manifest
from flows.destination.run_record import Run
from flows.jobs.assets import resolve
from flows.jobs.job import DreamJob
from flows.jobs.plan import make_plan
from flows.pictures.single import decode_named, dream_file
from flows.planning.scan import plan_settings, scan
from flows.results.enlarge import Order, enlarge
from flows.results.redream import redream
from flows.running.shard import dream_shard
from flows.s3.storage import Storage
from tests.flows.results.test_redream import GRID, dream_grid, photograph
from tests.support.command import Command

pytestmark = pytest.mark.slow

SETTINGS = DreamSettings.model_validate(
    {"layers": "blocks.0", "octaves": 1, "steps": 1, "jitter": 4, "max_pixels": 3072}
)


def no_progress(_finished: int, _planned: int) -> None:
    """Ignore the progress."""


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A photograph of 128 x 96 pixels."""
    (tmp_path / "cat.png").write_bytes(photograph(size=(96, 128)))
    return tmp_path / "cat.png"


@pytest.fixture
def dream(tmp_path: Path, cat: Path) -> Path:
    """A dream of 64 x 48 pixels of the photograph."""
    dream_file(cat, tmp_path / "dream.png", SETTINGS, no_progress)
    return tmp_path / "dream.png"


def test_a_dream_of_a_run_is_enlarged_by_its_id(
    storage: Storage, source: str, destination: str, tmp_path: Path, dreamgrid_inprocess: Command
) -> None:
    storage.write(source + "cat.png", photograph(size=(96, 128)), "image/png")
    (uri,) = dream_grid(storage, source, destination, grid=GRID, max_pixels=3072)
    (row,) = manifest.read(storage, destination).to_pylist()
    enlarged = dreamgrid_inprocess(
        "enlarge", destination, row["result_id"][:8], "big.jpg", "--max-pixels", "27648", "--strength", "0.4"
    )
    assert enlarged.returncode == 0, enlarged.stderr
    assert enlarged.stdout.startswith("big.jpg: 192 x 144 pixels, from 64 x 48\nscore: ")
    inside = read_metadata((tmp_path / "big.jpg").read_bytes()) or {}
    settings = DreamSettings.model_validate(inside["settings"])
    then = DreamSettings.model_validate_json(row["settings"])
    assert settings.enlarge is not None
    assert settings.enlarge.model_dump() == {"uri": uri, "sha256": row["result_sha256"], "strength": 0.4}
    assert (settings.max_pixels, settings.output.format) == (27648, "jpg")
    assert settings.model_copy(update={"enlarge": None, "max_pixels": 3072, "output": then.output}) == then
    assert (inside["enlarged_from"], inside["source_uri"]) == (row["result_id"], source + "cat.png")
    assert len(inside["octave_scores"]) == 4  # type: ignore[arg-type]

    small = decode_named(storage.read(uri) or b"", uri).pixels.astype(int)
    reduced = decode_named((tmp_path / "big.jpg").read_bytes(), "big.jpg", 3072).pixels
    assert reduced.shape == small.shape
    assert np.abs(reduced - small).mean() < 8, "the composition is that of the dream"

    again = redream(str(tmp_path / "big.jpg"), tmp_path / "again.jpg", None, no_progress)
    assert again.same_settings
    assert again.psnr_db > 35
    storage.delete(uri)
    with pytest.raises(InvalidInput, match=r"enlarge: s3://.* does not exist"):
        redream(str(tmp_path / "big.jpg"), tmp_path / "again.jpg", None, no_progress)
    storage.write(source + "cat.png", photograph(seed=1, size=(96, 128)), "image/png")
    gone = dreamgrid_inprocess("enlarge", destination, row["result_id"], "other.png")
    assert (gone.returncode, f"there is no dream {uri}" in " ".join(gone.stderr.split())) == (2, True)


def test_an_enlargement_of_a_changed_or_missing_photograph_is_refused(
    storage: Storage, source: str, destination: str, tmp_path: Path, cat: Path
) -> None:
    storage.write(source + "cat.png", cat.read_bytes(), "image/png")
    (uri,) = dream_grid(storage, source, destination, grid=GRID, max_pixels=3072)
    order = Order(uri, tmp_path / "big.png", 12_288)
    storage.write(source + "cat.png", photograph(seed=1, size=(96, 128)), "image/png")
    with pytest.raises(InvalidInput, match="has changed since it was dreamt: give the photograph with --source"):
        enlarge(order, no_progress)
    storage.delete(source + "cat.png")
    with pytest.raises(InvalidInput, match="does not exist any more: give the photograph with --source"):
        enlarge(order, no_progress)
    assert not order.result.exists()
    found = enlarge(Order(uri, order.result, 12_288, source=cat), no_progress)
    assert (found.width, found.height, found.dream_width, found.dream_height) == (128, 96, 64, 48)
    (row,) = manifest.read(storage, destination, ["result_id"]).to_pylist()
    assert found.enlarged_from == row["result_id"]


def test_a_dream_from_a_file_is_enlarged_and_reproduced(
    dream: Path, cat: Path, tmp_path: Path, dreamgrid_inprocess: Command
) -> None:
    (tmp_path / "deeper").mkdir()
    done = dreamgrid_inprocess(
        "enlarge", str(dream), "deeper/big.webp", "--source", str(cat), "--max-pixels", "12288", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["width"], found["height"], found["enlarged_from"]) == (128, 96, None)
    big = tmp_path / "deeper" / "big.webp"
    inside = read_metadata(big.read_bytes()) or {}
    assert inside["settings"]["enlarge"]["uri"] == "dream.png", "no folder of this machine is in the file"  # type: ignore[index]

    with pytest.raises(InvalidInput, match=r"enlarges the dream dream.png: give that file with --enlarge FILE"):
        redream(str(big), tmp_path / "again.webp", cat, no_progress)
    with pytest.raises(InvalidInput, match=r"enlarge: .*cat.png has the SHA-256"):
        redream(str(big), tmp_path / "again.webp", cat, no_progress, {"enlarge": cat})
    again = redream(str(big), tmp_path / "again.webp", cat, no_progress, {"enlarge": dream})
    assert (again.equal, again.same_settings) == (True, True)

    bigger = enlarge(Order(str(big), tmp_path / "bigger.png", 27_648, 0, cat), no_progress)
    assert (bigger.width, bigger.height) == (192, 144), "an enlarged dream can be enlarged"


def test_orders_that_cannot_be_enlarged_are_refused(dream: Path, cat: Path, tmp_path: Path) -> None:
    def refusal(given: Path = dream, pixels: int = 12_288, source: Path | None = cat, **files: Path) -> str:
        with pytest.raises(InvalidInput) as caught:
            enlarge(Order(str(given), tmp_path / "big.png", pixels, source=source, files=files), no_progress)
        return str(caught.value)

    assert "--max-pixels is 3,072: give a number over 3,072" in refusal(pixels=3072)
    assert "give at most 100,000,000" in refusal(pixels=10**9)
    assert "names no source in S3" in refusal(source=None)
    assert "was not dreamt with a guide: leave out --guide" in refusal(guide=cat)
    assert "contains no settings" in refusal(given=cat)
    assert "cannot be read" in refusal(given=tmp_path / "none.png")
    tall = tmp_path / "tall.png"
    tall.write_bytes(photograph(size=(128, 96)))
    assert "its photograph would have 96 x 128: either it is another photograph" in refusal(source=tall)
    assert not (tmp_path / "big.png").exists()


def test_guide_and_mask_are_those_of_the_dream(cat: Path, tmp_path: Path) -> None:
    guide, mask = tmp_path / "guide.png", tmp_path / "mask.png"
    guide.write_bytes(photograph(seed=3))
    black = np.zeros((48, 64, 3), np.uint8)
    black[:, 32:] = 255
    mask.write_bytes(encode(black, "png", 95, {}))
    settings = resolve(
        SETTINGS.model_copy(update={"guide": Reference(uri=str(guide)), "mask": Reference(uri=str(mask))}), local=True
    )
    dream_file(cat, tmp_path / "masked.png", settings, no_progress)
    order = Order(str(tmp_path / "masked.png"), tmp_path / "big.png", 12_288, source=cat)
    with pytest.raises(InvalidInput, match="was dreamt with a local file as guide: give that file with --guide FILE"):
        enlarge(order, no_progress)
    files = {"guide": guide, "mask": mask}
    enlarge(Order(order.dream, order.result, order.max_pixels, source=cat, files=files), no_progress)
    change = np.abs(
        decode_named(order.result.read_bytes(), "").pixels.astype(int) - decode_named(cat.read_bytes(), "").pixels
    )
    assert change[:, :60].max() == 0, "where the mask is black, the photograph stays"
    assert change[:, 70:].mean() > 1


def test_a_job_enlarges_favourites_with_rows_that_name_them(storage: Storage, source: str, destination: str) -> None:
    for seed in (0, 1):
        storage.write(f"{source}{seed}.png", photograph(seed, (96, 128)), "image/png")
    dream_grid(storage, source, destination, grid={**GRID, "seed": [0, 1]}, max_pixels=3072)
    rows = manifest.read(storage, destination).to_pylist()
    favourites = [row for row in rows if row["source_uri"] == f"{source}{row['seed']}.png"]
    assert len(favourites) == 2
    ids = [row["result_id"] for row in favourites]
    enlarge_job = {"dreams": [*ids, ids[0]], "max_pixels": 12_288, "strength": 0.4}
    job = DreamJob.model_validate(
        {"source": source, "destination": destination, "enlarge": enlarge_job, "output": {"format": "webp"}}
    )
    settings = plan_settings(job)
    assert [each.photograph for each in settings] == [
        (row["source_uri"], row["source_etag"]) for row in sorted(favourites, key=lambda row: row["result_id"])
    ]
    finished = history.finished_dreams(destination, storage)
    plan = make_plan(scan(job, storage).sources, settings, finished)
    assert plan.dreams == 2
    run = Run(run_id="enlarge", job=job, settings=settings)
    for shard in plan:
        dream_shard(run, shard, storage)
    made = manifest.read(storage, destination, run_id="enlarge").to_pylist()
    assert {row["status"] for row in made} == {"done"}
    assert {row["source_uri"]: row["enlarged_from"] for row in made} == {
        row["source_uri"]: row["result_id"] for row in favourites
    }
    assert {(row["width"], row["height"]) for row in made} == {(128, 96)}
    assert {row["enlarged_from"] for row in rows} == {None}
    for row in made:
        inside = read_metadata(storage.read(row["result_uri"]) or b"") or {}
        assert inside["enlarged_from"] == row["enlarged_from"]
        assert row["result_uri"].endswith(f"-{row['result_id']}.webp")
        assert json.loads(row["settings"])["enlarge"]["sha256"] in {each["result_sha256"] for each in favourites}
    assert not make_plan(scan(job, storage).sources, settings, lambda _: True)


def test_a_job_reports_favourites_that_cannot_be_enlarged(storage: Storage, source: str, destination: str) -> None:
    storage.write(f"{source}cat.png", photograph(size=(96, 128)), "image/png")
    (uri,) = dream_grid(storage, source, destination, grid=GRID, max_pixels=3072)
    (identity,) = manifest.read(storage, destination, ["result_id"])["result_id"].to_pylist()

    def job(place: str = source, **fields: object) -> DreamJob:
        enlarge_job = {"dreams": [identity], "max_pixels": 12_288, **fields}
        return DreamJob.model_validate({"source": place, "destination": destination, "enlarge": enlarge_job})

    for wrong, message in (
        (job(dreams=["0" * 16]), f"{destination} has no dream with the id 0000000000000000"),
        (job(max_pixels=3072), "64 x 48 pixels: give a number over 3,072"),
        (job("s3://photos/elsewhere/"), "is not in s3://photos/elsewhere/"),
    ):
        with pytest.raises(InvalidInput, match=message):
            plan_settings(wrong)
    settings = plan_settings(job())
    (shard,) = make_plan(scan(job(), storage).sources, settings, lambda _: False)
    dream = storage.read(uri) or b""
    storage.delete(uri)
    dream_shard(Run(run_id="enlarge", job=job(), settings=settings), shard, storage)
    (row,) = manifest.read(storage, destination, run_id="enlarge").to_pylist()
    assert (row["status"], row["error_kind"]) == ("skipped", "source_missing")
    assert row["error"] == f"enlarge: {uri} does not exist"
    storage.write(uri, dream, "image/png")
    storage.write(f"{source}cat.png", photograph(1, (96, 128)), "image/png")
    with pytest.raises(InvalidInput, match=f"{source}cat.png has changed since it was dreamt"):
        plan_settings(job())
    with pytest.raises(ValidationError, match="grid and enlarge are both given"):
        DreamJob.model_validate({**job().model_dump(), "grid": GRID})
    plain = DreamJob(source=source, destination=destination)
    assert job().job_id != plain.job_id != job(strength=0.6).job_id != job().job_id
