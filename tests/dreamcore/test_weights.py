"""Weights from a file of one's own: the right file, tensors and nothing else, and those of the network."""

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
from tests.support.pickles import Mischief
from tests.support.tiny import picture

LAYERS = ("conv1", "layer2.1", LOGITS)
TENSORS = {"stem.weight": torch.arange(24.0).view(2, 3, 2, 2), "stem.bias": torch.ones(2)}


def saved(content: object, **how: object) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file, **how)  # type: ignore[arg-type]
    return file.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(data: bytes) -> dict[str, Tensor]:
    return read_tensors(data, digest(data), "own.pth")


def own(model: str, data: bytes) -> Network:
    return load_network_with(model, data, digest(data), "own.pth")


@cache
def drawn(model: str = "resnet18", classes: int | None = None) -> dict[str, Tensor]:
    """Weights of the network, drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build(model, pretrained=False, classes=classes).state_dict())


def loaded(model: str, spec: NetworkSpec, classes: int | None = None) -> Network:
    """The network with these weights, as PyTorch itself puts them in."""
    module = build(model, pretrained=False, classes=classes)
    module.load_state_dict(drawn(model, classes))
    return Network(module, spec)


# --- a file becomes a network


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
        lambda state: safetensors.torch.save({f"module.{key}": tensor for key, tensor in state.items()}),
    ],
    ids=["safetensors", "pth", "old pth", "pickle 3", "ordered", "DataParallel", "checkpoint", "safe DataParallel"],
)
def test_a_network_answers_as_the_one_that_was_saved(write: Callable[[dict[str, Tensor]], bytes]) -> None:
    data = write(drawn())
    network = own("resnet18", data)
    known = network_spec("resnet18")
    assert (network.spec.weights, network.spec.layers) == (digest(data), known.layers)
    assert network.labels[285] == "Egyptian cat"
    expected = loaded("resnet18", known).activations(picture(), LAYERS)
    for layer, answer in network.activations(picture(), LAYERS).items():
        assert torch.equal(answer, expected[layer])


@pytest.mark.parametrize(
    ("model", "classes"),
    [("resnet18", 365), ("squeezenet1_1", 7), ("timm/tf_efficientnet_lite0", 12), ("timm/resnetv2_50", 2)],
)
def test_a_file_for_other_classes_makes_a_network_of_so_many(model: str, classes: int) -> None:
    network = own(model, safetensors.torch.save(drawn(model, classes)))
    assert network.labels == tuple(f"class {index}" for index in range(classes))
    assert network.spec.layer(LOGITS).channels == classes
    assert network.spec.layers[0] == network_spec(model).layers[0]
    expected = loaded(model, network.spec, classes)
    assert torch.equal(network.classify(picture()), expected.classify(picture()))


def test_the_card_counts_the_classes_wherever_the_network_answers_them() -> None:
    """The classifier of SqueezeNet is a convolution, with layers behind it."""
    network = own("squeezenet1_1", saved(drawn("squeezenet1_1", 7)))
    counted = {layer.name: layer.channels for layer in network.spec.layers[-6:]}
    assert [counted[name] for name in ("classifier.1", "classifier.2", "classifier.3", "classifier")] == [7] * 4
    assert counted["classifier.0"] == 512


@pytest.mark.parametrize("in_file", [False, True], ids=["without", "with"])
@pytest.mark.parametrize(("model", "classes"), [("googlenet", 1000), ("googlenet", 365), ("inception_v3", 1000)])
def test_auxiliary_heads_do_not_matter(model: str, classes: int, in_file: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = torchvision.models.get_model(
            model, init_weights=False, aux_logits=in_file, transform_input=True, num_classes=classes
        )
    assert any("aux" in key.lower() for key in original.state_dict()) == in_file
    network = own(model, safetensors.torch.save(original.state_dict()))
    assert len(network.labels) == classes
    seen = picture(96, 96)
    assert torch.equal(network.classify(seen), Network(original, network.spec).classify(seen))


@pytest.mark.parametrize("write", [safetensors.torch.save, saved], ids=["safetensors", "pth"])
@pytest.mark.parametrize("model", ["mnasnet0_5", "densenet121", "timm/dla34"])
def test_networks_that_ask_for_a_version_of_their_files_need_none(
    model: str, write: Callable[[dict[str, Tensor]], bytes]
) -> None:
    network = own(model, write(drawn(model)))
    assert all(torch.equal(tensor, drawn(model)[key]) for key, tensor in network.module.state_dict().items())


def test_weights_of_half_precision_and_without_counters_fit() -> None:
    """Whoever makes small files leaves both out; the network computes as ever."""
    state = {key: tensor.half() for key, tensor in drawn().items() if not key.endswith("tracked")}
    network = own("resnet18", safetensors.torch.save(state))
    assert {tensor.dtype for tensor in network.module.parameters()} == {torch.float32}
    torch.testing.assert_close(network.module.state_dict()["fc.weight"], state["fc.weight"].float())


# --- the wrong file


@pytest.mark.parametrize("write", [safetensors.torch.save, saved], ids=["safetensors", "pth"])
def test_another_file_is_refused_before_it_is_parsed(write: Callable[[dict[str, Tensor]], bytes]) -> None:
    data = write(TENSORS)
    meant = digest(data)
    assert set(read_tensors(data, meant.upper(), "own.pth")) == set(TENSORS)
    for place in (0, 8, len(data) // 2, len(data) - 1):  # what a parser would stumble over first, and what it would not
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        said = (
            rf"^own.pth is not the file .* is {digest(flipped)[:12]}\.\.\., not {meant[:12]}\.\.\.; bring .*sha256sum"
        )
        with pytest.raises(InvalidInput, match=said):
            read_tensors(flipped, meant, "own.pth")


@pytest.mark.parametrize(
    "write",
    [
        lambda mischief: saved(mischief),
        lambda mischief: saved({"fc.weight": mischief}),
        lambda mischief: saved({**TENSORS, "epoch": mischief}),
        lambda mischief: saved({"state_dict": TENSORS, "optimizer": mischief}),
        lambda mischief: saved({"fc.weight": mischief}, _use_new_zipfile_serialization=False),
        lambda mischief: saved(mischief, pickle_protocol=4),
        lambda mischief: pickle.dumps(mischief),
    ],
    ids=["alone", "for a tensor", "beside tensors", "beside a nest", "old pth", "pickle 4", "pickle"],
)
def test_a_pickle_of_more_than_tensors_runs_nothing(
    write: Callable[[Mischief], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    monkeypatch.setenv("MISCHIEF", str(done))
    data = write(Mischief())
    with pytest.raises(InvalidInput, match="is not the file that was asked for"):
        read_tensors(data, digest(b"another"), "own.pth")
    with pytest.raises(
        InvalidInput, match=r"^own\.pth holds more than tensors, or is damaged; nothing of it ran: save "
    ):
        read(data)
    assert not done.exists()


def test_a_whole_network_is_refused() -> None:
    with pytest.raises(InvalidInput, match="holds more than tensors, "):
        read(saved(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "write",
    [safetensors.torch.save, saved, lambda content: saved(content, _use_new_zipfile_serialization=False)],
    ids=["safetensors", "pth", "old pth"],
)
@pytest.mark.parametrize("part", [0, 0.01, 0.1, 0.5, 0.99])
def test_a_file_that_ends_early_is_refused(write: Callable[[dict[str, Tensor]], bytes], part: float) -> None:
    data = write({"stem.weight": torch.ones(64, 64)})
    with pytest.raises(
        InvalidInput, match=r"^own\.pth .* or (a damaged one|is damaged; nothing of it ran): save [^\n]*$"
    ):
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
def test_a_file_of_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^own\.pth is no file of weights"):
        read(data)


def held_by_itself() -> dict[str, object]:
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
        (held_by_itself(), "'model' is a dict"),
        ({"stem": torch.eye(3).to_sparse()}, "'stem' is a Tensor"),
        ({"stem": torch.empty(3, device="meta")}, "'stem' is a Tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_tensor_is_refused_by_its_name(content: object, named: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^own\.pth holds more than plain tensors: {named}; save the network's"):
        read(saved(content))


def test_an_array_is_no_tensor() -> None:
    with pytest.raises(InvalidInput, match="holds more than tensors, "):
        read(saved({"stem": np.ones(3)}))


def test_a_prefix_that_is_not_on_every_name_belongs_to_the_names() -> None:
    content = {"module.stem": torch.ones(1), "head": torch.ones(1)}
    assert set(read(saved(content))) == set(content)


# --- another network's weights


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {each: tensor for each, tensor in state.items() if each != key}


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_tensors_that_do_not_fit_are_named(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str) -> None:
    data = saved(change(drawn()))
    with pytest.raises(InvalidInput, match=rf"^own\.pth does not fit resnet18: {said}; name the network [^\n]*$"):
        own("resnet18", data)


def test_the_weights_of_another_network_are_refused() -> None:
    data = safetensors.torch.save(drawn("squeezenet1_1", 7))
    with pytest.raises(InvalidInput, match=r"^own\.pth does not fit resnet18: it has no conv1\.weight; name"):
        own("resnet18", data)
    with pytest.raises(InvalidInput, match=r"^own\.pth does not fit timm/resnetv2_50: its stem\.conv\.weight is"):
        own("timm/resnetv2_50", saved({"stem.conv.weight": torch.ones(2, 2)}))


def test_an_unknown_network_is_told_whatever_the_file() -> None:
    with pytest.raises(InvalidInput, match="there is no network 'resnet19' "):
        own("resnet19", b"")
