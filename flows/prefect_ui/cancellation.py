"""The end of a run that is cancelled in the Prefect UI, or whose process is terminated."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx  # Prefect's client raises its errors
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, TerminationSignal

from flows.machine.worker_process import stop_workers, unlink_semaphores

__all__ = ["clean_termination"]


@contextmanager
def clean_termination() -> Iterator[None]:
    """End worker processes and free semaphores when Prefect's termination signal stops the flow.

    Prefect then lets the signal end the process. Python's own clean-up does not run, and the semaphores of the pool
    would stay. Prefect's log would also name the state before the cancellation as the final one.
    """
    try:
        yield
    except TerminationSignal:
        stop_workers()
        unlink_semaphores()
        _adopt_cancellation()
        raise


def _adopt_cancellation() -> None:
    """Give the flow run of this process the state that a cancellation has set on the server."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with suppress(httpx.HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
        state = client.read_flow_run(context.flow_run.id).state
        if state is not None and (state.is_cancelling() or state.is_cancelled()):
            context.flow_run.state = state
