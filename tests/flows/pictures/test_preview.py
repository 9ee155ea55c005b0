"""`dreamgrid layers`: the layers of a network for an image of some size, and a preview of its stages."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dreamcore.images import read_metadata
from tests.support.command import Command
from tests.support.tiny import pixels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

UNREACHABLE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}


def test_a_preview_shows_a_dream_for_each_stage_without_s3(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    Image.fromarray(pixels(48, 64)).save(tmp_path / "photo.png")
    done = dreamgrid_inprocess("layers", "--preview", "photo.png", "stages.jpg", "--json", **UNREACHABLE)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)
    assert [stage["layer"] for stage in stages] == [f"blocks.{number}" for number in range(7)]
    assert all(stage["score_after"] > stage["score_before"] for stage in stages)
    sheet = (tmp_path / "stages.jpg").read_bytes()
    assert (read_metadata(sheet) or {})["stages"] == stages
    with Image.open(tmp_path / "stages.jpg") as picture:
        assert picture.size == (12 + 4 * 372, 42 + 2 * 336)  # the photograph and seven dreams in rows of four
        corner = picture.crop((12, 42, 372, 312)).resize((64, 48))
    assert abs(corner.getpixel((30, 20))[0] - int(pixels(48, 64)[20, 30, 0])) < 40  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preview", "missing.jpg", "out.png"), "missing.jpg cannot be read"),
        (("--preview", "missing.jpg", "out.gif"), "'png', 'webp' or 'jpg', not 'gif'"),
        (("--preview", "missing.jpg", "no/folder/out.png"), "no/folder does not exist"),
        (("--preview", "missing.jpg", "out.png", "--size", "64x48"), "give one of them"),
        (("--size", "64"), "'64' is not a size: write width and height in pixels, for example 640x480"),
        (("vgg16", "--size", "640x20"), "640x20 pixels: vgg16 needs 32 on each side"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrong_input_is_reported(arguments: tuple[str, ...], message: str, dreamgrid_inprocess: Command) -> None:
    done = dreamgrid_inprocess("layers", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_the_photograph_is_not_overwritten(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    Image.fromarray(pixels(48, 64)).save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    done = dreamgrid_inprocess("layers", "--preview", "photo.png", "./photo.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "photo.png is an input of this dream and would be overwritten" in done.stderr
    assert (tmp_path / "photo.png").read_bytes() == before


def test_layers_are_listed_with_their_size_for_an_image(dreamgrid_inprocess: Command) -> None:
    found = json.loads(dreamgrid_inprocess("layers", "--size", "641x480", "--json").stdout)
    assert found["at"] == {"width": 641, "height": 480}
    layer = next(layer for layer in found["layers"] if layer["name"] == "blocks.4")
    assert (layer["width"], layer["height"], layer["channels"]) == (41, 30, 112)
    assert (layer["receptive_field"], layer["stride"]) == (339, 16)
    table = dreamgrid_inprocess("layers", "resnet18").stdout.splitlines()
    assert table[0].split()[:5] == ["layer", "kind", "channels", "of", "224x224"]
    assert ["layer3.1", "BasicBlock", "256", "14x14", "16", "211"] in [line.split()[:6] for line in table]
