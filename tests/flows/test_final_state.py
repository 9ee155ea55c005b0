"""The final state of a run in Prefect says what was done and what failed, and fails where an alert must fire."""

import pickle
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from flows.destination.run_report import FailedRun, Report
from flows.dream_collection import final_state
from flows.jobs.job import DreamJob

PLACES = {"source": "s3://photos/in/", "destination": "s3://dreams/out/"}


def report(done: int = 0, failed: int = 0, skipped: int = 0, **fields: Any) -> Report:
    kinds = {"damaged": failed - 1, "too_small": 1} if failed > 1 else {"damaged": failed}
    failures = {kind: count for kind, count in (kinds | {"source_missing": skipped}).items() if count}
    counts = {"planned": done + failed + skipped, "done": done, "failed": failed, "skipped": skipped}
    known = {"run_id": "r", "state": "completed", "photographs": 9, "manifest": "", "failures": failures, **counts}
    return Report.model_validate({**PLACES, **known, **fields})


@pytest.mark.parametrize(
    ("found", "job", "name", "message"),
    [
        (report(8), {}, "Completed", "8 done"),
        (report(8), {"strict": True}, "Completed", "8 done"),
        (report(8, 4), {}, "Completed with failures", "8 done, 4 failed: 3 damaged, 1 too_small"),
        (report(8, 3, 1), {}, "Completed with failures",
         "8 done, 3 failed, 1 skipped: 2 damaged, 1 too_small, 1 source_missing"),
        (report(8, 0, 1), {"strict": True}, "Completed with failures", "8 done, 1 skipped: 1 source_missing"),
        (report(0, 0, 2), {}, "Completed with failures", "0 done, 2 skipped: 2 source_missing"),
        (report(8, 1), {"strict": True}, "Failed", "8 done, 1 failed: 1 damaged; a strict run allows no failed dream"),
        (report(0, 1), {"max_failures": 1}, "Failed", "0 done, 1 failed: 1 damaged; every dream failed"),
        (report(2, 3), {}, "Failed",
         "2 done, 3 failed: 2 damaged, 1 too_small; more dreams failed than max_failures allows (0.5)"),
        (report(2, 3), {"max_failures": 0.6}, "Completed with failures", "2 done, 3 failed: 2 damaged, 1 too_small"),
        (report(2, 3, retry_failed=True), {"retry_failed": True, "max_failures": 1}, "Completed with failures",
         "2 done, 3 failed: 2 damaged, 1 too_small"),
    ],
)  # fmt: skip
def test_the_state_of_a_finished_run(found: Report, job: dict[str, Any], name: str, message: str) -> None:
    state = final_state(DreamJob.model_validate(PLACES | job), found)
    assert (state.name, state.message) == (name, message)
    assert state.type is (StateType.FAILED if name == "Failed" else StateType.COMPLETED)


@pytest.mark.parametrize(
    ("fields", "fails_if_strict", "reason"),
    [
        ({}, False, "every photograph has its dreams"),
        ({"photographs": 0}, True, "there is no photograph in s3://photos/in/"),
        ({"failed_earlier": 3, "photographs_failed_earlier": 1}, True, "3 dreams (photographs: 1) failed earlier"),
        ({"photographs": 0, "retry_failed": True}, False, "no dream in s3://dreams/out/ failed"),
        ({"photographs": 0, "retry_failed": ["damaged", "too_small"], "not_retried": 2}, False,
         "no dream in s3://dreams/out/ failed with damaged or too_small except 2 that"),
    ],
)  # fmt: skip
def test_the_state_of_a_run_with_nothing_to_do(fields: dict[str, Any], fails_if_strict: bool, reason: str) -> None:
    found = report(state="nothing to do", run_id=None, **fields)
    for strict in (False, True):
        state = final_state(DreamJob.model_validate(PLACES | {"strict": strict}), found)
        assert state.name == ("Failed" if strict and fails_if_strict else "Completed")
        assert str(state.message).startswith(f"nothing to do: {reason}")


def test_callers_get_the_report_of_a_failed_run() -> None:
    found = report(0, 2)
    state = final_state(DreamJob.model_validate(PLACES), found)
    with pytest.raises(FailedRun, match="0 done, 2 failed: 1 damaged, 1 too_small; every dream failed") as error:
        state.result()
    assert error.value.report == found
    kept = pickle.loads(pickle.dumps(error.value))
    assert (str(kept), kept.report) == (str(error.value), found)
