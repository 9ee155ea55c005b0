"""Lines of text in any script, for contact sheets.

A name may be in any script. Pillow's own font has little more than ASCII, so other text is drawn in the Kurinto fonts
of the package weblate-fonts. A character that no font has is spelt out: no character becomes an empty box.
"""

import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from PIL import ImageDraw, ImageFont, features

__all__ = ["draw_text", "is_exact", "readable", "text_width"]

_SIZE = 14
_FOLDER = Path("static", "weblate_fonts", "kurinto", "ttf")
_FILES = ("KurintoSans-Rg.ttf", "KurintoSansSC-Rg.ttf", "KurintoSansJP-Rg.ttf", "KurintoSansKR-Rg.ttf")
"""Most scripts and emoji, then Chinese, Japanese and Korean."""
_NO_CHARACTER = "\U0010fffe"
"""A code point that Unicode never assigns: every font draws its glyph for missing characters."""
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
_LAYOUT = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
"""Raqm joins letters and orders lines that run from right to left. It needs the system library FriBidi."""
_Font = ImageFont.FreeTypeFont


def readable(text: str) -> str:
    """Return `text` as it is drawn, in one line.

    Characters that no font has, or that cannot be seen, are spelt out: symbols by their Unicode name, others as in a
    URL. Composed and decomposed letters become the same. Therefore two texts may be drawn alike; see `is_exact`.
    """
    text = unicodedata.normalize("NFC", text)
    spell_all = _LAYOUT is ImageFont.Layout.BASIC and any(map(_needs_shaping, text))
    shown: list[str] = []
    for place, character in enumerate(text):
        before, after = text[:place][-1:], text[place + 1 : place + 2]
        if character == " ":
            is_clear = before not in ("", " ") and after != ""
        else:
            is_clear = character.isascii() or not spell_all
            is_clear = is_clear and (_is_drawable(character) or (character in _JOINERS and not before.isascii()))
        shown.append(character if is_clear else _spelt_out(character))
    return "".join(shown)


def is_exact(text: str) -> bool:
    """Return whether no other text looks like `text`. Letters of other scripts may look like Latin letters."""
    return text.isascii() and readable(text) == text


def text_width(text: str) -> float:
    """Return the width of a line of text in pixels."""
    return sum(font.getlength(run, direction=_direction(font)) for run, font in _runs(readable(text)))


def draw_text(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, ink: tuple[int, int, int]) -> None:
    """Draw a line of text with its upper left corner at `place`."""
    x, top = float(place[0]), place[1]
    baseline = top + _fonts()[0].getmetrics()[0]
    for run, font in _runs(readable(text)):
        draw.text((x, baseline), run, ink, font, anchor="ls", direction=_direction(font))
        x += font.getlength(run, direction=_direction(font))


def _direction(font: _Font) -> str | None:
    """Return the direction of every line. File names run from left to right, also those in Arabic."""
    return "ltr" if font.layout_engine is ImageFont.Layout.RAQM else None


def _runs(text: str) -> list[tuple[str, _Font]]:
    """Cut a line into runs of one font each. The font with the most characters of the line comes first."""
    order = sorted(range(len(_fonts())), key=lambda number: sum(not _has(number, character) for character in text))
    chosen: list[int] = []
    for character in text:
        last = chosen[-1:]
        if last and (_joins(character) or (character == " " and _has(last[0], " "))):
            chosen += last  # a mark must be shaped together with its letter
        else:
            chosen.append(next((number for number in order if _has(number, character)), order[0]))
    pairs = zip(text, chosen, strict=True)
    return [
        ("".join(character for character, _ in group), _fonts()[number])
        for number, group in groupby(pairs, key=lambda pair: pair[1])
    ]


def _is_drawable(character: str) -> bool:
    is_visible = character.isprintable() and not character.isspace()
    return is_visible and any(_has(number, character) for number in range(len(_fonts())))


def _joins(character: str) -> bool:
    """Return whether a character belongs to the one before it: a mark, a variation selector or a joiner."""
    return character in _JOINERS or unicodedata.category(character).startswith("M")


def _needs_shaping(character: str) -> bool:
    return unicodedata.category(character).startswith("M") or unicodedata.bidirectional(character) in ("R", "AL")


def _spelt_out(character: str) -> str:
    """Return `:melting face:` for a symbol, otherwise the character as in a URL, such as `%E2%80%AE`."""
    if unicodedata.category(character) in ("So", "Sk") and (name := unicodedata.name(character, "")):
        return f":{name.lower()}:"
    return quote(character, safe="", errors="surrogatepass")


@lru_cache(maxsize=1)
def _fonts() -> list[_Font]:
    """Return the fonts in order of preference. The first is Pillow's own."""
    default = ImageFont.load_default(_SIZE)
    assert isinstance(default, _Font)  # noqa: S101 - Pillow has FreeType wherever its wheels are installed
    found = find_spec("weblate_fonts")
    folders = [Path(folder) / _FOLDER for folder in (found.submodule_search_locations or () if found else ())]
    files = [folder / name for folder in folders for name in _FILES if (folder / name).is_file()]
    return [default, *(ImageFont.truetype(str(file), _SIZE, layout_engine=_LAYOUT) for file in files)]


@lru_cache(maxsize=100_000)
def _has(number: int, character: str) -> bool:
    """Return whether a font has a glyph of its own for a character; variation selectors need none."""
    if unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
        return True
    return _glyph(number, character) != _missing_glyph(number)


def _glyph(number: int, character: str) -> tuple[tuple[int, int], bytes]:
    """Return size and pixels of a single character, without shaping."""
    mask = _plain(number).getmask(character)
    return mask.size, bytes(mask)


@lru_cache(maxsize=len(_FILES) + 1)
def _missing_glyph(number: int) -> tuple[tuple[int, int], bytes]:
    return _glyph(number, _NO_CHARACTER)


@lru_cache(maxsize=len(_FILES) + 1)
def _plain(number: int) -> _Font:
    font = _fonts()[number]
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)
