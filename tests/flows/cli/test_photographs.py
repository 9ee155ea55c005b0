"""Which objects of a source become dreams, and how `plan`, `run` and `image` name the others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamcore.images import decode
from flows.destination import manifest
from flows.s3.storage import Storage
from tests.support.command import REPOSITORY, Command
from tests.support.shards import put_photograph

CASES = REPOSITORY / "tests" / "fixtures" / "cases"
QUICK = ("--layers", "blocks.0", "--octaves", "1", "--steps", "1")
DECOMPOSED, COMPOSED = "cafe\u0301.png", "caf\xe9.png"


@pytest.fixture
def phone(storage: Storage, source: str) -> str:
    """A source with the folder of a Mac, other files, two nightly destinations and a name in two normal forms."""
    for path in (path for path in (CASES / "mac-copy").rglob("*") if path.is_file()):
        storage.write(f"{source}mac/{path.relative_to(CASES / 'mac-copy')}", path.read_bytes(), "")
    storage.write(f"{source}x.jfif", (CASES / "x.jfif").read_bytes(), "")
    for name in (DECOMPOSED, COMPOSED, "drafts/a.png", "@eaDir/a.png", "n1/images/a.png", "n2/sheets/b.png"):
        put_photograph(storage, source + name)
    for name in ("Thumbs.db", "notes.txt", "a.psd", "b.psd", "n1/_runs/active.json", "n2/_runs/r/success.json"):
        storage.write(source + name, b"something", "")
    return source


KINDS = {
    **{"results": 4, "PSD": 2, "hidden": 1, "__MACOSX/": 1, "@eaDir/": 1, "Thumbs.db": 1, "*.txt": 1, "excluded": 1},
}


def test_runs_dream_photographs_and_count_everything_else(
    phone: str,
    destination: str,
    storage: Storage,
    dreamgrid: Command,
    dreamgrid_inprocess: Command,
    prefect_api: Callable[[str, dict[str, Any]], Any],
) -> None:
    job = ("--source", phone, "--destination", destination, *QUICK, "--exclude", "drafts/", "--exclude", "*.gif")
    planned = dreamgrid_inprocess("plan", *job)
    assert planned.returncode == 0, planned.stderr
    assert f"{sum(KINDS.values())}: 4 results of other runs in {phone}n1/, {phone}n2/, 2 PSD," in planned.stdout
    assert "1 excluded" in planned.stdout
    plan = json.loads(dreamgrid_inprocess("plan", *job, "--json").stdout)
    assert (plan["photographs"], plan["ignored"], plan["ignored_kinds"]) == (4, sum(KINDS.values()), KINDS)
    assert plan["other_destinations"] == [f"{phone}n1/", f"{phone}n2/"]
    (warning,) = plan["warnings"]
    for shown in (warning, planned.stderr):
        assert f"{phone}{DECOMPOSED} (NFD) and {phone}{COMPOSED} (NFC) differ only in the Unicode normal form" in shown

    done = dreamgrid("run", *job, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["done"], report["failed"], report["photographs"]) == (4, 0, 4)
    for name in ("ignored", "ignored_kinds", "other_destinations", "warnings"):
        assert report[name] == plan[name]
    rows = manifest.read(storage, destination).to_pylist()
    assert {row["source_uri"].removeprefix(phone) for row in rows} == {"mac/ok.jpg", "x.jfif", COMPOSED, DECOMPOSED}
    logs = prefect_api("logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"})
    messages = "\n".join(log["message"] for log in logs)
    assert f"4 photographs in {phone}; {sum(KINDS.values())} ignored" in messages
    assert f"ignored: 4 results of other runs in {phone}n1/, {phone}n2/, 2 PSD" in messages
    assert warning in messages


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.jfif", "._photograph"])
def test_image_reads_the_file_whatever_its_name(name: str, tmp_path: Path, dreamgrid_inprocess: Command) -> None:
    shutil.copyfile(CASES / "x.jfif", tmp_path / name)
    done = dreamgrid_inprocess("image", name, "dream.png", *QUICK)
    assert done.returncode == 0, done.stderr
    photograph, dream = (decode((tmp_path / file).read_bytes()) for file in (name, "dream.png"))
    assert (dream.width, dream.height) == (photograph.width, photograph.height)
