"""One step of DeepDream in plain torch, written twice without the engine: as most ports have it, and without waste."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn


def score(features: Tensor) -> Tensor:
    """What every contender climbs: the logarithm of the mean square, whose normalised gradient is that of 2015."""
    return features.square().mean().log()


class Published:
    """As most ports have it.

    The whole network runs, a hook keeps what the layer answers, and `backward` computes the gradients of all weights
    up to the layer besides the picture's; they are thrown away.
    """

    def __init__(self, module: nn.Module, layer: str, mean: Tensor, std: Tensor) -> None:
        self.module, self.mean, self.std = module.eval().requires_grad_(), mean, std
        self.features: list[Tensor] = []
        module.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, answer: Tensor) -> None:
        self.features.append(answer)

    def __call__(self, pictures: Tensor) -> Tensor:
        """The gradient of the score of `pictures` (B, 3, H, W) in [0, 1]."""
        pictures = pictures.detach().clone().requires_grad_()
        self.module.zero_grad()
        self.module((pictures - self.mean) / self.std)
        score(self.features.pop()).backward()  # type: ignore[no-untyped-call]
        assert pictures.grad is not None
        return pictures.grad


class _Enough(Exception):
    """Ends a forward pass behind the layer."""


class Clean:
    """Without waste, and without the engine: frozen weights, and nothing behind the layer runs.

    Torch's own modules on contiguous tensors, as they come out of the libraries.
    """

    def __init__(self, module: nn.Module, layer: str, mean: Tensor, std: Tensor) -> None:
        self.module, self.mean, self.std = module.eval().requires_grad_(False), mean, std
        self.features: list[Tensor] = []
        module.get_submodule(layer).register_forward_hook(self._stop)

    def _stop(self, _module: nn.Module, _inputs: Any, answer: Tensor) -> None:
        self.features.append(answer)
        raise _Enough

    def __call__(self, pictures: Tensor) -> Tensor:
        """The gradient of the score of `pictures` (B, 3, H, W) in [0, 1]."""
        pictures = pictures.detach().clone().requires_grad_()
        with suppress(_Enough):
            self.module((pictures - self.mean) / self.std)
        return torch.autograd.grad(score(self.features.pop()), pictures)[0]
