"""`dreamgrid image`: presets, guides, masks, weights and memory on the command line."""

import hashlib
import io
import json
import os
import signal
import subprocess
import time
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
from dreamcore.models import load_network
from dreamcore.presets import PRESETS, PresetName
from dreamcore.ranking import ranked_channels
from dreamcore.results import to_tensor
from dreamcore.settings import BUNDLED, DreamSettings, settings_id
from dreamcore.sweeps import Ranking
from dreamcore.zoo import build
from tests.support.command import DREAMGRID, PHOTOS, Command
from tests.support.tiny import pixels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

QUICK = ("--steps", "1", "--octaves", "1")
UNREACHABLE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}


def write_image(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels(height, width, seed)).save(path)
    return path


@pytest.fixture(autouse=True)
def cat(tmp_path: Path) -> Path:
    """A small photograph in the folder of the command."""
    return write_image(tmp_path / "cat.png")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metadata_of(path: Path) -> dict[str, Any]:
    return read_metadata(path.read_bytes()) or {}


def dream_image(command: Command, folder: Path, *arguments: str, source: str = "cat.png") -> tuple[dict[str, Any], str]:
    """Return the metadata inside the dream, and the output of the command."""
    done = command("image", source, "dream.png", *arguments, **UNREACHABLE)
    assert done.returncode == 0, done.stderr
    return metadata_of(folder / "dream.png"), done.stdout


def test_an_image_needs_no_s3_and_no_prefect(dreamgrid: Command, tmp_path: Path) -> None:
    arguments = ("--layers", "blocks.4", "--octaves", "2", "--steps", "1", "--max-pixels", "20000")
    done = dreamgrid("image", str(PHOTOS / "chelsea.png"), "out.png", *arguments, OMP_NUM_THREADS="1", **UNREACHABLE)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Egyptian cat" in done.stdout
    found = metadata_of(tmp_path / "out.png")
    assert found["settings"]["layers"] == [{"layer": "blocks.4", "channels": [], "at": None, "weight": 1.0}]
    with Image.open(tmp_path / "out.png") as image:
        assert image.width * image.height <= 20000
        assert image.width / image.height == pytest.approx(451 / 300, rel=0.02)


def test_a_dream_begins_with_noise_and_is_reproduced(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    """The noise is made anew from the seed inside the dream."""
    found, _ = dream_image(dreamgrid_inprocess, tmp_path, *QUICK, "--seed", "7", source="noise:64x48")
    assert (found["width"], found["height"], found["settings"]["seed"]) == (64, 48, 7)
    again = dreamgrid_inprocess("redream", "dream.png", "again.png", "--source", "noise:64x48", **UNREACHABLE)
    assert (again.returncode, "the same pixels as dream.png" in again.stdout) == (0, True), again.stderr


def test_samples_have_a_file_and_a_seed_each_and_differ_more_with_diversity(
    dreamgrid_inprocess: Command, tmp_path: Path
) -> None:
    arguments = ("image", "noise:64x48", "out.png", *QUICK, "--seed", "7", "--samples", "2")
    found = []
    for diversity in ((), ("--diversity", "100")):
        done = dreamgrid_inprocess(*arguments, *diversity, **UNREACHABLE)
        assert done.returncode == 0, done.stderr
        found.append([metadata_of(tmp_path / f"out-{number}.png") for number in (1, 2)])
    assert [each["settings"]["seed"] for each in found[1]] == [7, 8]
    assert [[each.get("diversity") for each in pair] for pair in found] == [[None, None], [100, 100]]
    assert found[0][0]["score_after"] != found[1][0]["score_after"]
    again = dreamgrid_inprocess("redream", "out-1.png", "again.png", "--source", "noise:64x48", **UNREACHABLE)
    assert again.returncode == 2
    assert "out-1.png is one of several samples that depend on one another" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("noise:64", "out.png"), 2, "noise:64 is not a size of noise: write noise:WIDTHxHEIGHT"),
        (("noise:2000x2000", "out.png"), 2, "4,000,000 pixels, more than max_pixels (1,000,000)"),
        (("noise:0x20", "out.png"), 2, "give sides of at least 1"),
        (("page.jpg", "out.png"), 1, "page.jpg: "),
        (("missing.jpg", "out.png"), 2, "missing.jpg cannot be read"),
        (("page.jpg", "out.gif"), 2, "'png', 'webp' or 'jpg', not 'gif'"),
        (("page.jpg", "no/folder/out.png"), 2, "no/folder does not exist: create it, or write out.png to another"),
        (("page.jpg", "out.png", "--steps", "many"), 2, "steps: "),
        (("page.jpg", "out.png", "--diversity", "1"), 2, "--diversity compares several dreams: give --samples"),
    ],
    ids=[
        *("no size", "too large", "no side", "not an image", "no file", "wrong suffix", "no folder", "wrong setting"),
        "one sample",
    ],
)
def test_what_cannot_be_dreamt_is_reported(
    arguments: tuple[str, ...], code: int, message: str, dreamgrid_inprocess: Command, tmp_path: Path
) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    done = dreamgrid_inprocess("image", *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr


def test_a_dream_contains_the_settings_of_its_preset(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    preset: PresetName = "tf2_tiled"
    given = {"steps": 1, "octaves": 3, "step_size": 0.02}
    flags = [part for name, value in given.items() for part in ("--" + name.replace("_", "-"), str(value))]
    found, _ = dream_image(dreamgrid_inprocess, tmp_path, "--preset", preset, *flags)
    assert "preset" not in found["settings"]
    assert found["settings"].items() >= {**PRESETS[preset].settings, **given}.items()
    settings = resolve_layers(DreamSettings.model_validate({"preset": preset, **given}))
    assert DreamSettings.model_validate(found["settings"]) == settings
    assert {target.layer for target in settings.layers} <= {layer.name for layer in network_spec(BUNDLED).layers}


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("--layers", "blocks.0:*", "blocks.0:* stands for 16 objectives, and one dream has one: use `dreamgrid run`"),
        ("--layers", "blocks.0:top2", "write blocks.0:(top2) for the channels together"),
        ("--steps", "4-8", "--steps 4-8 stands for several values, and this command makes one dream"),
        ("--step-size", "0.1-0.2/3", "--step-size 0.1-0.2/3 stands for several values"),
        ("--stop-at", "-2--1/3", "use `dreamgrid run`, which dreams every combination"),
    ],
)
def test_sweeps_and_ranges_are_refused_with_the_command_that_dreams_them(
    flag: str, text: str, message: str, dreamgrid_inprocess: Command
) -> None:
    done = dreamgrid_inprocess("image", "cat.png", "dream.png", flag, text)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_channels_that_the_photograph_chooses_are_in_the_dream(
    dreamgrid_inprocess: Command, tmp_path: Path, cat: Path
) -> None:
    found, _ = dream_image(dreamgrid_inprocess, tmp_path, "--layers", "blocks.0:(top2)", *QUICK)
    (target,) = found["settings"]["layers"]
    network, image = load_network(BUNDLED, "cpu"), to_tensor(decode(cat.read_bytes()).pixels)[0]
    assert target["channels"] == sorted(ranked_channels(network, image, Ranking("top", 2, "blocks.0", None)))
    assert found["settings_id"] == settings_id(DreamSettings.model_validate(found["settings"]), found["weights_sha256"])


def test_a_dream_does_not_contain_the_folders_of_guide_and_mask(
    dreamgrid_inprocess: Command, tmp_path: Path, cat: Path
) -> None:
    guide = write_image(tmp_path / "secret" / "guide.png", 30, 20, seed=3)
    mask = tmp_path / "secret" / "mask.png"
    Image.fromarray(np.repeat(np.repeat(np.array([0, 255], np.uint8), 32)[None], 48, 0)).save(mask)
    arguments = ("--guide", "secret/guide.png", "--mask", str(mask), "--layers", "blocks.0", "--step-size", "0.05")
    found, _ = dream_image(dreamgrid_inprocess, tmp_path, *arguments, *QUICK)
    assert found["settings"]["guide"] == {"uri": "guide.png", "sha256": sha256_of(guide)}
    assert found["settings"]["mask"] == {"uri": "mask.png", "sha256": sha256_of(mask)}
    for data in (json.dumps(found).encode(), (tmp_path / "dream.png").read_bytes()):
        assert b"secret" not in data
        assert str(tmp_path).encode() not in data
    dream, photograph = (decode(path.read_bytes()).pixels for path in (tmp_path / "dream.png", cat))
    assert (dream[:, :32] == photograph[:, :32]).all()
    assert (dream[:, 32:] != photograph[:, 32:]).mean() > 0.8
    assert found["score_after"] > found["score_before"]


def custom_weights(path: Path) -> str:
    """Write random weights for three classes, and return the value of the flag: the file with its digest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build("squeezenet1_1", pretrained=False, classes=3).state_dict()
    path.write_bytes(safetensors.torch.save(dict(state)))
    return f"{path}#sha256={sha256_of(path)}"


def test_custom_weights_need_no_layers_and_no_download(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    weights = custom_weights(tmp_path / "own.safetensors")
    found, output = dream_image(dreamgrid_inprocess, tmp_path, "--model", "squeezenet1_1", "--weights", weights, *QUICK)
    assert found["weights_sha256"] == sha256_of(tmp_path / "own.safetensors")
    assert found["settings"]["weights"] == {"uri": "own.safetensors", "sha256": found["weights_sha256"]}
    assert str(tmp_path) not in json.dumps(found)
    layers = {target["layer"] for target in found["settings"]["layers"]}
    assert layers < {stage.name for stage in network_spec("squeezenet1_1").stages()}
    assert "top classes after: class " in output


def test_a_labels_file_names_the_classes(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    weights = custom_weights(tmp_path / "own.safetensors")
    (tmp_path / "names.json").write_text('["ant", "bee", "cat"]')
    own = ("--model", "squeezenet1_1", "--weights", weights)
    found, output = dream_image(dreamgrid_inprocess, tmp_path, *own, "--labels", "names.json", *QUICK)
    assert {each["label"] for each in found["classes_after"]} == {"ant", "bee", "cat"}
    assert f"top classes after: {found['classes_after'][0]['label']} " in output
    assert "names.json" not in json.dumps(found)


def test_an_image_that_exceeds_the_memory_is_computed_in_tiles(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    write_image(tmp_path / "large.png", 700, 900)
    found, _ = dream_image(
        dreamgrid_inprocess, tmp_path, *QUICK, "--layers", "blocks.1", "--max-memory", "100MB", source="large.png"
    )
    assert 64 <= found["tile"] < 700
    assert found["settings"]["tile"] == 0, "the memory limit changes no setting"
    assert (found["width"], found["height"]) == (900, 700)
    assert found["score_after"] > found["score_before"]


def test_stage_scores_are_printed_and_written(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    found, output = dream_image(dreamgrid_inprocess, tmp_path, "--layers", "40%", "--stage-scores", *QUICK)
    assert [target["layer"] for target in found["settings"]["layers"]] == ["blocks.3"], "41 % of the multiply-adds"
    stages = found["stage_scores"]
    assert [stage["layer"] for stage in stages] == [stage.name for stage in network_spec(BUNDLED).stages()]
    for stage in stages:
        assert f"{stage['layer']}: {stage['before']:.2f} to {stage['after']:.2f}\n" in output


def test_another_network_needs_no_layers(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    found, _ = dream_image(dreamgrid_inprocess, tmp_path, "--model", "efficientnet_lite1", *QUICK)
    assert found["stage_scores"] is None
    assert [target["layer"] for target in found["settings"]["layers"]] == ["blocks.3", "blocks.4", "blocks.5"]


def half_a_jpeg() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels()).save(sink, "JPEG")
    return sink.getvalue()[: len(sink.getvalue()) // 2]


REFUSED = {
    "unknown preset": (
        ("--preset", "wrong"),
        "there is no preset 'wrong'; choose google2015, tf2, tf2_tiled, keras, gordic",
    ),
    "two layers": (
        ("--layers", "blocks.3", "--layers", "blocks.4"),
        "--layers is given 2 times: give it once, or use `dreamgrid run`, which dreams every combination",
    ),
    "two qualities": (("--quality", "80", "--quality", "90"), "--quality is given 2 times: give it once"),
    "two presets": (("--preset", "tf2", "--preset", "keras"), "--preset is given 2 times: give it once, or "),
    "quality out of range": (
        ("--quality", "200"),
        "output.quality: input should be less than or equal to 100, not '200'",
    ),
    "not an amount of memory": (
        ("--max-memory", "nonsense"),
        "'nonsense' is not an amount of memory: write for example 2GiB",
    ),
    "tile too small": (("--tile", "10"), "tile is 10 pixels; use 64 or more"),
    "no octave of the size of the image": (
        ("--preset", "tf2", "--octaves", "2"),
        "octaves_above is 2; it must be less than octaves (2)",
    ),
    "no digest": (
        ("--weights", "own.pth"),
        "weights need a SHA-256; write own.pth#sha256=DIGEST with the output of `sha256sum`",
    ),
    "weights without a digest": (
        ("--weights", "own.pth"),
        "weights need a SHA-256; write own.pth#sha256=DIGEST",
    ),
    "half a digest": (("--weights", "own.pth#sha256=12ab"), "weights.sha256: "),
    "unknown stage": (("--layers", "x40%"), "layer 'x40%' does not exist"),
    "missing guide": (("--guide", "missing.png"), "guide: missing.png cannot be read: No such file or directory"),
    "folder as mask": (("--mask", "."), "mask: . cannot be read: Is a directory"),
    "guide that is not an image": (("--guide", "page.png"), "guide: page.png: not an image"),
    "damaged mask": (("--mask", "half.jpg"), "mask: half.jpg: JPEG: "),
    "wrong digest of the guide": (("--guide", f"cat.png#sha256={'0' * 64}"), "guide: cat.png has the SHA-256 "),
    "labels of another network": (
        ("--labels", "names.txt"),
        "labels: names.txt: there are 2 names of classes, but efficientnet_lite0 has 1000 classes",
    ),
    "wrong digest of the weights": (("--weights", f"page.png#sha256={'0' * 64}"), "weights: page.png has the SHA-256 "),
    "weights that are no tensors": (
        ("--weights", "page.png#sha256=" + hashlib.sha256(b"<html>").hexdigest()),
        "page.png is not a weights file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_reported_in_one_line_and_nothing_is_written(
    case: str, dreamgrid_inprocess: Command, tmp_path: Path
) -> None:
    arguments, message = REFUSED[case]
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "half.jpg").write_bytes(half_a_jpeg())
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    done = dreamgrid_inprocess("image", "cat.png", "dream.png", *arguments, **UNREACHABLE)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert not (tmp_path / "dream.png").exists()


@pytest.mark.parametrize("name", ["cat.png", "link.png", "guide.png", "mask.png"])
def test_no_input_is_overwritten(name: str, dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("cat.png")
    for seed, file in enumerate(("guide.png", "mask.png")):
        write_image(tmp_path / file, seed=seed)
    before = (tmp_path / name).read_bytes()
    inputs = ("--guide", "guide.png", "--mask", "mask.png")
    done = dreamgrid_inprocess("image", "cat.png", name, *inputs, *QUICK, **UNREACHABLE)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"{name} is an input of this dream and would be overwritten: name another output file" in done.stderr
    assert (tmp_path / name).read_bytes() == before


def test_a_stopped_image_says_that_it_starts_again(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [DREAMGRID, "image", pipe, "dream.png"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as command:
        writer = wait_for_reader(pipe, command)
        errors = None
        while errors is None:  # Python misses a signal between the opening and the read
            command.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                errors = command.communicate(timeout=15)[1]
        os.close(writer)
        message = "dreamgrid: stopped: the same command starts again from the beginning"
        assert (command.returncode, errors.strip()) == (3, message)


def wait_for_reader(pipe: Path, command: subprocess.Popen[str]) -> int:
    """Open a pipe for writing as soon as the command has opened it for reading. Return the file descriptor."""
    while command.poll() is None:
        with suppress(OSError):  # no reader yet
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    raise AssertionError(f"the command ended early: {command.communicate()[1]}")


def test_weights_that_cannot_be_downloaded_exit_with_3(dreamgrid: Command, tmp_path: Path) -> None:
    offline = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path)}
    done = dreamgrid("image", "cat.png", "dream.png", "--model", "resnet18", *QUICK, **offline)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "the weights of resnet18 " in line


def test_an_image_that_is_too_small_for_the_network_is_reported(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    write_image(tmp_path / "tiny.png", 10, 12)
    weights = custom_weights(tmp_path / "own.safetensors")
    arguments = ("--model", "squeezenet1_1", "--weights", weights, "--layers", "features.12", *QUICK)
    done = dreamgrid_inprocess("image", "tiny.png", "dream.png", *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "12x10 pixels: the network needs 17 on each side" in line
    assert not (tmp_path / "dream.png").exists()
