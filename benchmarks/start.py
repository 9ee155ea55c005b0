"""Section `start`: commands in new processes, from their start to their end, with almost nothing to compute."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.collection import photograph
from benchmarks.timing import Row, race

__all__ = ["measure_start"]

_SIZE = (43, 64)
_RUN = "from flows.cli.main import main; main()"
_ROOT = Path(__file__).parents[1]


def measure_start(*, quick: bool) -> list[Row]:
    """Measure the section `start`. The CPU time of other processes is not known."""
    with TemporaryDirectory() as folder:
        source = Path(folder, "photograph.jpg")
        source.write_bytes(photograph(_SIZE, 0))
        dream = ("image", str(source), str(source.with_suffix(".png")), "--steps", "1", "--octaves", "1")
        contenders: dict[str, Callable[[], object]] = {
            "python, without imports": partial(_run, "pass"),
            "import torch": partial(_run, "import torch"),
            "dreamgrid --help": partial(_run, _RUN, "--help"),
            "dreamgrid layers": partial(_run, _RUN, "layers"),
            "dreamgrid image, one step of 64x43": partial(_run, _RUN, *dream),
        }
        found = race(contenders, 2 if quick else 5)
    return [Row("a new process", name, found.wall(name) * 1000, found.spread(name)) for name in contenders]


def _run(code: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=_ROOT, capture_output=True, check=True)  # noqa: S603 - constant commands
