"""The comparison with other programs: what it asks for, and that a program runs from its clone."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.__main__ import main
from benchmarks.contenders import SMALL, pixels
from benchmarks.peers import DREAMGRID, PEERS, prepare
from benchmarks.processes import ProcessGroup
from dreamcore.errors import InvalidInput

pytestmark = pytest.mark.slow

# The interface of a clone, with an ascent of one line. The real programs are not part of this repository.
STAND_IN = """
import numpy as np
def deep_dream(image, model, iterations, lr, octave_scale, num_octaves):
    pixels = np.asarray(image) / 255
    assert len(model) == 11, "the network ends at the layer"
    return 1 - pixels
"""


def test_a_missing_clone_is_named_with_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--peers", str(tmp_path)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    folder = tmp_path / "pytorch-deepdream"
    assert f"git clone https://github.com/gordicaleksa/pytorch-deepdream {folder}" in said


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for clone, _ in PEERS.values():
        (tmp_path / clone).mkdir()
    monkeypatch.setattr(peers, "PACKAGES", ("no_such_package",))
    with pytest.raises(InvalidInput, match="no_such_package"):
        peers.check_peers(tmp_path)


def test_a_program_dreams_from_its_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / PEERS["eriklindernoren"][0]
    clone.mkdir()
    (clone / "deep_dream.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(clone))
    _, dream = prepare("eriklindernoren", tmp_path, 1)(2)
    assert np.array_equal(dream, 255 - pixels(SMALL))


def test_dreamgrid_raises_the_score_of_the_layer() -> None:
    with ProcessGroup(prepare, (DREAMGRID, Path(), 1)) as group:
        ((_, dream),) = group.ask(1)
    assert peers.gain(dream) > 0.2
