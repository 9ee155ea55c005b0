"""How many processes dream at once."""

import os

import pytest

from dreamcore.errors import InvalidInput
from flows.machine import workers


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DREAMGRID_WORKERS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("visible", "gpus"), [("0", 1), ("0,1, 2", 3), ("GPU-5f,GPU-6a", 2), ("1,-1,2", 1)])
def test_one_process_a_visible_gpu(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers() == gpus


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_one_process_a_core_where_no_gpu_is_visible(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert workers() == len(os.sched_getaffinity(0))


def test_the_environment_may_ask_for_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMGRID_WORKERS", "7")
    assert workers() == 7


@pytest.mark.parametrize("nonsense", ["0", "-1", "two", "1.5"])
def test_nonsense_is_told(monkeypatch: pytest.MonkeyPatch, nonsense: str) -> None:
    monkeypatch.setenv("DREAMGRID_WORKERS", nonsense)
    with pytest.raises(InvalidInput, match=f"DREAMGRID_WORKERS is '{nonsense}'"):
        workers()
