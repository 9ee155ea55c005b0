"""A picture dreamt in tiles is dreamt as a whole: nothing is left out, and no border shows."""

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
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.tiles import Tile, even_tiles, fixed_tiles, whole_image
from dreamcore.views import View
from tests.support.architectures import network
from tests.support.tiny import changed, dreams, picture, tiny_network

SIZES = st.tuples(st.integers(1, 700), st.integers(1, 700))
SIDES = st.integers(64, 400)
EVEN_SIDES = st.integers(2, 40).map(lambda side: 32 * side)


def covered(size: tuple[int, int], tiles: list[Tile]) -> bool:
    """Whether each pixel lies in exactly one of the tiles."""
    times = torch.zeros(size, dtype=torch.int)
    for frame in tiles:
        part = frame.crop(times)
        assert part.shape == (frame.height, frame.width)
        part += 1
    return bool((times == 1).all())


# --- where tiles lie


@given(SIZES, SIDES, st.integers(1, 64))
def test_tiles_cover_each_pixel_once_and_none_is_too_small(size: tuple[int, int], side: int, least: int) -> None:
    tiles = fixed_tiles(size, side, least)
    assert covered(size, tiles)
    for frame in tiles:
        assert min(least, size[0]) <= frame.height < side + least
        assert min(least, size[1]) <= frame.width < side + least
        assert frame.top % side == frame.left % side == 0


@given(SIZES, EVEN_SIDES)
@example((4329, 1000), 512)
@example((447, 447), 128)
def test_even_tiles_cover_each_pixel_once_and_are_as_large_as_they_may_be(size: tuple[int, int], side: int) -> None:
    tiles = even_tiles(size, side, 1)
    assert covered(size, tiles)
    if size[0] * size[1] <= side**2:
        assert tiles == whole_image(size)
    for frame in tiles if len(tiles) > 1 else []:
        assert min(side // 4, size[0]) <= frame.height <= 1.5 * side
        assert min(side // 4, size[1]) <= frame.width <= 1.5 * side
        if side >= 256:  # the memory that was allowed is for a tile of this side
            assert frame.height * frame.width <= 1.25 * side**2


@given(SIZES, EVEN_SIDES, st.integers(1, 300))
def test_no_even_tile_is_smaller_than_it_may_be(size: tuple[int, int], side: int, least: int) -> None:
    tiles = even_tiles(size, side, least)
    assert covered(size, tiles)
    assert all(frame.height >= min(least, size[0]) and frame.width >= min(least, size[1]) for frame in tiles)


@given(SIZES)
def test_no_side_is_one_tile(size: tuple[int, int]) -> None:
    assert even_tiles(size, 0, 1) == whole_image(size) == [Tile(0, 0, *size)]


@given(SIZES, SIDES)
def test_tiles_begin_where_the_strides_of_networks_do(size: tuple[int, int], side: int) -> None:
    assert all(frame.top % 32 == frame.left % 32 == 0 for frame in even_tiles(size, side, 1))


FRACTIONS = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(SIZES, EVEN_SIDES, st.tuples(FRACTIONS, FRACTIONS))
def test_a_place_lies_in_one_tile_at_its_pixel(size: tuple[int, int], side: int, at: tuple[float, float]) -> None:
    for tiles in (whole_image(size), fixed_tiles(size, side, 33), even_tiles(size, side, 33)):
        places = [(frame, frame.locate(at, size)) for frame in tiles]
        ((frame, found),) = [(frame, place) for frame, place in places if place is not None]
        assert frame.left + found[0] * frame.width == pytest.approx(at[0] * size[1], abs=0.5)
        assert frame.top + found[1] * frame.height == pytest.approx(at[1] * size[0], abs=0.5)


@pytest.mark.parametrize("tile", [64, 96])
@pytest.mark.parametrize("each_for_itself", [False, True])
def test_no_tile_is_smaller_than_the_network_can_see(tile: int, each_for_itself: bool) -> None:
    """AlexNet needs 63 pixels on each side, and 225 leave a rest of 33."""
    settings = changed(model="alexnet", layers="features.12", octaves=1, steps=1, tile=tile if each_for_itself else 0)
    assert network("alexnet").spec.min_size == 63
    dreamt = dreams(network("alexnet"), picture(225, 240), settings, tile_size=0 if each_for_itself else tile)
    assert dreamt.isfinite().all()


# --- what is dreamt in them

PLAIN = {"octaves": 1, "steps": 1, "gradient": "plain", "jitter": 0, "step_size": 1e-3}


def test_every_pixel_moves_and_the_whole_picture_by_step_size() -> None:
    """Single tiles by more or less: each is not normalised for itself."""
    start, settings = picture(170, 230), changed(**PLAIN)
    start[..., :115] = 0.5 + (start[..., :115] - 0.5) * 0.05  # one half is nearly flat
    view = View.choose(settings, 0, 0, (170, 230))
    for tile in (64, 96):
        change = dreams(tiny_network(), start, settings, tile_size=tile) - start
        assert (change.abs().amax(1) > 0).all()
        assert change.abs().mean().item() == pytest.approx(1e-3, rel=1e-3)
        parts = [frame.crop(view.apply(change)).abs().mean().item() for frame in even_tiles((170, 230), tile, 1)]
        assert max(parts) > 1.15 * min(parts)


def test_tiles_that_are_dreamt_each_for_itself_make_one_step_too() -> None:
    start = picture(170, 230)
    change = dreams(tiny_network(), start, changed(**PLAIN, tile=64)) - start
    assert (change.abs().amax(1) > 0).all()
    assert change.abs().mean().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_picture_no_larger_than_a_tile_is_dreamt_as_ever() -> None:
    assert torch.equal(
        dreams(tiny_network(), picture(), changed(), tile_size=64), dreams(tiny_network(), picture(), changed())
    )


def test_samples_of_a_batch_are_dreamt_in_tiles_as_they_are_alone() -> None:
    network = tiny_network()
    network.module.double()
    several = ["deep", "stem:2=0.5+body=-1", "deep:3@0.2,0.7", "logits:3"]
    samples = [
        Sample(picture(80, 100, seed=seed)[0].double(), changed(layers=layers, seed=seed, flip=seed > 1))
        for seed, layers in enumerate(several)
    ]
    for dreamt, sample in zip(ascend(network, samples, tile_size=64).images, samples, strict=True):
        alone = ascend(network, [sample], tile_size=64).images[0]
        assert 10 * torch.log10(1 / (dreamt - alone).square().mean()) > 120


def most_moved(start: Tensor, dreamt: Tensor) -> tuple[int, int]:
    """Across and down, the pixel that changed most."""
    down, across = divmod(int((dreamt - start).abs().sum((0, 1)).argmax()), start.shape[-1])
    return across, down


def neuron(at: tuple[float, float], **fields: object) -> DreamSettings:
    return changed(**{**PLAIN, "steps": 4, **fields}, layers=[{"layer": "deep", "channels": [3], "at": at}])


@pytest.mark.parametrize("at", [(0.2, 0.7), (0.5, 0.5), (0.0, 0.0), (1.0, 0.4), (0.3, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize(
    ("tile", "fields"),
    [(64, {}), (64, {"jitter": 20, "flip": True}), (0, {"tile": 64}), (0, {"tile": 64, "jitter": 20})],
)
def test_a_place_is_dreamt_in_the_tile_where_it_is(tile: int, fields: dict[str, Any], at: tuple[float, float]) -> None:
    """Or across the edge from it, where the view was shifted and the opposite edge lies beside it."""
    start = picture(128, 192)
    dreamt = dreams(tiny_network(), start, neuron(at, **fields), tile_size=tile)
    across, down = most_moved(start, dreamt)
    apart = abs(across - at[0] * 192), abs(down - at[1] * 128)
    assert min(apart[0], 192 - apart[0]) <= 14
    assert min(apart[1], 128 - apart[1]) <= 14


@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 0.4), (0.3, 1.0), (1.0, 1.0)])
def test_a_place_at_an_edge_is_dreamt_at_that_edge(at: tuple[float, float]) -> None:
    start, settings = picture(128, 192), neuron(at)
    dreamt = dreams(tiny_network(), start, settings)
    across, down = most_moved(start, dreamt)
    assert abs(across - at[0] * 192) <= 14
    assert abs(down - at[1] * 128) <= 14
    before, after = (
        observe(tiny_network(), each, settings.layers, settings.measure)[0].scores for each in (start, dreamt)
    )
    assert after[settings.layers[0].name] > before[settings.layers[0].name]


@pytest.mark.parametrize("at", [(0.2, 0.7), (0.0, 0.0), (1.0, 0.4), (0.3, 1.0), (1.0, 1.0)])
def test_a_place_is_measured_in_its_tile_as_in_the_whole(at: tuple[float, float]) -> None:
    seen, targets = picture(128, 192), neuron(at).layers
    expected = observe(tiny_network(), seen, targets, "mean")[0].scores
    found = observe(tiny_network(), seen, targets, "mean", tiles=even_tiles((128, 192), 64, 1))[0].scores
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_class_is_dreamt_in_tiles() -> None:
    start = picture(128, 192)
    before = tiny_network().classify(start)[0, 3]
    assert (
        tiny_network().classify(dreams(tiny_network(), start, changed(layers="logits:3"), tile_size=64))[0, 3] > before
    )


# --- as if there were none


def bundled() -> Network:
    return load_network(BUNDLED)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def changes(
    seeing: Network, start: Tensor, settings: DreamSettings, *, tile: int = 0, each: int = 0
) -> tuple[Tensor, View]:
    """How one step changes `start`, whole or in tiles, shown always in that view which the first step has in tiles."""
    view = View.choose(settings, 0, 0, (start.shape[-2], start.shape[-1]))
    if tile:
        return dreams(seeing, start, settings, tile_size=tile) - start, view
    shown = view.apply(start)
    return view.invert(dreams(seeing, shown, settings.model_copy(update={"tile": each})) - shown), view


def test_the_gradient_is_that_of_the_whole_where_a_position_sees_no_border() -> None:
    """To the last digits; elsewhere it differs by what a layer makes of the emptiness beyond a border."""
    settings = DreamSettings.model_validate({"layers": "blocks.2", **PLAIN})
    start = picture(256, 320, seed=1)
    expected, view = changes(bundled(), start, settings)
    found, _ = changes(bundled(), start, settings, tile=128)
    reach = 67 // 2 + 1
    inner = torch.zeros(256, 320, dtype=torch.bool)
    for frame in even_tiles((256, 320), 128, 1):
        frame.crop(inner)[reach:-reach, reach:-reach] = True
    inner = view.invert(inner)
    assert inner.float().mean() > 0.1
    assert correlation(found[..., inner], expected[..., inner]) > 0.999
    assert correlation(found, expected) > 0.85


def test_a_mix_keeps_its_balance_over_the_whole_picture() -> None:
    """One half is nearly flat: tiles that measured each for itself would give its logarithms as much weight."""
    start = picture(128, 192)
    start[..., :96] = 0.5 + (start[..., :96] - 0.5) * 0.05
    for mix in (["stem", "deep"], ["stem:2", "deep:5"]):
        both = changed(**PLAIN, layers="+".join(mix))
        expected, _ = changes(tiny_network(), start, both)
        together = correlation(changes(tiny_network(), start, both, tile=64)[0], expected)
        assert together > 0.93
        for target in mix:
            alone, _ = changes(tiny_network(), start, changed(**PLAIN, layers=target), tile=64)
            assert together > correlation(alone, expected) + 0.03
        each_for_itself, _ = changes(tiny_network(), start, both, each=64)
        assert together > correlation(each_for_itself, expected) + 0.05


def test_a_dream_in_tiles_excites_as_much_as_a_whole_one() -> None:
    """Both shown in views from all over the picture, for which the jitter of the whole one is made as wide."""
    start, rises = picture(256, 320, seed=1), []
    for tile in (0, 96):
        rises.append(0.0)
        for seed in range(4):
            settings = DreamSettings(layers="blocks.2", octaves=1, steps=8, jitter=150, seed=seed)
            seen = [start, dreams(bundled(), start, settings, tile_size=tile)]
            before, after = (
                observe(bundled(), each, settings.layers, settings.measure)[0].scores["blocks.2"] for each in seen
            )
            rises[-1] += after - before
    assert rises[1] == pytest.approx(rises[0], rel=0.06)


# --- seams


def seam(change: Tensor, tile: int) -> float:
    """How much neighbours across the borders of unmoved tiles differ in their `change`, to how much others do."""
    on: list[float] = []
    off: list[float] = []
    tiles = fixed_tiles((change.shape[-2], change.shape[-1]), tile, 32)
    for lines, borders in (
        (change, {frame.left for frame in tiles}),
        (change.transpose(-1, -2), {frame.top for frame in tiles}),
    ):
        steps = (lines[..., 1:] - lines[..., :-1]).abs().mean((0, 1, 2)).tolist()
        for position, step in enumerate(steps, start=1):
            (on if position in borders else off).append(step)
    return mean(on) / mean(off)


@pytest.mark.parametrize("layers", ["blocks.2", pytest.param("blocks.4", marks=pytest.mark.soak)])
def test_no_seam_shows_where_tiles_meet(layers: str) -> None:
    """Where borders never move they show: what lies beyond is empty, and less is dreamt beside it."""
    moving, fixed = [], []
    for seed in range(4):
        start = picture(256, 320, seed=seed)
        settings = DreamSettings(layers=layers, octaves=1, steps=12, seed=seed, jitter=0)
        still = settings.model_copy(update={"tile": 96})
        moving.append(seam(dreams(bundled(), start, settings, tile_size=96) - start, 96))
        fixed.append(seam(dreams(bundled(), start, still) - start, 96))
    assert 0.95 < mean(moving) < 1.05
    assert mean(fixed) < 0.945
