"""A cache of downloaded weights with seeded random weights in it, so that tests need no internet."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from dreamcore.zoo import build, sha256_of


def random_module(model: str) -> nn.Module:
    """Return a network with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(model, pretrained=False)


def put_weights(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put random weights of a torchvision network where `torch.hub` looks for downloaded files."""
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{model}.pth"
    torch.save(random_module(model).state_dict(), file)
    name = f"{model}-{sha256_of(file)[:8]}.pth"
    file.rename(cache / name)
    weights = torchvision.models.get_model_weights(model).DEFAULT
    url = f"https://download.example/{name}"
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(type(weights), "url", property(lambda _weights: url), raising=False)
