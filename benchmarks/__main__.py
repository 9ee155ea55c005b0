"""Measure Dreamgrid on this machine: `python -m benchmarks`, or `make bench`."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import (
    collection,
    dreams,
    gallery,
    gpu,
    host,
    machine,
    memory,
    nodes,
    peers,
    pipeline,
    report,
    scale,
    start,
    steps,
)
from benchmarks.timing import Row
from dreamcore.errors import InvalidInput
from flows.machine.machine import max_memory
from flows.machine.worker_process import disable_heap_trimming

STEPS = ("engine", "null", "peak")
"""Sections that are measured in the same rounds."""
PEERS = "peers"
OWN = [name for name in report.TITLES if name != PEERS]
"""Sections that need nothing but Dreamgrid."""
LONG = ("nodes", "scale")
"""Those of them about clusters and very large collections. They are measured only by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON. Return 1 if contenders compute different steps, otherwise 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.peers:
        try:
            peers.check_peers(options.peers)
        except InvalidInput as error:
            parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does, so that `collection` stops its servers
    conditions = host.describe() | {"quick": options.quick}  # before the number of threads is set
    torch.set_num_threads(1)
    disable_heap_trimming(max_memory("cpu"))  # as in a worker; here it applies to all contenders
    started = time.perf_counter()
    wanted = options.only or ([] if options.peers else [name for name in OWN if name not in LONG])
    sections = measure(wanted, quick=options.quick, soak=options.soak, device=options.device)
    if options.peers:
        _log(PEERS)
        sections[PEERS] = peers.measure_peers(options.peers, quick=options.quick)
    conditions["seconds"] = round(time.perf_counter() - started, 1)
    return conclude(conditions, sections, options.json)


def conclude(conditions: Mapping[str, Any], sections: report.Sections, file: Path) -> int:
    """Print the table, write the JSON to `file`, and return the exit code."""
    trusted = steps.is_trusted(sections["null"]) if "null" in sections else None
    file.write_text(json.dumps(report.to_json(conditions, sections, trusted), indent=1) + "\n")
    report.show(conditions, sections, trusted, Console(width=None if sys.stdout.isatty() else 160))
    print(f"\n{conditions['seconds']:.0f} s; JSON written to {file}")
    return 1 if report.disagreeing(sections) else 0


def measure(wanted: Collection[str], *, quick: bool, soak: bool, device: str = "cuda") -> dict[str, list[Row]]:
    """Measure the sections in `wanted`, in the order of the report.

    Args:
        wanted: names of sections.
        quick: few rounds of small cases.
        soak: in section `memory`, also make many dreams in one process; in section `scale`, also plan ten million
            photographs.
        device: the device of section `gpu`.
    """
    others: dict[str, Callable[[], list[Row]]] = {
        "machine": lambda: machine.measure_machine(quick=quick),
        "batches": lambda: steps.measure_batches(quick=quick),
        "flat": lambda: dreams.measure_sizes(quick=quick),
        "collection": lambda: collection.measure_collection(quick=quick),
        "nodes": lambda: nodes.measure_nodes(quick=quick),
        "start": lambda: start.measure_start(quick=quick),
        "pipeline": lambda: pipeline.measure_pipeline(quick=quick),
        "files": lambda: dreams.measure_files(quick=quick),
        "memory": lambda: memory.measure_memory(quick=quick, soak=soak),
        "scale": lambda: scale.measure_scale(quick=quick, soak=soak),
        "gallery": lambda: gallery.measure_gallery(quick=quick),
        "gpu": lambda: gpu.measure_gpu(quick=quick, device=device),
    }
    together = [name for name in STEPS if name in wanted]
    sections: dict[str, list[Row]] = {}
    if together:
        _log(", ".join(together))
        sections |= steps.measure_steps(together, quick=quick)
    for name in others:
        if name in wanted:
            _log(name)
            sections[name] = others[name]()
    return sections


def _log(section: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {section} ...", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure Dreamgrid on this machine.")
    parser.add_argument("--quick", action="store_true", help="few rounds of small cases, to check that it works")
    parser.add_argument(
        "--soak",
        action="store_true",
        help="in section memory, also 2,000 dreams in one process; in section scale, also ten million photographs",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="section gpu measures this device; cpu tries the section itself, with tiny images",
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), metavar="FILE", help="the JSON output")
    parser.add_argument("--only", nargs="+", choices=OWN, metavar="NAME", help=", ".join(OWN))
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="compare whole dreams with those of other programs; FOLDER has clones of pytorch-deepdream and "
        "PyTorch-Deep-Dream (see benchmarks/peers.py)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
