"""Which settings are the rows, the columns and the pages of a contact sheet."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dreamcore.errors import InvalidInput
from dreamcore.fields import Reference
from dreamcore.settings import DreamSettings, nearest_name
from dreamcore.targets import layers_label

__all__ = [
    "AXES",
    "NO_CHOICE",
    "Choice",
    "SheetPage",
    "check_axis",
    "common_settings",
    "distinguishing_settings",
    "pages_of",
    "row_label",
]

LOOK = "look"
"""The axis of presets and looks."""
AXES = (LOOK, *DreamSettings.model_fields)
"""What may be the rows or the columns."""
_MAX_VARYING = 3
"""Up to this many varying settings are all named; of more, only those that are not at their default."""
_DREAMS_PER_PAGE = 4
"""If the pages would have fewer dreams on average, all dreams stand in rows on one page."""


@dataclass(frozen=True)
class Choice:
    """What a user chose for a sheet."""

    rows: str | None = None
    columns: str | None = None
    title: str | None = None


NO_CHOICE = Choice()


@dataclass
class SheetPage:
    """The dreams of one page, by their index."""

    rows: str | None = None
    """The setting of the rows; None if the dreams fill row after row."""
    columns: str | None = None
    values: str = ""
    """The settings that all dreams of this page share and other pages do not."""
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Column and row of each dream in the table; empty if the dreams fill row after row."""
    dreams: list[int] = field(default_factory=list)


def check_axis(name: str | None) -> str | None:
    """Return the axis that a user named, with an underscore for each hyphen.

    Raises:
        InvalidInput: it is no setting.
    """
    if name is None:
        return None
    axis = LOOK if name == "preset" else name.replace("-", "_")
    if axis not in AXES:
        raise InvalidInput(f"{name!r} is not a setting: rows and columns are settings such as layers, octaves or look")
    return axis


def pages_of(settings: Sequence[DreamSettings], choice: Choice = NO_CHOICE) -> list[SheetPage]:
    """Return the pages of a sheet.

    By default the layers are the rows, the next setting that varies is the columns, and each combination of the further
    ones is a page. If most of such tables would be empty, or if only one setting varies, there is one page on which the
    dreams fill row after row. Settings that vary together count as one.

    Args:
        settings: the settings of each dream, all different.
        choice: the settings that a user chose as rows and columns.
    """
    chosen = list(dict.fromkeys(filter(None, (choice.rows, choice.columns))))
    values = _values_by_axis(settings, chosen)
    axes = _independent(values, chosen)
    others = [axis for axis in axes if axis not in chosen]
    rows = choice.rows or next(iter(others), None)
    columns = choice.columns or next((axis for axis in others if axis != rows), None)
    indices = list(range(len(settings)))
    if not chosen and columns is None:
        return [SheetPage(dreams=indices)]
    further = [axis for axis in others if axis not in (rows, columns)]
    pages = _tables(values, (rows, columns), further, len(settings))
    if chosen or _is_well_filled(pages):
        return pages
    return [SheetPage(dreams=indices)]


def _tables(
    values: Mapping[str, Sequence[str]], axes: tuple[str | None, str | None], further: Sequence[str], count: int
) -> list[SheetPage]:
    """Return a page with a table for each combination of the values of the further axes."""
    rows, columns = axes
    heads = [list(dict.fromkeys(values[axis])) if axis else [""] for axis in (rows, columns)]
    pages: dict[tuple[object, ...], SheetPage] = {}
    taken: set[tuple[object, ...]] = set()
    for index in range(count):
        row, column = (head.index(values[axis][index] if axis else "") for axis, head in zip(axes, heads, strict=True))
        key = tuple(values[axis][index] for axis in further)
        copy = 1
        while (key, copy, column, row) in taken:  # settings that no axis distinguishes, such as weights of one name
            copy += 1
        taken.add((key, copy, column, row))
        named = ", ".join(f"{axis} {value or 'as in the look'}" for axis, value in zip(further, key, strict=True))
        page = pages.setdefault((key, copy), SheetPage(rows, columns, named))
        page.places[index] = (column, row)
        page.dreams.append(index)
    for page in pages.values():
        _close_up(page)
    return list(pages.values())


def _close_up(page: SheetPage) -> None:
    """Leave out the columns and rows without a dream."""
    columns, rows = (sorted({place[number] for place in page.places.values()}) for number in (0, 1))
    page.places = {index: (columns.index(column), rows.index(row)) for index, (column, row) in page.places.items()}


def _is_well_filled(pages: Sequence[SheetPage]) -> bool:
    """Return whether tables are worth their space: more than half of their cells are used, and pages have dreams."""
    dreams = sum(len(page.dreams) for page in pages)
    sizes = [map(max, zip(*page.places.values(), strict=True)) for page in pages]
    cells = sum((1 + last_column) * (1 + last_row) for last_column, last_row in sizes)
    return dreams > cells / 2 and (len(pages) == 1 or dreams >= _DREAMS_PER_PAGE * len(pages))


def _values_by_axis(settings: Sequence[DreamSettings], chosen: Collection[str]) -> dict[str, list[str]]:
    """Return the value of each dream for each axis that varies or was chosen; chosen axes first."""
    several_models = len({each.model for each in settings}) > 1 and "model" not in chosen
    text_of = _text_of(settings)
    names = list(map(nearest_name, settings))
    values = {"layers": [row_label(each, several_models) for each in settings]}
    values[LOOK] = [next(iter(name.values()), "default") for name in names]
    bases = [DreamSettings.model_validate(name) for name in names]
    for axis in DreamSettings.model_fields:
        if axis == "layers" or (axis == "model" and axis not in chosen):
            continue
        own = [text_of(each, axis) for each in settings]
        if any(names):  # only what differs from the look
            own = [
                "" if getattr(each, axis) == getattr(base, axis) and axis not in chosen else text
                for each, base, text in zip(settings, bases, own, strict=True)
            ]
        values[axis] = own
    varying = {axis: own for axis, own in values.items() if len(set(own)) > 1 or axis in chosen}
    return {axis: varying[axis] for axis in dict.fromkeys([*chosen, *varying])}


def _independent(values: Mapping[str, Sequence[str]], chosen: Collection[str]) -> list[str]:
    """Return the axes without those whose value follows from the value of another axis."""
    axes = sorted(values, key=lambda axis: axis != LOOK)  # a look says more than its layers

    def determines(one: str, other: str) -> bool:
        return len(set(zip(values[one], values[other], strict=True))) == len(set(values[one]))

    def is_redundant(axis: str) -> bool:
        others = (other for other in axes if other != axis and determines(other, axis))
        return any(not determines(axis, other) or axes.index(other) < axes.index(axis) for other in others)

    return [axis for axis in values if axis in chosen or not is_redundant(axis)]


def common_settings(settings: Sequence[DreamSettings]) -> str:
    """Return the settings that all dreams share and that are not the defaults, as text."""
    text_of, default, first = _text_of(settings), DreamSettings(), settings[0]
    left_out = {"model", "layers", "max_pixels", "output"}
    shared = [
        name
        for name in DreamSettings.model_fields
        if name not in left_out and len({text_of(each, name) for each in settings}) == 1
    ]
    named = [f"{name} {text_of(first, name)}" for name in shared if getattr(first, name) != getattr(default, name)]
    layers = {layers_label(each.layers) for each in settings}
    return ", ".join([*layers, *named] if len(layers) == 1 else named)


def row_label(settings: DreamSettings, several_models: bool) -> str:
    """Return the layers as text, after the network if there are several."""
    label = layers_label(settings.layers)
    return f"{settings.model} {label}" if several_models else label


def _text_of(among: Sequence[DreamSettings]) -> Callable[[DreamSettings, str], str]:
    """Return a function that returns a field as text. Files have the shortest names that differ among all settings."""
    values = [getattr(each, name) for each in among for name in DreamSettings.model_fields]
    files = {value.uri for value in values if isinstance(value, Reference)}

    def text(settings: DreamSettings, name: str) -> str:
        value = getattr(settings, name)
        return _shortest_suffix(value.uri, files) if isinstance(value, Reference) else str(value)

    return text


def distinguishing_settings(among: Sequence[DreamSettings], excluded: Collection[str]) -> list[str]:
    """Return a label for each of several settings, made of the fields that vary among them.

    If any of them follows a preset or look, or if more than three fields vary, a label names only the values that
    differ from the defaults, or from the preset or look.

    Args:
        among: the settings.
        excluded: fields that the labels leave out.
    """
    names = [name for name in DreamSettings.model_fields if name not in excluded]
    value_of = _text_of(among)

    varying = [name for name in names if len({value_of(entry, name) for entry in among}) > 1]
    any_name = any(map(nearest_name, among))
    name_all = not any_name and len(varying) <= _MAX_VARYING

    def label(settings: DreamSettings) -> str:
        named = nearest_name(settings)
        base = DreamSettings.model_validate(named)
        shown = [name for name in varying if name_all or value_of(settings, name) != value_of(base, name)]
        values = [f"{name} {value}" for name in shown if (value := value_of(settings, name)) != "None"]
        return ", ".join([*named.values(), *values]) or ("default" if any_name else "")

    return [label(settings) for settings in among]


def _shortest_suffix(uri: str, uris: Collection[str]) -> str:
    """Return the shortest end of an address, usually the file name, that no other address has."""
    steps = uri.split("/")
    suffixes = ("/".join(steps[first:]) for first in reversed(range(len(steps))))
    unique = (end for end in suffixes if all(other == uri or not f"/{other}".endswith(f"/{end}") for other in uris))
    return next(unique, uri)
