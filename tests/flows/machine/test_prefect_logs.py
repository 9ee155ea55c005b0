"""Prefect logs an error of Dreamgrid as one line, any other error with its traceback, and records as JSON."""

import json
import logging

import pytest

from dreamcore.errors import InvalidInput, Unavailable
from flows.machine.prefect_logs import RECORD, log_record, shorten_errors

LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


@pytest.fixture(autouse=True)
def shortened() -> None:
    shorten_errors()
    shorten_errors()  # a second call changes nothing


def fail(error: Exception) -> None:
    raise error


@pytest.fixture(autouse=True)
def without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Prefect is imported, its loggers send every record to a server."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)


def logged(error: Exception, logger: str, caplog: pytest.LogCaptureFixture) -> str:
    """What a logger writes about an error."""
    with caplog.at_level("ERROR", logger):
        try:
            fail(error)
        except Exception:
            logging.getLogger(logger).exception("Engine execution exited with %s", "unexpected exception")
    return caplog.text


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("error", [InvalidInput("no bucket\ns3://photos"), Unavailable("no bucket s3://photos")])
def test_an_error_of_dreamgrid_is_one_line(logger: str, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    text = logged(error, logger, caplog)
    assert text.endswith(f"{type(error).__name__}: no bucket s3://photos\n")
    assert text.count("\n") == 1


def test_another_error_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    text = logged(ValueError("a bug"), "prefect.flow_runs", caplog)
    assert "Engine execution exited with unexpected exception\nTraceback" in text
    assert text.endswith("ValueError: a bug\n")


def test_a_record_is_a_line_of_json_and_a_field_for_formatters(caplog: pytest.LogCaptureFixture) -> None:
    record = {"event": "dreamgrid.shard.finished", "destination": "s3://dreams/50%s/", "failures": {"damaged": 1}}
    with caplog.at_level("INFO", "prefect.task_runs"):
        log_record(logging.getLogger("prefect.task_runs"), record)
    (line,) = caplog.records
    assert json.loads(line.getMessage()) == record
    assert line.__dict__[RECORD] == record
