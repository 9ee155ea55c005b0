"""Names in any script are drawn readably, and two names never look the same."""

import itertools
import string
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, features

from flows.contact_sheets import fonts
from flows.contact_sheets.contact import Cell, Title, fit_text, render_pages
from flows.contact_sheets.fonts import draw_text, is_exact, readable, text_width

NAMES = (
    "日本語の写真.jpg",
    "简体中文.jpg",
    "東京 漢字.png",
    "한국어 서울.png",
    "Привет мир.jpg",
    "صورة 12.png",
    "नमस्ते दुनिया.png",
    "שלום.png",
    "ภาษาไทย.jpg",
    "Ελληνικά ÅÄÖßłžőđế.png",
    "🐱🎉❤️🦄.png",
    "தமிழ் বাংলা తెలుగు ქართული Հայերեն አማርኛ.png",
    "日本語 صورة नमस्ते 🐱.png",
)
needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="FriBidi is not installed")


def drawn(text: str) -> bytes:
    """The pixels of a line of text."""
    return bytes(pixels_of(text).tobytes())


def pixels_of(text: str) -> Any:
    image = Image.new("RGB", (700, 24))
    draw_text(ImageDraw.Draw(image), (2, 2), text, (255, 255, 255))
    return np.asarray(image.convert("L"))


def titled(name: str, mark: str, width: int = 300) -> bytes:
    """The pixels of a sheet with one cell and this title."""
    (page,) = render_pages(Title(name, "network", mark), [Cell(0, 0, None, ())], width)
    return page.tobytes()


@needs_raqm
@pytest.mark.parametrize("name", NAMES)
def test_names_of_many_scripts_are_drawn_without_missing_glyphs(name: str) -> None:
    assert readable(name) == name, "nothing is spelt out"
    for run, font in fonts._runs(name):
        missing = font.getmask("\U0010fffe", direction=fonts._direction(font))
        for character in filter(str.isalpha, run):
            mask = font.getmask(character, direction=fonts._direction(font))
            assert (mask.size, bytes(mask)) != (missing.size, bytes(missing)), f"{font.getname()} has no {character}"
    assert np.count_nonzero(pixels_of(name)) > 10 * len(name)


@needs_raqm
def test_every_letter_of_the_large_scripts_is_drawn() -> None:
    blocks = ((0xA1, 0x250), (0x400, 0x530), (0x621, 0x6D4), (0x904, 0x970), (0x3041, 0x30FF))
    large_blocks = ((0x4E00, 0x9FA5), (0xAC00, 0xD7A4))
    codes = [*(range(*block) for block in blocks), *(range(*block, 50) for block in large_blocks)]
    letters = [chr(code) for code in itertools.chain(*codes) if chr(code).isalpha()]
    assert [letter for letter in letters if not fonts._is_drawable(letter)] == []


@needs_raqm
def test_arabic_and_devanagari_letters_are_joined() -> None:
    assert text_width("صورة") < sum(map(text_width, "صورة")), "joined forms are narrower than single letters"
    assert text_width("स्त") < text_width("स") + text_width("त") + 2, "the mark joins both letters"
    assert drawn("صورة.png") != drawn("ةروص.png")
    begins, ends = pixels_of("صورة.Ж"), pixels_of("Ж.صورة")
    left = slice(2, 2 + round(text_width("Ж")))
    assert not np.array_equal(begins[:, left], pixels_of("Ж")[:, left]), "the suffix stands on the right"
    assert np.array_equal(ends[:, left], pixels_of("Ж")[:, left])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x07.png", "a%0Ab%07.png"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}gnp.png", "%E2%80%AEgnp.png"),
        ("a\N{NO-BREAK SPACE}b", "a%C2%A0b"),
        ("a\N{ZERO WIDTH JOINER}b", "a%E2%80%8Db"),
        (" a  b ", "%20a %20b%20"),
        ("\N{MELTING FACE}.png", ":melting face:.png"),
        ("\N{GRINNING FACE}", ":grinning face:"),
        ("\U0010fffe", "%F4%8F%BF%BE"),
        ("", ""),
    ],
)
def test_what_cannot_be_drawn_is_spelt_out(text: str, shown: str) -> None:
    assert readable(text) == shown
    assert not is_exact(text) or text == ""


def test_without_shaping_arabic_is_spelt_out_and_cyrillic_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_LAYOUT", ImageFont.Layout.BASIC)
    assert readable("Привет 日本.png") == "Привет 日本.png"
    assert readable("صور.png") == "%D8%B5%D9%88%D8%B1.png"
    assert readable("हिन्दी").isascii()


def test_without_the_font_package_everything_but_ascii_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = (fonts._fonts, fonts._has, fonts._plain, fonts._missing_glyph)
    monkeypatch.setattr(fonts, "find_spec", lambda _name: None)
    for cache in caches:
        cache.cache_clear()
    try:
        assert readable("日本 é.png") == "%E6%97%A5%E6%9C%AC %C3%A9.png"
    finally:
        for cache in caches:
            cache.cache_clear()


def test_no_two_ascii_characters_look_alike() -> None:
    texts = [
        *string.digits,
        *string.ascii_letters,
        *string.punctuation,
        "''",
        "``",
        "rn",
        "vv",
        "cl",
        "lI",
        "Il",
    ]
    assert len({drawn(text) for text in texts}) == len(texts)


LOOK_ALIKE = (
    ("cafe\N{COMBINING ACUTE ACCENT}.png", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"),
    ("a.png", "\N{CYRILLIC SMALL LETTER A}.png"),
    ("a.png", "a.png "),
    ("a.png", "a\N{ZERO WIDTH SPACE}.png"),
    ("a b.png", "a  b.png"),
    ("a b.png", "a\N{NO-BREAK SPACE}b.png"),
    ("a%20b.png", "a\N{NO-BREAK SPACE}b.png"),
    (":melting face:.png", "\N{MELTING FACE}.png"),
    ("%0A.png", "\n.png"),
    ("\U0010fffe.png", "\U0010fffd.png"),
    ("x" * 300 + "1" + "x" * 300, "x" * 300 + "2" + "x" * 300),
    ("日" * 200 + "a" + "日" * 200, "日" * 200 + "b" + "日" * 200),
    ("क\N{DEVANAGARI SIGN NUKTA}", "\N{DEVANAGARI LETTER QA}"),
    ("x network", "x"),
    ("...", "\N{HORIZONTAL ELLIPSIS}"),
)


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKE)
def test_two_names_never_look_the_same_in_a_title(one: str, other: str) -> None:
    assert one != other
    assert titled(one, "photograph 11111111") != titled(other, "photograph 22222222")


ANY_NAME = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(ANY_NAME, min_size=2, max_size=2, unique=True))
@example(["", " "])
@example(["a   b", "a b"])
def test_titles_with_different_marks_differ(names: list[str]) -> None:
    assert titled(names[0], "photograph 11111111") != titled(names[1], "photograph 22222222")


@given(st.text(max_size=60), st.integers(20, 300), st.booleans())
def test_fitted_text_is_never_wider_than_its_place(text: str, width: int, keep_end: bool) -> None:
    fitted = fit_text(text, width, keep_end=keep_end)
    assert text_width(fitted) <= width
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in fitted)


def test_a_long_title_keeps_its_end_and_gets_its_mark() -> None:
    fitted = fit_text("holidays/" * 30 + "IMG_1234.jpg", 200, keep_end=True)
    assert fitted.startswith("holi")
    assert fitted.endswith("1234.jpg")
    assert fitted.count("\N{HORIZONTAL ELLIPSIS}") == 1
    plain, marked = titled("cat.png", "photograph 11111111"), titled("cat.png", "photograph 22222222")
    assert plain == marked, "an ordinary name needs no mark"


def test_a_long_line_is_fitted_quickly() -> None:
    for character, keep_end in itertools.product(("日", "x", "\n"), (True, False)):
        assert text_width(fit_text(character * 1024, 1600, keep_end=keep_end)) <= 1600
