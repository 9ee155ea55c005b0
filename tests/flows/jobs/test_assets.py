"""Guides, masks and weights of a job against a real S3: their effect, their identity, and what is refused."""

import hashlib
import io
import json
import pickle
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.images import decode
from dreamcore.models import load_network
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.zoo import build
from flows.jobs import assets
from flows.jobs.job import DreamJob, read_job
from flows.local.stack import Stack
from flows.planning.scan import plan_settings
from flows.running.shard import dream_shard
from flows.s3.storage import DEFAULT_RETRY, RetryPolicy, Storage
from tests.support.caches import clear_caches
from tests.support.command import Command
from tests.support.faults import Fault, Proxy, first
from tests.support.pickles import RunsCode
from tests.support.shards import plan_run, put_photograph, rows_of
from tests.support.tiny import pixels

GRID = {"layers": ["blocks.0"], "octaves": [1], "steps": [1], "jitter": [4]}
TIMM = f"timm/tf_{BUNDLED}"
"""Another name of the bundled network."""

Row = dict[str, Any]


def png(array: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "PNG")
    return sink.getvalue()


def gray(columns: Sequence[int], height: int) -> bytes:
    """Return an image whose columns have these gray values."""
    return png(np.repeat(np.array(columns, np.uint8)[None, :, None], height, 0).repeat(3, 2))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(storage: Storage, uri: str, data: bytes) -> str:
    """Write a file to S3, and return its address with its digest."""
    storage.write(uri, data, "application/octet-stream")
    return f"{uri}#sha256={digest(data)}"


def job_of(source: str, destination: str, *, job: Any = None, **axes: Any) -> DreamJob:
    """Return a job as it is read from a job file."""
    return read_job(None, {"source": source, "destination": destination, "grid": {**GRID, **axes}, **(job or {})})


def settings_id_of(source: str, destination: str, **axes: Any) -> str:
    (planned,) = plan_settings(job_of(source, destination, **axes))
    return planned.settings_id


def dreamt(storage: Storage, source: str, destination: str, *, job: Any = None, **axes: Any) -> list[Row]:
    """Dream a job in one shard. Return its rows in the order of the grid, with the `pixels` of each dream."""
    run, shard = plan_run(storage, source, destination, (), grid={**GRID, **axes}, **(job or {}))
    dream_shard(run, shard, storage)
    rows = rows_of(storage, run)
    assert {row["status"] for row in rows} == {"done"}, [row["error"] for row in rows]
    order = [planned.settings_id for planned in run.settings]
    assert sorted(str(row["settings_id"]) for row in rows) == sorted(order), (
        "exactly one row for each point of the grid"
    )
    rows.sort(key=lambda row: order.index(str(row["settings_id"])))
    return [{**row, "pixels": decode(storage.read(str(row["result_uri"])) or b"").pixels} for row in rows]


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the mean difference of two images, on a scale of 255."""
    return float(np.abs(one.astype(int) - other).mean())


# --- guides


def test_a_guide_changes_the_dream_and_is_recorded_in_the_row(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    guide = f"{destination}assets/guide.png"
    reference = put(storage, guide, png(pixels(30, 20, seed=3)))
    without, guided = dreamt(storage, source, destination, guide=[None, guide], step_size=[0.05])
    assert distance(without["pixels"], guided["pixels"]) > 1
    assert guided["score_after"] > guided["score_before"]
    assert guided["settings_id"] != without["settings_id"]
    assert json.loads(without["settings"])["guide"] is None
    assert json.loads(guided["settings"])["guide"] == {"uri": guide, "sha256": reference.rpartition("=")[2]}


def test_a_guide_works_with_positions_channels_pooling_and_logits(
    storage: Storage, source: str, destination: str
) -> None:
    put_photograph(storage, source + "cat.png")
    guide = f"{destination}assets/guide.png"
    put(storage, guide, png(pixels(30, 20, seed=3)))
    layers = ["blocks.0@0.5,0.5", "blocks.1:3,5", "global_pool.pool", "logits", "logits:5=2+blocks.0"]
    for row in dreamt(storage, source, destination, guide=guide, layers=layers, step_size=[0.005]):
        assert row["score_after"] > row["score_before"], row["layers"]


@pytest.mark.parametrize("name", ["guide", "mask"])
def test_the_identity_of_an_image_is_its_content_and_not_its_address(
    name: str, storage: Storage, source: str, destination: str
) -> None:
    def identity(uri: str) -> str:
        return settings_id_of(source, destination, **{name: uri})

    one = put(storage, f"{source}one.png", png(pixels(30, 20, seed=3)))
    put(storage, f"{source}copy.png", png(pixels(30, 20, seed=3)))
    put(storage, f"{source}other.png", png(pixels(30, 20, seed=4)))
    assert identity(f"{source}one.png") == identity(f"{source}copy.png") == identity(one)
    assert identity(f"{source}other.png") != identity(f"{source}one.png")
    put(storage, f"{source}one.png", png(pixels(30, 20, seed=5)))
    clear_caches()
    assert identity(f"{source}one.png") != identity(f"{source}copy.png"), "the address has new content"


@pytest.mark.parametrize("name", ["guide", "mask"])
def test_one_image_at_two_addresses_is_one_point_of_the_grid(
    name: str, storage: Storage, source: str, destination: str
) -> None:
    for address, seed in (("one", 3), ("copy", 3), ("other", 4)):
        put(storage, source + address, png(pixels(30, 20, seed)))
    job = job_of(source, destination, **{name: [source + address for address in ("one", "copy", "other")]})
    assert len(plan_settings(job)) == 2


# --- masks


@pytest.mark.parametrize("carry", ["detail", "result"])
def test_a_mask_keeps_black_areas_unchanged_and_dreams_white_areas(
    carry: str, storage: Storage, source: str, destination: str
) -> None:
    put_photograph(storage, source + "cat.png")
    mask = f"{destination}assets/mask.png"
    put(storage, mask, gray([0] * 28 + [255] * 28, 40))
    axes = {"octaves": [2], "octave_scale": [1.2], "steps": [2], "step_size": [0.05], "carry": carry}
    without, masked = dreamt(storage, source, destination, mask=[None, mask], **axes)
    photograph = pixels(40, 56)
    assert (masked["pixels"][:, :28] == photograph[:, :28]).all()
    assert (without["pixels"][:, :28] != photograph[:, :28]).mean() > 0.8
    assert (masked["pixels"][:, 28:] != photograph[:, 28:]).mean() > 0.8
    assert masked["octave_scores"] != without["octave_scores"]
    assert len(masked["octave_scores"]) == 2


def test_a_mask_is_stretched_over_the_photograph(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    mask = f"{destination}assets/mask.png"
    put(storage, mask, gray([0] * 7 + [255] * 7, 9))
    (masked,) = dreamt(storage, source, destination, mask=mask, step_size=[0.05])
    photograph = pixels(40, 56)
    assert (masked["pixels"][:, :20] == photograph[:, :20]).all()
    assert (masked["pixels"][:, 36:] != photograph[:, 36:]).mean() > 0.8


def test_a_gray_mask_scales_the_change_by_its_brightness(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    mask = f"{destination}assets/mask.png"
    put(storage, mask, gray([51] * 56, 40))
    without, masked = dreamt(storage, source, destination, mask=[None, mask], step_size=[0.1])
    photograph = pixels(40, 56)
    assert distance(masked["pixels"], photograph) == pytest.approx(distance(without["pixels"], photograph) / 5, rel=0.1)


# --- weights


@cache
def bundled_weights() -> bytes:
    """Return the weights of the bundled network as a safetensors file with timm's names."""
    state = load_network(BUNDLED).module.state_dict()
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})


def test_the_bundled_weights_from_s3_give_the_same_dream(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    (bundled,) = dreamt(storage, source, f"{destination}bundled/")
    weights = put(storage, f"{destination}assets/custom.safetensors", bundled_weights())
    rows = dreamt(storage, source, f"{destination}custom/", weights=weights, model=[TIMM, BUNDLED])
    assert [row["model"] for row in rows] == [TIMM, BUNDLED]
    for row in rows:
        assert (row["pixels"] == bundled["pixels"]).all()
        assert row["weights_sha256"] == digest(bundled_weights()) != bundled["weights_sha256"]
        assert (row["score_after"], row["classes_after"]) == (bundled["score_after"], bundled["classes_after"])
        assert row["settings_id"] != bundled["settings_id"]
        assert json.loads(row["settings"])["weights"] == {
            "uri": f"{destination}assets/custom.safetensors",
            "sha256": digest(bundled_weights()),
        }


def test_the_identity_of_weights_is_their_content_and_not_their_address(
    storage: Storage, source: str, destination: str
) -> None:
    def identity(name: str, data: bytes) -> str:
        return settings_id_of(source, destination, weights=put(storage, source + name, data))

    assert identity("one.pth", b"these") == identity("copy.pth", b"these") != identity("other.pth", b"those")


def small_network(classes: int) -> bytes:
    """Return random weights of a network that needs images of at least 17 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return safetensors.torch.save(dict(build("squeezenet1_1", pretrained=False, classes=classes).state_dict()))


def test_classes_of_custom_weights_are_named_by_number(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    weights = put(storage, f"{destination}assets/custom.safetensors", small_network(3))
    (row,) = dreamt(storage, source, destination, model="squeezenet1_1", weights=weights, layers="features.3")
    for classes in (row["classes_before"], row["classes_after"]):
        assert {each["label"] for each in classes} == {"class 0", "class 1", "class 2"}
        assert sum(each["p"] for each in classes) == pytest.approx(1, abs=1e-4)


def test_a_labels_file_names_the_classes_of_custom_weights_and_changes_no_dream(
    storage: Storage, source: str, destination: str
) -> None:
    put_photograph(storage, source + "cat.png")
    weights = put(storage, f"{destination}assets/small.safetensors", small_network(classes=3))
    put(storage, f"{destination}assets/names.txt", b"ant\nbee\nhouse mouse\n")
    axes: dict[str, Any] = {"model": "squeezenet1_1", "weights": weights, "layers": "features.3"}
    job = {"labels": f"{destination}assets/names.txt"}
    (plain,) = dreamt(storage, source, f"{destination}plain/", **axes)
    (named,) = dreamt(storage, source, f"{destination}named/", job=job, **axes)
    names = dict(zip(("class 0", "class 1", "class 2"), ("ant", "bee", "house mouse"), strict=True))
    for column in ("classes_before", "classes_after"):
        assert [names[each["label"]] for each in plain[column]] == [each["label"] for each in named[column]]
    assert (plain["pixels"] == named["pixels"]).all()
    assert (plain["settings_id"], plain["result_id"]) == (named["settings_id"], named["result_id"])
    assert job_of(source, destination, job=job).job_id == job_of(source, destination).job_id


def test_labels_for_another_number_of_classes_are_refused(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    weights = put(storage, f"{destination}assets/small.safetensors", small_network(classes=3))
    names = f"{destination}assets/names.txt"
    put(storage, names, b"ant\nbee\n")
    with pytest.raises(InvalidInput, match=rf"^labels: {names}: there are 2 names of classes, but {BUNDLED} has 1000"):
        plan_settings(job_of(source, destination, job={"labels": names}))
    axes: dict[str, Any] = {"model": "squeezenet1_1", "weights": weights, "layers": "features.3"}
    with pytest.raises(InvalidInput, match=rf"^labels: {names}: there are 2 names of classes, but squeezenet1_1 has 3"):
        dreamt(storage, source, destination, job={"labels": names}, **axes)
    for uri, message in (("names.txt", "'names.txt' is not an S3 address"), (f"{names}.json", "does not exist")):
        with pytest.raises(InvalidInput, match=f"^labels: .*{message}"):
            plan_settings(job_of(source, destination, job={"labels": uri}))


def test_a_photograph_too_small_for_the_network_fails_alone(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    storage.write(source + "tiny.png", png(pixels(10, 12)), "image/png")
    weights = put(storage, f"{destination}assets/custom.safetensors", small_network(3))
    grid = {**GRID, "model": "squeezenet1_1", "weights": weights, "layers": ["features.12"]}
    run, shard = plan_run(storage, source, destination, (), grid=grid)
    assert dream_shard(run, shard, storage) == {"done": 1, "failed": 1}
    (failed,) = (row for row in rows_of(storage, run) if row["status"] == "failed")
    assert (failed["source_uri"], failed["error_kind"]) == (source + "tiny.png", "too_small")
    assert "the network needs 17" in str(failed["error"])


def test_a_pickle_with_code_is_refused_and_not_executed(
    storage: Storage, source: str, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICKLE_FOLDER", str(tmp_path / "executed"))
    weights = put(storage, f"{source}custom.pth", pickle.dumps({"conv_stem.weight": RunsCode()}))
    (planned,) = plan_settings(job_of(source, destination, weights=weights))
    with pytest.raises(
        InvalidInput, match=r"custom\.pth contains more than tensors, or is damaged; no code of it was run"
    ):
        assets.network_for(planned.settings, "cpu")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(RunsCode()))
    assert (tmp_path / "executed").exists(), "the pickle is malicious indeed"


# --- what is refused


def refusal(source: str, destination: str, **axes: Any) -> str:
    """Return the message with which a job is refused. It is one line."""
    with pytest.raises(InvalidInput) as caught:
        plan_settings(job_of(source, destination, **axes))
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("name", ["guide", "mask"])
def test_a_missing_or_damaged_image_is_refused(name: str, storage: Storage, source: str, destination: str) -> None:
    put(storage, f"{source}page.png", b"<html>\n")
    put(storage, f"{source}empty.png", b"")
    damaged = png(pixels(30, 20))
    put(storage, f"{source}damaged.png", damaged[: len(damaged) // 2])
    for uri, message in (
        (f"{source}missing.png", f"{source}missing.png does not exist"),
        ("s3://nowhere/guide.png", "there is no bucket 'nowhere'"),
        (f"{source}page.png", f"{source}page.png: not an image"),
        (f"{source}empty.png", f"{source}empty.png: "),
        (f"{source}damaged.png", f"{source}damaged.png: PNG: "),
    ):
        assert message in refusal(source, destination, **{name: [None, uri]})


@pytest.mark.parametrize("uri", ["guide.png", "/etc/hostname", "file:///etc/hostname", "s3:/photos/a.png", "S3://b/k"])
@pytest.mark.parametrize("name", ["guide", "mask", "weights"])
def test_a_run_refuses_local_files(name: str, uri: str) -> None:
    message = refusal("s3://photos/x/", "s3://dreams/x/", **{name: f"{uri}#sha256={digest(b'')}"})
    assert message == f"{name}: {uri!r} is not an S3 address, and a run reads files only from S3"


@pytest.mark.parametrize("name", ["guide", "mask", "weights"])
def test_an_address_without_an_object_is_refused(name: str, storage: Storage, source: str, destination: str) -> None:
    for uri in ("s3://", "s3:///a.png", "s3://photos", "s3://photos/"):
        message = refusal(source, destination, **{name: f"{uri}#sha256={digest(b'')}"})
        assert f"{uri} is not the address of an object" in message or f"{name}: {uri!r} is not an S3 address" in message


def test_weights_are_refused_without_a_digest(storage: Storage, source: str, destination: str) -> None:
    put(storage, f"{source}custom.safetensors", b"tensors")
    message = refusal(source, destination, weights=f"{source}custom.safetensors")
    assert (
        f"weights need a SHA-256; write {source}custom.safetensors#sha256=DIGEST with the output of `sha256sum`"
        in message
    )


@pytest.mark.parametrize("name", ["guide", "mask", "weights"])
def test_a_file_with_another_digest_is_refused(name: str, storage: Storage, source: str, destination: str) -> None:
    data = bytearray(png(pixels(30, 20)))
    address = put(storage, f"{source}file", bytes(data))
    plan_settings(job_of(source, destination, **{name: address}))
    data[len(data) // 2] ^= 1
    put(storage, f"{source}file", bytes(data))
    clear_caches()
    message = refusal(source, destination, **{name: address})
    assert message.startswith(f"{name}: {source}file has the SHA-256 {digest(bytes(data))[:16]}..., not ")


def test_an_unknown_network_is_refused_before_its_weights_are_read() -> None:
    message = refusal("s3://photos/x/", "s3://dreams/x/", model="nonet", weights=f"s3://b/k#sha256={digest(b'')}")
    assert "network 'nonet' does not exist" in message


def test_an_unreachable_store_is_refused_quickly_if_the_job_has_a_guide(
    dreamgrid: Command, source: str, destination: str
) -> None:
    unreachable = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    for command in ("run", "plan"):
        arguments = ("--source", source, "--destination", destination, "--guide", f"{source}guide.png")
        started = time.monotonic()
        done = dreamgrid(command, *arguments, **unreachable)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "127.0.0.1:9 does not answer" in done.stderr
        assert time.monotonic() - started < DEFAULT_RETRY.seconds, "checks use FAIL_FAST"
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_guide_that_is_replaced_after_the_check_is_not_dreamt(
    storage: Storage, source: str, destination: str
) -> None:
    put_photograph(storage, source + "cat.png")
    guide = f"{destination}assets/guide.png"
    put(storage, guide, png(pixels(30, 20, seed=3)))
    run, shard = plan_run(storage, source, destination, (), grid={**GRID, "guide": guide})
    put(storage, guide, png(pixels(30, 20, seed=4)))
    clear_caches()
    with pytest.raises(InvalidInput, match=rf"guide: {guide} has the SHA-256 .* put the right file there"):
        assets.load_guide_and_mask(run.settings[0].settings)
    with pytest.raises(InvalidInput, match=rf"guide: {guide} has the SHA-256"):
        dream_shard(run, shard, storage)
    assert list(storage.list(f"{destination}images/")) == []
    assert rows_of(storage, run) == []


@pytest.fixture
def proxy(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the store, in a process whose caches are empty."""
    with Proxy(stack.s3_url) as proxy:
        for name, value in proxy.environment(stack.environment()).items():
            monkeypatch.setenv(name, value)
        clear_caches()
        yield proxy
    clear_caches()


@pytest.mark.parametrize("name", ["guide", "weights"])
def test_checks_fail_fast_and_workers_retry(name: str, storage: Storage, source: str, proxy: Proxy) -> None:
    """If the store sends "slow down" while a worker starts, the run does not stop."""
    data = bundled_weights() if name == "weights" else png(pixels(30, 20, seed=3))
    settings = DreamSettings.model_validate({"model": BUNDLED, name: put(storage, source + name, data)})
    proxy.choose = first(Fault.SLOW_DOWN, "GET", source)
    with pytest.raises(Unavailable, match="SlowDown"):
        assets.resolve(settings, open_storage=lambda: Storage(RetryPolicy(0, 5)))
    resolved = assets.resolve(settings)
    proxy.choose = first(Fault.SLOW_DOWN, "GET", source, times=3)
    assets.load_guide_and_mask(resolved)
    assets.network_for(resolved, "cpu")
    assert proxy.count(Fault.SLOW_DOWN) == 4


# --- batches


def test_a_batch_gives_the_same_dreams_as_single_images(
    storage: Storage, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_photograph(storage, source + "cat.png")
    axes = {"seed": [0, 1], "step_size": [0.01, 0.03], "layers": ["blocks.0", "blocks.0=0.5+blocks.1"]}
    monkeypatch.setenv("DREAMGRID_BATCH", "1")
    alone = dreamt(storage, source, f"{destination}alone/", **axes)
    monkeypatch.setenv("DREAMGRID_BATCH", "4")
    together = dreamt(storage, source, f"{destination}together/", **axes)
    assert [row["batch"] for row in alone] == [1] * 8
    assert [row["batch"] for row in together] == [4] * 8
    for one, other in zip(alone, together, strict=True):
        assert (one["settings_id"], one["seed"], one["layers"]) == (
            other["settings_id"],
            other["seed"],
            other["layers"],
        )
        assert other["score_before"] == pytest.approx(one["score_before"], abs=1e-3)
        assert other["score_after"] == pytest.approx(one["score_after"], abs=1e-2)
        assert distance(one["pixels"], other["pixels"]) < 0.1
    assert len({row["pixels"].tobytes() for row in together}) == 8, "all dreams are different"


def test_dreams_with_and_without_guide_or_mask_share_a_batch(
    storage: Storage, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_photograph(storage, source + "cat.png")
    for name, data in (("guide", png(pixels(30, 20, seed=3))), ("mask", gray([0] * 28 + [255] * 28, 40))):
        put(storage, f"{destination}assets/{name}", data)
    axes = {"guide": [None, f"{destination}assets/guide"], "mask": [None, f"{destination}assets/mask"]}
    monkeypatch.setenv("DREAMGRID_BATCH", "1")
    alone = dreamt(storage, source, f"{destination}alone/", **axes)
    monkeypatch.setenv("DREAMGRID_BATCH", "3")
    together = dreamt(storage, source, f"{destination}together/", **axes)
    assert [row["batch"] for row in together] == [3, 3, 3, 1]
    for one, other in zip(alone, together, strict=True):
        assert other["score_before"] == pytest.approx(one["score_before"], abs=1e-3)
        assert other["score_after"] == pytest.approx(one["score_after"], abs=1e-2)
        assert distance(one["pixels"], other["pixels"]) < 0.1


# --- stages


def test_stages_are_scored_if_the_job_says_so(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    (without,) = dreamt(storage, source, f"{destination}without/")
    (scored,) = dreamt(storage, source, f"{destination}scored/", job={"stage_scores": True})
    assert without["stage_scores"] is None
    assert [stage["layer"] for stage in scored["stage_scores"]] == [
        stage.name for stage in network_spec(BUNDLED).stages()
    ]
    (excited,) = (stage for stage in scored["stage_scores"] if stage["layer"] == "blocks.0")
    assert excited["before"] == pytest.approx(scored["score_before"], abs=1e-4)
    assert excited["after"] == pytest.approx(scored["score_after"], abs=1e-4)
    assert all(stage["before"] != stage["after"] for stage in scored["stage_scores"])
    assert (without["pixels"] == scored["pixels"]).all()
    assert without["settings_id"] == scored["settings_id"]


def test_stage_scores_do_not_change_the_job_id(source: str, destination: str) -> None:
    with_, without = (job_of(source, destination, job={"stage_scores": on}) for on in (True, False))
    assert with_.job_id == without.job_id
    assert with_ != without


def test_octaves_below_the_minimum_size_are_counted(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    (row,) = dreamt(storage, source, destination, octaves=[4], octave_scale=[1.2], keep_colors=[0])
    assert row["octaves_left_out"] == 2, "40 and 33 pixels are dreamt, 28 and 23 are not"
    assert len(row["octave_scores"]) == 2
    assert row["octave_scores"][-1] == pytest.approx(row["score_after"], abs=1e-4)
