"""Keys that look the same and differ only in their Unicode normal form.

`é` is one character in NFC and two characters in NFD. macOS and Linux often write the same name in different forms.
S3 compares bytes, so such keys name different objects, and each is dreamt.
"""

import unicodedata
from array import array
from collections.abc import Iterator
from itertools import islice

import numpy as np

from flows.destination.history import FinishedDreams
from flows.jobs.plan import Sources

__all__ = ["MAX_WARNINGS", "other_forms", "warnings"]

MAX_WARNINGS = 5
"""Pairs of keys that are named."""
_MAX_PAIRS = 1000
"""Pairs that are held. A whole collection may exist in both forms."""


def other_forms(text: str) -> Iterator[str]:
    """Yield the NFC and the NFD of `text`, except for `text` itself."""
    if not text.isascii():
        yield from sorted({unicodedata.normalize(form, text) for form in ("NFC", "NFD")} - {text})


def warnings(sources: Sources, finished: FinishedDreams) -> list[str]:
    """Return a warning for each new photograph whose key differs from another key only in its normal form.

    Args:
        sources: the photographs of a source. Only keys that are not ASCII are compared, with 8 bytes for each.
        finished: the rows of earlier runs. A photograph without a row is new.

    Returns:
        At most `MAX_WARNINGS` warnings, and one more if there are more pairs.
    """
    pairs = {tuple(sorted(pair)) for pair in islice(_pairs(sources, finished), _MAX_PAIRS)}
    named = [
        f"{' and '.join(f'{uri} ({_form(uri)})' for uri in pair)} differ only in the Unicode normal form of the name, "
        "and each is dreamt: if they are one photograph, delete one object"
        for pair in sorted(pairs)[:MAX_WARNINGS]
    ]
    return [*named, "more pairs of keys differ only in their Unicode normal form"] if len(pairs) > len(named) else named


def _pairs(sources: Sources, finished: FinishedDreams) -> Iterator[tuple[str, str]]:
    """Yield new keys together with a key of the sources, or of earlier runs, that has the same normal form."""
    hashes = array("q")
    for source in sources.not_ascii():
        hashes.append(hash(unicodedata.normalize("NFC", source.uri)))
        others = [other for other in other_forms(source.uri) if finished.has_source(other)]
        if others and not finished.has_source(source.uri):
            yield from ((source.uri, other) for other in others)
    values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    repeated = set(values[counts > 1][:_MAX_PAIRS].tolist())
    seen: dict[str, str] = {}
    for source in sources.not_ascii() if repeated else ():
        composed = unicodedata.normalize("NFC", source.uri)
        if hash(composed) not in repeated:
            continue
        first = seen.setdefault(composed, source.uri)
        if first != source.uri and not (finished.has_source(first) and finished.has_source(source.uri)):
            yield first, source.uri


def _form(text: str) -> str:
    """Return the normal form of a text that is not ASCII."""
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)), "mixed")
