"""Events in Prefect for finished shards and finished runs, on which automations can act.

Prefect adds the flow run, the flow, the deployment and the tags to each event. It sends events from a thread of its
own. If they cannot be sent, the run goes on without them.
"""

from typing import Any

from prefect.events import emit_event

from flows.destination.run_record import Run
from flows.destination.run_report import Report
from flows.jobs.work import ShardResult

__all__ = ["RUN_FINISHED", "SHARD_FINISHED", "emit_run", "emit_shard", "shard_record"]

RUN_FINISHED = "dreamgrid.run.finished"
SHARD_FINISHED = "dreamgrid.shard.finished"
MANY = 0.5
"""More than this share of failed dreams is many."""


def shard_record(destination: str, run_id: str, result: ShardResult) -> dict[str, Any]:
    """Return the result of a shard as fields of JSON, for its log line and the payload of its event."""
    return {
        "event": SHARD_FINISHED,
        "destination": destination,
        "run": run_id,
        "shard": result.number,
        "run_of_part": result.run_of_part,
        "node": result.node,
        "worker": result.worker,
        "done": result.rows.get("done", 0),
        "failed": result.rows.get("failed", 0),
        "skipped": result.rows.get("skipped", 0),
        "new": result.new,
        "failures": dict(result.failures),
        "seconds": result.seconds,
        "dreams_per_second": round(result.new / max(result.seconds, 1e-3), 3),
    }


def emit_shard(run: Run, result: ShardResult) -> None:
    """Emit the event of a finished shard."""
    record = shard_record(run.destination, run.run_id, result)
    resource = {
        "prefect.resource.id": f"dreamgrid.shard.{result.run_of_part}.{result.number}",
        "prefect.resource.name": f"shard {result.number} of {result.run_of_part}",
        "dreamgrid.destination": run.destination,
        "dreamgrid.node": result.node,
        "dreamgrid.failures": _amount(record["failed"], sum(result.rows.values())),
    }
    related = {"prefect.resource.id": _run_resource(run), "prefect.resource.role": "dreamgrid-run"}
    emit_event(SHARD_FINISHED, resource, related=[related], payload=record)


def emit_run(run: Run, report: Report, state: str) -> None:
    """Emit the event of a run that reached its end.

    Args:
        run: the run.
        report: its report.
        state: the name of its final state in Prefect.
    """
    resource = {
        "prefect.resource.id": _run_resource(run),
        "prefect.resource.name": run.run_id,
        "dreamgrid.destination": run.destination,
        "dreamgrid.state": state,
        "dreamgrid.outcome": report.state,
        "dreamgrid.failures": _amount(report.failed, report.planned),
    }
    more = {"event": RUN_FINISHED, "run": run.run_id, "final_state": state, "summary": report.summary}
    emit_event(RUN_FINISHED, resource, payload=report.model_dump(mode="json", exclude={"run_id"}) | more)


def _run_resource(run: Run) -> str:
    return f"dreamgrid.run.{run.run_id}"


def _amount(failed: int, dreams: int) -> str:
    """Return how many dreams failed in one word, because an automation compares words and no numbers."""
    if not failed:
        return "none"
    return "many" if failed > MANY * dreams else "some"
