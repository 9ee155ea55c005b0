"""The table and the JSON of one run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.timing import Row

TITLES = {
    "engine": "engine: one step on one thread",
    "null": "null: the engine against itself",
    "peak": "peak: of matrix products",
    "machine": "machine: all cores",
    "batches": "batches: small octaves",
    "flat": "flat: a step of a dream, a megapixel",
    "collection": "collection: from S3 to S3",
    "files": "files: what dreams are written as",
    "memory": "memory: of a process",
    "gpu": "gpu: one step",
}
"""The sections in their order."""

FIGURES = {
    "megapixel_steps": "{:.2f} MP-steps/s",
    "times_published": "{:.2f}x published",
    "times_clean": "{:.2f}x clean eager",
    "agreement_db": "{:.0f} dB",
    "null_ratio": "{:.3f}x itself",
    "gflops": "{:.1f} GFLOP/s",
    "of_matmul": "{:.0%} of torch.mm",
    "of_best": "{:.0%} of the best",
    "machine_times_published": "{:.2f}x published",
    "two_times_one": "{:.2f}x one process",
    "times_singly": "{:.2f}x one at a time",
    "ms_a_megapixel_step": "{:.1f} ms/MP-step",
    "deviation": "{:+.1%} of the median",
    "engine_share": "{:.1%} of it are the dreams alone",
    "engine_share_of_command": "{:.1%} of the whole command",
    "seconds_a_megapixel": "{:.3f} s/MP",
    "bytes_per_pixel": "{:.2f} bytes/pixel",
    "mib_before": "{:.0f} MiB before",
    "mib_at_most": "{:.0f} MiB at most",
    "mib_early": "{:.0f} MiB after 200",
    "mib_middle": "{:.0f} after 1,000",
    "mib_late": "{:.0f} at the end",
    "growth": "{:+.1%}",
}
"""What may stand in a row besides times, and how it is read."""


NOISY = 0.1
"""Where the rounds of one contender are further apart than this, something else ran besides."""
BUSY = 0.3
"""Where the load at the start is above this for each core, something else ran just before, or runs still."""
LEAST_DB = 60.0
"""Contenders whose pictures after one step agree to less than this do not do the same: they cannot be compared."""

Sections = Mapping[str, Sequence[Row]]


def disagreeing(sections: Sections) -> list[str]:
    """The sections that are not to be trusted, for a contender takes another step in them than the published one."""
    return [
        section
        for section, rows in sections.items()
        if any(row.figures.get("agreement_db", math.inf) < LEAST_DB for row in rows)
    ]


@dataclass(frozen=True)
class Target:
    """What a figure should be in each case where it is measured."""

    name: str
    section: str
    contender: str | None
    figure: str
    wanted: float
    within: bool = False
    """Whether `wanted` is how far the figure may be from 0, and not what it must reach."""

    def measured(self, sections: Sections) -> dict[str, float]:
        """The figure in each case; none where the section is not to be trusted."""
        rows = () if self.section in disagreeing(sections) else sections.get(self.section, ())
        return {
            row.case: row.figures[self.figure]
            for row in rows
            if self.figure in row.figures and row.contender in (self.contender or row.contender,)
        }

    def reached(self, value: float) -> bool:
        """Whether this is good enough."""
        return abs(value) <= self.wanted if self.within else value >= self.wanted

    def to_json(self, sections: Sections) -> dict[str, Any]:
        """The target with what was measured; `reached` is null where nothing was."""
        measured = self.measured(sections)
        reached = all(map(self.reached, measured.values())) if measured else None
        return {"name": self.name, "wanted": self.wanted, "measured": measured, "reached": reached}


TARGETS = (
    Target("engine against clean eager", "engine", "engine", "times_clean", 1.5),
    Target("engine against published", "engine", "engine", "times_published", 2.6),
    Target("engine's part of torch.mm, 32 bits", "peak", "engine, 32 bits", "of_matmul", 0.7),
    Target("engine's part of the best product, 32 bits", "peak", "engine, 32 bits", "of_best", 0.7),
    Target("whole machine against published", "machine", None, "machine_times_published", 3.5),
    Target("two processes against one", "machine", None, "two_times_one", 1.85),
    Target("64x96 batched against singly", "batches", None, "times_singly", 1.7),
    Target("flat over sizes, within", "flat", None, "deviation", 0.15, within=True),
    Target("dreams alone in the flow's dreaming", "collection", None, "engine_share", 0.95),
    Target("memory after 2,000 dreams against 200, within", "memory", None, "growth", 0.03, within=True),
    Target("engine against clean eager on a GPU", "gpu", "engine", "times_clean", 5.0),
)


def to_json(machine: Mapping[str, Any], sections: Sections, trusted: bool | None) -> dict[str, Any]:
    """All that was measured; `trusted` is null where the engine was not held against itself."""
    return {
        "machine": dict(machine),
        "trusted": trusted,
        "disagreeing": disagreeing(sections),
        "sections": {name: [row.to_json() for row in rows] for name, rows in sections.items()},
        "targets": [target.to_json(sections) for target in TARGETS],
    }


def show(machine: Mapping[str, Any], sections: Sections, trusted: bool | None, console: Console) -> None:
    """Print the header, the table, the targets, and whether the run is to be trusted."""
    said = verdict(trusted, disagreeing(sections))
    console.print(Group(header(machine), table(sections), targets(sections), said))


def header(machine: Mapping[str, Any]) -> Text:
    """The machine in two lines, and a warning in bold where it was busy."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    said = Text(
        f"{machine['processor']}, {machine['cores']} cores, {machine['vectors']}{gpu}\n"
        f"torch {machine['torch']}, {machine['torch_threads']} threads by itself, Python {machine['python']}, "
        f"load {machine['load']} at the start, {machine['date']}"
    )
    if (machine["load"] or 0) > BUSY * machine["cores"]:
        said.append(f"\nThe load at the start was above {BUSY:g} a core: something else ran, or runs.", style="bold")
    return said


def table(sections: Sections) -> Table:
    """All sections side by side."""
    found = Table("case (MP: megapixel)", "contender", box=None, pad_edge=False)
    for name in ("wall ms", "±", "CPU ms"):
        found.add_column(name, justify="right")
    found.add_column("what follows")
    for section, rows in sections.items():
        found.add_row(Text(f"\n{TITLES[section]}", style="bold"))
        last = None
        for row in rows:
            figures = [FIGURES[name].format(value) for name, value in row.figures.items()]
            numbers = (_ms(row.wall_ms), _spread(row.spread), _ms(row.cpu_ms))
            case = row.case if row.case != last else ""
            found.add_row(case, row.contender, *numbers, ", ".join([*figures, row.note] if row.note else figures))
            last = row.case
    return found


def _spread(value: float | None) -> Text:
    return Text("" if value is None else f"{value:.1%}", style="bold red" if (value or 0) > NOISY else "")


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def targets(sections: Sections) -> Table:
    """What was wanted, and in how many cases it was reached."""
    found = Table("target", "wanted", "measured", "reached", box=None, pad_edge=False, title_justify="left")
    found.title = Text("\ntargets", style="bold")
    for target in TARGETS:
        measured = target.measured(sections)
        good = sum(map(target.reached, measured.values()))
        values = sorted(map(abs, measured.values()) if target.within else measured.values())
        span = (
            f"{values[0]:.2f} to {values[-1]:.2f}" if len(values) > 1 else "".join(f"{value:.2f}" for value in values)
        )
        said = "not measured" if not measured else "reached" if good == len(measured) else "not reached"
        if 0 < good < len(measured):
            said = f"reached in {good} of {len(measured)} cases"
        found.add_row(target.name, f"{target.wanted:g}", span, said)
    return found


def verdict(trusted: bool | None, disagreeing: Sequence[str] = ()) -> Text:
    """Whether the run tells anything, and which of its sections do not, in bold where there is something wrong."""
    said = Text()
    if trusted is None:
        said.append("\nThe engine was not held against itself (section null): nobody knows how noisy this run was.")
    elif trusted:
        said.append("\nThe engine against itself is within 5 % of 1 everywhere.")
    else:
        said.append(
            "\nThis run is not to be trusted: the engine differs from itself by more than 5 %. "
            "Let nothing else run on the machine.",
            style="bold",
        )
    for section in disagreeing:
        wrong = f"Section {section} is not to be trusted: pictures after a step agree to less than {LEAST_DB:.0f} dB."
        said.append(f"\n{wrong}", style="bold")
    return said
