"""The progress of a run as a file for other programs. `tests/flows/gallery` reads the file of a real run."""

from pathlib import Path

from flows.machine.pace import Snapshot
from flows.prefect_ui.progress import ProgressFile


def test_a_progress_file_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    shown: list[str] = []

    class Display:
        def start(self, run_id: str, destination: str) -> None:
            shown.append(f"{run_id} {destination}")

        def listed(self, count: int) -> None:
            shown.append(str(count))

        def show(self, snapshot: Snapshot) -> None:
            shown.append(str(snapshot))

    progress = ProgressFile(tmp_path / "nowhere" / "file", Display(), has_page=False)
    progress.start("run", "s3://dreams/")
    progress.listed(3)
    progress.show(Snapshot(1, 4, 0.5))
    assert shown == ["run s3://dreams/", "3", "1 of 4 dreams, 30.0 a minute, about 6 s left"]
    assert not list(tmp_path.iterdir())
