"""Names of classes from text and JSON files."""

import json

import pytest

from dreamcore.errors import InvalidInput
from dreamcore.labels import read_labels
from tests.support.tiny import LABELS, picture, tiny_network

NAMES = ("golden retriever", "Bär", "cat, tabby")


@pytest.mark.parametrize(
    "data",
    [
        "golden retriever\nBär\ncat, tabby\n".encode(),
        "\ufeffgolden  retriever \r\nBär\r\ncat, tabby\r\n\r\n".encode(),
        json.dumps(NAMES).encode(),
        json.dumps({"1": "Bär", "0": "golden retriever", "2": "cat, tabby"}).encode(),
        json.dumps({"cat, tabby": 2, "golden retriever": 0, "Bär": 1}, ensure_ascii=False).encode(),
    ],
    ids=["lines", "spaces, CRLF and a mark", "list", "name of each index", "index of each name"],
)
def test_names_are_in_the_order_of_the_classes(data: bytes) -> None:
    assert read_labels(data, "own.txt") == NAMES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "own.txt has no name for any class: write one name per line, or a JSON list of names"),
        (b"[]", "own.txt has no name for any class: "),
        (b"ant\n\nbee\n", "own.txt has no name for class 1: "),
        (b'["ant", 7]', "own.txt has no name for class 1: "),
        (b'["ant", "bee"', "own.txt is not valid JSON ("),
        (b"[" * 100_000, "own.txt is not valid JSON ("),
        (b"\xff\xfea\x00", "own.txt is not UTF-8 text from byte 1: save it as UTF-8"),
        (b'{"ant": 1, "bee": 2}', "own.txt has 2 names, but none of them has the index 0: number the classes from 0"),
        (b'{"ant": 0, "bee": 0}', "own.txt has 2 names, but none of them has the index 1: "),
        (b'{"ant": 0, "bee": true}', "own.txt has 2 names, but none of them has the index 1: "),
    ],
)
def test_a_file_that_is_no_list_of_names_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_labels(data, "own.txt")
    assert str(caught.value).startswith(message)


def test_a_network_with_labels_has_other_names_and_the_same_probabilities() -> None:
    network = tiny_network()
    renamed = network.with_labels([label.upper() for label in LABELS])
    assert (renamed.labels[2], network.labels[2]) == ("C", "c")
    assert renamed.module is network.module
    assert renamed.classify(picture()).equal(network.classify(picture()))
    with pytest.raises(InvalidInput, match="there are 2 names of classes, but tiny has 7 classes: give one name for"):
        network.with_labels(["a", "b"])
