"""DeepDream: Mordvintsev, Olah and Tyka, "Inceptionism: Going Deeper into Neural Networks" (2015), in six steps.

1. Forward an image through a trained network up to a chosen layer.
2. Choose what to excite there.
3. Measure the activations.
4. Take the gradient of that score with respect to the image.
5. Move the image up the gradient.
6. Repeat, over octaves from coarse to fine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamcore.gradients import normaliser, penalty_gradient, treat
from dreamcore.network import Network
from dreamcore.octaves import carry, mask_at, octave_sizes, pictures_at, resize
from dreamcore.scores import Aim, measure
from dreamcore.settings import DreamSettings
from dreamcore.tiles import cut, cut_evenly
from dreamcore.views import Views


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture of a batch, and what to make of it."""

    picture: Tensor
    """(3, H, W) in [0, 1], on the network's device."""
    settings: DreamSettings
    """The model and the files named there are not looked at."""
    guide: Tensor | None = None
    """(3, h, w) in [0, 1]: what the picture is to become like, instead of more of what it is."""
    mask: Tensor | None = None
    """(1, H, W) in [0, 1]: 1 dreams, 0 stays."""


@dataclass(frozen=True, eq=False)
class Dreams:
    """A batch that was dreamt."""

    pictures: Tensor
    """(B, 3, H, W) in [0, 1]. A sample whose ascent failed is NaN somewhere."""
    measured: Tensor
    """(B, targets): what was measured of each target in the finished dreams."""
    octave_scores: Tensor
    """(B, octaves): the scores after each octave."""
    left_out: int
    """Octaves that would have been smaller than the network can see."""


def dream(
    network: Network, samples: Sequence[Sample], tile: int = 0, watch: Callable[[int, int], None] | None = None
) -> Dreams:
    """Dream a batch of pictures of one size.

    Args:
        network: the network to dream with.
        samples: the pictures, with settings that have one `batch_key`; each is dreamt as it would be alone.
        tile: octaves with more pixels than a square of this side are dreamt in tiles of it, to bound memory; 0: never.
        watch: called after every step with the steps done and the steps in all.

    Raises:
        ImageError: `too_small` for the network.
    """
    alike = samples[0].settings
    pictures = torch.stack([sample.picture for sample in samples]) if len(samples) > 1 else samples[0].picture[None]
    full = (pictures.shape[-2], pictures.shape[-1])
    least = network.card.min_size
    sizes = octave_sizes(full, alike, least)
    batch = _Batch(network, samples)
    aim = batch.aim  # step 2: what to excite
    base = dreams = pictures_at(pictures, sizes, 0, alike)
    octave_scores = []
    for octave, size in enumerate(sizes):  # step 6: over octaves from coarse to fine
        last, base = base, pictures_at(pictures, sizes, octave, alike)
        mask = mask_at([sample.mask for sample in samples], size, base)
        dreams = carry(dreams, last, base, mask, alike) if octave else base
        frames = cut(size, alike.tile, least) if alike.tile else cut_evenly(size, tile, least)
        together = len(frames) > 1 and not alike.tile  # the tiles have one score, or else each its own
        known = measure(network, dreams, aim, frames) if together else None
        going, normalise = torch.ones_like(batch.step_size), normaliser(alike.normalise)
        for step in range(alike.steps):
            views = Views.choose(batch.settings, octave, step, size, strew=together)
            seen = views.of(dreams)
            gradient, sums = torch.empty_like(seen), []
            for frame in frames:
                patch = frame.of(seen).detach().requires_grad_()
                answers = network.answers(patch, aim.wanted)  # step 1: forward, no further than needed
                sums.append(aim.sums(answers, views.within(frame), frame.edges(size)))  # step 3: measure
                score = aim.score(sums[-1], known)
                frame.of(gradient)[:] = _slope(score, patch)  # step 4: take the gradient with respect to the image
                sums[-1] = sums[-1].detach()
            gradient = batch.held_back(gradient, seen, base, views)
            del seen, patch, answers, score  # what follows takes memory for several pictures, of whatever size
            uphill = normalise(views.back(treat(gradient, alike, step)))
            dreams = batch.kept(uphill.mul_(batch.stride(going, mask)).add_(dreams))  # step 5: move up the gradient
            total = torch.stack(sums).sum(0)
            known = total if together else None
            going = going * (aim.score(total).view_as(going) <= batch.stop_at)
            if watch:
                watch(octave * alike.steps + step + 1, len(sizes) * alike.steps)
            if batch.may_end_early and not going.any():
                break
        measured = measure(network, dreams, aim, frames)
        octave_scores.append(aim.score(measured))
    finished = resize(dreams, full, alike.resample).clamp(0, 1)
    if not (alike.clip and sizes[-1] == full):
        measured = measure(network, finished, aim, cut_evenly(full, tile, least))
    left_out = alike.octaves - len(sizes)
    return Dreams(finished, aim.each(measured), torch.stack(octave_scores, 1), left_out)


def _slope(score: Tensor, pictures: Tensor) -> Tensor:
    """Gradient of each sample's score (B,) with respect to its picture (B, 3, H, W)."""
    if not score.requires_grad:  # a tile without the places that are to be excited
        return torch.zeros_like(pictures)
    return torch.autograd.grad(score.sum(), pictures)[0]


class _Batch:
    """What the samples of a batch do not have in common, side by side."""

    def __init__(self, network: Network, samples: Sequence[Sample]) -> None:
        self.settings = [sample.settings for sample in samples]
        self.alike = self.settings[0]
        targets = [settings.layers for settings in self.settings]
        self.aim = Aim(network, targets, self.alike.measure, [sample.guide for sample in samples])
        like = samples[0].picture
        self.step_size = _column([settings.step_size for settings in self.settings], like)
        stop_at = [torch.inf if settings.stop_at is None else settings.stop_at for settings in self.settings]
        self.stop_at = _column(stop_at, like)
        self.may_end_early = min(stop_at) < torch.inf
        self.total_variation = _column([settings.total_variation for settings in self.settings], like)
        self.l2 = _column([settings.l2 for settings in self.settings], like)
        self.penalised = any(settings.total_variation or settings.l2 for settings in self.settings)
        self.unit = network.std if self.alike.space == "network" else None
        """What a step of 1 is in the picture, where it is not 1."""

    def held_back(self, gradient: Tensor, seen: Tensor, base: Tensor, views: Views) -> Tensor:
        """The gradient (B, 3, H, W) less that of the penalties, in the space in which steps are taken."""
        if self.penalised:
            gradient -= penalty_gradient(seen, views.of(base), self.total_variation, self.l2)
        return gradient if self.unit is None else gradient * self.unit

    def stride(self, going: Tensor, mask: Tensor | None) -> Tensor:
        """How far each sample goes, and where in it; samples that are done stay."""
        stride = self.step_size * going
        stride = stride if self.unit is None else stride * self.unit
        return stride if mask is None else stride * mask

    def kept(self, dreams: Tensor) -> Tensor:
        """The dreams, within black and white if they shall be."""
        return dreams.clamp_(0, 1) if self.alike.clip else dreams


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value for each sample, as (B, 1, 1, 1)."""
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
