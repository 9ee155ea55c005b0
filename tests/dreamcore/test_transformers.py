"""Vision transformers dream on images of any size: their tokens are maps."""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from dreamcore.ascent import Sample, ascend
from dreamcore.batch import Dream, DreamRequest, Limits, dream_photographs
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph
from dreamcore.memory import FULL_SIZE_IMAGES, bytes_per_pixel
from dreamcore.models import load_network_with, network_from_module
from dreamcore.network import Network
from dreamcore.observation import observe
from dreamcore.targets import Target
from dreamcore.tracing import activation_sizes, trace_network
from tests.support.architectures import network
from tests.support.tiny import changed, dreams, picture, pixels

pytestmark = pytest.mark.slow

TINY = "timm/vit_tiny_patch16_224"
LAYER = "blocks.2"
TOKENS, WIDTH = 14 * 14 + 1, 192


def settings(**fields: Any) -> Any:
    return changed(**{"model": TINY, "layers": LAYER, "octaves": 1, "steps": 3, **fields})


def padded(image: Tensor, multiple: int) -> Tensor:
    """Return `image` (1, 3, H, W) with a mirrored border at the bottom and at the right."""
    for axis in (2, 3):
        border = image.flip(axis).narrow(axis, 1, -image.shape[axis] % multiple)
        image = torch.cat([image, border], axis)
    return image


# --- layers


def test_the_layers_of_a_transformer_are_maps_of_its_patches() -> None:
    known = network(TINY).spec
    for name, channels in (("patch_embed.proj", 192), (LAYER, 192), (f"{LAYER}.attn.qkv", 576),
                           (f"{LAYER}.attn", 192), (f"{LAYER}.mlp", 192), (f"{LAYER}.mlp.fc1", 768)):  # fmt: skip
        assert (known.layer(name).channels, known.layer(name).stride) == (channels, 16)
    assert (known.multiple, known.min_size, known.size, known.transformer) == (16, 16, 224, True)
    assert [stage.name for stage in known.stages()] == [f"blocks.{number}" for number in range(12)]
    assert known.resolve_depth(Target(layer="65%")).layer == "blocks.7"


def test_only_layers_before_the_first_attention_have_a_limited_receptive_field() -> None:
    fields = {layer.name: layer.receptive_field for layer in network(TINY).spec.layers}
    assert [name for name, side in fields.items() if side] == [
        "patch_embed.proj",
        "blocks.0.norm1",
        "blocks.0.attn.qkv",
    ]
    assert fields["patch_embed.proj"] == fields["blocks.0.attn.qkv"] == 16


def test_the_cost_of_a_block_counts_its_linear_layers_and_its_attention() -> None:
    patches = 14 * 14 * (16 * 16 * 3) * WIDTH
    linear, attention = TOKENS * 12 * WIDTH**2, 2 * TOKENS**2 * WIDTH
    for block in (0, 11):
        expected = patches + (block + 1) * (linear + attention)
        assert network(TINY).spec.layer(f"blocks.{block}").cost == round(expected / 224**2)


@pytest.mark.parametrize(
    ("model", "patch", "channels", "size"),
    [
        ("timm/vit_small_patch16_dinov3", 16, 384, (7, 10)),  # rotary positions, four registers
        ("timm/vit_small_patch14_reg4_dinov2", 14, 384, (8, 11)),
        ("timm/vit_base_patch32_clip_224", 32, 768, (4, 5)),
        pytest.param("timm/vit_small_patch14_dinov2", 14, 384, (8, 11), marks=pytest.mark.soak),
        pytest.param("timm/deit_tiny_distilled_patch16_224", 16, 192, (7, 10), marks=pytest.mark.soak),
        pytest.param("timm/eva02_tiny_patch14_224", 14, 192, (8, 11), marks=pytest.mark.soak),
        pytest.param("timm/vit_small_r26_s32_224", 32, 384, (4, 5), marks=pytest.mark.soak),  # patches of a ResNet
        pytest.param("timm/xcit_nano_12_p8_224", 8, 128, (13, 19), marks=pytest.mark.soak),  # 225 pixels: 29 patches
    ],
)
def test_transformers_with_other_patches_and_positions_are_traced(
    model: str, patch: int, channels: int, size: tuple[int, int]
) -> None:
    known = trace_network(model)
    assert (known.multiple, known.min_size, known.transformer) == (patch, patch, True)
    assert (known.layer("blocks.4").channels, known.layer("blocks.4").stride) == (channels, patch)
    assert activation_sizes(known, 100, 150)["blocks.4"] == size


@pytest.mark.parametrize("model", ["vit_b_16", "timm/swin_tiny_patch4_window7_224", "timm/cait_xxs24_224"])
def test_a_transformer_for_one_size_is_refused_with_one_that_takes_any(model: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{model} takes images of one size only: choose .*timm/vit_small_patch16"):
        trace_network(model)


def test_a_network_that_mixes_convolutions_with_attention_has_maps_only() -> None:
    """Its blocks return maps, and some layers inside return tokens."""
    known = trace_network("timm/edgenext_xx_small")
    assert (known.transformer, known.multiple) == (False, 1)
    names = {layer.name for layer in known.layers}
    assert {"stages.0", "stages.3"} <= names
    assert not any(name.endswith(".xca.qkv") for name in names)


# --- activations and gradients


@pytest.mark.parametrize("size", [(64, 80), (50, 70), (16, 17)])
def test_activations_are_the_tokens_that_timm_returns(size: tuple[int, int]) -> None:
    image = picture(*size)
    module = network(TINY).module
    normalised = (padded(image, 16) - network(TINY).mean) / network(TINY).std
    with torch.no_grad():
        (expected,) = module.forward_intermediates(  # type: ignore[operator]
            normalised, indices=[2], norm=False, output_fmt="NCHW", intermediates_only=True
        )
    found = network(TINY).activations(image, {LAYER})[LAYER]
    assert found.shape == (1, WIDTH, -(-size[0] // 16), -(-size[1] // 16))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@cache
def in_float64() -> Network:
    """Return the network without the fast copy, in float64."""
    return Network(deepcopy(network(TINY).module).double(), network(TINY).spec, plain=True)


@pytest.mark.parametrize("layers", ["blocks.1.attn+blocks.2.mlp:3,7=0.5", "blocks.2:12@0.5,0.3", "logits:7"])
def test_the_gradient_agrees_with_plain_autograd_in_float64(layers: str) -> None:
    fields = settings(layers=layers, steps=1, gradient="plain", jitter=0)
    image = picture(50, 70)
    (fast,) = ascend(network(TINY), [Sample(image[0], fields)]).images
    (exact,) = ascend(in_float64(), [Sample(image[0].double(), fields)]).images
    found, expected = fast.double() - image[0], exact - image[0].double()
    assert expected.abs().max() > 0.01
    assert (found - expected).norm() < 0.02 * expected.norm()  # the patch convolution may use bfloat16 backwards


@pytest.mark.parametrize("layers", [LAYER, "blocks.1.attn", "logits:7"])
def test_a_dream_raises_the_score(layers: str) -> None:
    fields = settings(layers=layers, steps=5)
    images = [picture(50, 70), dreams(network(TINY), picture(50, 70), fields)]
    before, after = (observe(network(TINY), each, fields.layers, fields.measure)[0] for each in images)
    assert after.score(fields.layers) > before.score(fields.layers) + 0.05


def test_samples_of_a_batch_dream_as_alone_and_leave_at_their_layers() -> None:
    layers = ("blocks.0", "blocks.1.attn", LAYER, "blocks.1@0.7,0.2", "patch_embed.proj:4")
    samples = [
        Sample(picture(40, 60, seed=number)[0], settings(layers=layer, seed=number, steps=2))
        for number, layer in enumerate(layers)
    ]
    together = ascend(network(TINY), samples).images
    for sample, dream in zip(samples, together, strict=True):
        (alone,) = ascend(network(TINY), [sample]).images
        assert (alone - sample.image).abs().mean() > 0.004
        torch.testing.assert_close(dream, alone, atol=2e-3, rtol=0)


def test_jitter_hides_the_grid_of_the_patches() -> None:
    """Here the network sees only the left half of each patch. Without jitter, the right halves never change."""
    halved = Network(deepcopy(network(TINY).module), network(TINY).spec, plain=True)
    halved.module.patch_embed.proj.weight[..., 8:] = 0  # type: ignore[union-attr, operator]

    def change_of_right_halves(jitter: int) -> float:
        """Return their mean change, relative to that of the left halves."""
        fields = settings(layers="blocks.0", steps=16, jitter=jitter, gradient="plain")
        change = (dreams(halved, picture(64, 96), fields) - picture(64, 96)).abs().mean((0, 1, 2))
        is_right = torch.arange(96) % 16 >= 8
        return float(change[is_right].mean() / change[~is_right].mean())

    assert change_of_right_halves(jitter=0) == 0
    assert 0.8 < change_of_right_halves(jitter=16) < 1.25


# --- memory


def request(height: int, width: int, **fields: Any) -> DreamRequest:
    return DreamRequest(Photograph(pixels(height, width), width, height), settings(steps=1, **fields))


def test_a_photograph_that_does_not_fit_is_refused_and_never_computed_in_memory_tiles() -> None:
    needed = 160 * 160 * (bytes_per_pixel(network(TINY), {LAYER}) + FULL_SIZE_IMAGES * 12)
    (refused,) = dream_photographs(network(TINY), [request(160, 160)], Limits(max_memory=int(0.99 * needed)))
    assert isinstance(refused, ImageError)
    assert refused.kind == "out_of_memory"
    assert str(refused) == (
        "160x160 pixels do not fit into the memory, and a vision transformer is not computed in memory tiles: each "
        "position depends on all others: lower max_pixels, or give the setting tile, for example 224"
    )
    (dream,) = dream_photographs(network(TINY), [request(160, 160)], Limits(max_memory=int(1.01 * needed)))
    assert isinstance(dream, Dream)
    assert dream.tile is None
    (tiled,) = dream_photographs(network(TINY), [request(160, 160, tile=80)], Limits(max_memory=int(0.99 * needed)))
    assert isinstance(tiled, Dream)
    assert tiled.tile == 80


def test_a_photograph_is_not_dreamt_in_memory_tiles_after_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dreamcore.batch.ascend", fail)
    (refused,) = dream_photographs(network(TINY), [request(256, 256)])
    assert isinstance(refused, ImageError)
    assert "a vision transformer is not computed in memory tiles" in str(refused)


def test_the_memory_of_attention_is_that_of_the_fused_kernel() -> None:
    """The matrix of all pairs of tokens, which the fused kernel never stores, would need more."""
    side, heads = 1024, 3
    matrix = ((side / 16) ** 2) ** 2 * heads * 4 / side**2
    one = bytes_per_pixel(network(TINY), {"blocks.1"})
    assert bytes_per_pixel(network(TINY), {"blocks.3"}) - one < 2 * matrix


# --- weights and modules


def test_custom_weights_with_other_classes_fit() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        trained = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    data = safetensors.torch.save(trained.state_dict())
    loaded = load_network_with(TINY, data, hashlib.sha256(data).hexdigest(), "own.safetensors")
    assert loaded.spec.layer("logits").channels == len(loaded.labels) == 7
    assert loaded.spec.layer(LAYER).channels == WIDTH
    image = picture(224, 224)
    with torch.no_grad():
        expected = trained.eval()((image - loaded.mean) / loaded.std).softmax(1)
    torch.testing.assert_close(loaded.classify(image), expected, atol=1e-5, rtol=1e-4)


class Patches(nn.Module):
    """A vision transformer of PyTorch's own layers with a class token, but without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 24, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(24, 2, 48, batch_first=True) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]


@pytest.mark.parametrize(
    ("make", "patch", "layer", "channels"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, depth=4), 16, "blocks.2", 192),
        (Patches, 8, "blocks.2", 24),
    ],
    ids=["timm", "own"],
)
def test_a_module_that_is_a_transformer_dreams(
    make: Callable[[], nn.Module], patch: int, layer: str, channels: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        custom = network_from_module(make())
    assert custom.spec.transformer
    assert (custom.spec.layer(layer).channels, custom.spec.layer(layer).stride) == (channels, patch)
    fields = settings(model=custom.spec.model, layers=layer, steps=5)
    images = [picture(50, 70), dreams(custom, picture(50, 70), fields)]
    before, after = (observe(custom, each, fields.layers, fields.measure)[0] for each in images)
    assert after.score(fields.layers) > before.score(fields.layers)
