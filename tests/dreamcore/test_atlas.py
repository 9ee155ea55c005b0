"""Pictures of channels: what they show, and when a picture is another one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamcore.atlas import draw_channels, picture_id, picture_size
from dreamcore.batch import to_tensor
from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput
from dreamcore.models import load_network
from dreamcore.settings import BUNDLED

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_picture_excites_its_own_channel_most() -> None:
    network, channels = load_network(BUNDLED), [1, 7, 12]
    pictures = draw_channels(network, "blocks.1", channels, 64)
    with torch.no_grad():
        batch = torch.cat([to_tensor(picture) for picture in pictures])
        found = network.activations(batch, ["blocks.1"])["blocks.1"][:, channels].square().mean((2, 3))
    assert found.argmax(0).tolist() == [0, 1, 2]  # of all pictures, the one of the channel has the largest activations


def test_a_picture_does_not_depend_on_its_batch() -> None:
    network = load_network(BUNDLED)
    (alone,) = draw_channels(network, "blocks.0", [5], 64)
    together = draw_channels(network, "blocks.0", [2, 5], 64)[1]
    assert np.abs(alone.astype(float) - together).mean() < 2  # the ascent amplifies rounding


def test_pictures_of_other_settings_have_other_identities() -> None:
    spec = network_spec(BUNDLED)
    identities = {
        picture_id(spec, "blocks.4", 12, 128),
        picture_id(spec, "blocks.4", 13, 128),
        picture_id(spec, "blocks.3", 12, 128),
        picture_id(spec, "blocks.4", 12, 96),
        picture_id(replace(spec, weights="others"), "blocks.4", 12, 128),
        picture_id(replace(spec, model="another"), "blocks.4", 12, 128),
    }
    assert len(identities) == 6


def test_the_size_grows_with_the_receptive_field() -> None:
    spec = network_spec(BUNDLED)
    assert [picture_size(spec, layer.name) for layer in spec.stages()] == [64, 64, 64, 80, 128, 128, 128]
    assert picture_size(replace(spec, min_size=200), "blocks.0") == 200


def test_a_channel_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput, match="channel 16 does not exist"):
        draw_channels(load_network(BUNDLED), "blocks.0", [3, 16], 64)
