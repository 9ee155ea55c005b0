"""The public function `dream`: inputs, settings, networks, devices, results and errors."""

import io
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from dreamcore import Dream, DreamSettings, ImageError, InvalidInput, dream, load_network, network_from_module
from dreamcore.batch import DreamRequest, dream_photographs
from dreamcore.images import Photograph, decode, read_metadata
from dreamcore.models import _load_default
from dreamcore.settings import BUNDLED, DEFAULT_DEPTHS
from tests.support.downloads import put_weights, random_module
from tests.support.tiny import changed, picture, pixels, tiny_network

pytestmark = pytest.mark.usefixtures("one_thread")

CHELSEA = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.png"
QUICK: dict[str, Any] = {"layers": "deep", "octaves": 2, "steps": 3, "step_size": 0.02, "jitter": 4}
TINY = tiny_network()


def tiny_dream(image: Any, **options: Any) -> Any:
    """Dream with the tiny network, quickly."""
    return dream(image, **{"network": TINY, **QUICK, **options})


class Net(nn.Module):
    """A small custom network with batch normalisation and dropout."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Dropout(0.5))
            self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.stem(x)).relu())
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def custom_dream(module: nn.Module, **options: Any) -> Dream:
    """Dream with a custom module, quickly."""
    return dream(pixels(), **{"network": module, "octaves": 1, "steps": 2, **options})


# --- the examples of the README


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Random weights of resnet50 in the place of a download."""
    with pytest.MonkeyPatch.context() as patch:
        put_weights("resnet50", tmp_path_factory.mktemp("torch"), patch)
        yield
    _load_default.cache_clear()


@pytest.mark.usefixtures("resnet50")
@pytest.mark.slow
def test_the_documented_calls_run_on_a_photograph(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(_jpeg(CHELSEA, (96, 64)))
    my_module = random_module("vgg16")
    image = Image.open(tmp_path / "cat.jpg")
    a, b, c = image, image.rotate(90, expand=True), np.asarray(image)

    result = dream(Image.open(tmp_path / "cat.jpg"))
    assert result.scores["blocks.4"].after > result.scores["blocks.4"].before
    result = dream(image, layers="blocks.4:12", octaves=4, seed=7)
    assert (result.settings.octaves, result.settings.seed) == (4, 7)
    results = dream([a, b, c], network=load_network("resnet50"), layers="layer3", device="cpu", octaves=1, steps=1)
    assert [each.image.size for each in results] == [(96, 64), (64, 96), (96, 64)]
    result = dream(image, network=my_module, layers="features.12", octaves=1, steps=2)
    assert result.scores["features.12"].after > result.scores["features.12"].before
    assert (result.image.mode, result.image.size) == ("RGB", (96, 64))
    assert [len(result.classes.before), len(result.classes.after)] == [5, 5]
    assert result.settings.model == "custom:VGG"


def _jpeg(path: Path, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.open(path).convert("RGB").resize(size).save(file, "JPEG")
    return file.getvalue()


# --- input


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda image: image,
        lambda image: image.astype(np.float32) / 255,
        lambda image: image.astype(np.float64) / 255,
        lambda image: np.asfortranarray(image),
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: torch.from_numpy(image).permute(2, 0, 1) / 255,
        lambda image: (torch.from_numpy(image).permute(2, 0, 1) / 255).double().requires_grad_(),
        lambda image: Image.fromarray(image).convert("RGBA"),
    ],
    ids=["PIL", "uint8", "float32", "float64", "Fortran order", "uint8 tensor", "tensor", "with gradient", "RGBA"],
)
def test_every_kind_of_image_gives_the_same_dream(convert: Callable[[Any], Any]) -> None:
    assert np.array_equal(tiny_dream(convert(pixels())).array, tiny_dream(pixels()).array)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_every_mode_of_pillow_is_converted(mode: str) -> None:
    gray = Image.new("L", (40, 36), 128)
    image = gray.convert("RGBA").convert(mode) if mode in ("RGBa", "PA") else gray.convert(mode)
    assert tiny_dream(image, steps=0).array.shape == (36, 40, 3)


def test_transparent_areas_become_white_and_the_orientation_is_applied(tmp_path: Path) -> None:
    assert (tiny_dream(Image.new("RGBA", (40, 36), (9, 9, 9, 0)), steps=0).array == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(40, 64)).save(tmp_path / "turned.png", exif=exif)
    turned = tiny_dream(Image.open(tmp_path / "turned.png"), steps=0)
    assert np.array_equal(turned.array, np.rot90(pixels(40, 64), -1))


def test_a_pillow_image_is_converted_as_its_file_is_decoded() -> None:
    image = Image.open(CHELSEA)
    expected = decode(CHELSEA.read_bytes(), max_pixels=5000).pixels
    assert np.array_equal(tiny_dream(image, steps=0, max_pixels=5000).array, expected)
    assert image.size == (451, 300)


def test_a_list_of_any_sizes_gives_the_results_in_order() -> None:
    images = [pixels(48, 64), picture(40, 40)[0], Image.fromarray(pixels(48, 64, seed=1)), pixels(40, 40, seed=2)]
    results = tiny_dream(images)
    for image, result in zip(images, results, strict=True):
        assert np.array_equal(result.array, tiny_dream(image).array)
    assert [each.measurements.batch for each in results] == [2, 2, 2, 2]


def test_a_batch_of_tensors_gives_a_list() -> None:
    results = tiny_dream(torch.cat([picture(), picture(seed=1)]))
    assert len(results) == 2
    assert np.array_equal(results[1].array, tiny_dream(picture(seed=1)[0]).array)
    assert isinstance(tiny_dream([pixels()]), list)


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "path": ("cat.jpg", r"^image is a str: open it first, with PIL\.Image\.open$"),
    "Path": (Path("cat.jpg"), r"^image is a \w*Path: open it first"),
    "None": (None, "^image is a NoneType: give a PIL image"),
    "empty list": ([], "^image is empty: give at least one image$"),
    "empty batch": (torch.zeros(0, 3, 8, 8), "^image is empty"),
    "nested list": ([[pixels()]], r"^image\[0\] is a list: give one image here$"),
    "gray array": (pixels()[..., 0], r"^image has the shape \(48, 64\): give \(H, W, 3\), or PIL"),
    "channels first": (pixels().transpose(2, 0, 1), r"\(3, 48, 64\): .* use array\.transpose\(1, 2, 0\)$"),
    "channels last": (torch.from_numpy(pixels()), r"\(48, 64, 3\): .*; use permute\(2, 0, 1\)$"),
    "array of images": (np.stack([pixels()]), r"^image has the shape .*: give list\(array\)"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), "^image has no pixels"),
    "no pixels in PIL": (Image.new("RGB", (0, 5)), "^image has no pixels"),
    "integers": (pixels().astype(np.int64), "^image has the dtype int64: give uint8"),
    "floats to 255": ([pixels().astype(float)], r"^image\[0\] has values from .*: divide it by 255$"),
    "negative floats": (pixels() / 255.0 - 1, r"^image has values from .*: scale it$"),
    "NaN": (np.full((40, 40, 3), np.nan), "^image contains NaN or infinity"),
    "meta": (torch.zeros(3, 8, 8, device="meta"), "^image is on the meta device"),
}


@pytest.mark.parametrize(("image", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_names_the_argument_and_the_remedy(image: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        tiny_dream(image)


def test_a_damaged_file_behind_a_pillow_image_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(CHELSEA.read_bytes()[:100_000])
    message = r"^image\[1\]: the file cannot be decoded"
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ImageError, match=message) as caught:
        tiny_dream([pixels(), image])
    assert caught.value.kind == "damaged"


def test_an_image_that_is_too_small_is_named_before_anything_is_dreamt() -> None:
    steps: list[int] = []
    with pytest.raises(ImageError, match=r"^image\[1\]: 40x30 pixels: the network needs 33 on each side$"):
        tiny_dream([pixels(), pixels(30, 40)], network=tiny_network(min_size=33), on_step=lambda *_: steps.append(1))
    assert steps == []


# --- settings


def test_fields_override_settings_and_a_preset_lies_between() -> None:
    base = DreamSettings(octaves=3, steps=1, seed=5)
    found = tiny_dream(pixels(), settings=base, preset="gordic", seed=6, steps=0).settings
    assert (found.seed, found.steps, found.octave_scale, found.model) == (6, 0, 1.8, "tiny")
    found = dream(pixels(), network=TINY, settings=base.model_copy(update={"steps": 0}), layers="stem").settings
    assert (found.octaves, found.seed, found.layers[0].layer) == (3, 5, "stem")


def test_the_settings_of_a_result_repeat_it() -> None:
    first = tiny_dream(pixels(), seed=3, flip=True, mask=picture(seed=2)[0], guide=pixels(seed=4))
    again = dream(pixels(), network=TINY, settings=first.settings, mask=picture(seed=2)[0], guide=pixels(seed=4))
    assert np.array_equal(first.array, again.array)
    assert (first.settings, first.settings_id) == (again.settings, again.settings_id)


def test_the_seed_decides_the_pixels() -> None:
    first, second, other = (tiny_dream(pixels(), seed=seed).array for seed in (7, 7, 8))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown setting": ({"octavs": 3}, r"^setting 'octavs' does not exist; did you mean octaves\?$"),
    "nothing near": ({"zzz": 3}, "^setting 'zzz' does not exist; the settings are model, "),
    "out of range": ({"octaves": 0}, "^octaves is 0: Input should be greater than or equal to 1"),
    "wrong type": ({"steps": "many"}, "^steps is 'many': "),
    "together": ({"octaves": 2, "octaves_above": 2}, "^octaves_above is 2; it must be less than octaves"),
    "unknown preset": ({"preset": "google"}, "no preset 'google'; choose google2015"),
    "unknown layer": ({"layers": "deeep"}, "^layer 'deeep' does not exist in tiny; did you mean deep"),
    "unknown channel": ({"layers": "deep:16"}, "^channel 16 does not exist in deep of tiny: choose one from 0 to 15$"),
    "no settings": ({"settings": {"octaves": 3}}, "^settings is a dict: give a DreamSettings$"),
    "another model": ({"model": "resnet18"}, "^the settings name the network 'resnet18', but network is 'tiny'"),
    "settings of another model": (
        {"settings": DreamSettings(model="vgg16", layers="features.12")},
        "^the settings name the network 'vgg16', but network is 'tiny'",
    ),
    "guide without image": (
        {"settings": DreamSettings(guide="s3://b/guide.jpg")},
        r"^the settings name the guide s3://b/guide\.jpg: give its image as guide=\.\.\.$",
    ),
    "mask without image": ({"settings": DreamSettings(mask="mask.png")}, "^the settings name the mask mask.png: "),
    "other weights": (
        {"weights": f"own.pth#sha256={'ab' * 32}"},
        "^the settings name the weights own.pth, but the network has others: give network=load_network",
    ),
    "guide that is a path": ({"guide": "guide.jpg"}, "^guide is a str: open it first"),
    "two guides": ({"guide": [pixels(), pixels()]}, "^guide is a list: give one image here$"),
    "mask out of range": ({"mask": np.full((9, 9), 2.0)}, "^mask has values from 2 to 2, but floats must be in"),
    "mean of a finished network": ({"mean": (0, 0, 0)}, "^mean and std are for modules, but tiny has its own"),
    "network that is a number": ({"network": 3}, "^network is a int: give a name"),
    "unknown device": ({"device": "gpu"}, "^device is 'gpu': give cpu, cuda, or one GPU"),
    "other device": ({"device": "meta"}, "^device is 'meta': give cpu, cuda, or one GPU"),
    "no memory": ({"max_memory": 0}, "^max_memory: '0' is not an amount of memory"),
    "memory in words": ({"max_memory": "much"}, "^max_memory: 'much' is not an amount of memory: write for example"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_names_itself_and_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        tiny_dream(pixels(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_a_gpu_that_does_not_exist_is_invalid_input(device: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"^device is .*cuda.*, but PyTorch finds no usable GPU here: give device='cpu'"
    ):
        tiny_dream(pixels(), device=device)
    with pytest.raises(InvalidInput, match="finds no usable GPU"):
        load_network(BUNDLED, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_on_the_cpu_dreams_on_the_gpu_and_stays_on_the_cpu() -> None:
    on_cpu = tiny_dream(pixels(), steps=1)
    on_gpu = tiny_dream(pixels(), steps=1, device="cuda")
    assert on_gpu.measurements.device == torch.cuda.get_device_name()
    assert TINY.device.type == next(TINY.module.parameters()).device.type == "cpu"
    assert np.abs(on_cpu.array.astype(int) - on_gpu.array).max() <= 1
    module = Net()
    assert custom_dream(module, device="cuda").measurements.device == torch.cuda.get_device_name()
    assert custom_dream(module.cuda()).measurements.device == torch.cuda.get_device_name()
    assert custom_dream(module, device="cpu").measurements.device == "cpu"


@pytest.mark.parametrize("name", ["guide", "mask"])
def test_a_request_without_its_guide_or_mask_is_rejected(name: str) -> None:
    request = DreamRequest(Photograph(pixels(), 64, 48), changed(**{name: "s3://bucket/image.png"}))
    with pytest.raises(InvalidInput, match=f"the settings name a {name}, but the request has no {name} image"):
        dream_photographs(TINY, [request])
    request = DreamRequest(Photograph(pixels(), 64, 48), changed(model="resnet18"))
    with pytest.raises(InvalidInput, match="the settings name the network resnet18, not tiny"):
        dream_photographs(TINY, [request])


# --- guide and mask


def test_a_mask_keeps_black_areas_unchanged() -> None:
    left = np.zeros((48, 64), bool)
    left[:, :32] = True
    for mask in (left, left.astype(np.uint8) * 255, torch.from_numpy(left)[None].float(), Image.fromarray(left)):
        changed_pixels = (tiny_dream(pixels(), mask=mask, octaves=1).array != pixels()).any(2)
        assert changed_pixels[:, :31].any()
        assert not changed_pixels[:, 33:].any()


def test_a_guide_changes_the_dream_and_its_identity() -> None:
    plain, one, other = (tiny_dream(pixels(), guide=guide) for guide in (None, pixels(seed=1), picture(seed=2)[0]))
    assert len({each.settings_id for each in (plain, one, other)}) == 3
    assert not np.array_equal(plain.array, one.array)
    assert one.settings.guide is not None
    assert one.settings.guide.uri == "guide"


# --- networks


def test_a_network_by_name_is_the_bundled_one_by_default() -> None:
    quick = {"octaves": 1, "steps": 1}
    arrays = [dream(pixels(), **options, **quick).array for options in ({}, {"network": BUNDLED}, {"model": BUNDLED})]
    assert all(np.array_equal(arrays[0], each) for each in arrays)


def test_weights_from_a_file_are_named_in_the_settings(tmp_path: Path) -> None:
    torch.save(random_module("squeezenet1_1").state_dict(), tmp_path / "own.pth")
    network = load_network("squeezenet1_1", weights=tmp_path / "own.pth")
    assert load_network("squeezenet1_1", weights=str(tmp_path / "own.pth")) is network
    result = dream(pixels(), network=network, octaves=1, steps=1)
    assert result.settings.weights is not None
    assert result.settings.weights.sha256 == network.spec.weights
    again = dream(pixels(), network=network, settings=result.settings)
    assert np.array_equal(result.array, again.array)
    torch.save(random_module("squeezenet1_1").half().state_dict(), tmp_path / "own.pth")
    assert load_network("squeezenet1_1", weights=tmp_path / "own.pth") is not network
    with pytest.raises(InvalidInput, match=r"weights: .*missing\.pth cannot be read"):
        load_network("squeezenet1_1", weights=tmp_path / "missing.pth")


def test_a_custom_module_stays_unchanged() -> None:
    module = Net().train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = custom_dream(module)
    assert result.settings.model == "custom:Net"
    assert module.training
    assert module.body[2].training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_custom_module_dreams_what_its_own_activations_say() -> None:
    """The scores equal a computation with the module itself, with the given mean and std."""
    module, mean, std = Net(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    result = custom_dream(module, layers="body", mean=mean, std=std)
    normalise = torchvision.transforms.Normalize(mean, std)
    module.eval()
    with torch.no_grad():
        activations = module.body(module.norm(module.stem(normalise(picture()))).relu())
    assert result.scores["body"].before == pytest.approx(float(activations.square().mean().log()), abs=1e-4)
    assert result.scores["body"].after > result.scores["body"].before


def test_the_settings_of_a_custom_module_need_the_module() -> None:
    settings = custom_dream(Net()).settings
    with pytest.raises(InvalidInput, match=r"^the settings name the network custom:Net: give its module as network="):
        dream(pixels(), settings=settings)
    assert dream(pixels(), settings=settings, network=Net()).settings == settings


def test_the_layers_of_a_custom_module_are_found() -> None:
    spec = network_from_module(Net(classes=6)).spec
    assert [layer.name for layer in spec.layers] == ["stem", "norm", "body.0", "body.1", "body.2", "body", "logits"]
    assert (spec.layer("stem").stride, spec.layer("body").channels, spec.layer("logits").channels) == (2, 12, 6)
    assert (spec.layer("body").receptive_field, spec.layer("stem").cost) == (7, 8 * 27 / 4)
    with pytest.raises(InvalidInput, match=r"layer 'boddy' does not exist in custom:Net; did you mean body, "):
        custom_dream(Net(), layers="boddy")


def test_without_layers_a_custom_module_dreams_at_the_default_depth() -> None:
    module = random_module("squeezenet1_1")
    spec = network_from_module(module).spec
    depths = DreamSettings.model_validate({"layers": DEFAULT_DEPTHS}).layers
    assert {*custom_dream(module, steps=1).scores} == {spec.resolve_depth(depth).layer for depth in depths}


def test_the_identity_of_a_custom_module_follows_its_weights_and_normalisation() -> None:
    module = Net()
    first, same = custom_dream(module), custom_dream(Net())
    assert first.settings_id == same.settings_id
    network = network_from_module(module)
    assert network_from_module(module) is network
    with torch.no_grad():
        module.stem.weight.add_(0.1)
    assert network_from_module(module) is not network
    others = [custom_dream(module), custom_dream(Net(), mean=(0, 0, 0)), custom_dream(Net(), std=(1, 1, 1))]
    assert len({each.settings_id for each in (first, *others)}) == 4


def test_classes_of_a_custom_module_have_numbers_or_given_names() -> None:
    labels = ["ant", "bee", "cat", "dog"]
    named = network_from_module(Net(), labels=labels)
    assert {each.label for each in dream(pixels(), network=named, octaves=1, steps=1).classes.after} == set(labels)
    assert {each.label for each in custom_dream(Net()).classes.after} == {f"class {number}" for number in range(4)}
    with pytest.raises(InvalidInput, match="labels are 2 names, but custom:Net does not return that number"):
        network_from_module(Net(), labels=["ant", "bee"])


class NotOnMeta(Net):
    """A module with a branch that depends on values, which the meta device does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean().item() < 1e6 else -x)


class ReadsAttributes(Net):
    """A module that reads an attribute which the fast convolutions lack."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.stem.in_channels / 3


class Features(nn.Module):
    """A module without classes that returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net().body

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.body(x.repeat(1, 3, 1, 1)[:, :8])}


@pytest.mark.parametrize("kind", [NotOnMeta, ReadsAttributes, Features, lambda: Net().double(), lambda: Net().half()])
def test_unusual_modules_dream(kind: Callable[[], nn.Module]) -> None:
    result = custom_dream(kind(), layers="body")
    assert result.scores["body"].after > result.scores["body"].before
    with torch.no_grad():  # a caller may have turned gradients off
        again = custom_dream(kind(), layers="body")
    assert np.array_equal(result.array, again.array)


class NoGradient(Net):
    """A module that cuts the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class OneSize(Net):
    """A module that accepts one size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 3, 224, 224))


BAD_MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no gradient": (NoGradient, r"^custom:NoGradient passes no gradient to the image: remove torch\.no_grad\(\)"),
    "one size": (OneSize, "^custom:OneSize takes images of one size only"),
    "no images": (lambda: nn.Linear(5, 5), r"^custom:Linear cannot process an image .*RuntimeError: .*shapes"),
    "no parameters": (nn.ReLU, "^custom:ReLU has no parameters: give a trained network$"),
    "no layers": (lambda: nn.Conv2d(3, 3, 3), r"^no layer of custom:Conv2d returns a tensor \(B, C, H, W\)"),
}


@pytest.mark.parametrize(("module", "message"), BAD_MODULES.values(), ids=BAD_MODULES)
def test_a_module_that_cannot_dream_says_why(module: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        custom_dream(module())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mean": (0.5, 0.5)}, "^mean is .*: give three numbers"), ({"std": (0.5, 0, 0.5)}, "^std is .* above 0$")],
)
def test_a_bad_normalisation_is_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        custom_dream(Net(), **options)


# --- progress and memory


def test_progress_counts_the_steps_of_all_images() -> None:
    seen: list[tuple[int, int]] = []
    tiny_dream([pixels(), pixels(64, 64), pixels(seed=1)], on_step=lambda *each: seen.append(each), octaves=2, steps=3)
    assert {total for _, total in seen} == {18}
    assert all(first < second for (first, _), (second, _) in pairwise(seen))
    assert seen[-1] == (18, 18)
    seen.clear()
    tiny_dream(pixels(), on_step=lambda *each: seen.append(each), stop_at=-100)
    assert seen[-1] == (6, 6)


def test_a_memory_limit_makes_tiles_and_smaller_batches() -> None:
    small = tiny_dream([pixels(256, 256), pixels(256, 256)], max_memory="8MiB", octaves=1, steps=1)
    assert [each.measurements.batch for each in small] == [1, 1]
    assert small[0].measurements.tile is not None
    large = tiny_dream([pixels(256, 256), pixels(256, 256)], max_memory=2**31, octaves=1, steps=1)
    assert [(each.measurements.batch, each.measurements.tile) for each in large] == [(2, None)] * 2
    with pytest.raises(InvalidInput, match=r"^max_memory: the memory of custom:NotOnMeta cannot be estimated"):
        custom_dream(NotOnMeta(), layers="body", max_memory="1GB")


# --- results


def test_a_result_has_the_dream_in_every_form() -> None:
    result = tiny_dream(pixels(), layers="stem=0.5+deep:2,3")
    assert np.array_equal(np.asarray(result.image), result.array)
    assert torch.equal(result.tensor, torch.from_numpy(result.array.copy()).permute(2, 0, 1) / 255)
    assert set(result.scores) == {"stem", "deep:2,3"}
    assert result.measurements.score_after == pytest.approx(
        0.5 * result.scores["stem"].after + result.scores["deep:2,3"].after
    )
    assert len(result.classes.before) == 5
    assert result._repr_png_().startswith(b"\x89PNG")
    assert re.match(r"<Dream 64x48 of tiny, deep:2,3: -?\d", repr(result))


def test_an_encoded_result_contains_its_settings() -> None:
    result = tiny_dream(pixels(), output={"format": "webp", "quality": 100})
    metadata = read_metadata(result.encode())
    assert metadata is not None
    assert DreamSettings.model_validate(metadata["settings"]) == result.settings
    assert metadata["settings_id"] == result.settings_id
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(result.encode()))), result.array)
