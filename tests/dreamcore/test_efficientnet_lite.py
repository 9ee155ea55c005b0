"""The EfficientNet-Lites are those of timm, to the bit."""

from typing import Any

import pytest
import timm
import torch
from timm.layers.padding import pad_same as pad_same_of_timm
from torch import nn

from dreamcore.efficientnet_lite import SCALES, EfficientNet, pad_same
from dreamcore.zoo import PACKAGED


def parts_of(module: nn.Module) -> list[tuple[str, str]]:
    """Name and type of every module that computes."""
    parts = [(name, type(part).__name__) for name, part in module.named_modules() if not name.startswith("global_pool")]
    return [(name, kind) for name, kind in parts if kind != "Identity"]


def randomize(module: nn.Module) -> None:
    """Give every tensor values that matter, also those that begin with zeros and ones."""
    torch.manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.02, 0.2)
            tensor.mul_(torch.randn_like(tensor).sign() if tensor.ndim > 1 else 1)


def test_all_packaged_networks_have_a_structure() -> None:
    assert PACKAGED.keys() == SCALES.keys()


@pytest.mark.parametrize("model", SCALES)
@torch.no_grad()
def test_the_networks_are_those_of_timm(model: str) -> None:
    theirs: Any = timm.create_model(f"tf_{model}", num_classes=7).eval()
    ours = EfficientNet(model, classes=7).eval()
    randomize(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())  # weights files are read in this order
    ours.load_state_dict(theirs.state_dict())
    assert parts_of(ours) == parts_of(theirs)
    for height, width in ((64, 96), (33, 47)):
        images = torch.rand(2, 3, height, width)
        assert torch.equal(*(each.blocks(each.bn1(each.conv_stem(images))) for each in (ours, theirs)))
        logits = ours(images)
        assert torch.equal(logits, theirs(images))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        assert logits.std() > 0


def test_same_padding_is_that_of_timm() -> None:
    for height in range(1, 12):
        for kernel, stride, dilation in ((3, 2, 1), (5, 2, 1), (5, 3, 2), (2, 2, 1), (1, 2, 1), (4, 1, 1)):
            images = torch.rand(1, 2, height, 13 - height)
            pairs = [kernel, kernel], [stride, stride], [dilation, dilation]
            assert torch.equal(pad_same(images, *pairs), pad_same_of_timm(images, *pairs))
