"""What the commands that make movies share: flags for keyframes, and a line about the frames and the time they take."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dreamcore.errors import InvalidInput
from flows.machine.pace import duration
from flows.machine.terminal import print_message

__all__ = ["announce", "keyframe_options", "read_keyframes"]

Command = TypeVar("Command", bound=Callable[..., Any])


def keyframe_options(command: Command) -> Command:
    """Add the flags `--keyframe` and `--keyframes`, as the arguments `keyframe_texts` and `file`."""
    one = click.option(
        "--keyframe",
        "keyframe_texts",
        multiple=True,
        metavar="YAML",
        help="Settings that are reached at a time, such as '{at: 5, layers: blocks.3}'. Give one for each time.",
    )
    file = click.option(
        "--keyframes", "file", type=click.Path(path_type=Path), help="A YAML file with a list of keyframes."
    )
    return one(file(command))


def read_keyframes(texts: Sequence[str], file: Path | None) -> list[Any]:
    """Return the keyframes of a file and of flags.

    Raises:
        InvalidInput: the file cannot be read or is not a list, or a text is not YAML.
    """
    keyframes: list[Any] = []
    if file:
        try:
            listed = _read_yaml(file.read_text(encoding="utf-8"), str(file))
        except OSError as error:
            raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{file} is not UTF-8 text from byte {error.start + 1}: save it as UTF-8") from error
        if not isinstance(listed, list):
            raise InvalidInput(
                f"{file} is not a list of keyframes: write one per line, as `- {{at: 5, layers: blocks.3}}`"
            )
        keyframes += listed
    return keyframes + [_read_yaml(text, "--keyframe") for text in texts]


def _read_yaml(text: str, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def announce(size: tuple[int, int], frames: int, remaining: int, seconds: float) -> None:
    """Print the number of frames and an estimate.

    Args:
        size: width and height of a frame in pixels.
        frames: the number of frames.
        remaining: how many of them are not finished.
        seconds: the estimated time for these.
    """
    text = f"{frames:,} frames of {size[0]} x {size[1]}"
    if remaining < frames:
        text += f", {frames - remaining:,} of them finished earlier"
    if remaining:
        text += f"; about {seconds / remaining:.2g} s each, {duration(seconds)} in all"
    print_message(text, "default")
