"""What the demo says: that another job may be working in its destination."""

import pytest

from dreamcore.errors import InvalidInput
from flows import protocol
from flows.cli.run import _run_demo
from flows.job import DreamJob
from flows.scan import plan_settings
from flows.storage import Storage


def test_the_demo_waits_for_another_job(storage: Storage, source: str, destination: str) -> None:
    first, second = (
        DreamJob.model_validate({"source": source, "destination": destination, "grid": {"layers": [layer]}})
        for layer in ("blocks.0", "blocks.1")
    )
    protocol.claim(first, plan_settings(first), storage)
    with pytest.raises(InvalidInput, match=r"another job may be working in .* let it finish") as held:
        _run_demo(second)
    assert f"dreamgrid run --resume {destination}" in str(held.value)
    assert "--abandon" not in str(held.value), "it would end the print that somebody is waiting for"
