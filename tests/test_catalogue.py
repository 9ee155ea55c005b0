"""Cards: what is known of a network before it is loaded."""

import pytest

from dreamcore.catalogue import BUNDLED, BUNDLED_CARD, Card, card
from dreamcore.errors import InvalidInput
from dreamcore.models import survey
from tests.tiny import tiny_network


def test_the_bundled_card_is_what_a_survey_finds() -> None:
    """If not, the network's library changed it: write `survey(BUNDLED).to_json()` into the card."""
    assert card(BUNDLED) == survey(BUNDLED)
    assert card(BUNDLED).to_json() == BUNDLED_CARD.read_text()


@pytest.mark.parametrize("known", [tiny_network().card, card(BUNDLED)], ids=lambda known: known.model)
def test_a_card_survives_its_json(known: Card) -> None:
    assert Card.from_json(known.to_json()) == known


def test_a_layer_is_found_by_its_name() -> None:
    layer = card(BUNDLED).layer("blocks.4")
    assert (layer.channels, layer.stride) == (112, 16)


@pytest.mark.parametrize(
    ("layer", "hint"), [("block.4", r"nearest: blocks\.4, "), ("%%%%", "none is spelt like it")], ids=str
)
def test_an_unknown_layer_names_the_nearest(layer: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=f"{BUNDLED} has no layer '{layer}' .*{hint}.*`dreamgrid layers {BUNDLED}`"):
        card(BUNDLED).layer(layer)


def test_an_unknown_channel_tells_how_many_there_are() -> None:
    card(BUNDLED).check("blocks.4", [0, 111])
    with pytest.raises(InvalidInput, match=r"blocks\.4 of efficientnet_lite0 has no channel 112: it has 112"):
        card(BUNDLED).check("blocks.4", [0, 112])
    with pytest.raises(InvalidInput, match="no layer"):
        card(BUNDLED).check("nothing", [])


def test_other_networks_are_surveyed_once() -> None:
    assert card("resnet18") is card("resnet18")
    assert card("resnet18") == survey("resnet18")
