"""Reproducing a dream: equal to the bit on the same machine, and safe with files of untrusted people."""

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreamcore.catalog import network_spec
from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.images import MAX_SOURCE_PIXELS, encode, read_metadata
from dreamcore.settings import ALGORITHM_VERSION, BUNDLED, DreamSettings, settings_id
from flows.destination import manifest
from flows.destination.run_record import Run
from flows.jobs.job import DreamJob
from flows.jobs.plan import make_plan
from flows.pictures.single import dream_file
from flows.planning.scan import plan_settings, scan
from flows.results.redream import Reproduction, psnr, redream
from flows.running.shard import dream_shard
from flows.s3.layout import parse_uri
from flows.s3.storage import Storage
from tests.support.caches import clear_caches
from tests.support.command import Command
from tests.support.tiny import pixels

pytestmark = pytest.mark.slow

SETTINGS = DreamSettings.model_validate({"layers": "blocks.0", "octaves": 1, "steps": 1, "jitter": 4})
GRID = {"layers": ["blocks.0"], "octaves": [1], "steps": [1], "jitter": [4]}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Use another number of threads than the workers of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class OnStep:
    """Record the number of torch's threads at every step."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self, _finished: int, _planned: int) -> None:
        self.threads.append(torch.get_num_threads())


def photograph(seed: int = 0, size: tuple[int, int] = (48, 64)) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels(*size, seed)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """The photograph as a file."""
    (tmp_path / "cat.png").write_bytes(photograph())
    return tmp_path / "cat.png"


def dream_grid(storage: Storage, source: str, destination: str, **job: object) -> list[str]:
    """Dream `source` on one thread, as a worker does, and return the addresses of the dreams in manifest order."""
    the_job = DreamJob.model_validate({"source": source, "destination": destination, **job})
    settings = plan_settings(the_job)
    run = Run(run_id="run", job=the_job, settings=settings)
    torch.set_num_threads(1)
    for shard in make_plan(scan(the_job, storage).sources, settings, lambda _: False):
        dream_shard(run, shard, storage)
    torch.set_num_threads(2)
    rows = manifest.read(storage, run.destination).to_pylist()
    assert {row["status"] for row in rows} == {"done"}
    return [row["result_uri"] for row in rows]


def pixels_of(data: bytes | None) -> Any:
    with Image.open(io.BytesIO(data or b"")) as image:
        return np.asarray(image.convert("RGB"))


def test_dreams_of_a_run_are_reproduced_exactly(
    storage: Storage, source: str, destination: str, tmp_path: Path
) -> None:
    storage.write(source + "cat.png", photograph(), "image/png")
    grid = {"layers": ["blocks.0", "blocks.0=0.5+blocks.1"], "octaves": [2], "steps": [1, 2], "octave_scale": [1.2]}
    uris = dream_grid(storage, source, destination, grid=grid, max_pixels=2500)
    assert len(uris) == 4
    for uri in reversed(uris):  # in another order and one at a time
        result, on_step = tmp_path / f"{uri[-20:-4]}.png", OnStep()
        found = redream(uri, result, None, on_step)
        then = read_metadata(storage.read(uri) or b"") or {}
        assert (pixels_of(result.read_bytes()) == pixels_of(storage.read(uri))).all()
        assert found.psnr_db == math.inf
        assert found.score_after_now == found.score_after_then == then["score_after"]
        assert (found.same_settings, found.settings_id) == (True, then["settings_id"])
        assert found.differences == ()
        assert set(on_step.threads) == {1}, "the workers of a run use one thread"
        assert torch.get_num_threads() == 2
        inside = read_metadata(result.read_bytes()) or {}
        may_differ = {"seconds", "created_at"}
        assert {name for name in then | inside if then.get(name) != inside.get(name)} <= may_differ


def test_a_dream_is_reproduced_by_its_id(
    storage: Storage, source: str, destination: str, tmp_path: Path, dreamgrid_inprocess: Command
) -> None:
    storage.write(source + "cat.png", photograph(), "image/png")
    (uri, _) = dream_grid(storage, source, destination, grid={**GRID, "layers": ["blocks.0:1", "blocks.0:2"]})
    (row, other) = manifest.read(storage, destination, ["result_id", "result_uri"]).to_pylist()
    identity = row["result_id"]
    assert uri == row["result_uri"]
    assert uri.endswith(f"/blocks.0_1-1x1-{identity}.png"), "the id at the end of the file name is the column"

    done = dreamgrid_inprocess("redream", destination, identity, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["result"], found["psnr_db"]) == (uri.rpartition("/")[2], None)
    assert (tmp_path / found["result"]).exists()

    again = dreamgrid_inprocess("redream", destination, identity)
    assert (again.returncode, f"{found['result']} exists in this folder" in again.stderr) == (2, True)
    named = dreamgrid_inprocess("redream", destination.rstrip("/"), identity[:8].upper(), "again.png")
    assert named.returncode == 0, named.stderr
    assert named.stdout.startswith(f"again.png: the same pixels as {uri}\n")

    for names, message in (
        ((destination, "x" * 16), "'xxxxxxxxxxxxxxxx' is not the id of a dream"),
        ((destination, "0" * 16), f"{destination} has no dream with the id 0000000000000000"),
        ((destination, ""), "'' is not the id of a dream"),
        (("dream.png", identity), "'dream.png' is not an S3 address"),
        ((destination,), "give RESULT and OUT, or DEST, ID"),
    ):
        refused = dreamgrid_inprocess("redream", *names)
        assert (refused.returncode, message in " ".join(refused.stderr.split())) == (2, True), refused.stderr
    same_beginning = dict.fromkeys([identity, identity[:4] + other["result_id"][4:]], uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.results.redream.find_results", lambda *_: same_beginning)
        several = dreamgrid_inprocess("redream", destination, identity[:4])
    assert "has 2 dreams whose id begins with" in several.stderr


@pytest.mark.parametrize(
    ("then", "now", "least", "most"),
    [
        ("jpg", "jpg", math.inf, math.inf),  # the same pixels give the same file
        ("webp", "webp", math.inf, math.inf),
        ("jpg", "png", 25, 60),  # the loss of JPEG
        ("png", "jpg", 25, 60),
    ],
)
def test_lossy_files_are_compared_after_decoding(
    then: str, now: str, least: float, most: float, storage: Storage, source: str, destination: str, tmp_path: Path
) -> None:
    storage.write(source + "cat.png", photograph(), "image/png")
    output = {"format": then} if then == "png" else {"format": then, "quality": 80}
    (uri,) = dream_grid(storage, source, destination, grid=GRID, output=output)
    result = tmp_path / f"again.{now}"
    found = redream(uri, result, None, OnStep())
    assert least <= found.psnr_db <= most
    assert found.same_settings, "the format of the new file does not matter"
    assert found.score_after_now == found.score_after_then, "the score is measured before the dream is encoded"
    inside = read_metadata(result.read_bytes()) or {}
    quality = 80 if now == then else 95
    assert inside["settings"]["output"] == {"format": now, "quality": quality}  # type: ignore[index]


def test_a_changed_or_missing_photograph_must_be_given_as_a_file(
    storage: Storage, source: str, destination: str, tmp_path: Path, cat: Path
) -> None:
    storage.write(source + "cat.png", photograph(), "image/png")
    (uri,) = dream_grid(storage, source, destination, grid=GRID)
    result, on_step = tmp_path / "again.png", OnStep()
    storage.write(source + "cat.png", photograph(seed=1), "image/png")
    with pytest.raises(InvalidInput, match=r"has changed since it was dreamt: .* --source FILE"):
        redream(uri, result, None, on_step)
    bucket, key = parse_uri(source + "cat.png")
    secret: Any = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}
    storage._client.put_object(Bucket=bucket, Key=key, Body=photograph(), **secret)
    with pytest.raises(InvalidInput, match=r"cannot be read \(.* InvalidArgument .*\): .* --source FILE"):
        redream(uri, result, None, on_step)
    storage.delete(source + "cat.png")
    with pytest.raises(InvalidInput, match=r"does not exist any more: .* --source FILE"):
        redream(uri, result, None, on_step)
    assert (on_step.threads, result.exists()) == ([], False)

    found = redream(uri, result, cat, on_step)
    assert found.psnr_db == math.inf
    assert set(on_step.threads) == {1}
    assert "source_uri" not in (read_metadata(result.read_bytes()) or {}), "the origin of a given file is unknown"


def test_an_unreachable_store_is_not_needed_with_a_source_file(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, tmp_path: Path, cat: Path
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    dream = forge(tmp_path, {"source_uri": "s3://photos/cat.png", "source_etag": "0123"})
    with pytest.raises(Unavailable, match=r"; or give the photograph with --source FILE$"):
        redream(str(dream), tmp_path / "again.png", None, OnStep())
    on_step = OnStep()
    redream(str(dream), tmp_path / "again.png", cat, on_step)
    assert set(on_step.threads) == {1}


def test_the_dream_of_one_image_is_reproduced_without_s3(dreamgrid: Command, tmp_path: Path, cat: Path) -> None:
    unreachable = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    arguments = ("--layers", "blocks.1", "--octaves", "2", "--octave-scale", "1.2", "--steps", "1")
    assert dreamgrid("image", "cat.png", "dream.png", *arguments, **unreachable).returncode == 0
    inside = read_metadata((tmp_path / "dream.png").read_bytes()) or {}

    refused = dreamgrid("redream", "dream.png", "again.png", "--json", **unreachable)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "dream.png names no source in S3" in refused.stderr
    assert "--source FILE" in refused.stderr
    assert not (tmp_path / "again.png").exists()

    done = dreamgrid("redream", "dream.png", "again.png", "--source", "cat.png", "--json", **unreachable)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "settings_id": inside["settings_id"],
        "same_settings": True,
        "psnr_db": None,
        "score_after_then": inside["score_after"],
        "score_after_now": inside["score_after"],
        "result": "again.png",
        "differences": [],
    }
    again, dream = (tmp_path / name for name in ("again.png", "dream.png"))
    assert (pixels_of(again.read_bytes()) == pixels_of(dream.read_bytes())).all()
    assert (pixels_of(again.read_bytes()) != pixels_of(cat.read_bytes())).any()


def test_the_dream_of_one_image_uses_all_threads(tmp_path: Path, cat: Path) -> None:
    on_step = OnStep()
    redream(str(forge(tmp_path)), tmp_path / "again.png", cat, on_step)
    assert set(on_step.threads) == {2}


FILES = ("guide", "mask")


def put_files(folder: Path) -> dict[str, Path]:
    """Write a guide and a mask, and return their paths by name."""
    places = {name: folder / f"{name}.png" for name in FILES}
    places["guide"].write_bytes(photograph(seed=3, size=(30, 20)))
    Image.fromarray(np.repeat(np.arange(0, 256, 4).astype(np.uint8)[None], 48, 0)).save(places["mask"])
    return places


def test_a_dream_of_a_run_with_guide_and_mask_is_reproduced_exactly(
    storage: Storage, source: str, destination: str, tmp_path: Path
) -> None:
    storage.write(source + "cat.png", photograph(), "image/png")
    places = put_files(tmp_path)
    addresses = {name: f"{destination}assets/{name}.png" for name in FILES}
    for name, address in addresses.items():
        storage.write(address, places[name].read_bytes(), "image/png")
    (uri,) = dream_grid(storage, source, destination, grid={**GRID, **addresses})
    found = redream(uri, tmp_path / "again.png", None, OnStep())
    assert (found.equal, found.same_settings, found.differences) == (True, True, ())

    storage.write(addresses["guide"], photograph(seed=4, size=(30, 20)), "image/png")
    storage.delete(addresses["mask"])
    clear_caches()
    with pytest.raises(InvalidInput, match=r"guide: .*assets/guide\.png has the SHA-256"):
        redream(uri, tmp_path / "new.png", None, OnStep())
    with pytest.raises(InvalidInput, match=r"mask: .*assets/mask\.png does not exist"):
        redream(uri, tmp_path / "new.png", None, OnStep(), {"guide": places["guide"]})
    assert not (tmp_path / "new.png").exists()
    found = redream(uri, tmp_path / "new.png", None, OnStep(), places)
    assert (found.equal, found.same_settings, found.differences) == (True, True, ())


def test_local_guide_and_mask_must_both_be_given(tmp_path: Path, cat: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    places = put_files(tmp_path / "elsewhere")
    settings = DreamSettings.model_validate(
        SETTINGS.model_dump() | {name: {"uri": str(path)} for name, path in places.items()}
    )
    dream, again = tmp_path / "dream.png", tmp_path / "again.png"
    dream_file(cat, dream, settings, OnStep())
    for given, missing in (((), "guide"), (("guide",), "mask"), (("mask",), "guide")):
        files = {name: places[name] for name in given}
        with pytest.raises(
            InvalidInput, match=rf"with a local file as {missing}: give that file with --{missing} FILE"
        ):
            redream(str(dream), again, cat, OnStep(), files)
    for name in FILES:
        with pytest.raises(InvalidInput, match=rf"{name}: .*cat\.png has the SHA-256 .*, not "):
            redream(str(dream), again, cat, OnStep(), {**places, name: cat})
    with pytest.raises(InvalidInput, match=r"guide: .*gone\.png cannot be read"):
        redream(str(dream), again, cat, OnStep(), {**places, "guide": tmp_path / "gone.png"})
    assert not again.exists()
    found = redream(str(dream), again, cat, OnStep(), places)
    assert (found.equal, found.same_settings, found.differences) == (True, True, ())
    inside = read_metadata(again.read_bytes()) or {}
    assert inside["settings"] == (read_metadata(dream.read_bytes()) or {})["settings"]
    assert "elsewhere" not in json.dumps(inside)


def test_guide_and_mask_are_not_overwritten(tmp_path: Path, cat: Path) -> None:
    places = put_files(tmp_path)
    held = {name: {"uri": "a.png", "sha256": sha256_of(path)} for name, path in places.items()}
    dream = forge(tmp_path, {"settings": held})
    for name in FILES:
        before = places[name].read_bytes()
        with pytest.raises(InvalidInput, match="name another output file"):
            redream(str(dream), places[name], cat, OnStep(), places)
        assert places[name].read_bytes() == before


@pytest.mark.parametrize("name", [*FILES, "weights"])
@pytest.mark.parametrize("spelling", ["{path}", "file://{path}", "S3:/{path}", "~/{path}", "secret.png"])
def test_a_local_file_that_a_dream_names_is_not_read(
    name: str, spelling: str, tmp_path: Path, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(photograph(seed=5))
    monkeypatch.chdir(tmp_path)
    named = {"uri": spelling.format(path=secret), "sha256": sha256_of(secret)}
    message = refusal(forge(tmp_path, {"settings": {name: named}}), tmp_path / "again.png", cat)
    assert message.endswith(f"was dreamt with a local file as {name}: give that file with --{name} FILE")
    assert "secret" not in message


@pytest.mark.parametrize("name", [*FILES, "weights"])
@pytest.mark.parametrize(
    "uri", ["s3://\x1b[2J\n/a.png", "s3://dreams/\x1b[2J\n.png", "s3://dreams", "s3://"], ids=ascii
)
def test_control_characters_in_an_address_do_not_reach_the_terminal(
    name: str, uri: str, storage: Storage, tmp_path: Path, cat: Path
) -> None:
    storage.create_bucket("s3://dreams")
    dream = forge(tmp_path, {"settings": {name: {"uri": uri, "sha256": "0" * 64}}})
    assert "s3://" in refusal(dream, tmp_path / "again.png", cat)


@pytest.mark.parametrize("name", FILES)
def test_a_guide_without_a_digest_is_refused(name: str, tmp_path: Path, cat: Path) -> None:
    dream = forge(tmp_path, {"settings": {name: {"uri": "s3://photos/guide.png"}}})
    message = refusal(dream, tmp_path / "again.png", cat)
    assert f"has no SHA-256 of its {name}" in message


def test_the_command_requires_the_guide_as_a_file(dreamgrid_inprocess: Command, tmp_path: Path, cat: Path) -> None:
    forge(tmp_path, {"settings": {"guide": {"uri": "/etc/hostname", "sha256": "0" * 64}}})
    done = dreamgrid_inprocess("redream", "forged.png", "again.png", "--source", "cat.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("give that file with --guide FILE")
    assert "hostname" not in done.stderr
    assert not (tmp_path / "again.png").exists()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metadata() -> dict[str, Any]:
    """Return metadata as `dreamgrid image` writes it, without any dream."""
    weights = network_spec(BUNDLED).weights
    return {
        "settings": SETTINGS.model_dump(mode="json"),
        "settings_id": settings_id(SETTINGS, weights),
        "weights_sha256": weights,
        "algorithm_version": ALGORITHM_VERSION,
        "score_after": 1.5,
        "device": "cpu",
    }


def forge(folder: Path, changes: dict[str, Any] | None = None, *, leave_out: str = "") -> Path:
    """Write an image with forged metadata.

    Args:
        folder: where to write it.
        changes: metadata that differs from `metadata()`; changes of the settings are under `settings`.
        leave_out: a field without a value.
    """
    changes = dict(changes or {})
    inside = metadata()
    inside["settings"] |= changes.pop("settings", {})
    inside |= changes
    inside.pop(leave_out, None)
    path = folder / "forged.png"
    path.write_bytes(encode(pixels(), "png", 95, inside))
    return path


def test_changed_weights_algorithm_and_device_are_reported(tmp_path: Path, cat: Path) -> None:
    then = {"weights_sha256": "older", "algorithm_version": ALGORITHM_VERSION + 1, "device": "GPU of 2015"}
    found = redream(str(forge(tmp_path, then)), tmp_path / "again.png", cat, OnStep())
    assert found.settings_id == metadata()["settings_id"]
    weights, algorithm, device = found.differences
    assert weights == f"the weights of {BUNDLED} were older, now they are {network_spec(BUNDLED).weights}"
    assert algorithm == f"ALGORITHM_VERSION was {ALGORITHM_VERSION + 1}, now it is {ALGORITHM_VERSION}"
    assert device.startswith("the dream was made on GPU of 2015, now on ")
    assert (found.score_after_then, math.isfinite(found.psnr_db)) == (1.5, True)
    assert (tmp_path / "again.png").exists()


def test_another_photograph_of_the_same_size_is_reported(
    dreamgrid_inprocess: Command, tmp_path: Path, cat: Path
) -> None:
    dream_file(cat, tmp_path / "dream.png", SETTINGS, OnStep())
    (tmp_path / "dog.png").write_bytes(encode(pixels(48, 64, seed=1) // 2, "png", 95, {}))
    done = dreamgrid_inprocess("redream", "dream.png", "again.png", "--source", "dog.png", "--json")
    assert done.returncode == 0, done.stderr
    (difference,) = json.loads(done.stdout)["differences"]
    assert difference.startswith("the photograph had the score ")
    assert difference.endswith(": it may be another photograph")
    assert difference in done.stderr


def test_settings_that_do_not_match_their_id_are_reported(tmp_path: Path, cat: Path) -> None:
    edited = redream(str(forge(tmp_path, {"settings": {"seed": 1}})), tmp_path / "again.png", cat, OnStep())
    assert edited.same_settings is False
    assert "edited" in edited.differences[0]
    older = metadata() | {"settings_id": "0" * 16}
    del older["settings"]["seed"]
    (tmp_path / "older.png").write_bytes(encode(pixels(), "png", 95, older))
    found = redream(str(tmp_path / "older.png"), tmp_path / "again.png", cat, OnStep())
    assert found.same_settings is False
    assert "the newer settings seed have their defaults" in found.differences[0]


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "text instead of a number": ({"settings": {"steps": "many"}}, "settings.steps: "),
    "too many octaves": ({"settings": {"octaves": 10**6}}, "settings.octaves: "),
    "unknown setting": ({"settings": {"\x1b[2J": 1}}, "unknown field"),
    "unknown network": ({"settings": {"model": "timm/hf-hub:stranger/network"}}, "does not exist"),
    "unknown layer": ({"settings": {"layers": "blocks.44"}}, "layer 'blocks.44' does not exist"),
    "unknown channel": ({"settings": {"layers": "blocks.0:5000"}}, "channel 5000 does not exist"),
    "a layer that clears the screen": (
        {"settings": {"layers": [{"layer": "\x1b[2J\n", "weight": 0}]}},
        "settings.layers",
    ),
    "unknown format": ({"settings": {"output": {"format": "exe"}}}, "settings.output.format: "),
    "a long value": ({"settings": {"gradient": "x" * 30_000}}, "settings.gradient: "),
    "malformed settings_id": ({"settings_id": "../../etc/passwd"}, "settings_id: "),
    "malformed score": ({"score_after": "high"}, "score_after: "),
    "source outside S3": ({"source_uri": "file:///etc/passwd", "source_etag": "0"}, "source_uri: "),
    "source without a key": ({"source_uri": "s3://photos/", "source_etag": "0"}, "source_uri: "),
    "guide without an address": ({"settings": {"guide": {"sha256": "0" * 64}}}, "settings.guide.uri: "),
    "malformed digest": (
        {"settings": {"guide": {"uri": "a", "sha256": "../../etc/passwd"}}},
        "settings.guide.sha256: ",
    ),
    "guide without a bucket": ({"settings": {"guide": {"uri": "s3://", "sha256": "0" * 64}}}, "is not an S3 address"),
    "a preset": ({"settings": {"preset": "\x1b[2J"}}, "there is no preset"),
    "a tile of a pixel": ({"settings": {"tile": 1}}, "use 64 or more"),
    "octave too large": ({"settings": {"octaves": 9, "octaves_above": 8}}, "4 times the sides"),
    "a header in the ETag": ({"source_uri": "s3://photos/cat.png", "source_etag": '0"\r\nHost: x'}, "source_etag: "),
}


def refusal(dream: Path, result: Path, source: Path) -> str:
    """Return the message with which a dream is refused, after checking that it is short and nothing was dreamt."""
    on_step = OnStep()
    with pytest.raises(InvalidInput) as caught:
        redream(str(dream), result, source, on_step)
    assert (on_step.threads, result.exists()) == ([], False)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 800
    return message


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_descriptions_are_refused(name: str, tmp_path: Path, cat: Path) -> None:
    changes, message = MALFORMED[name]
    assert message in refusal(forge(tmp_path, changes), tmp_path / "again.png", cat)


@pytest.mark.parametrize("name", ["settings", "settings_id", "weights_sha256", "algorithm_version", "score_after"])
def test_a_description_without_a_required_field_is_refused(name: str, tmp_path: Path, cat: Path) -> None:
    message = refusal(forge(tmp_path, leave_out=name), tmp_path / "again.png", cat)
    assert f"malformed: {name}: " in message


def test_settings_without_layers_are_refused(tmp_path: Path, cat: Path) -> None:
    inside = metadata()
    del inside["settings"]["layers"]
    (tmp_path / "partial.png").write_bytes(encode(pixels(), "png", 95, inside))
    assert "settings: layers is missing" in refusal(tmp_path / "partial.png", tmp_path / "again.png", cat)


def test_images_without_a_description_are_refused(tmp_path: Path, cat: Path) -> None:
    assert "cat.png contains no settings" in refusal(cat, tmp_path / "again.png", cat)
    (tmp_path / "foreign.png").write_bytes(encode(pixels(), "png", 95, {"somebody": "else"}))
    assert "malformed: settings: " in refusal(tmp_path / "foreign.png", tmp_path / "again.png", cat)


def test_a_dream_larger_than_the_original_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(photograph(size=(200, 300)))
    dream = forge(tmp_path, {"settings": {"max_pixels": MAX_SOURCE_PIXELS}})
    message = refusal(dream, tmp_path / "again.png", large)
    assert "has 64 x 48 pixels, but its settings make 300 x 200" in message
    dream = forge(tmp_path, {"settings": {"max_pixels": 10**30}})
    assert "max_pixels is over" in refusal(dream, tmp_path / "again.png", large)


def test_a_file_that_is_not_an_image_is_reported_with_its_name(
    tmp_path: Path, cat: Path, dreamgrid_inprocess: Command
) -> None:
    (tmp_path / "page.png").write_text("<html>")
    for dream, source in (("page.png", "cat.png"), ("forged.png", "page.png")):
        forge(tmp_path)
        with pytest.raises(ImageError, match=r"page\.png: "):
            redream(str(tmp_path / dream), tmp_path / "again.png", tmp_path / source, OnStep())
    done = dreamgrid_inprocess("redream", "page.png", "again.png", "--source", "cat.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert "page.png: " in done.stderr


def test_missing_files_and_unusable_outputs_are_refused(storage: Storage, tmp_path: Path, cat: Path) -> None:
    storage.create_bucket("s3://dreams")
    dream = str(forge(tmp_path))
    for name, result, message in (
        (str(tmp_path / "missing.png"), "again.png", "missing.png cannot be read"),
        ("s3://dreams/missing.png", "again.png", "there is no dream s3://dreams/missing.png"),
        ("s3://dreams", "again.png", "there is no dream s3://dreams"),
        ("s3://", "again.png", "not an S3 address"),
        (dream, "again.gif", "'png', 'webp' or 'jpg', not 'gif'"),
        (dream, "no/folder/again.png", "no/folder does not exist"),
        (dream, "forged.png", "name another output file"),
        (dream, "cat.png", "name another output file"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(message)):
            redream(name, tmp_path / result, cat, OnStep())
    assert cat.read_bytes() == photograph()


def test_psnr_agrees_with_its_definition() -> None:
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, white) == psnr(white, black) == 0
    assert psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)


def test_an_infinite_psnr_is_null_in_json() -> None:
    far = Reproduction("0" * 16, True, 20.5, 1.0, 2.0, "again.png", ())
    assert far.to_json()["psnr_db"] == 20.5
    assert set(far.to_json()) == {field.name for field in fields(far)}
