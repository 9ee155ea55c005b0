"""Custom weights from a file: the right file, only tensors, and the tensors of the network."""

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput
from dreamcore.models import load_network_with
from dreamcore.network import Network
from dreamcore.spec import NetworkSpec
from dreamcore.targets import LOGITS
from dreamcore.weights import read_tensors
from dreamcore.zoo import build
from tests.support.pickles import RunsCode
from tests.support.tiny import picture

pytestmark = pytest.mark.slow

LAYERS = ("conv1", "layer2.1", LOGITS)
TENSORS = {"stem.weight": torch.arange(24.0).view(2, 3, 2, 2), "stem.bias": torch.ones(2)}


def saved(content: object, **how: object) -> bytes:
    """Return the bytes that `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file, **how)  # type: ignore[arg-type]
    return file.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(data: bytes) -> dict[str, Tensor]:
    return read_tensors(data, digest(data), "own.pth")


def load(model: str, data: bytes) -> Network:
    return load_network_with(model, data, digest(data), "own.pth")


@cache
def random_weights(model: str = "resnet18", classes: int | None = None) -> dict[str, Tensor]:
    """Seeded random weights of the network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build(model, pretrained=False, classes=classes).state_dict())


def loaded(model: str, spec: NetworkSpec, classes: int | None = None) -> Network:
    """Return the network with these weights, loaded by PyTorch's `load_state_dict`."""
    module = build(model, pretrained=False, classes=classes)
    module.load_state_dict(random_weights(model, classes))
    return Network(module, spec)


# --- a file with weights of the network


@pytest.mark.parametrize(
    "write",
    [
        safetensors.torch.save,
        saved,
        lambda state: saved(state, _use_new_zipfile_serialization=False),
        lambda state: saved(state, pickle_protocol=3),
        lambda state: saved(OrderedDict(state)),
        lambda state: saved({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}),
        lambda state: saved({"epoch": 9, "arch": "resnet18", "model": {"state_dict": state}}),
        lambda state: saved(
            {
                "epoch": 90,
                "arch": "resnet18",
                "best_prec1": 54.7,
                "state_dict": {
                    f"module.{key}": tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")
                },
            },
            _use_new_zipfile_serialization=False,
        ),
        lambda state: safetensors.torch.save({f"module.{key}": tensor for key, tensor in state.items()}),
    ],
    ids=[
        "safetensors",
        "pth",
        "old pth",
        "pickle 3",
        "ordered",
        "DataParallel",
        "checkpoint",
        "Places365",
        "safe DataParallel",
    ],
)
def test_a_network_gives_the_activations_of_the_saved_one(write: Callable[[dict[str, Tensor]], bytes]) -> None:
    data = write(random_weights())
    network = load("resnet18", data)
    known = network_spec("resnet18")
    assert (network.spec.weights, network.spec.layers) == (digest(data), known.layers)
    assert network.labels[285] == "Egyptian cat"
    expected = loaded("resnet18", known).activations(picture(), LAYERS)
    for layer, activations in network.activations(picture(), LAYERS).items():
        assert torch.equal(activations, expected[layer])


def test_a_network_whose_convolutions_alone_were_trained_in_parallel_is_loaded() -> None:
    """PyTorch's example program of 2017, with which Places365 was trained, saves AlexNet and VGG like this."""
    state = random_weights("squeezenet1_1")
    renamed = {key.replace("features.", "features.module."): tensor for key, tensor in state.items()}
    assert set(renamed) != set(state)
    found = load("squeezenet1_1", saved({"state_dict": renamed})).module.state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in state.items())


@pytest.mark.parametrize(
    ("model", "classes"),
    [("resnet18", 365), ("squeezenet1_1", 7), ("timm/tf_efficientnet_lite0", 12), ("timm/resnetv2_50", 2)],
)
def test_a_file_with_other_classes_gives_a_network_with_these_classes(model: str, classes: int) -> None:
    network = load(model, safetensors.torch.save(random_weights(model, classes)))
    assert network.labels == tuple(f"class {index}" for index in range(classes))
    assert network.spec.layer(LOGITS).channels == classes
    assert network.spec.layers[0] == network_spec(model).layers[0]
    expected = loaded(model, network.spec, classes)
    assert torch.equal(network.classify(picture()), expected.classify(picture()))


def test_the_spec_has_the_new_number_of_classes_in_every_layer() -> None:
    """The classifier of SqueezeNet is a convolution that other layers follow."""
    network = load("squeezenet1_1", saved(random_weights("squeezenet1_1", 7)))
    counted = {layer.name: layer.channels for layer in network.spec.layers[-6:]}
    assert [counted[name] for name in ("classifier.1", "classifier.2", "classifier.3", "classifier")] == [7] * 4
    assert counted["classifier.0"] == 512


@pytest.mark.parametrize("in_file", [False, True], ids=["without", "with"])
@pytest.mark.parametrize(("model", "classes"), [("googlenet", 1000), ("googlenet", 365), ("inception_v3", 1000)])
def test_auxiliary_heads_are_ignored(model: str, classes: int, in_file: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = torchvision.models.get_model(
            model, init_weights=False, aux_logits=in_file, transform_input=True, num_classes=classes
        )
    assert any("aux" in key.lower() for key in original.state_dict()) == in_file
    network = load(model, safetensors.torch.save(original.state_dict()))
    assert len(network.labels) == classes
    seen = picture(96, 96)
    assert torch.equal(network.classify(seen), Network(original, network.spec).classify(seen))


@pytest.mark.parametrize("write", [safetensors.torch.save, saved], ids=["safetensors", "pth"])
@pytest.mark.parametrize("model", ["mnasnet0_5", "densenet121", "timm/dla34"])
def test_networks_that_check_a_version_of_their_files_accept_files_without_one(
    model: str, write: Callable[[dict[str, Tensor]], bytes]
) -> None:
    network = load(model, write(random_weights(model)))
    assert all(torch.equal(tensor, random_weights(model)[key]) for key, tensor in network.module.state_dict().items())


def test_weights_in_half_precision_and_without_counters_fit() -> None:
    """Small files often leave out the counters. The network still computes in float32."""
    state = {key: tensor.half() for key, tensor in random_weights().items() if not key.endswith("tracked")}
    network = load("resnet18", safetensors.torch.save(state))
    assert {tensor.dtype for tensor in network.module.parameters()} == {torch.float32}
    torch.testing.assert_close(network.module.state_dict()["fc.weight"], state["fc.weight"].float())


# --- the wrong file


@pytest.mark.parametrize("write", [safetensors.torch.save, saved], ids=["safetensors", "pth"])
def test_a_file_with_another_digest_is_rejected_before_it_is_parsed(
    write: Callable[[dict[str, Tensor]], bytes],
) -> None:
    data = write(TENSORS)
    meant = digest(data)
    assert set(read_tensors(data, meant.upper(), "own.pth")) == set(TENSORS)
    for place in (0, 8, len(data) // 2, len(data) - 1):  # some of these bytes a parser would notice, others not
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        message = (
            rf"^own.pth has changed: .* is {digest(flipped)[:12]}\.\.\., not {meant[:12]}\.\.\.; restore .*sha256sum"
        )
        with pytest.raises(InvalidInput, match=message):
            read_tensors(flipped, meant, "own.pth")


@pytest.mark.parametrize(
    "write",
    [
        lambda harmful: saved(harmful),
        lambda harmful: saved({"fc.weight": harmful}),
        lambda harmful: saved({**TENSORS, "epoch": harmful}),
        lambda harmful: saved({"state_dict": TENSORS, "optimizer": harmful}),
        lambda harmful: saved({"fc.weight": harmful}, _use_new_zipfile_serialization=False),
        lambda harmful: saved(harmful, pickle_protocol=4),
        lambda harmful: pickle.dumps(harmful),
    ],
    ids=["alone", "for a tensor", "beside tensors", "beside a nest", "old pth", "pickle 4", "pickle"],
)
def test_a_pickle_with_more_than_tensors_runs_no_code(
    write: Callable[[RunsCode], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    monkeypatch.setenv("PICKLE_FOLDER", str(done))
    data = write(RunsCode())
    with pytest.raises(InvalidInput, match="has changed"):
        read_tensors(data, digest(b"another"), "own.pth")
    with pytest.raises(
        InvalidInput, match=r"^own\.pth contains more than tensors, or is damaged; no code of it was run: save "
    ):
        read(data)
    assert not done.exists()


def test_a_pickled_module_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="contains more than tensors, "):
        read(saved(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "write",
    [safetensors.torch.save, saved, lambda content: saved(content, _use_new_zipfile_serialization=False)],
    ids=["safetensors", "pth", "old pth"],
)
@pytest.mark.parametrize("part", [0, 0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_rejected(write: Callable[[dict[str, Tensor]], bytes], part: float) -> None:
    data = write({"stem.weight": torch.ones(64, 64)})
    with pytest.raises(InvalidInput, match=r"^own\.pth .* or is damaged(; no code of it was run)?: save [^\n]*$"):
        read(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html>",
        bytes(100),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\x02" + bytes(7) + b"{}",
        b"\x02" + bytes(7) + b"{x",
        pickle.dumps(TENSORS["stem.bias"].tolist(), protocol=2),
        safetensors.torch.save({}),
        saved({}),
        saved([1, 2]),
        saved(torch.ones(3)),
        saved({"state_dict": {}}),
    ],
    ids=str,
)
def test_a_file_of_another_kind_is_rejected(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^own\.pth is not a weights file"):
        read(data)


def recursive_content() -> dict[str, object]:
    content: dict[str, object] = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({**TENSORS, "epoch": 9}, "'epoch' is a int"),
        ({"state_dict": {**TENSORS, "classes": ["cat"]}}, "'classes' is a list"),
        ({"weights": TENSORS}, "'weights' is a dict"),
        ({7: torch.ones(1)}, "7 is a Tensor"),
        (recursive_content(), "'model' is a dict"),
        ({"stem": torch.eye(3).to_sparse()}, "'stem' is a Tensor"),
        ({"stem": torch.empty(3, device="meta")}, "'stem' is a Tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_entry_that_is_no_plain_tensor_is_named(content: object, named: str) -> None:
    with pytest.raises(
        InvalidInput, match=rf"^own\.pth contains more than plain tensors: {named}; save only the tensors"
    ):
        read(saved(content))


def test_an_array_is_not_a_tensor() -> None:
    with pytest.raises(InvalidInput, match="contains more than tensors, "):
        read(saved({"stem": np.ones(3)}))


def test_a_prefix_that_some_names_lack_is_kept() -> None:
    content = {"module.stem": torch.ones(1), "head": torch.ones(1)}
    assert set(read(saved(content))) == set(content)


# --- weights of another network


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {each: tensor for each, tensor in state.items() if each != key}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: without(state, "layer1.0.bn1.bias"), r"it has no layer1\.0\.bn1\.bias"),
        (lambda state: without(state, "fc.bias"), r"it has no fc\.bias"),
        (lambda state: {**state, "fc2.weight": torch.ones(3)}, r"the network has no fc2\.weight"),
        (
            lambda state: {**state, "conv1.weight": torch.ones(64, 3, 5, 5)},
            "its conv1.weight is 64x3x5x5, not 64x3x7x7",
        ),
        (lambda state: {**state, "fc.bias": torch.ones(7)}, r"its fc\.weight is 1000x512, not 7x512"),
        (lambda state: {**state, "fc.bias": torch.tensor(7.0)}, r"its fc\.bias is a single number, not 1000"),
        (lambda state: {**state, "fc.bias": torch.empty(0)}, r"its fc\.bias is 0, not 1000"),
        (lambda state: {**state, "fc.bias": torch.ones(1000).char()}, r"its fc\.bias is torch.int8, not torch.float32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str
) -> None:
    data = saved(change(random_weights()))
    with pytest.raises(InvalidInput, match=rf"^own\.pth does not fit resnet18: {reason}; give the network [^\n]*$"):
        load("resnet18", data)


def test_the_weights_of_another_network_are_rejected() -> None:
    data = safetensors.torch.save(random_weights("squeezenet1_1", 7))
    with pytest.raises(InvalidInput, match=r"^own\.pth does not fit resnet18: it has no conv1\.weight; give"):
        load("resnet18", data)
    with pytest.raises(InvalidInput, match=r"^own\.pth does not fit timm/resnetv2_50: its stem\.conv\.weight is"):
        load("timm/resnetv2_50", saved({"stem.conv.weight": torch.ones(2, 2)}))


def test_an_unknown_network_is_reported_before_the_file_is_read() -> None:
    with pytest.raises(InvalidInput, match="network 'resnet19' does not exist"):
        load("resnet19", b"")
