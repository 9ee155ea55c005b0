"""Layout and painting of a contact sheet: cells in a table or in rows, on several pages if one would be too tall."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH = 1600
"""Of a sheet, in pixels, where its columns allow."""
TALLEST = 12_000
"""Of a page, in pixels: JPEG ends at 65,500, and much that shows pictures before that."""
CELL = range(160, 361)
"""Widths that a cell may have; the least one holds the scores."""
FEW, ACROSS, MANY_ACROSS = 24, 4, 8
"""Up to `FEW` cells without rows and columns of settings stand `ACROSS` to a row, more of them `MANY_ACROSS`. Of a
table, `MANY_ACROSS` columns stand side by side, and the next ones below them."""
GAP, LINE, TEXT = 12, 18, 14
BACKGROUND, INK, FAINT = (20, 20, 24), (235, 235, 235), (160, 160, 170)


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet, and what is written below it."""

    column: int
    line: int
    picture: Image.Image | None
    """As `thumbnail` makes it; none where it is gone."""
    text: Sequence[str]
    """Lines; the last one, what the network sees, is fainter."""


def arrange(labels: Sequence[tuple[str, str]]) -> tuple[list[tuple[int, int]], int]:
    """Column and line of each dream, the photograph being at (0, 0), and how many columns there are in all.

    Args:
        labels: of each dream, its layers and its other settings.

    Returns:
        Places in a table of layers and other settings, if both vary and most of its places would be taken; as with
        presets, or where only one of them varies, dreams stand in rows like words.
    """
    lines, columns = (list(dict.fromkeys(names)) for names in zip(*labels, strict=True))
    both_vary = len(lines) > 1 and len(columns) > 1
    if both_vary and len(set(labels)) == len(labels) > len(lines) * len(columns) / 2:
        deep = math.ceil(len(columns) / MANY_ACROSS)
        at = [(lines.index(line), *divmod(columns.index(column), MANY_ACROSS)) for line, column in labels]
        return [(1 + across, line * deep + down) for line, down, across in at], 1 + min(len(columns), MANY_ACROSS)
    across = min(len(labels) + 1, ACROSS if len(labels) < FEW else MANY_ACROSS)
    return [((number + 1) % across, (number + 1) // across) for number in range(len(labels))], across


def cell_width(columns: int) -> int:
    """Width in pixels of the cells of a sheet with so many columns."""
    return min(max((WIDTH - GAP) // columns - GAP, CELL.start), CELL.stop - 1)


def thumbnail(pixels: NDArray[np.uint8], width: int) -> Image.Image:
    """A picture (H, W, 3) as wide as a cell, or three times as tall as that: strips are narrower."""
    picture = Image.fromarray(pixels)
    scale = min(width / picture.width, 3 * width / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def scores(pairs: Sequence[tuple[float, float]]) -> list[str]:
    """Scores before and after, all with the same decimals: three digits of the largest."""
    largest = max((abs(value) for pair in pairs for value in pair if math.isfinite(value)), default=0.0)
    decimals = min(max(0, 2 - math.floor(math.log10(largest))), 9) if largest else 2
    return [f"score {before:,.{decimals}f} to {after:,.{decimals}f}" for before, after in pairs]


def render_pages(title: str, cells: Iterable[Cell], width: int) -> Iterator[Image.Image]:
    """Sheets of cells that are `width` wide: one, unless it would be too tall."""
    cells = list(cells)
    height = max((cell.picture.height for cell in cells if cell.picture), default=width)
    text = max(len(cell.text) for cell in cells)
    step = height + text * LINE + GAP
    lines = max(1, (TALLEST - 2 * GAP - LINE) // step)
    for page in range(1 + max(cell.line for cell in cells) // lines):
        here = [replace(cell, line=cell.line % lines) for cell in cells if cell.line // lines == page]
        if here:
            yield _paint(title, here, (width, height), step)


def _paint(title: str, cells: Sequence[Cell], size: tuple[int, int], line_step: int) -> Image.Image:
    width, height = size
    step = (width + GAP, line_step)
    columns, lines = 1 + max(cell.column for cell in cells), 1 + max(cell.line for cell in cells)
    sheet = Image.new("RGB", (GAP + step[0] * columns, 2 * GAP + LINE + step[1] * lines), BACKGROUND)
    pen = _Pen(ImageDraw.Draw(sheet))
    pen.write((GAP, GAP), title, INK, sheet.width - 2 * GAP)
    for cell in cells:
        left, top = GAP + step[0] * cell.column, 2 * GAP + LINE + step[1] * cell.line
        if cell.picture:
            sheet.paste(cell.picture, (left, top))
        for number, text in enumerate(cell.text):
            ink = FAINT if number + 1 == len(cell.text) else INK
            pen.write((left, top + height + 2 + LINE * number), text, ink, width)
    return sheet


def wrap_text(text: str, width: int) -> list[str]:
    """`text` in lines that are `width` pixels wide, broken at its commas."""
    pen = _Pen(ImageDraw.Draw(Image.new("L", (1, 1))))
    lines: list[str] = []
    for part in text.split(", ") if text else ():
        if lines and pen.length(f"{lines[-1]}, {part}") <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines


class _Pen:
    """Writes text, as much of it as fits."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw, self.font = draw, ImageFont.load_default(TEXT)

    def length(self, text: str) -> float:
        return self.draw.textlength(text, self.font)

    def write(self, place: tuple[int, int], text: str, ink: tuple[int, int, int], width: int) -> None:
        text = "".join(character if character.isprintable() else " " for character in text)  # names are strangers'
        while self.length(text) > width:
            text = text[:-2] + "\N{HORIZONTAL ELLIPSIS}"
        self.draw.text(place, text, ink, self.font)
