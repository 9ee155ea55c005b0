"""What Prefect logs: one line for an error of Dreamgrid, a traceback only for any other error, and records as JSON."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from dreamcore.errors import DreamgridError
from flows.machine.terminal import one_line

__all__ = ["RECORD", "log_record", "shorten_errors"]

RECORD = "dreamgrid"
"""The field of a log record in JSON that has the record of Dreamgrid."""

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


def shorten_errors() -> None:
    """Make Prefect's loggers of this process write a `DreamgridError` as one line, without its traceback."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _shorten not in logger.filters:
            logger.addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    """Replace the traceback of a record by the message of its error. Every record is kept."""
    if record.exc_info and isinstance(error := record.exc_info[1], DreamgridError):
        record.msg, record.args, record.exc_info = f"{type(error).__name__}: {one_line(str(error))}", (), None
    return True


def log_record(logger: logging.Logger | logging.LoggerAdapter[logging.Logger], record: Mapping[str, Any]) -> None:
    """Log a record as one line of JSON. Formatters that write JSON themselves also get it as the field `dreamgrid`."""
    logger.info(json.dumps(record), extra={RECORD: record})  # without arguments, "%" has no meaning
