"""Networks of many architectures, with random weights."""

from functools import cache

import torch

from dreamcore.network import Network
from dreamcore.tracing import trace_network
from dreamcore.zoo import build

MIDDLES = {
    "alexnet": "features.8",
    "vgg16": "features.19",
    "googlenet": "inception4c",
    "inception_v3": "Mixed_6b",
    "resnet18": "layer3",
    "resnet50": "layer3.2",
    "resnext50_32x4d": "layer3.2",
    "densenet121": "features.denseblock3",
    "squeezenet1_1": "features.9",
    "mobilenet_v3_large": "features.10",
    "efficientnet_b0": "features.4",
    "regnet_y_400mf": "trunk_output.block3",
    "shufflenet_v2_x1_0": "stage3",
    "mnasnet1_0": "layers.10",
    "convnext_tiny": "features.5.4",
    "timm/tf_efficientnet_lite0": "blocks.4",
    "timm/resnetv2_50": "stages.2",
    "timm/dla34": "level4",
    "timm/hrnet_w18": "transition2.2",
}
"""Models, each with a layer near the middle of the network."""


@cache
def network(model: str) -> Network:
    """Return the library's network with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(build(model, pretrained=False), trace_network(model))
