"""What the demo says: that another job may be working in its destination, and what comes next."""

import shlex
from pathlib import Path

import pytest

from dreamcore.errors import InvalidInput
from flows.cli.run import _run_demo
from flows.jobs.job import DreamJob
from flows.local.demo import next_steps
from flows.planning.scan import plan_settings
from flows.running import protocol
from flows.s3.storage import Storage


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


@pytest.mark.parametrize("is_on_path", [False, True])
def test_the_commands_after_the_demo_can_be_copied(
    is_on_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ".venv" / "bin" / "dreamgrid"
    program.parent.mkdir(parents=True)
    for file in (program, program.with_name("activate")):
        file.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("PATH", str(program.parent) if is_on_path else "")
    commands = [shlex.split(line) for line in next_steps("s3://dreams/demo/") if line.startswith("  ")]
    assert commands == [
        *([] if is_on_path else [["source", ".venv/bin/activate"]]),
        ["eval", "$(dreamgrid env)"],
        ["dreamgrid", "gallery", "s3://dreams/demo/"],
        ["dreamgrid", "enlarge", "s3://dreams/demo/", "ID", "print.png"],
        ["dreamgrid", "down"],
    ]
