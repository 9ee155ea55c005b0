"""Write the tables of docs/settings.md from the settings and the job themselves: `make docs`.

Each table stands between two markers, `<!-- begin NAME -->` and `<!-- end NAME -->`. Everything else on the page is
written by hand.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from dreamcore.fields import Output
from dreamcore.looks import LOOK, LookName
from dreamcore.presets import PRESET, PresetName
from dreamcore.settings import DreamSettings
from dreamcore.zoom import Zoom
from flows.jobs.job import DreamJob
from flows.jobs.job_options import EnlargeOptions, ExecutorOptions

PAGE = Path(__file__).with_name("settings.md")


def kinds(schema: dict[str, Any]) -> Iterator[str]:
    """Yield what a value may be, in words, from its JSON schema."""
    if "enum" in schema:
        yield ", ".join(f"`{value}`" for value in schema["enum"])
    elif schema.get("type") == "boolean":
        yield "`true`, `false`"
    elif schema.get("type") in ("integer", "number"):
        yield f"{'integer' if schema['type'] == 'integer' else 'number'}{limits(schema)}"
    elif schema.get("type") == "array" and "enum" in schema.get("items", {}):
        yield f"a list of {', '.join(f'`{value}`' for value in schema['items']['enum'])}"
    elif schema.get("type") == "null":
        yield "none"


def limits(schema: dict[str, Any]) -> str:
    """Return the limits of a number in words, such as ` above 1, at most 4`."""
    words = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    found = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema and schema[key] < 2**62]
    return " " + ", ".join(found) if found else ""


def values_of(schema: dict[str, Any]) -> str:
    """Return the values that a field takes; empty where its description has to say it."""
    found = [kind for part in schema.get("anyOf", [schema]) for kind in kinds(part)]
    return " or ".join(found) if found != ["none"] else ""


def default_of(value: Any) -> str:
    """Return a default as people write it in a job file; empty where there is none."""
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple) and isinstance(value[0], float):
        return f"`{','.join(map(str, value))}`"
    return f"`{'+'.join(map(str, value)) if isinstance(value, tuple) else value}`"


def rows(model: type[Any], *names: str) -> Iterator[str]:
    """Yield a table row for each of the named fields of a model."""
    schema = model.model_json_schema()
    schemas = schema.get("anyOf", [schema])[0]["properties"]
    for name in names:
        field = model.model_fields[name]
        default = "required" if field.is_required() else default_of(field.default)
        yield f"| `{name}` | {default} | {values_of(schemas[name])} | {field.description} |"


def tables() -> dict[str, list[str]]:
    """Return the rows of each table, by its name on the page."""
    settings = [name for name in DreamSettings.model_fields if name not in (*DreamJob.model_fields, "movie")]
    job = [name for name in DreamJob.model_fields if name not in ("grid", "output", "enlarge", "zoom", "executor")]
    names = [
        f"| `{name}` |  | {values_of({'enum': get_args(values)})} | {description} |"
        for name, values, description in (("preset", PresetName, PRESET), ("look", LookName, LOOK))
    ]
    models = {"output": Output, "enlarge": EnlargeOptions, "zoom": Zoom, "executor": ExecutorOptions}
    nested = [
        row.replace("`", f"`{name}.", 1) for name, model in models.items() for row in rows(model, *model.model_fields)
    ]
    return {"settings": [*names, *rows(DreamSettings, *settings)], "job": [*rows(DreamJob, *job), *nested]}


def page(text: str) -> str:
    """Return the page `text` with its tables written again."""
    for name, lines in tables().items():
        before, begin, rest = text.partition(f"<!-- begin {name} -->\n")
        _, end, after = rest.partition(f"<!-- end {name} -->")
        table = ["| name | default | values | meaning |", "|---|---|---|---|", *lines, ""]
        text = before + begin + "\n".join(table) + end + after
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
