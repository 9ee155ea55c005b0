"""Measure how well enlarged dreams keep their composition: the table and the picture of docs/enlarge.md.

    python docs/make_enlarge.py FOLDER

Each favourite is dreamt at 65,536 pixels from a photograph of examples/photos and enlarged to 409,600 pixels. The
numbers are the structural similarity (SSIM) between the favourite and each enlarged dream, reduced to its size. All
dreams are written to FOLDER, and the picture is made of parts of them.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dreamcore.batch import DreamRequest, dream_photograph
from dreamcore.catalog import resolve_layers
from dreamcore.enlarge import enlarged_photograph, enlarged_settings
from dreamcore.fields import Reference
from dreamcore.images import Photograph, decode, encode
from dreamcore.models import load_network
from dreamcore.settings import DreamSettings

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
PICTURE = Path(__file__).with_name("enlarge.jpg")
SMALL, LARGE = 65_536, 409_600
"""Pixels of the favourites and of the enlarged dreams."""
FAVOURITES: tuple[tuple[str, dict[str, object]], ...] = (
    ("astronaut.jpg", {}),
    ("astronaut.jpg", {"look": "creatures"}),
    ("chelsea.png", {"look": "filigree"}),
    ("chelsea.png", {"layers": "blocks.5"}),
    ("coffee.jpg", {"look": "architecture"}),
    ("coffee.jpg", {}),
    ("rocket.jpg", {"look": "neon"}),
    ("rocket.jpg", {"look": "subtle"}),
    ("hubble_deep_field.jpg", {"look": "ripple"}),
    ("hubble_deep_field.jpg", {"layers": "blocks.3", "seed": 7}),
)
STRENGTHS = (0.5, 0.75)
ANEW = "anew"
COLUMNS = ("photograph", "favourite", "0.5", ANEW)
PARTS = ((1, (170, 60)), (2, (330, 330)), (3, (150, 100)))
"""Favourites in the picture, and the left upper corner of the part of each that the picture shows."""
PART, SIDE, GAP = 260, 300, 4
"""Side of a part in pixels of the enlarged dream, its side in the picture, and the space between two."""


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the mean structural similarity of two images (H, W, 3) in brightness.

    As in Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment" (2004): Gaussian windows of 11 pixels with
    a deviation of 1.5, K1 = 0.01 and K2 = 0.03.
    """
    x, y = (torch.from_numpy(np.array(Image.fromarray(each).convert("L"))).double() for each in (one, other))
    offsets = torch.arange(11).double() - 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = torch.outer(window, window)[None, None] / window.sum() ** 2

    def mean(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(image[None, None], window)

    x_mean, y_mean = mean(x), mean(y)
    x_var, y_var = mean(x * x) - x_mean**2, mean(y * y) - y_mean**2
    covariance = mean(x * y) - x_mean * y_mean
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * x_mean * y_mean + c1) * (2 * covariance + c2)
    return float((similarity / ((x_mean**2 + y_mean**2 + c1) * (x_var + y_var + c2))).mean())


def reduced(pixels: NDArray[np.uint8], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `pixels` at the size of `like`."""
    return np.asarray(Image.fromarray(pixels).resize((like.shape[1], like.shape[0]), Image.Resampling.LANCZOS))


def dreams(name: str, settings: DreamSettings) -> Iterator[tuple[str, Photograph]]:
    """Yield the favourite, then the enlarged dream of each strength, then the dream of the large photograph."""
    network, data = load_network(settings.model), (PHOTOS / name).read_bytes()
    photograph = decode(data, max_pixels=SMALL)
    favourite = dream_photograph(network, DreamRequest(photograph, settings))
    seen = Photograph(favourite.pixels, photograph.width, photograph.height)
    yield "favourite", seen
    large = enlarged_photograph(decode(data, max_pixels=LARGE), LARGE)
    yield "photograph", large
    file = Reference(uri=name, sha256=hashlib.sha256(seen.pixels.tobytes()).hexdigest())
    for strength in STRENGTHS:
        enlarged = enlarged_settings(settings, file, strength, LARGE)
        dream = dream_photograph(network, DreamRequest(large, enlarged, dream=seen))
        yield f"{strength:g}", Photograph(dream.pixels, large.width, large.height)
    dream = dream_photograph(network, DreamRequest(large, settings.model_copy(update={"max_pixels": LARGE})))
    yield ANEW, Photograph(dream.pixels, large.width, large.height)


def picture(folder: Path) -> Image.Image:
    """Return parts of the dreams in `folder`, with a row for each favourite."""
    sheet = Image.new("RGB", (len(COLUMNS) * (SIDE + GAP) - GAP, len(PARTS) * (SIDE + GAP) - GAP), "white")
    for row, (number, (left, top)) in enumerate(PARTS):
        size = Image.open(folder / f"{number:02}-photograph.png").size
        for column, kind in enumerate(COLUMNS):
            whole = Image.open(folder / f"{number:02}-{kind}.png").convert("RGB").resize(size, Image.Resampling.BICUBIC)
            part = whole.crop((left, top, left + PART, top + PART)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(part, (column * (SIDE + GAP), row * (SIDE + GAP)))
    return sheet


def main(folder: Path) -> None:
    """Write the dreams and the picture, and print a row of the table for each favourite."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, fields) in enumerate(FAVOURITES, 1):
        settings = resolve_layers(DreamSettings.model_validate({**fields, "max_pixels": SMALL}))
        what = ", ".join(f"{key} {value}" for key, value in fields.items()) or "default"
        images = {kind: image.pixels for kind, image in dreams(name, settings)}
        for kind, pixels in images.items():
            (folder / f"{number:02}-{kind}.png").write_bytes(encode(pixels, "png", 95, {}))
        small = images["favourite"]
        similar = [ssim(small, reduced(images[kind], small)) for kind in (*map(str, STRENGTHS), ANEW)]
        print("| " + " | ".join([f"`{name}`", what, *(f"{each:.2f}" for each in similar)]) + " |", flush=True)
    picture(folder).save(PICTURE, quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
