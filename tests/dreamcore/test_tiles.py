"""Tiles: they cover the image, and a dream in tiles equals a dream of the whole image without seams."""

from statistics import mean
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from dreamcore.ascent import Sample, ascend
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.observation import observe
from dreamcore.presets import AS_PUBLISHED
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.tiles import Tile, even_tiles, fixed_tiles, whole_image
from dreamcore.views import View
from tests.support.architectures import network
from tests.support.tiny import changed, dreams, picture, tiny_network

pytestmark = pytest.mark.slow

SIZES = st.tuples(st.integers(1, 700), st.integers(1, 700))
SIDES = st.integers(64, 400)
EVEN_SIDES = st.integers(2, 40).map(lambda side: 32 * side)


def covered(size: tuple[int, int], tiles: list[Tile]) -> bool:
    """Return whether each pixel is in exactly one tile."""
    counts = torch.zeros(size, dtype=torch.int)
    for tile in tiles:
        part = tile.crop(counts)
        assert part.shape == (tile.height, tile.width)
        part += 1
    return bool((counts == 1).all())


# --- positions of tiles


@given(SIZES, SIDES, st.integers(1, 64))
def test_tiles_cover_each_pixel_once_and_none_is_too_small(size: tuple[int, int], side: int, least: int) -> None:
    tiles = fixed_tiles(size, side, least)
    assert covered(size, tiles)
    for tile in tiles:
        assert min(least, size[0]) <= tile.height < side + least
        assert min(least, size[1]) <= tile.width < side + least
        assert tile.top % side == tile.left % side == 0


@given(SIZES, EVEN_SIDES)
@example((4329, 1000), 512)
@example((447, 447), 128)
def test_even_tiles_cover_each_pixel_once_and_have_about_the_given_side(size: tuple[int, int], side: int) -> None:
    tiles = even_tiles(size, side, 1)
    assert covered(size, tiles)
    if size[0] * size[1] <= side**2:
        assert tiles == whole_image(size)
    for tile in tiles if len(tiles) > 1 else []:
        assert min(side // 4, size[0]) <= tile.height <= 1.5 * side
        assert min(side // 4, size[1]) <= tile.width <= 1.5 * side
        if side >= 256:  # a tile of this side takes the allowed memory
            assert tile.height * tile.width <= 1.25 * side**2


@given(SIZES, EVEN_SIDES, st.integers(1, 300))
def test_no_even_tile_is_smaller_than_the_least_side(size: tuple[int, int], side: int, least: int) -> None:
    tiles = even_tiles(size, side, least)
    assert covered(size, tiles)
    assert all(tile.height >= min(least, size[0]) and tile.width >= min(least, size[1]) for tile in tiles)


@given(SIZES)
def test_a_side_of_zero_gives_one_tile(size: tuple[int, int]) -> None:
    assert even_tiles(size, 0, 1) == whole_image(size) == [Tile(0, 0, *size)]


@given(SIZES, SIDES)
def test_even_tiles_begin_at_multiples_of_32_pixels(size: tuple[int, int], side: int) -> None:
    assert all(tile.top % 32 == tile.left % 32 == 0 for tile in even_tiles(size, side, 1))


FRACTIONS = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(SIZES, EVEN_SIDES, st.tuples(FRACTIONS, FRACTIONS))
def test_a_position_is_in_one_tile_at_its_pixel(size: tuple[int, int], side: int, at: tuple[float, float]) -> None:
    for tiles in (whole_image(size), fixed_tiles(size, side, 33), even_tiles(size, side, 33)):
        positions = [(tile, tile.locate(at, size)) for tile in tiles]
        ((tile, found),) = [(tile, position) for tile, position in positions if position is not None]
        assert tile.left + found[0] * tile.width == pytest.approx(at[0] * size[1], abs=0.5)
        assert tile.top + found[1] * tile.height == pytest.approx(at[1] * size[0], abs=0.5)


@pytest.mark.parametrize("tile", [64, 96])
@pytest.mark.parametrize("independent", [False, True])
def test_no_tile_is_smaller_than_the_network_accepts(tile: int, independent: bool) -> None:
    """AlexNet needs 63 pixels on each side, and 225 pixels leave a rest of 33."""
    settings = changed(model="alexnet", layers="features.12", octaves=1, steps=1, tile=tile if independent else 0)
    assert network("alexnet").spec.min_size == 63
    dream = dreams(network("alexnet"), picture(225, 240), settings, tile_size=0 if independent else tile)
    assert dream.isfinite().all()


# --- dreams in tiles

PLAIN = {**AS_PUBLISHED, "octaves": 1, "steps": 1, "gradient": "plain", "jitter": 0, "step_size": 1e-3}


def test_every_pixel_changes_and_the_mean_change_of_the_image_is_step_size() -> None:
    """The mean change of single tiles differs: tiles are not normalized separately."""
    start, settings = picture(170, 230), changed(**PLAIN)
    start[..., :115] = 0.5 + (start[..., :115] - 0.5) * 0.05  # one half is nearly flat
    view = View.choose(settings, 0, 0, (170, 230))
    for side in (64, 96):
        change = dreams(tiny_network(), start, settings, tile_size=side) - start
        assert (change.abs().amax(1) > 0).all()
        assert change.abs().mean().item() == pytest.approx(1e-3, rel=1e-3)
        parts = [tile.crop(view.apply(change)).abs().mean().item() for tile in even_tiles((170, 230), side, 1)]
        assert max(parts) > 1.15 * min(parts)


def test_the_mean_change_with_independent_tiles_is_step_size() -> None:
    start = picture(170, 230)
    change = dreams(tiny_network(), start, changed(**PLAIN, tile=64)) - start
    assert (change.abs().amax(1) > 0).all()
    assert change.abs().mean().item() == pytest.approx(1e-3, rel=1e-3)


def test_an_image_no_larger_than_a_tile_gives_the_same_bits_as_without_tiles() -> None:
    assert torch.equal(
        dreams(tiny_network(), picture(), changed(), tile_size=64), dreams(tiny_network(), picture(), changed())
    )


def test_each_sample_of_a_batch_in_tiles_gives_the_dream_that_it_gives_alone() -> None:
    network = tiny_network()
    network.module.double()
    several = ["deep", "stem:2=0.5+body=-1", "deep:3@0.2,0.7", "logits:3"]
    samples = [
        Sample(picture(80, 100, seed=seed)[0].double(), changed(layers=layers, seed=seed, flip=seed > 1))
        for seed, layers in enumerate(several)
    ]
    for dream, sample in zip(ascend(network, samples, tile_size=64).images, samples, strict=True):
        alone = ascend(network, [sample], tile_size=64).images[0]
        assert 10 * torch.log10(1 / (dream - alone).square().mean()) > 120


def largest_change(start: Tensor, dream: Tensor) -> tuple[int, int]:
    """Return the pixel (x, y) that changed most."""
    y, x = divmod(int((dream - start).abs().sum((0, 1)).argmax()), start.shape[-1])
    return x, y


def neuron(at: tuple[float, float], **fields: object) -> DreamSettings:
    return changed(**{**PLAIN, "steps": 4, **fields}, layers=[{"layer": "deep", "channels": [3], "at": at}])


@pytest.mark.parametrize("at", [(0.2, 0.7), (0.5, 0.5), (0.0, 0.0), (1.0, 0.4), (0.3, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize(
    ("tile", "fields"),
    [(64, {}), (64, {"jitter": 20, "flip": True}), (0, {"tile": 64}), (0, {"tile": 64, "jitter": 20})],
)
def test_a_position_is_excited_in_its_tile(tile: int, fields: dict[str, Any], at: tuple[float, float]) -> None:
    """Distances wrap around the image, because a shifted view puts opposite edges next to each other."""
    start = picture(128, 192)
    dream = dreams(tiny_network(), start, neuron(at, **fields), tile_size=tile)
    x, y = largest_change(start, dream)
    distance = abs(x - at[0] * 192), abs(y - at[1] * 128)
    assert min(distance[0], 192 - distance[0]) <= 14
    assert min(distance[1], 128 - distance[1]) <= 14


@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 0.4), (0.3, 1.0), (1.0, 1.0)])
def test_a_position_at_an_edge_is_excited_at_that_edge(at: tuple[float, float]) -> None:
    start, settings = picture(128, 192), neuron(at)
    dream = dreams(tiny_network(), start, settings)
    x, y = largest_change(start, dream)
    assert abs(x - at[0] * 192) <= 14
    assert abs(y - at[1] * 128) <= 14
    before, after = (
        observe(tiny_network(), each, settings.layers, settings.measure)[0].scores for each in (start, dream)
    )
    assert after[settings.layers[0].name] > before[settings.layers[0].name]


@pytest.mark.parametrize("at", [(0.2, 0.7), (0.0, 0.0), (1.0, 0.4), (0.3, 1.0), (1.0, 1.0)])
def test_a_position_has_the_same_score_in_a_tile_and_in_the_whole_image(at: tuple[float, float]) -> None:
    image, targets = picture(128, 192), neuron(at).layers
    expected = observe(tiny_network(), image, targets, "mean")[0].scores
    found = observe(tiny_network(), image, targets, "mean", tiles=even_tiles((128, 192), 64, 1))[0].scores
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_class_is_excited_in_tiles() -> None:
    start = picture(128, 192)
    before = tiny_network().classify(start)[0, 3]
    assert (
        tiny_network().classify(dreams(tiny_network(), start, changed(layers="logits:3"), tile_size=64))[0, 3] > before
    )


# --- tiles against the whole image


def bundled() -> Network:
    return load_network(BUNDLED)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def changes(
    network: Network, start: Tensor, settings: DreamSettings, *, tile_size: int = 0, independent: int = 0
) -> tuple[Tensor, View]:
    """Return the change of `start` in one step, and the view of the step.

    The step uses `tile_size` as the side of memory tiles, or `independent` as the side of independent tiles, or the
    whole image. All three use the view that the first step has with memory tiles.
    """
    view = View.choose(settings, 0, 0, (start.shape[-2], start.shape[-1]))
    if tile_size:
        return dreams(network, start, settings, tile_size=tile_size) - start, view
    viewed = view.apply(start)
    return view.invert(dreams(network, viewed, settings.model_copy(update={"tile": independent})) - viewed), view


def test_the_gradient_in_tiles_equals_that_of_the_whole_image_away_from_borders() -> None:
    """Near the border of a tile it differs, because layers pad the tile with zeros."""
    settings = DreamSettings.model_validate({"layers": "blocks.2", **PLAIN})
    start = picture(256, 320, seed=1)
    expected, view = changes(bundled(), start, settings)
    found, _ = changes(bundled(), start, settings, tile_size=128)
    reach = 67 // 2 + 1
    inner = torch.zeros(256, 320, dtype=torch.bool)
    for tile in even_tiles((256, 320), 128, 1):
        tile.crop(inner)[reach:-reach, reach:-reach] = True
    inner = view.invert(inner)
    assert inner.float().mean() > 0.1
    assert correlation(found[..., inner], expected[..., inner]) > 0.999
    assert correlation(found, expected) > 0.85


def test_a_mix_in_tiles_has_the_balance_of_the_whole_image() -> None:
    """One half is nearly flat. Independent tiles would give its logarithms the same weight as the other half."""
    start = picture(128, 192)
    start[..., :96] = 0.5 + (start[..., :96] - 0.5) * 0.05
    for mix in (["stem", "deep"], ["stem:2", "deep:5"]):
        both = changed(**PLAIN, layers="+".join(mix))
        expected, _ = changes(tiny_network(), start, both)
        together = correlation(changes(tiny_network(), start, both, tile_size=64)[0], expected)
        assert together > 0.93
        for target in mix:
            alone, _ = changes(tiny_network(), start, changed(**PLAIN, layers=target), tile_size=64)
            assert together > correlation(alone, expected) + 0.03
        independent, _ = changes(tiny_network(), start, both, independent=64)
        assert together > correlation(independent, expected) + 0.05


def test_a_dream_in_tiles_raises_the_score_as_much_as_a_dream_of_the_whole_image() -> None:
    """The jitter is large, so that both dreams use shifts of up to the whole image."""
    start, rises = picture(256, 320, seed=1), []
    for tile_size in (0, 96):
        rises.append(0.0)
        for seed in range(4):
            settings = DreamSettings(layers="blocks.2", octaves=1, steps=8, jitter=150, seed=seed)
            images = [start, dreams(bundled(), start, settings, tile_size=tile_size)]
            before, after = (
                observe(bundled(), each, settings.layers, settings.measure)[0].scores["blocks.2"] for each in images
            )
            rises[-1] += after - before
    assert rises[1] == pytest.approx(rises[0], rel=0.06)


# --- seams


def seam(change: Tensor, tile: int) -> float:
    """Return the mean difference of neighbours across borders of fixed tiles, relative to that of other neighbours."""
    on: list[float] = []
    off: list[float] = []
    tiles = fixed_tiles((change.shape[-2], change.shape[-1]), tile, 32)
    for lines, borders in (
        (change, {tile.left for tile in tiles}),
        (change.transpose(-1, -2), {tile.top for tile in tiles}),
    ):
        steps = (lines[..., 1:] - lines[..., :-1]).abs().mean((0, 1, 2)).tolist()
        for position, step in enumerate(steps, start=1):
            (on if position in borders else off).append(step)
    return mean(on) / mean(off)


@pytest.mark.parametrize("layers", ["blocks.2", pytest.param("blocks.4", marks=pytest.mark.soak)])
def test_memory_tiles_leave_no_seams(layers: str) -> None:
    """Independent tiles without jitter leave seams: layers pad with zeros, so the image changes less at borders."""
    moving, fixed = [], []
    for seed in range(4):
        start = picture(256, 320, seed=seed)
        settings = DreamSettings(layers=layers, octaves=1, steps=12, seed=seed, jitter=0)
        still = settings.model_copy(update={"tile": 96})
        moving.append(seam(dreams(bundled(), start, settings, tile_size=96) - start, 96))
        fixed.append(seam(dreams(bundled(), start, still) - start, 96))
    assert 0.95 < mean(moving) < 1.05
    assert mean(fixed) < 0.945
