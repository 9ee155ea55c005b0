"""When Prefect repeats a task: only after infrastructure failures."""

from typing import Any

from prefect.tasks import exponential_backoff

from dreamcore.errors import Unavailable

__all__ = ["with_retries"]


def _is_retryable(_task: Any, _run: Any, state: Any) -> bool:
    """Return whether another attempt can help: only infrastructure failures are retried."""
    try:
        state.result()
    except Unavailable:
        return True
    except Exception:
        return False
    return False


with_retries: dict[str, Any] = {
    "retries": 2,  # each S3 request has been retried for a minute before
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _is_retryable,
}
