"""Small texts in the user's cache folder, `$XDG_CACHE_HOME/dreamgrid` or `~/.cache/dreamgrid`.

A cache only saves time: if the folder cannot be read or written, everything is computed again.
"""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["cache_folder", "keep", "read"]


def read(name: str) -> str | None:
    """Return the text that was kept as `name`; None if there is none, or it cannot be read."""
    try:
        return (cache_folder() / name).read_text(encoding="utf-8")
    except (OSError, RuntimeError, ValueError):
        return None


def keep(name: str, text: str) -> None:
    """Keep a text as `name`, as a whole or not at all."""
    with suppress(OSError, RuntimeError):
        file = cache_folder() / name
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder of Dreamgrid in this user's cache; raise RuntimeError if this user has no home."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "dreamgrid"
