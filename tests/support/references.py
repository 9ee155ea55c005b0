"""Reimplementations of five published DeepDream programs, to test the presets against.

Each program keeps its value range and the order of its operations. The programs share a few helpers for resizing,
rolling and gradients. They share no code with `dreamcore`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Net = Callable[[Tensor], Mapping[str, Tensor]]
"""Function of images (1, 3, H, W) in [0, 1] that returns activations (1, C, h, w) by layer name."""

Offsets = Callable[[int, int], tuple[int, int]]
"""Function of (octave, step) that returns the jitter (down, right) in pixels; the coarsest octave is 0."""

Shape = tuple[int, int]


@dataclass(frozen=True)
class ProgramRun:
    """The images of one program."""

    shapes: list[Shape]
    """(height, width) of every octave, the coarsest first."""
    first: list[Tensor]
    """(3, h, w) in [0, 1] after each step of the first octave."""
    result: Tensor
    """(3, H, W) in [0, 1], at the size of the input."""


# ---------------------------------------------------------------------------------------------------------------------
# Shared helpers


def shape_of(image: Tensor) -> Shape:
    return image.shape[-2], image.shape[-1]


def loss_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor]:
    """Return the value and the gradient of a loss at x."""
    x = x.detach().clone().requires_grad_(True)
    value = loss(x)
    (gradient,) = torch.autograd.grad(value, x)
    return float(value.detach()), gradient


def resize_half_pixel(x: Tensor, shape: Shape) -> Tensor:
    """Resize bilinearly with half-pixel centres and without antialiasing, like tf.image.resize and cv2.resize."""
    return F.interpolate(x[None], size=shape, mode="bilinear", align_corners=False, antialias=False)[0]


def resize_corners(x: Tensor, shape: Shape) -> Tensor:
    """Resize bilinearly with aligned corners, like scipy.ndimage.zoom(order=1)."""
    return F.interpolate(x[None], size=shape, mode="bilinear", align_corners=True)[0]


def roll(x: Tensor, down: int, right: int) -> Tensor:
    return torch.roll(x, (down, right), (-2, -1))


# ---------------------------------------------------------------------------------------------------------------------
# google/deepdream, dream.ipynb

GOOGLE_OCTAVES = 4
GOOGLE_RATIO = 1.4
GOOGLE_STEPS = 10
GOOGLE_STEP = 1.5
GOOGLE_MEAN = (122.0, 116.0, 104.0)  # red, green, blue


def google_shapes(shape: Shape) -> list[Shape]:
    """Return the shapes, the smallest first. Each is the next larger one divided by the ratio and rounded."""
    shapes = [shape]
    while len(shapes) < GOOGLE_OCTAVES:
        height, width = shapes[-1]
        shapes.append((round(height / GOOGLE_RATIO), round(width / GOOGLE_RATIO)))
    return shapes[::-1]


def google2015(
    net: Net, layers: Sequence[str], image: Tensor, offsets: Offsets, *, steps: int | None = None
) -> ProgramRun:
    """Run google/deepdream, dream.ipynb: the first DeepDream.

    Values are in [0, 255] minus the mean. Each octave starts from the base image plus the enlarged detail of the
    smaller octaves. A step rolls the image, adds 1.5 times the gradient divided by its mean magnitude, rolls back and
    clips.
    """
    steps = GOOGLE_STEPS if steps is None else steps
    mean = torch.tensor(GOOGLE_MEAN, dtype=image.dtype, device=image.device)[:, None, None]

    def to_unit(x: Tensor) -> Tensor:
        return (x + mean) / 255

    def loss(x: Tensor) -> Tensor:
        activations = net(to_unit(x)[None])
        return torch.stack([0.5 * activations[layer].square().sum() for layer in layers]).sum()

    shapes = google_shapes(shape_of(image))
    bases = [image * 255 - mean]
    for shape in shapes[-2::-1]:
        bases.append(resize_corners(bases[-1], shape))
    bases = bases[::-1]

    first: list[Tensor] = []
    detail = torch.zeros_like(bases[0])
    x = bases[0]
    for octave, base in enumerate(bases):
        if octave > 0:
            detail = resize_corners(detail, shape_of(base))
        x = base + detail
        for step in range(steps):
            down, right = offsets(octave, step)
            x = roll(x, down, right)
            _, gradient = loss_and_gradient(loss, x)
            x = x + GOOGLE_STEP / gradient.abs().mean() * gradient
            x = roll(x, -down, -right)
            x = torch.maximum(torch.minimum(x, 255 - mean), -mean)
            if octave == 0:
                first.append(to_unit(x))
        detail = x - base
    return ProgramRun(shapes, first, to_unit(x).clamp(0, 1))


def guided_gradient(activation: NDArray[np.floating], guide: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the gradient of google/deepdream, dream.ipynb, with a guide image.

    The gradient at each position of the activation (C, h, w) is the feature vector of the guide (C, gh, gw) that has
    the largest dot product with the vector of the activation; if several are equal, the first, row by row.
    """
    gradient = np.zeros_like(activation)
    for y in range(activation.shape[1]):
        for x in range(activation.shape[2]):
            best = -math.inf
            for guide_y in range(guide.shape[1]):
                for guide_x in range(guide.shape[2]):
                    product = float(np.dot(activation[:, y, x], guide[:, guide_y, guide_x]))
                    if product > best:
                        best = product
                        gradient[:, y, x] = guide[:, guide_y, guide_x]
    return gradient


# ---------------------------------------------------------------------------------------------------------------------
# TensorFlow tutorial, deepdream.ipynb: octaves, whole images

TF2_RATIO = 1.3
TF2_POWERS = (-2, -1, 0, 1, 2)
TF2_STEPS = 50
TF2_STEP = 0.01
TF2_EPSILON = 1e-8


def tf2_shapes(shape: Shape) -> list[Shape]:
    height, width = shape
    return [(int(height * TF2_RATIO**n), int(width * TF2_RATIO**n)) for n in TF2_POWERS]


def minus_one_to_one(unit: Tensor) -> Tensor:
    return unit * 2 - 1


def zero_to_one(x: Tensor) -> Tensor:
    return (x + 1) / 2


def tf2_loss(net: Net, layers: Sequence[str], x: Tensor) -> Tensor:
    """Return the sum over the layers of the mean activation, not squared."""
    activations = net(zero_to_one(x)[None])
    return torch.stack([activations[layer].mean() for layer in layers]).sum()


def tf2_step(x: Tensor, gradient: Tensor) -> Tensor:
    gradient = gradient / (gradient.std(correction=0) + TF2_EPSILON)
    return (x + TF2_STEP * gradient).clamp(-1, 1)


def tf2(net: Net, layers: Sequence[str], image: Tensor, offsets: Offsets, *, steps: int | None = None) -> ProgramRun:
    """Run the TensorFlow tutorial, deepdream.ipynb, "Taking it up an octave".

    Values are in [-1, 1]. The image is resized from octave to octave and converted to 8 bits after each one. A step
    adds 0.01 times the gradient divided by its standard deviation and clips. There is no jitter.
    The tutorial truncates to 8 bits; this function rounds.
    """
    steps = TF2_STEPS if steps is None else steps
    shapes = tf2_shapes(shape_of(image))

    first: list[Tensor] = []
    unit = image
    for octave, shape in enumerate(shapes):
        x = minus_one_to_one(resize_half_pixel(unit, shape))
        for _ in range(steps):
            _, gradient = loss_and_gradient(lambda x: tf2_loss(net, layers, x), x)
            x = tf2_step(x, gradient)
            if octave == 0:
                first.append(zero_to_one(x))
        unit = (zero_to_one(x) * 255).round() / 255
    return ProgramRun(shapes, first, resize_half_pixel(unit, shape_of(image)).clamp(0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# TensorFlow tutorial, deepdream.ipynb: octaves, in tiles

TF2_TILED_STEPS = 100
TF2_TILE = 512


def tf2_tiled_gradient(net: Net, layers: Sequence[str], x: Tensor, down: int, right: int) -> Tensor:
    """Return the gradient of the rolled image, computed tile by tile with separate losses and rolled back."""
    rolled = roll(x, down, right)
    height, width = shape_of(rolled)
    total = torch.zeros_like(rolled)
    for top in range(0, height, TF2_TILE):
        for left in range(0, width, TF2_TILE):
            tile = rolled[:, top : top + TF2_TILE, left : left + TF2_TILE]
            _, gradient = loss_and_gradient(lambda tile: tf2_loss(net, layers, tile), tile)
            total[:, top : top + TF2_TILE, left : left + TF2_TILE] += gradient
    return roll(total, -down, -right)


def tf2_tiled(
    net: Net, layers: Sequence[str], image: Tensor, offsets: Offsets, *, steps: int | None = None
) -> ProgramRun:
    """Run the TensorFlow tutorial, deepdream.ipynb, "Scaling up with tiles".

    Like `tf2`, but the gradient is computed in tiles of 512 pixels of the rolled image, and the image stays in floating
    point between the octaves. The tutorial skips the last, partial tiles; this function does not.
    """
    steps = TF2_TILED_STEPS if steps is None else steps
    shapes = tf2_shapes(shape_of(image))

    first: list[Tensor] = []
    x = minus_one_to_one(image)
    for octave, shape in enumerate(shapes):
        x = resize_half_pixel(x, shape)
        for step in range(steps):
            down, right = offsets(octave, step)
            x = tf2_step(x, tf2_tiled_gradient(net, layers, x, down, right))
            if octave == 0:
                first.append(zero_to_one(x))
    x = resize_half_pixel(x, shape_of(image))
    return ProgramRun(shapes, first, zero_to_one(x).clamp(0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# keras-io, deep_dream.py

KERAS_OCTAVES = 3
KERAS_RATIO = 1.4
KERAS_STEPS = 20
KERAS_STEP = 0.01
KERAS_EPSILON = 1e-6
KERAS_MOST_LOSS = 15.0


def keras_shapes(shape: Shape) -> list[Shape]:
    height, width = shape
    return [(int(height / KERAS_RATIO**i), int(width / KERAS_RATIO**i)) for i in reversed(range(KERAS_OCTAVES))]


def keras_loss(net: Net, layers: Mapping[str, float], x: Tensor) -> Tensor:
    """Return the weighted sum of the squares without a border of 2, divided by the number of all elements."""
    activations = net(zero_to_one(x)[None])
    losses = []
    for layer, weight in layers.items():
        activation = activations[layer]
        losses.append(weight * activation[:, :, 2:-2, 2:-2].square().sum() / activation.numel())
    return torch.stack(losses).sum()


def keras(
    net: Net, layers: Mapping[str, float], image: Tensor, offsets: Offsets, *, steps: int | None = None
) -> ProgramRun:
    """Run keras-io, deep_dream.py.

    Values are in [-1, 1] and never clipped. Between octaves the result is enlarged, and the detail that the original
    lost when it was shrunk is added. A step adds 0.01 times the gradient divided by its mean magnitude. An octave ends
    with the step whose loss exceeds 15. There is no jitter.
    The program adds the lost detail after the steps of an octave; this function adds it before them.
    """
    steps = KERAS_STEPS if steps is None else steps
    shapes = keras_shapes(shape_of(image))
    original = minus_one_to_one(image)

    first: list[Tensor] = []
    x = resize_half_pixel(original, shapes[0])
    for octave, shape in enumerate(shapes):
        if octave > 0:
            same_size = resize_half_pixel(original, shape)
            shrunk = resize_half_pixel(original, shapes[octave - 1])
            x = resize_half_pixel(x, shape) + (same_size - resize_half_pixel(shrunk, shape))
        for _ in range(steps):
            loss, gradient = loss_and_gradient(lambda x: keras_loss(net, layers, x), x)
            x = x + KERAS_STEP * gradient / gradient.abs().mean().clamp(min=KERAS_EPSILON)
            if octave == 0:
                first.append(zero_to_one(x))
            if loss > KERAS_MOST_LOSS:
                break
    return ProgramRun(shapes, first, zero_to_one(x).clamp(0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# gordicaleksa/pytorch-deepdream

GORDIC_OCTAVES = 4
GORDIC_RATIO = 1.8
GORDIC_STEPS = 10
GORDIC_STEP = 0.09
GORDIC_KERNEL = 9
GORDIC_SIGMAS = (0.5, 1.0, 2.0)


def gordic_shapes(shape: Shape) -> list[Shape]:
    factors = [GORDIC_RATIO ** (level - GORDIC_OCTAVES + 1) for level in range(GORDIC_OCTAVES)]
    return [(round(shape[0] * factor), round(shape[1] * factor)) for factor in factors]


def gaussian(sigma: float, like: Tensor) -> Tensor:
    """Return a 9x9 Gaussian kernel with the sum 1."""
    distances = torch.arange(GORDIC_KERNEL, dtype=like.dtype, device=like.device) - GORDIC_KERNEL // 2
    line = torch.exp(-distances.square() / (2 * sigma**2))
    kernel = line[:, None] * line[None, :]
    return kernel / kernel.sum()


def smoothed(gradient: Tensor, sigma: float) -> Tensor:
    """Return the mean of three Gaussian filters of the gradient, per channel, with reflected edges."""
    half = GORDIC_KERNEL // 2
    padded = F.pad(gradient[:, None], (half, half, half, half), mode="reflect")
    filtered = [F.conv2d(padded, gaussian(sigma * factor, gradient)[None, None])[:, 0] for factor in GORDIC_SIGMAS]
    return torch.stack(filtered).mean(0)


def gordic(
    net: Net,
    layers: Sequence[str],
    image: Tensor,
    offsets: Offsets,
    mean: Tensor,
    std: Tensor,
    *,
    steps: int | None = None,
) -> ProgramRun:
    """Run gordicaleksa/pytorch-deepdream, deepdream.py.

    Values are in the network's normalized range. The image is resized from octave to octave. A step rolls the image,
    smooths the gradient (more in later steps), scales it to mean 0 and standard deviation 1, adds 0.09 times the
    gradient, rolls back and clips.
    """
    steps = GORDIC_STEPS if steps is None else steps
    mean = mean.to(image)[:, None, None]
    std = std.to(image)[:, None, None]
    shapes = gordic_shapes(shape_of(image))

    def to_unit(x: Tensor) -> Tensor:
        return x * std + mean

    def loss(x: Tensor) -> Tensor:
        activations = net(to_unit(x)[None])
        return torch.stack([activations[layer].square().mean() for layer in layers]).mean()

    first: list[Tensor] = []
    x = (image - mean) / std
    for octave, shape in enumerate(shapes):
        x = resize_half_pixel(x, shape)
        for step in range(steps):
            down, right = offsets(octave, step)
            x = roll(x, down, right)
            _, gradient = loss_and_gradient(loss, x)
            gradient = smoothed(gradient, (step + 1) / steps * 2 + 0.5)
            gradient = (gradient - gradient.mean()) / gradient.std(correction=1)
            x = x + GORDIC_STEP * gradient
            x = roll(x, -down, -right)
            x = torch.maximum(torch.minimum(x, (1 - mean) / std), (0 - mean) / std)
            if octave == 0:
                first.append(to_unit(x))
    return ProgramRun(shapes, first, to_unit(x).clamp(0, 1))
