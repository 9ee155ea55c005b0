"""`dreamgrid atlas`: pictures of channels, their sheet and page, and commands that are stopped and given again."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from dreamcore.images import read_metadata
from dreamcore.settings import BUNDLED
from flows.pictures.atlas import draw_sheets, write_page
from flows.pictures.atlas_pictures import plan_atlas
from tests.flows.cli.test_image import custom_weights
from tests.support.command import DREAMGRID, Command, await_end_of_group

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIX = "blocks.0:0-5"
ONE_PROCESS = {"DREAMGRID_WORKERS": "1"}


class Page(HTMLParser):
    """The links, the images, the tiles and the event handlers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tiles: dict[str, str] = {}
        self.scripts = 0
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what is in a tag."""
        fields = dict(attrs)
        self.addresses += [str(fields[name]) for name in ("href", "src") if name in fields]
        self.handlers += [name for name in fields if name.startswith("on")]
        self.scripts += tag == "script"
        if fields.get("class") == "tile":
            self.tiles[str(fields["id"])] = str(fields["href"])


def draw(command: Command, *arguments: str) -> Any:
    done = command("atlas", BUNDLED, *arguments, "--json", **ONE_PROCESS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def drawn(report: Any) -> list[int]:
    return [layer["drawn"] for layer in report["layers"]]


def test_an_atlas_has_pictures_a_sheet_and_a_page(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    report = draw(dreamgrid_inprocess, "blocks.0:2,5", "--out", "maps")
    folder = tmp_path / "maps" / BUNDLED
    assert report["page"] == f"maps/{BUNDLED}/index.html"
    (layer,) = report["layers"]
    assert (layer["layer"], layer["channels"], layer["drawn"]) == ("blocks.0", 2, 2)
    assert sorted(path.name for path in (folder / "blocks.0").iterdir()) == ["0002.webp", "0005.webp", "sheet.webp"]
    found = read_metadata((folder / "blocks.0" / "0005.webp").read_bytes()) or {}
    assert found["objective"] == "blocks.0:5"
    with Image.open(folder / "blocks.0" / "sheet.webp") as sheet:
        assert sheet.size == (12 + 2 * (96 + 12), 2 * 12 + 18 + 96 + 18 + 12)

    draw(dreamgrid_inprocess, "blocks.1:7", "--out", "maps")  # the page shows the layers of both commands
    page = Page((folder / "index.html").read_text())
    assert list(page.tiles) == ["blocks.0:2", "blocks.0:5", "blocks.1:7"]
    assert all((folder / unquote(file)).is_file() for file in page.tiles.values())


def test_only_missing_pictures_are_drawn(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    draw(dreamgrid_inprocess, "blocks.0:2,5")
    folder = tmp_path / "atlas" / BUNDLED / "blocks.0"
    first = {path.name: path.stat().st_mtime_ns for path in folder.glob("0*.webp")}
    assert drawn(draw(dreamgrid_inprocess, "blocks.0:2,5,6")) == [1]
    assert first.items() <= {path.name: path.stat().st_mtime_ns for path in folder.glob("0*.webp")}.items()

    expected = (folder / "0002.webp").read_bytes()
    shutil.copy(folder / "0005.webp", folder / "0002.webp")  # a picture of other settings
    (folder / "0006.webp").write_bytes(b"")  # as after a power failure
    assert drawn(draw(dreamgrid_inprocess, "blocks.0:2,5,6")) == [2]
    assert (folder / "0002.webp").read_bytes() == expected


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGKILL, "1"), pytest.param(signal.SIGINT, "2", marks=pytest.mark.soak)],
)
def test_a_stopped_atlas_goes_on(
    number: signal.Signals, workers: str, dreamgrid_inprocess: Command, tmp_path: Path
) -> None:
    environment = {**os.environ, "DREAMGRID_WORKERS": workers, "DREAMGRID_BATCH": "1"}
    with subprocess.Popen(
        [DREAMGRID, "atlas", BUNDLED, SIX],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        folder = tmp_path / "atlas" / BUNDLED / "blocks.0"
        while not list(folder.glob("*.webp")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    await_end_of_group(process.pid, 20)
    there = list(folder.glob("*.webp"))
    assert 0 < len(there) < 6
    if number == signal.SIGINT:
        assert process.returncode == 3
        assert re.search(r"stopped after \d+ of 6 pictures\n", errors)
        assert "Nothing is lost. Give the same command to resume the atlas." in errors
        assert "Traceback" not in errors
    assert drawn(draw(dreamgrid_inprocess, SIX)) == [6 - len(there)]
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{each:04d}.webp" for each in range(6)), "sheet.webp"]


def test_the_picture_of_a_class_has_its_name(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    draw(dreamgrid_inprocess, "logits:285")
    folder = tmp_path / "atlas" / BUNDLED
    assert (read_metadata((folder / "logits" / "0285.webp").read_bytes()) or {})["label"] == "Egyptian cat"
    assert 'data-label="Egyptian cat"' in (folder / "index.html").read_text()


def test_an_atlas_of_custom_weights_has_its_own_folder(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    weights = custom_weights(tmp_path / "own.safetensors")
    digest = weights.rpartition("=")[2]
    arguments = ("atlas", "squeezenet1_1", "logits:2", "--weights", weights)
    done = dreamgrid_inprocess(*arguments, "--json", **ONE_PROCESS)
    assert done.returncode == 0, done.stderr
    page = tmp_path / json.loads(done.stdout)["page"]
    assert page.parent.name == f"squeezenet1_1-{digest[:8]}"
    found: Any = read_metadata((page.parent / "logits" / "0002.webp").read_bytes())
    assert (found["weights_sha256"], found["settings"]["weights"]["uri"]) == (digest, "own.safetensors")
    assert f"--model squeezenet1_1 --weights {weights}" in page.read_text()
    again = dreamgrid_inprocess(*arguments, "--json", **ONE_PROCESS)
    assert drawn(json.loads(again.stdout)) == [0]


def test_the_weights_of_an_atlas_are_checked_first(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    weights = custom_weights(tmp_path / "own.safetensors")
    for wrong, layer, message in (
        (weights, "logits:3", "channel 3 does not exist in logits"),
        (weights[:-1], "logits:2", "weights.sha256: "),
        (weights.rpartition("#")[0], "logits:2", "weights need a SHA-256"),
        (f"missing.pth#sha256={'0' * 64}", "logits:2", "missing.pth cannot be read"),
    ):
        done = dreamgrid_inprocess("atlas", "squeezenet1_1", layer, "--weights", wrong, **ONE_PROCESS)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "atlas").exists()


def test_without_a_layer_the_main_layers_are_planned() -> None:
    names = [each.layer.name for each in plan_atlas(BUNDLED, None, Path("atlas"))]
    assert names == [f"blocks.{number}" for number in range(7)]
    assert [each.layer.name for each in plan_atlas(BUNDLED, "65%", Path("atlas"))] == ["blocks.4"]


def test_the_page_needs_no_other_files_and_escapes_names(tmp_path: Path) -> None:
    (layer,) = plan_atlas(BUNDLED, "blocks.0", tmp_path)
    name = "<img src=x onerror=alert(1)>\"'&</script>"
    hostile = replace(layer, spec=replace(layer.spec, model=name), layer=replace(layer.layer, name=name))
    hostile = replace(hostile, spec=replace(hostile.spec, layers=(hostile.layer,)))
    hostile.folder.parent.mkdir(parents=True)
    text = write_page([hostile]).read_text()
    page = Page(text)
    assert (page.scripts, page.handlers) == (1, [])
    assert len(page.tiles) == 16
    assert f"{name}:3" in page.tiles
    assert text.count("</script>") == 1
    assert not [address for address in page.addresses if not address.startswith(("#", "blocks.0/0"))]
    assert "http" not in text


def test_a_sheet_has_sixteen_columns(tmp_path: Path) -> None:
    (layer,) = plan_atlas(BUNDLED, "blocks.1", tmp_path)
    layer.folder.mkdir(parents=True)
    for picture in layer.pictures():
        Image.new("RGB", (64, 64), (10 * picture.channel, 0, 0)).save(picture.path)
    (data,) = draw_sheets(layer, side=32)
    with Image.open(io.BytesIO(data)) as sheet:
        assert sheet.size == (12 + 16 * 44, 2 * 12 + 18 + 2 * (32 + 18 + 12))
        red = [sheet.getpixel((12 + 44 * column + 16, 42 + 62 * line + 16)) for column, line in ((3, 0), (7, 1))]
    assert [abs(color[0] - value) < 12 for color, value in zip(red, (30, 230), strict=True)] == [True, True]  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonet",), "nonet"),
        ((BUNDLED, "blocks.33"), "layer 'blocks.33' does not exist in efficientnet_lite0; did you mean blocks.3"),
        ((BUNDLED, "blocks.0:16"), "channel 16 does not exist in blocks.0"),
        ((BUNDLED, "blocks.0+blocks.1"), "an atlas shows one layer or some of its channels"),
        ((BUNDLED, "blocks.0:3@0.5,0.5"), "an atlas shows one layer or some of its channels"),
        ((BUNDLED, "blocks.0:3*0.5"), "an atlas shows one layer or some of its channels"),
        ((BUNDLED, "blocks.0:top3"), "an atlas shows one layer or some of its channels"),
        ((BUNDLED, "blocks.0:4-16"), "channel 16 does not exist in blocks.0"),
        ((BUNDLED, "blocks.0:x"), "'blocks.0:x' is not a target"),
        ((BUNDLED, "130%"), "a depth is between 0% and 100%"),
        ((BUNDLED, "blocks.0", "--out", "s3://atlas/"), "is an S3 address: name a folder of this machine"),
        ((BUNDLED, "blocks.0", "--out", "file"), "cannot be created: Not a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_reported(
    arguments: tuple[str, ...], message: str, dreamgrid_inprocess: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = dreamgrid_inprocess("atlas", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
