"""DeepDream in six steps, on tensors.

The method is that of Mordvintsev, Olah and Tyka, "Inceptionism: Going Deeper into Neural Networks" (2015):

1. Forward an image through a trained network up to a chosen layer.
2. Choose what to excite: the objective.
3. Measure the activations.
4. Take the gradient of that score with respect to the image.
5. Step up the gradient.
6. Repeat, over octaves from coarse to fine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dreamcore.calm import calm_weights
from dreamcore.canvas import Canvas, Pixels
from dreamcore.color_correlation import mix_colors, natural_steps
from dreamcore.diversity import similarity
from dreamcore.finish import finish, finish_from, is_finished
from dreamcore.fourier import Spectrum
from dreamcore.gradients import filter_gradient, normalizer, penalty_gradient, slow_near_limits
from dreamcore.network import LayerActivations, Network
from dreamcore.objective import Objective, measure
from dreamcore.octaves import Size, carry, enlarged, images_at, larger_sizes, mask_at, octave_sizes, resize
from dreamcore.settings import DreamSettings
from dreamcore.stopping import Stopping
from dreamcore.tiles import Tile, even_tiles, fixed_tiles
from dreamcore.transforms import Transforms, choose_views, view_size
from dreamcore.views import Views

__all__ = ["AscentResult", "OnStep", "Sample", "ascend"]

OnStep = Callable[[int, int], None]
"""Called after every step with the number of finished steps and the total number of steps."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a batch and its settings."""

    image: Tensor
    """(3, H, W) in [0, 1], on the device of the network."""
    settings: DreamSettings
    """`model`, `weights`, `guide`, `mask`, `max_pixels` and `output` are ignored here."""
    guide: Tensor | None = None
    """(3, h, w) in [0, 1]. With a guide, features that resemble the guide's are excited."""
    mask: Tensor | None = None
    """(1, H, W) in [0, 1]. Where the mask is 1 the image changes, where it is 0 the image stays."""
    dream: Tensor | None = None
    """(3, h, w) in [0, 1], a dream of the image. With a dream, only octaves larger than the dream are dreamt."""
    diversity: float = 0.0
    """Weight of the penalty on the similarity to the other samples of the batch."""


@dataclass(frozen=True, eq=False)
class AscentResult:
    """The dreams of one batch."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]. A sample whose ascent diverged contains NaN."""
    measured: Tensor
    """(B, targets): the measured value of each target in the finished dreams."""
    octave_scores: Tensor
    """(B, octaves): the scores after each octave. With dreams to go on from, the first are those of the dreams."""
    skipped_octaves: int
    """Number of octaves that were skipped because they are too small for the network."""


def ascend(
    network: Network, samples: Sequence[Sample], tile_size: int = 0, on_step: OnStep | None = None
) -> AscentResult:
    """Run gradient ascent on a batch of images of one size.

    Args:
        network: the network to dream with.
        samples: images of one size whose settings have the same `batch_key`. The result of a sample depends on the
            other samples only if it has a `diversity`.
        tile_size: side of the memory tiles in pixels. Octaves with more pixels than one tile are computed tile by tile,
            as one gradient of the score of the whole image. 0 disables memory tiles.
        on_step: called after every step with the finished and the total number of steps.

    Raises:
        ImageError: `too_small`: the images are smaller than the network accepts.
    """
    shared = samples[0].settings  # every setting in `BATCH_FIELDS` is the same for all samples
    images = torch.stack([sample.image for sample in samples]) if len(samples) > 1 else samples[0].image[None]
    full = (images.shape[-2], images.shape[-1])
    batch = _Batch(network, samples)
    sizes = batch.sizes(full)
    steps = [shared.steps * (batch.begun is None or octave > 0) for octave in range(len(sizes))]
    objective = batch.objective  # step 2: choose what to excite
    base = images_at(images, sizes, 0, shared)
    dreams = base if batch.begun is None else batch.begun
    octave_scores = []
    for octave, size in enumerate(sizes):  # step 6: repeat, over octaves from coarse to fine
        previous, base = base, images_at(images, sizes, octave, shared)
        mask = mask_at(batch.masks, size, base)
        dreams = carry(dreams, previous, base, mask, shared) if octave else dreams
        tiles = batch.tiles(view_size(size, shared), tile_size)
        joint = len(tiles) > 1 and not shared.tile  # memory tiles share one score, tiles of the setting do not
        sums = measure(network, dreams, objective, batch.tiles(size, tile_size), base) if joint else None
        stopping, canvas = batch.stopping(), batch.canvas(dreams, base, mask)
        for step in range(steps[octave]):
            views = choose_views(batch.settings, octave, step, size, random_tile_offset=joint)
            viewed = views.apply(canvas.image())
            gradient, tile_sums = torch.empty_like(viewed), []
            for tile in tiles:
                patch = tile.crop(viewed).detach().requires_grad_()
                activations = network.sample_activations(patch, objective.layers)  # step 1: forward to the layers
                source = batch.source_activations(base, views, tile)
                tile_sum = objective.sums(  # step 3: measure
                    activations, views.locator(tile), tile.edges(views.size), source
                )
                score = objective.score(tile_sum, sums) - batch.similarity(activations)
                tile.crop(gradient)[:] = _gradient(score, patch)  # step 4: gradient with respect to the image
                tile_sums.append(tile_sum.detach())
            gradient = batch.subtract_penalties(gradient, viewed, base, views)
            del viewed, patch, activations, source, tile_sum, score  # the next lines need memory for several images
            gradient = filter_gradient(batch.in_step_space(gradient), shared, step)
            canvas.step(views.pull_back(gradient), stopping.active)  # step 5: step up
            sums = torch.stack(tile_sums).sum(0) if joint else None
            stopping.update(partial(batch.score, tile_sums))
            if on_step:
                on_step(sum(steps[:octave]) + step + 1, sum(steps))
            if stopping.is_over(step + 1):
                break
        dreams = canvas.image()
        measured = measure(network, dreams, objective, batch.tiles(size, tile_size))
        octave_scores.append(objective.score(measured))
    finished = batch.finish(resize(dreams, full, shared.resample).clamp(0, 1), images)
    if not batch.is_finished or not (shared.clip and sizes[-1] == full):
        measured = measure(network, finished, objective, even_tiles(full, tile_size, network.spec.min_size))
    skipped = shared.octaves - len(sizes) if batch.begun is None else 0
    return AscentResult(finished, objective.each(measured), torch.stack(octave_scores, 1), skipped)


def _gradient(score: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of the scores (B,) with respect to `images` (B, 3, H, W)."""
    if not score.requires_grad:  # the tile contains none of the places to excite
        return torch.zeros_like(images)
    return torch.autograd.grad(score.sum(), images)[0]


class _Batch:
    """The settings in which the samples of a batch differ, as tensors (B, 1, 1, 1)."""

    def __init__(self, network: Network, samples: Sequence[Sample]) -> None:
        self.settings = [sample.settings for sample in samples]
        self.shared = self.settings[0]
        self.network, self.min_size = network, network.spec.min_size
        targets = [settings.layers for settings in self.settings]
        anchors = [settings.stay_near for settings in self.settings]
        guides = [sample.guide for sample in samples]
        self.objective = Objective(network, targets, self.shared.measure, guides, anchors)
        self.anchored = any(anchors)
        like = samples[0].image
        self.step_size = _column([settings.step_size for settings in self.settings], like)
        stop_at = [torch.inf if settings.stop_at is None else settings.stop_at for settings in self.settings]
        self.stop_at = _column(stop_at, like) if min(stop_at) < torch.inf else None
        self.total_variation = _column([settings.total_variation for settings in self.settings], like)
        self.l2 = _column([settings.l2 for settings in self.settings], like)
        self.penalized = any(settings.total_variation or settings.l2 for settings in self.settings)
        self.diversity = torch.tensor([sample.diversity for sample in samples], device=like.device, dtype=like.dtype)
        self.is_diverse = any(sample.diversity for sample in samples)
        self.color = natural_steps(self.shared.color, like)
        self.masks = [sample.mask for sample in samples]
        begun = [sample.dream for sample in samples if sample.dream is not None]
        self.begun = torch.stack(begun) if begun else None
        """The dreams (B, 3, h, w) to go on from; None: the ascent starts from the images."""
        self.is_finished = all(map(is_finished, self.settings))
        # In Fourier space, the colors are independent of one another already.
        self.colored = self.shared.color > 0 and self.shared.space != "fourier"
        self.unit = network.std if self.shared.space == "network" else None
        """Length in the image of a step of 1 in network space; None: steps are taken in the image itself."""

    def sizes(self, full: Size) -> list[Size]:
        """Return the sizes of the octaves of images of size `full` (H, W), from that of the dreams to go on from."""
        if self.begun is None:
            return octave_sizes(full, self.shared, self.min_size)
        return larger_sizes(full, (self.begun.shape[-2], self.begun.shape[-1]), self.shared, self.min_size)

    def tiles(self, size: Size, tile_size: int) -> list[Tile]:
        """Return the tiles of an octave of `size` (H, W): tiles of the setting `tile`, or memory tiles if it is 0."""
        if self.shared.tile:
            return fixed_tiles(size, self.shared.tile, self.min_size)
        return even_tiles(size, tile_size, self.min_size)

    def canvas(self, start: Tensor, base: Tensor, mask: Tensor | None) -> Canvas:
        """Return what the steps of an octave change. It shows the images `start` (B, 3, H, W) first."""
        normalize = normalizer(self.shared.normalise)
        if self.shared.space == "fourier":
            return Spectrum(start, normalize, self.step_size, base, mask)
        return Pixels(start, normalize, self.step_length(self.weights(start, mask)), self.slow, self.clip)

    def stopping(self) -> Stopping:
        """Return which samples take steps at the start of an octave: all."""
        return Stopping(self.stop_at, torch.ones_like(self.step_size))

    def score(self, tile_sums: Sequence[Tensor]) -> Tensor:
        """Return the scores (B,) of whole images from the totals and counts (B, targets, 2) of their tiles."""
        return self.objective.score(torch.stack([*tile_sums]).sum(0))

    def source_activations(
        self, base: Tensor, views: Views | Transforms, tile: Tile
    ) -> Mapping[str, LayerActivations] | None:
        """Return the activations of a tile of the source images `base` (B, 3, H, W) in the same views.

        The result is None if no sample stays near its source image.
        """
        if not self.anchored:
            return None
        return self.objective.source_activations(self.network, tile.crop(views.apply(base)))

    def similarity(self, activations: Mapping[str, LayerActivations]) -> Tensor | float:
        """Return the penalty (B,) on the similarity of the samples, or 0 if they need not be diverse."""
        return self.diversity * similarity(activations) if self.is_diverse else 0.0

    def subtract_penalties(self, gradient: Tensor, viewed: Tensor, base: Tensor, views: Views | Transforms) -> Tensor:
        """Return `gradient` (B, 3, H, W) minus the gradient of the penalties."""
        if self.penalized:
            gradient -= penalty_gradient(viewed, views.apply(base), self.total_variation, self.l2)
        return gradient

    def in_step_space(self, gradient: Tensor) -> Tensor:
        """Return `gradient` (B, 3, H, W) with natural colors, in the space of the steps. It is overwritten."""
        if self.colored:
            gradient = mix_colors(gradient, self.color)
        return gradient if self.unit is None else gradient * self.unit

    def weights(self, start: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return how much of each step of an octave each pixel takes, (B, 1, H, W) in [0, 1]; None: all of it."""
        if not self.shared.calm:
            return mask
        weights = calm_weights(start, self.shared.calm)
        return weights if mask is None else weights * mask

    def step_length(self, weights: Tensor | None) -> Tensor:
        """Return the step length of each sample and, with weights, of each pixel."""
        length = self.step_size if self.unit is None else self.step_size * self.unit
        return length if weights is None else length * weights

    def slow(self, direction: Tensor, images: Tensor) -> Tensor:
        """Return `direction` (B, 3, H, W), smaller where `images` are near white or black. It is overwritten."""
        distance = self.shared.soft_clip
        return slow_near_limits(direction, images, distance) if distance else direction

    def finish(self, dreams: Tensor, images: Tensor) -> Tensor:
        """Return the finished dreams of `images`, both (B, 3, H, W), with contrast, colors and blend."""
        if self.is_finished:
            return dreams
        if self.begun is None:
            return finish(dreams, images, self.masks, self.settings)
        start = enlarged(self.begun, images, self.masks, self.shared)
        return finish_from(start, dreams, lambda each: finish(each, images, self.masks, self.settings))

    def clip(self, dreams: Tensor) -> Tensor:
        """Clip `dreams` to [0, 1] in place if the setting `clip` is on."""
        return dreams.clamp_(0, 1) if self.shared.clip else dreams


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Return one value per sample as a tensor (B, 1, 1, 1)."""
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
