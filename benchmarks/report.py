"""The printed table and the JSON of one run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.contenders import ENGINE, ENGINE_32
from benchmarks.timing import Row

TITLES = {
    "engine": "engine: one step on one thread",
    "null": "null: the engine compared with itself",
    "peak": "peak: share of the fastest matrix products",
    "machine": "machine: throughput of all cores",
    "batches": "batches: small images in one batch",
    "flat": "flat: time of a step per megapixel, by image size",
    "collection": "collection: from S3 to S3 through the flow",
    "nodes": "nodes: the same collection on one Ray node and on two",
    "start": "start: commands with almost nothing to compute",
    "pipeline": "pipeline: reading and writing beside a device that sleeps",
    "files": "files: encoding a dream",
    "memory": "memory: resident memory of a process",
    "scale": "scale: coordinating a run over many photographs",
    "gallery": "gallery: browsing a million rows",
    "gpu": "gpu: checks, and one step on a GPU (CPU ms: until all kernels are launched)",
    "peers": "peers: whole dreams of other programs",
}
"""Titles of the sections, in the order of the report."""

FIGURES = {
    "megapixel_steps": "{:.2f} MP-steps/s",
    "times_published": "{:.2f}x published",
    "times_clean": "{:.2f}x clean eager",
    "agreement_db": "{:.0f} dB",
    "variant_db": "{:.0f} dB (a variant)",
    "wrong": "WRONG",
    "null_ratio": "{:.3f}x itself",
    "gflops": "{:.1f} GFLOP/s",
    "of_matmul": "{:.0%} of torch.mm",
    "of_best": "{:.0%} of the best product",
    "machine_times_published": "{:.2f}x published",
    "two_times_one": "{:.2f}x one process",
    "times_unbatched": "{:.2f}x batch size 1",
    "ms_per_megapixel_step": "{:.1f} ms/MP-step",
    "deviation": "{:+.1%} from the median",
    "engine_share": "the dreams alone: {:.1%} of this",
    "engine_share_of_command": "{:.1%} of the whole command",
    "busy": "{:.1%} busy while shards wait",
    "two_nodes": "{:.2f}x one node",
    "two_nodes_shards": "{:.2f}x one node",
    "seconds_per_megapixel": "{:.3f} s/MP",
    "bytes_per_pixel": "{:.2f} bytes/pixel",
    "mib_before": "{:.0f} MiB before",
    "mib_peak": "{:.0f} MiB peak",
    "mib_early": "{:.0f} MiB after 200",
    "mib_middle": "{:.0f} after 1,000",
    "mib_late": "{:.0f} at the end",
    "growth": "{:+.1%}",
    "dreams_per_minute": "{:.1f} dreams/minute",
    "times_dreamgrid": "{:.2f}x the time of Dreamgrid",
    "gain": "score {:+.1f}",
    "lists": "{:.0f} LIST",
    "gets": "{:.0f} GET",
    "dreams_per_second": "{:.1f} dreams/s",
    "worker_cpu": "CPU ms a dream: {:.0f} worker",
    "io_cpu": "{:.0f} I/O process",
    "decoder_cpu": "{:.0f} decoders",
    "server_cpu": "{:.0f} S3 server",
    "cores_wanted": "{:.1f} cores for 25 dreams/s",
    "launch_ms": "{:.1f} ms to launch a dream",
    "times_alone": "{:.2f}x alone",
    "late_median": "1 ms ticks late by {:.2f} ms",
    "late_99": "1 % of them by {:.2f} ms",
}
"""Derived values of a row, with their formats."""

NOISY = 0.1
"""If the spread of one contender is above this, something else ran at the same time."""
BUSY = 0.3
"""If the load per core at the start is above this, something else ran shortly before or still runs."""
MIN_DB = 60.0
"""Contenders whose images after one step agree to less than this compute different steps and cannot be compared."""

Sections = Mapping[str, Sequence[Row]]


def disagreeing(sections: Sections) -> list[str]:
    """Return the sections that are invalid: a contender computes another step than the published one, or is wrong."""
    return [
        section
        for section, rows in sections.items()
        if any(row.figures.get("agreement_db", math.inf) < MIN_DB or "wrong" in row.figures for row in rows)
    ]


@dataclass(frozen=True)
class Target:
    """The value that a figure should reach in every case."""

    name: str
    section: str
    contender: str | None
    figure: str
    wanted: float
    within: bool = False
    """`wanted` is the largest distance of the figure from 0, and not its smallest value."""

    def measured(self, sections: Sections) -> dict[str, float]:
        """Return the figure in each case; empty if the section is invalid."""
        rows = () if self.section in disagreeing(sections) else sections.get(self.section, ())
        return {
            row.case: row.figures[self.figure]
            for row in rows
            if self.figure in row.figures and row.contender in (self.contender or row.contender,)
        }

    def reached(self, value: float) -> bool:
        """Return whether `value` reaches the target."""
        return abs(value) <= self.wanted if self.within else value >= self.wanted

    def to_json(self, sections: Sections) -> dict[str, Any]:
        """Return the target with the measured values; `reached` is None if nothing was measured."""
        measured = self.measured(sections)
        reached = all(map(self.reached, measured.values())) if measured else None
        return {"name": self.name, "wanted": self.wanted, "measured": measured, "reached": reached}


TARGETS = (
    Target("speedup of the engine over clean eager", "engine", ENGINE, "times_clean", 1.5),
    Target("speedup of the engine over published", "engine", ENGINE, "times_published", 2.6),
    Target("engine in float32, share of torch.mm", "peak", ENGINE_32, "of_matmul", 0.7),
    Target("engine in float32, share of the best product", "peak", ENGINE_32, "of_best", 0.7),
    Target("speedup of the whole machine over published", "machine", None, "machine_times_published", 3.5),
    Target("speedup of two processes over one", "machine", None, "two_times_one", 1.85),
    Target("speedup of batch size 16 over 1, 96x64 pixels", "batches", None, "times_unbatched", 1.7),
    Target("time per megapixel, largest deviation", "flat", None, "deviation", 0.15, within=True),
    Target("share of the dreams in the flow's time", "collection", None, "engine_share", 0.95),
    Target("speedup of two Ray nodes over one", "nodes", None, "two_nodes", 1.85),
    Target("memory growth from 200 to 2,000 dreams", "memory", None, "growth", 0.03, within=True),
    Target("speedup of the engine over clean eager on a GPU", "gpu", ENGINE, "times_clean", 5.0),
)


def to_json(machine: Mapping[str, Any], sections: Sections, trusted: bool | None) -> dict[str, Any]:
    """Return all measurements; `trusted` is None if the engine was not compared with itself."""
    return {
        "machine": dict(machine),
        "trusted": trusted,
        "disagreeing": disagreeing(sections),
        "sections": {name: [row.to_json() for row in rows] for name, rows in sections.items()},
        "targets": [target.to_json(sections) for target in TARGETS],
    }


def show(machine: Mapping[str, Any], sections: Sections, trusted: bool | None, console: Console) -> None:
    """Print the header, the table, the targets, and whether the run is reliable."""
    conclusion = verdict(trusted, disagreeing(sections))
    console.print(Group(header(machine), table(sections), targets(sections), conclusion))


def header(machine: Mapping[str, Any]) -> Text:
    """Return the machine in two lines, and a warning in bold if it was busy."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    text = Text(
        f"{machine['processor']}, {machine['cores']} cores, {machine['vectors']}{gpu}\n"
        f"torch {machine['torch']}, {machine['torch_threads']} threads by default, Python {machine['python']}, "
        f"load {machine['load']} at the start, {machine['date']}"
    )
    if (machine["load"] or 0) > BUSY * machine["cores"]:
        warning = f"The load at the start was above {BUSY:g} per core: stop other programs and run again."
        text.append(f"\n{warning}", style="bold")
    return text


def table(sections: Sections) -> Table:
    """Return the table of all sections."""
    found = Table("case (MP: megapixel)", "contender", box=None, pad_edge=False)
    for name in ("wall ms", "spread", "CPU ms"):
        found.add_column(name, justify="right")
    found.add_column("derived values")
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
    """Return the table of targets, with the number of cases that reach each of them."""
    found = Table("target", "wanted", "measured", "reached", box=None, pad_edge=False, title_justify="left")
    found.title = Text("\ntargets", style="bold")
    for target in TARGETS:
        measured = target.measured(sections)
        good = sum(map(target.reached, measured.values()))
        values = sorted(map(abs, measured.values()) if target.within else measured.values())
        span = (
            f"{values[0]:.2f} to {values[-1]:.2f}" if len(values) > 1 else "".join(f"{value:.2f}" for value in values)
        )
        result = "not measured" if not measured else "reached" if good == len(measured) else "not reached"
        if 0 < good < len(measured):
            result = f"reached in {good} of {len(measured)} cases"
        wanted = f"at most {target.wanted:g}" if target.within else f"at least {target.wanted:g}"
        found.add_row(target.name, wanted, span, result)
    return found


def verdict(trusted: bool | None, disagreeing: Sequence[str] = ()) -> Text:
    """Return whether the run is reliable and which of its sections are invalid; problems are in bold."""
    text = Text()
    if trusted is None:
        text.append("\nThe engine was not compared with itself: add the section null to learn how noisy the run was.")
    elif trusted:
        text.append("\nThe run is reliable: the engine compared with itself is within 5 % of 1 in every case.")
    else:
        text.append(
            "\nThis run is not reliable: the engine compared with itself differs by more than 5 %. "
            "Stop other programs and run again.",
            style="bold",
        )
    for section in disagreeing:
        reason = f"images after one step agree to less than {MIN_DB:.0f} dB, or a check found something wrong"
        text.append(f"\nSection {section} is invalid: {reason}.", style="bold")
    return text
