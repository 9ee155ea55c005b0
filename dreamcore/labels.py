"""Names of the classes of a network, from the bytes of a text or JSON file."""

import json
from collections.abc import Mapping

from dreamcore.errors import InvalidInput

__all__ = ["read_labels"]


def read_labels(data: bytes, name: str) -> tuple[str, ...]:
    """Return the names in a labels file, in the order of the network's classes.

    Args:
        data: the file in UTF-8: one name per line, a JSON list of names, or a JSON object. The object has the name of
            each index, or the index of each name. Indices count from 0.
        name: the name of the file in messages.

    Raises:
        InvalidInput: the file is not UTF-8, a name is empty or not text, or an index is missing or repeated.

    Example:
        >>> read_labels(b"ant\\nbee\\n", "insects.txt")
        ('ant', 'bee')
        >>> read_labels(b'{"bee": 1, "ant": 0}', "insects.json")
        ('ant', 'bee')
    """
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8 text from byte {error.start + 1}: save it as UTF-8") from error
    entries = _from_json(text, name) if text.startswith(("[", "{")) else text.splitlines()
    names = [" ".join(entry.split()) if isinstance(entry, str) else "" for entry in entries]
    if not names or not all(names):
        place = f"class {names.index('')}" if names else "any class"
        raise InvalidInput(f"{name} has no name for {place}: write one name per line, or a JSON list of names")
    return tuple(names)


def _from_json(text: str, name: str) -> list[object]:
    """Return the names in JSON text, in the order of their indices."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not valid JSON ({error}): correct it, or write one name per line") from error
    if not isinstance(content, Mapping):
        return list(content)
    if all(key.isdecimal() for key in content):
        pairs = [(int(key), value) for key, value in content.items()]
    else:
        pairs = [(value, key) for key, value in content.items()]
    by_index = {index: label for index, label in pairs if type(index) is int}
    missing = next((index for index in range(len(pairs)) if index not in by_index), None)
    if missing is not None:
        raise InvalidInput(
            f"{name} has {len(pairs)} names, but none of them has the index {missing}: number the classes from 0"
        )
    return [by_index[index] for index in range(len(pairs))]
