"""Layout and drawing of contact sheets: cells in a table or in rows, on several pages if one would be too tall."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flows.contact_sheets.fonts import draw_text, is_exact, readable, text_width

__all__ = [
    "Cell",
    "Title",
    "arrange",
    "cell_width",
    "fit_text",
    "render_pages",
    "scores",
    "text_width",
    "thumbnail",
    "wrap_text",
]

MAX_WIDTH = 1600
"""Width of a sheet in pixels, unless its columns are so many that cells of the least width need more."""
MAX_HEIGHT = 12_000
"""Height of a page in pixels. JPEG allows 65,500, but many viewers fail below that."""
CELL_WIDTHS = range(160, 361)
"""Widths that a cell may have, in pixels. The score lines fit into the least one."""
FEW_DREAMS = 24
"""Fewer dreams than this stand `FEW_COLUMNS` to a row, more dreams `MAX_COLUMNS`."""
FEW_COLUMNS, MAX_COLUMNS = 4, 8
"""A table with more columns than `MAX_COLUMNS` continues them in further rows."""
GAP, LINE = 12, 18
BACKGROUND, INK, FAINT = (20, 20, 24), (235, 235, 235), (160, 160, 170)


@dataclass(frozen=True)
class Cell:
    """One image of a sheet, and the text below it."""

    column: int
    line: int
    image: Image.Image | None
    """The image, from `thumbnail`; None if it does not exist."""
    text: Sequence[str]
    """Lines of text."""
    notes: Sequence[str] = ()
    """Fainter lines below the text."""


@dataclass(frozen=True)
class Title:
    """The line above the cells."""

    name: str
    """A name, shortened in the middle if it is too long."""
    note: str = ""
    """A text after the name, never shortened."""
    mark: str = ""
    """A text that tells this name from all others. It is shown if the name is shortened or could look like another."""


def arrange(table: Mapping[int, tuple[int, int]] | None, count: int) -> tuple[list[tuple[int, int]], int]:
    """Return the place of each dream on a page, and the number of columns. The photograph is at (0, 0).

    Args:
        table: column and row of each dream, in the order of the dreams. The table begins below the photograph. Its rows
            continue in further lines if it has more than `MAX_COLUMNS` columns. None: the dreams fill line after line,
            beginning beside the photograph.
        count: the number of dreams.
    """
    if table:
        last = max(column for column, _ in table.values())
        depth = 1 + last // MAX_COLUMNS  # lines of cells for each row
        places = [(column % MAX_COLUMNS, 1 + row * depth + column // MAX_COLUMNS) for column, row in table.values()]
        return places, min(1 + last, MAX_COLUMNS)
    across = min(count + 1, FEW_COLUMNS if count < FEW_DREAMS else MAX_COLUMNS)
    return [((number + 1) % across, (number + 1) // across) for number in range(count)], across


def cell_width(columns: int) -> int:
    """Return the width in pixels of the cells of a sheet with this many columns."""
    return min(max((MAX_WIDTH - GAP) // columns - GAP, CELL_WIDTHS.start), CELL_WIDTHS.stop - 1)


def thumbnail(pixels: NDArray[np.uint8], width: int) -> Image.Image:
    """Return an image `(H, W, 3)` resized to `width`; very tall images become `3 * width` tall and narrower."""
    image = Image.fromarray(pixels)
    scale = min(width / image.width, 3 * width / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def scores(pairs: Sequence[tuple[float, float]]) -> list[str]:
    """Return a line of text for each pair of scores before and after.

    All lines have the same number of decimals, which shows three significant digits of the largest score.
    """
    largest = max((abs(value) for pair in pairs for value in pair if math.isfinite(value)), default=0.0)
    decimals = min(max(0, 2 - math.floor(math.log10(largest))), 9) if largest else 2
    return [f"score {before:,.{decimals}f} to {after:,.{decimals}f}" for before, after in pairs]


def render_pages(
    title: Title | str, cells: Iterable[Cell], width: int, legend: Sequence[str] = ()
) -> Iterator[Image.Image]:
    """Draw a sheet, and yield its pages: one, unless it would be taller than `MAX_HEIGHT`.

    Args:
        title: the line above the cells of every page.
        cells: the cells of the sheet, at least one.
        width: width of a cell in pixels.
        legend: lines of text beside the first cell, if there is no other cell in its line.
    """
    cells = list(cells)
    title = Title(title) if isinstance(title, str) else title
    height = max((cell.image.height for cell in cells if cell.image), default=width)
    text_lines = max(len(cell.text) + len(cell.notes) for cell in cells)
    step = height + text_lines * LINE + GAP
    lines = max(1, (MAX_HEIGHT - 2 * GAP - LINE) // step)
    for page in range(1 + max(cell.line for cell in cells) // lines):
        on_page = [replace(cell, line=cell.line % lines) for cell in cells if cell.line // lines == page]
        if on_page:
            sheet = _draw_page(title, on_page, (width, height), step)
            if page == 0:
                _draw_legend(sheet, legend, 2 * GAP + width, step)
            yield sheet


def _draw_legend(sheet: Image.Image, legend: Sequence[str], left: int, height: int) -> None:
    """Draw lines of text beside the first cell, from the column `left` on and within `height`."""
    draw, width = ImageDraw.Draw(sheet), sheet.width - GAP - left
    lines = [line for text in legend for line in wrap_text(text, width)] if width > GAP else []
    for number, line in enumerate(lines[: height // LINE - 1]):
        draw_text(draw, (left, 2 * GAP + LINE * (number + 1)), fit_text(line, width), INK)


def _draw_page(title: Title, cells: Sequence[Cell], size: tuple[int, int], line_step: int) -> Image.Image:
    width, height = size
    step = (width + GAP, line_step)
    columns, lines = 1 + max(cell.column for cell in cells), 1 + max(cell.line for cell in cells)
    sheet = Image.new("RGB", (GAP + step[0] * columns, 2 * GAP + LINE + step[1] * lines), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_title(draw, title, sheet.width - 2 * GAP)
    for cell in cells:
        left, top = GAP + step[0] * cell.column, 2 * GAP + LINE + step[1] * cell.line
        if cell.image:
            sheet.paste(cell.image, (left, top))
        lines_of_text = [(text, INK) for text in cell.text] + [(text, FAINT) for text in cell.notes]
        for number, (text, ink) in enumerate(lines_of_text):
            draw_text(draw, (left, top + height + 2 + LINE * number), fit_text(text, width), ink)
    return sheet


def _draw_title(draw: ImageDraw.ImageDraw, title: Title, width: int) -> None:
    """Draw the title. Two titles with different marks never look alike."""
    shown = _fit_name(title.name, width - _width_of_notes([title.note]))
    is_ambiguous = shown != title.name or not is_exact(title.name)
    notes = [title.note, title.mark if is_ambiguous else ""]
    shown = _fit_name(title.name, width - _width_of_notes(notes))
    draw_text(draw, (GAP, GAP), shown, INK)
    left = GAP + round(text_width(shown))
    for note in filter(None, notes):
        draw_text(draw, (left + GAP, GAP), note, FAINT)
        left += GAP + round(text_width(note))


def _fit_name(name: str, width: float) -> str:
    return fit_text(name, width, keep_end=True)


def _width_of_notes(notes: Iterable[str]) -> float:
    return sum(GAP + text_width(note) for note in notes if note)


def fit_text(text: str, width: float, *, keep_end: bool = False) -> str:
    """Return `text` as it is drawn, with an ellipsis if it would be wider than `width`.

    Args:
        text: one line of text.
        width: the largest width in pixels.
        keep_end: leave out the middle instead of the end.
    """
    text = readable(text)

    def shortened(count: int) -> str:
        tail = count // 2 if keep_end else 0
        return text[: count - tail] + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - tail :]

    if text_width(text) <= width:
        return text
    fitting = bisect_right(range(len(text)), width, key=lambda count: text_width(shortened(count)))
    return shortened(max(0, fitting - 1))


def wrap_text(text: str, width: int) -> list[str]:
    """Return `text` in lines of at most `width` pixels, broken only after commas. A longer word gets its own line."""
    lines: list[str] = []
    for part in text.split(", ") if text else ():
        if lines and text_width(f"{lines[-1]}, {part}") <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines
