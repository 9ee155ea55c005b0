"""Read a YAML file such as a job file: its encoding, its syntax, and keys that are written twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dreamcore.errors import InvalidInput

__all__ = ["read_job_file"]


def read_job_file(path: Path) -> dict[str, Any]:
    """Return the fields of a job from a YAML file in UTF-8, UTF-16 or UTF-32.

    Raises:
        InvalidInput: the file cannot be read, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    encoding = json.detect_encoding(data)  # YAML files are UTF-8, UTF-16 or UTF-32, as JSON files are
    try:
        loader = yaml.SafeLoader(data.decode(encoding))
        root = loader.get_single_node()
        repeated = min(_repeated_keys(root), default=None)
        fields = loader.construct_document(root) if root else None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path} is not {encoding.upper()} text from byte {error.start + 1}: save it as UTF-8"
        ) from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # PyYAML raises all of them
        raise InvalidInput(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InvalidInput(f"{path} is not a job: its lists and mappings are nested too deeply") from error
    if repeated:
        line, key, first = repeated
        raise InvalidInput(f"{path}: line {line} repeats the key {key!r} of line {first}: keep one of the two")
    if not isinstance(fields, dict):
        raise InvalidInput(f"{path} is not a job: it needs at least the fields source and destination")
    return fields


def _repeated_keys(root: yaml.Node | None) -> Iterator[tuple[int, str, int]]:
    """Yield the line, the name and the first line of each key that a mapping has again. PyYAML keeps the last one."""
    nodes, visited = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:  # the same node as an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                nodes += [key, value]
                name, line = (key.tag, str(key.value)), key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and name in lines:
                    yield line, key.value, lines[name]
                lines.setdefault(name, line)
