"""`dreamgrid image`: presets, guides, masks, weights and memory, as people give them on the command line."""

import hashlib
import io
import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dreamcore.catalog import network_spec, resolve_layers
from dreamcore.images import decode, read_metadata
from dreamcore.presets import PRESETS, PresetName
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.zoo import build
from tests.conftest import DREAMGRID, Command
from tests.support.tiny import pixels

QUICK = ("--steps", "1", "--octaves", "1")
NOWHERE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}


def write(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels(height, width, seed)).save(path)
    return path


@pytest.fixture(autouse=True)
def cat(tmp_path: Path) -> Path:
    """A small photograph in the command's folder."""
    return write(tmp_path / "cat.png")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inside(path: Path) -> dict[str, Any]:
    return read_metadata(path.read_bytes()) or {}


def dreamt(dreamgrid: Command, folder: Path, *arguments: str, source: str = "cat.png") -> tuple[dict[str, Any], str]:
    """What the dream says of itself, and what the command said of it."""
    done = dreamgrid("image", source, "dream.png", *arguments, **NOWHERE)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return inside(folder / "dream.png"), done.stdout


def test_a_preset_is_written_into_the_picture_as_the_settings_it_stands_for(dreamgrid: Command, tmp_path: Path) -> None:
    preset: PresetName = "tf2_tiled"
    given = {"steps": 1, "octaves": 3, "step_size": 0.02}
    flags = [part for name, value in given.items() for part in ("--" + name.replace("_", "-"), str(value))]
    found, _ = dreamt(dreamgrid, tmp_path, "--preset", preset, *flags)
    assert "preset" not in found["settings"]
    assert found["settings"].items() >= {**PRESETS[preset].settings, **given}.items()
    settings = resolve_layers(DreamSettings.model_validate({"preset": preset, **given}))
    assert DreamSettings.model_validate(found["settings"]) == settings
    assert {target.layer for target in settings.layers} <= {layer.name for layer in network_spec(BUNDLED).layers}


def test_guide_and_mask_are_files_whose_folders_nobody_learns(dreamgrid: Command, tmp_path: Path, cat: Path) -> None:
    guide = write(tmp_path / "secret" / "guide.png", 30, 20, seed=3)
    mask = tmp_path / "secret" / "mask.png"
    Image.fromarray(np.repeat(np.repeat(np.array([0, 255], np.uint8), 32)[None], 48, 0)).save(mask)
    arguments = ("--guide", "secret/guide.png", "--mask", str(mask), "--layers", "blocks.0", "--step-size", "0.05")
    found, _ = dreamt(dreamgrid, tmp_path, *arguments, *QUICK)
    assert found["settings"]["guide"] == {"uri": "guide.png", "sha256": sha256_of(guide)}
    assert found["settings"]["mask"] == {"uri": "mask.png", "sha256": sha256_of(mask)}
    for data in (json.dumps(found).encode(), (tmp_path / "dream.png").read_bytes()):
        assert b"secret" not in data
        assert str(tmp_path).encode() not in data
    dream, photograph = (decode(path.read_bytes()).pixels for path in (tmp_path / "dream.png", cat))
    assert (dream[:, :32] == photograph[:, :32]).all()
    assert (dream[:, 32:] != photograph[:, 32:]).mean() > 0.8
    assert found["score_after"] > found["score_before"]


def own_weights(path: Path) -> str:
    """Drawn weights for three classes; the file with its digest, as the flag takes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build("squeezenet1_1", pretrained=False, classes=3).state_dict()
    path.write_bytes(safetensors.torch.save(dict(state)))
    return f"{path}#sha256={sha256_of(path)}"


def test_weights_of_ones_own_need_no_layers_and_no_download(dreamgrid: Command, tmp_path: Path) -> None:
    weights = own_weights(tmp_path / "own.safetensors")
    found, said = dreamt(dreamgrid, tmp_path, "--model", "squeezenet1_1", "--weights", weights, *QUICK)
    assert found["weights_sha256"] == sha256_of(tmp_path / "own.safetensors")
    assert found["settings"]["weights"] == {"uri": "own.safetensors", "sha256": found["weights_sha256"]}
    assert str(tmp_path) not in json.dumps(found)
    (target,) = found["settings"]["layers"]
    assert target["layer"] in {stage.name for stage in network_spec("squeezenet1_1").stages()}
    assert "the network saw after: class " in said


def test_a_picture_that_memory_does_not_hold_is_dreamt_in_tiles(dreamgrid: Command, tmp_path: Path) -> None:
    write(tmp_path / "large.png", 700, 900)
    found, _ = dreamt(dreamgrid, tmp_path, *QUICK, "--layers", "blocks.1", "--max-memory", "100MB", source="large.png")
    assert 64 <= found["tile"] < 700
    assert found["settings"]["tile"] == 0, "how much memory there is changes no setting"
    assert (found["width"], found["height"]) == (900, 700)
    assert found["score_after"] > found["score_before"]


def test_every_stage_is_scored_where_that_is_asked_for(dreamgrid: Command, tmp_path: Path) -> None:
    found, said = dreamt(dreamgrid, tmp_path, "--layers", "40%", "--stage-scores", *QUICK)
    assert [target["layer"] for target in found["settings"]["layers"]] == ["blocks.3"], "41 % of the multiply-adds"
    stages = found["stage_scores"]
    assert [stage["layer"] for stage in stages] == [stage.name for stage in network_spec(BUNDLED).stages()]
    for stage in stages:
        assert f"{stage['layer']}: {stage['before']:.2f} to {stage['after']:.2f}\n" in said


def test_another_network_needs_no_layers_either(dreamgrid: Command, tmp_path: Path) -> None:
    found, _ = dreamt(dreamgrid, tmp_path, "--model", "efficientnet_lite1", *QUICK)
    assert found["stage_scores"] is None
    assert [target["layer"] for target in found["settings"]["layers"]] == ["blocks.4"]


def jpeg_of_half() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels()).save(sink, "JPEG")
    return sink.getvalue()[: len(sink.getvalue()) // 2]


REFUSED = {
    "no such preset": (
        ("--preset", "wrong"),
        "there is no preset 'wrong'; choose google2015, tf2, tf2_tiled, keras, gordic",
    ),
    "two layers": (
        ("--layers", "blocks.3", "--layers", "blocks.4"),
        "--layers is given 2 times: give it once, or use `dreamgrid run`, which dreams every combination",
    ),
    "two qualities": (("--quality", "80", "--quality", "90"), "--quality is given 2 times: give it once"),
    "two presets": (("--preset", "tf2", "--preset", "keras"), "--preset is given 2 times: give it once, or "),
    "a quality that there is not": (
        ("--quality", "200"),
        "output.quality: input should be less than or equal to 100, not '200'",
    ),
    "no amount of memory": (
        ("--max-memory", "nonsense"),
        "'nonsense' is not an amount of memory: write for example 2GiB",
    ),
    "a tile too small": (("--tile", "10"), "tile is 10 pixels; use 64 or more"),
    "no octave is the picture": (
        ("--preset", "tf2", "--octaves", "2"),
        "octaves_above is 2; it must be less than octaves (2)",
    ),
    "no digest": (
        ("--weights", "own.pth"),
        "weights need a SHA-256; write own.pth#sha256=DIGEST with the output of `sha256sum`",
    ),
    "half a digest": (("--weights", "own.pth#sha256=12ab"), "weights.sha256: "),
    "no such stage": (("--layers", "x40%"), "layer 'x40%' does not exist"),
    "no guide": (("--guide", "missing.png"), "guide: missing.png cannot be read: No such file or directory"),
    "a folder": (("--mask", "."), "mask: . cannot be read: Is a directory"),
    "no picture": (("--guide", "page.png"), "guide: page.png: not an image"),
    "half a picture": (("--mask", "half.jpg"), "mask: half.jpg: JPEG: "),
    "another guide": (("--guide", f"cat.png#sha256={'0' * 64}"), "guide: cat.png has the SHA-256 "),
    "other weights": (("--weights", f"page.png#sha256={'0' * 64}"), "weights: page.png has the SHA-256 "),
    "no weights": (
        ("--weights", "page.png#sha256=" + hashlib.sha256(b"<html>").hexdigest()),
        "page.png is not a weights file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(
    case: str, dreamgrid: Command, tmp_path: Path
) -> None:
    arguments, message = REFUSED[case]
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "half.jpg").write_bytes(jpeg_of_half())
    done = dreamgrid("image", "cat.png", "dream.png", *arguments, **NOWHERE)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert not (tmp_path / "dream.png").exists()


@pytest.mark.parametrize("over", ["cat.png", "link.png", "guide.png", "mask.png"])
def test_no_dream_is_written_over_what_it_is_made_of(over: str, dreamgrid: Command, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("cat.png")
    for seed, name in enumerate(("guide.png", "mask.png")):
        write(tmp_path / name, seed=seed)
    before = (tmp_path / over).read_bytes()
    done = dreamgrid("image", "cat.png", over, "--guide", "guide.png", "--mask", "mask.png", *QUICK, **NOWHERE)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"{over} would be written over what it is made from: name another file" in done.stderr
    assert (tmp_path / over).read_bytes() == before


def test_one_picture_that_was_stopped_promises_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with subprocess.Popen(
        [DREAMGRID, "image", "pipe.png", "dream.png"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as command:
        with (tmp_path / "pipe.png").open("wb"):  # returns when the command has opened it
            errors = None
            while errors is None:  # Python sees no signal that comes between there and the read that waits
                command.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    errors = command.communicate(timeout=15)[1]
        assert (command.returncode, errors.strip()) == (3, "dreamgrid: stopped")


def test_weights_that_cannot_be_had_promise_nothing(dreamgrid: Command, tmp_path: Path) -> None:
    nowhere = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path)}
    done = dreamgrid("image", "cat.png", "dream.png", "--model", "resnet18", *QUICK, **nowhere)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "the weights of resnet18 could not be downloaded" in line


def test_a_picture_too_small_for_the_network_is_told(dreamgrid: Command, tmp_path: Path) -> None:
    write(tmp_path / "tiny.png", 10, 12)
    weights = own_weights(tmp_path / "own.safetensors")
    arguments = ("--model", "squeezenet1_1", "--weights", weights, "--layers", "features.12", *QUICK)
    done = dreamgrid("image", "tiny.png", "dream.png", *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "12x10 pixels: the network needs 17 on each side" in line
    assert not (tmp_path / "dream.png").exists()
