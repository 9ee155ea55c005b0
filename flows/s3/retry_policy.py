"""How long requests to S3 are retried."""

from typing import NamedTuple

from flows.machine.machine import env_int

__all__ = ["DEFAULT_RETRY", "FAIL_FAST", "RetryPolicy", "retry_policy"]


class RetryPolicy(NamedTuple):
    """How long a request is retried."""

    seconds: float
    """No attempt starts later than this many seconds after the first one."""
    timeout: float
    """Seconds that one attempt waits for a connection or for the next bytes."""


DEFAULT_RETRY = RetryPolicy(60, 30)
"""The retry policy of a run."""
FAIL_FAST = RetryPolicy(4, 5)
"""The retry policy of checks before a run, while a user waits."""
_VARIABLES = ("DREAMGRID_RETRY_SECONDS", "DREAMGRID_PATIENCE")
"""In the order of precedence. The second one is the former name."""


def retry_policy() -> RetryPolicy:
    """Return the retry policy of this process; `DREAMGRID_RETRY_SECONDS` sets how long requests are retried.

    `DREAMGRID_PATIENCE` is the former name of the variable and still works, unless the new one is set.

    Raises:
        InvalidInput: the variable is not a positive integer.
    """
    for name in _VARIABLES:
        if seconds := env_int(name, "seconds"):
            return RetryPolicy(seconds, min(seconds, DEFAULT_RETRY.timeout))
    return DEFAULT_RETRY
