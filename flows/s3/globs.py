"""Glob patterns for the keys below a source, such as `*.gif`, `drafts/` or `2019/**/raw/*`.

- `*` stands for any characters except slashes, and `?` for one such character.
- `[abc]` stands for one character of a set, `[!abc]` for one that is not in the set. A range is written `[a-z]`.
- `**` between slashes stands for any number of folders.
- A pattern without a slash, or with one only at its end, is compared with each name in the key. Any other pattern is
  compared with the key from its beginning.
- A pattern that matches a folder matches everything in it. A pattern that ends with a slash matches only folders.

Upper and lower case are different. The Unicode normal form makes no difference.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

__all__ = ["compile_globs"]

_IN_SET = re.compile(r"(.)-(.)|(.)", re.DOTALL)
_TOKEN = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def compile_globs(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that returns whether a key matches one of the patterns.

    Raises:
        ValueError: a pattern is empty, or has a malformed range such as `[z-a]`.

    Example:
        >>> matches = compile_globs(["*.gif", "drafts/", "2019/*.jpg"])
        >>> matches("a/b.gif"), matches("x/drafts/cat.jpg"), matches("2019/cat.jpg"), matches("2019/x/cat.jpg")
        (True, True, True, False)
    """
    if not patterns:
        return lambda _key: False  # called for each photograph
    compiled = re.compile("|".join(map(_regex, patterns)), re.DOTALL)

    def matches(key: str) -> bool:
        return compiled.fullmatch(key if key.isascii() else unicodedata.normalize("NFC", key)) is not None

    return matches


def _regex(pattern: str) -> str:
    """Return the regular expression of one pattern."""
    path = unicodedata.normalize("NFC", pattern).rstrip("/")
    if not path:
        raise ValueError(f"{pattern!r} is not a pattern: write for example *.gif or drafts/")
    regex = "" if "/" in path else "(?:.*/)?"
    *folders, last = path.removeprefix("/").split("/")
    for folder in folders:
        regex += "(?:.*/)?" if folder == "**" else f"{_name_regex(folder)}/"
    regex += ".*" if last == "**" else _name_regex(last)
    regex += "/.*" if pattern.endswith("/") else "(?:/.*)?"
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a pattern: {error.msg}") from error
    return regex


def _name_regex(pattern: str) -> str:
    """Return the regular expression of a pattern without slashes."""
    pieces = [""]
    for token in _TOKEN.findall(pattern):
        if token.startswith("*"):
            pieces.append("")
        else:
            pieces[-1] += _regex_of_one(token)
    first, *others = pieces
    if not others:
        return first
    # Every piece between two stars may be matched as early as possible. Atomic groups state this, so that a key with
    # many repetitions takes no exponential time.
    *middle, last = others
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + "[^/]*" + last


def _regex_of_one(piece: str) -> str:
    """Return the regular expression of one character of a pattern, or of one set in brackets."""
    if piece == "?":
        return "[^/]"
    if len(piece) == 1:
        return re.escape(piece)
    negated = piece.startswith("[!")
    # Each character is escaped by itself: Python warns of "--" in a set.
    characters = _IN_SET.sub(_escaped, piece[2 if negated else 1 : -1])
    return f"[^/{characters}]" if negated else f"[{characters}]"


def _escaped(found: re.Match[str]) -> str:
    first, last, single = found.groups()
    return re.escape(single) if single else f"{re.escape(first)}-{re.escape(last)}"
