"""Section `peers`: whole dreams of other programs, which run from clones that the user has.

    git clone https://github.com/gordicaleksa/pytorch-deepdream FOLDER/pytorch-deepdream
    git clone https://github.com/eriklindernoren/PyTorch-Deep-Dream FOLDER/PyTorch-Deep-Dream
    .venv/bin/python -m pip install scipy matplotlib imageio
    .venv/bin/python -m benchmarks --peers FOLDER

All programs dream the same photographs with GoogLeNet, the same random weights, and the same octaves and steps. Each
program uses its own ascent: its own score, smoothing and normalization. The code of the others is not changed, except
that a program keeps its network from one photograph to the next, and that one of them runs without a GPU.
"""

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from benchmarks.contenders import SMALL, Subject, images, module_of, network_for, pixels
from benchmarks.processes import ProcessGroup, become_worker
from benchmarks.published import score
from benchmarks.timing import Race, Row, Spent, now, race, since
from dreamcore.batch import DreamRequest, dream_photographs
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph
from dreamcore.settings import DreamSettings
from flows.machine.machine import batch_size, core_count

__all__ = ["PEERS", "check_peers", "gain", "measure_peers", "prepare"]

Pixels = NDArray[np.uint8]
"""A photograph or a dream (H, W, 3)."""
Program = Callable[[list[Pixels]], list[Pixels]]
"""Dreams photographs of one size."""

SUBJECT = Subject("googlenet", "inception4c")
OCTAVES, OCTAVE_SCALE, STEPS = 4, 1.4, 10
QUICK_STEPS = 1
DREAMGRID = "Dreamgrid"


def dreamgrid(steps: int) -> Program:
    """Return Dreamgrid with its default settings, in batches as a worker makes them."""
    become_worker()
    network = network_for(SUBJECT)
    settings = DreamSettings(
        model=SUBJECT.model,
        layers=SUBJECT.layer,
        octaves=OCTAVES,
        octave_scale=OCTAVE_SCALE,
        steps=steps,
    )

    def dream(photographs: list[Pixels]) -> list[Pixels]:
        requests = [DreamRequest(Photograph(each, each.shape[1], each.shape[0]), settings) for each in photographs]
        dreams = []
        for result in dream_photographs(network, requests):
            if isinstance(result, ImageError):
                raise result
            dreams.append(result.pixels)
        return dreams

    return dream


def gordicaleksa(steps: int) -> Program:
    """Return `deep_dream_static_image` of pytorch-deepdream, with the settings that are the defaults of its command."""
    with mock.patch("torchvision.models.googlenet", return_value=module_of(SUBJECT.model)):
        program = importlib.import_module("deepdream")
        network = program.utils.fetch_and_prepare_model("GOOGLENET", "IMAGENET", torch.device("cpu"))
    program.utils.fetch_and_prepare_model = lambda *_: network  # it would be loaded for every photograph
    config = {
        "model_name": "GOOGLENET",
        "pretrained_weights": "IMAGENET",
        "layers_to_use": [SUBJECT.layer],
        "pyramid_size": OCTAVES,
        "pyramid_ratio": OCTAVE_SCALE,
        "num_gradient_ascent_iterations": steps,
        "lr": 0.09,
        "spatial_shift_size": 32,
        "smoothing_coefficient": 0.5,
    }

    def dream(photographs: list[Pixels]) -> list[Pixels]:
        found = [program.deep_dream_static_image(config, each.astype(np.float32) / 255) for each in photographs]
        return [_to_bytes(each) for each in found]

    return dream


def eriklindernoren(steps: int) -> Program:
    """Return `deep_dream` of PyTorch-Deep-Dream. It takes the network up to the layer, as that program cuts VGG-19."""
    program = importlib.import_module("deep_dream")
    vars(torch.cuda)["FloatTensor"] = torch.FloatTensor  # it uses this without asking whether there is a GPU
    children: list[nn.Module] = []
    for name, child in module_of(SUBJECT.model).eval().named_children():
        children.append(child)
        if name == SUBJECT.layer:
            break
    network = nn.Sequential(*children)

    def dream(photographs: list[Pixels]) -> list[Pixels]:
        found = [
            program.deep_dream(Image.fromarray(each), network, steps, 0.01, OCTAVE_SCALE, OCTAVES)
            for each in photographs
        ]
        return [_to_bytes(each) for each in found]

    return dream


def _to_bytes(image: NDArray[Any]) -> Pixels:
    """Return an image in [0, 1] as pixels."""
    return (np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8)


PEERS: dict[str, tuple[str, Callable[[int], Program]]] = {
    "gordicaleksa": ("pytorch-deepdream", gordicaleksa),
    "eriklindernoren": ("PyTorch-Deep-Dream", eriklindernoren),
}
"""The folder of each program, and the function that loads it."""
PACKAGES = ("cv2", "imageio", "matplotlib", "scipy", "tqdm")
"""What the others import besides torch."""


def prepare(name: str, folder: Path, steps: int) -> Callable[[int], tuple[Spent, Pixels]]:
    """Return a function that dreams this many photographs. It returns the time and the first dream."""
    if name == DREAMGRID:
        program = dreamgrid(steps)
    else:
        clone, load = PEERS[name]
        os.environ["TQDM_DISABLE"] = "1"  # no progress bars between the rows
        sys.path.insert(0, str(folder / clone))
        program = load(steps)

    def take(count: int) -> tuple[Spent, Pixels]:
        photographs = [pixels(SMALL, seed) for seed in range(count)]
        start = now()
        dreams = program(photographs)
        return since(start), dreams[0]

    take(1)  # the libraries warm up
    return take


class Contender(NamedTuple):
    """How a program runs."""

    program: str
    processes: int
    threads: int | None
    """Torch threads in each process; None: torch's default."""
    photographs: int
    """How many photographs each process dreams in a turn."""


def measure_peers(folder: Path, *, quick: bool) -> list[Row]:
    """Measure the section `peers`: on one thread, and on the whole machine.

    Args:
        folder: has the clones, in folders named as in `PEERS`.
        quick: few rounds with one step per octave.

    Raises:
        InvalidInput: a clone is missing, or a package that its code imports.
    """
    check_peers(folder)
    cores, steps, rounds = core_count(), QUICK_STEPS if quick else STEPS, 2 if quick else 5
    work = f"GoogLeNet {SMALL[1]}x{SMALL[0]}, {OCTAVES} octaves x {steps} steps"
    alone = {name: Contender(name, 1, 1, 1) for name in (DREAMGRID, *PEERS)}
    batch = batch_size("cpu", math.prod(SMALL))
    whole = {f"{DREAMGRID}, {cores} processes": Contender(DREAMGRID, cores, 1, batch)}
    for name in PEERS:
        whole[f"{name}, as it is"] = Contender(name, 1, None, 1)
        whole[f"{name}, {cores} processes"] = Contender(name, cores, 1, 1)
    rows = []
    for case, contenders in ((f"{work}, one thread", alone), (f"{work}, all cores", whole)):
        found, dreams = _race(contenders, folder, steps, rounds)
        first = next(iter(contenders))
        for name in contenders:
            figures = {
                "dreams_per_minute": 60 / found.wall(name),
                "times_dreamgrid": found.speedup(first, name),
                "gain": gain(dreams[name]),
            }
            rows.append(found.row(case, name, figures))
    return rows


def check_peers(folder: Path) -> None:
    """Check that the clones and the packages that they import are there.

    Raises:
        InvalidInput: one is missing.
    """
    for name, (clone, _) in PEERS.items():
        if not (folder / clone).is_dir():
            raise InvalidInput(
                f"{folder / clone} is missing: git clone https://github.com/{name}/{clone} {folder / clone}"
            )
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise InvalidInput(f"the other programs import {package}: install it with pip")


def _race(contenders: Mapping[str, Contender], folder: Path, steps: int, rounds: int) -> tuple[Race, dict[str, Pixels]]:
    """Return the time of a dream of each contender, and the dream of the first photograph."""
    dreams: dict[str, Pixels] = {}
    with ExitStack() as stack:
        turns = {}
        for name, contender in contenders.items():
            arguments = contender.program, folder, steps
            group = ProcessGroup(prepare, arguments, contender.processes, contender.threads)
            turns[name] = partial(_turn, stack.enter_context(group), contender, name, dreams)
        return race(turns, rounds, warm=False), dreams


def _turn(group: ProcessGroup, contender: Contender, name: str, dreams: dict[str, Pixels]) -> Spent:
    """Return the time of one dream when all processes dream at the same time, and keep the first dream."""
    answers = group.ask(*[contender.photographs] * contender.processes)
    dreams[name] = answers[0][1]
    made = contender.photographs * contender.processes
    return Spent(max(spent.wall for spent, _ in answers) / made, sum(spent.cpu for spent, _ in answers) / made)


def gain(dream: Pixels) -> float:
    """Return how much the score of the layer rose from the first photograph to its dream."""
    network = network_for(SUBJECT)
    before, after = images(SMALL), torch.from_numpy(dream).movedim(2, 0)[None] / 255
    scores = [score(network.activations(each, [SUBJECT.layer])[SUBJECT.layer]) for each in (before, after)]
    return float(scores[1] - scores[0])
