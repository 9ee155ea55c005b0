"""Dream with a PyTorch module: python examples/own_network.py IN OUT [WEIGHTS]."""

import sys

import torch
import torchvision
from PIL import Image

from dreamcore import dream, network_from_module

LAYER = "features.9"


def main(source: str, result: str, weights: str | None = None) -> None:
    """Dream the image in `source` with a SqueezeNet, and write the dream to `result`."""
    # Put your own network here, and one of its layers into LAYER. Without WEIGHTS, the weights are random.
    torch.manual_seed(0)
    module = torchvision.models.squeezenet1_1(weights=None)
    if weights:
        module.load_state_dict(torch.load(weights, weights_only=True))
    network = network_from_module(module)  # mean=..., std=... if it was not trained with ImageNet's
    for layer in network.spec.stages():
        print(f"{layer.name}: {layer.channels} channels, stride {layer.stride}")
    with Image.open(source) as image:
        dream(image, network=network, layers=LAYER, octaves=4).image.save(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
