"""A job with a list of sources, on the real store: names of dreams, what is dreamt once, the estimate and the flags."""

import json
from pathlib import Path

from flows.destination import manifest
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.collections import Collection, executor
from tests.support.command import Command
from tests.support.shards import put_photograph


def test_photographs_of_several_folders_with_one_name_are_dreamt_once_each(
    storage: Storage, source: str, destination: str, dreamgrid_inprocess: Command, tmp_path: Path
) -> None:
    """A photograph that an earlier run of its folder has dreamt is not dreamt again under its other name."""
    for number, name in enumerate(("2025/cat.png", "2026/cat.png", "2026/dog.png")):
        put_photograph(storage, source + name, number)
    collection = Collection(storage, source, destination)
    dream = executor(storage)
    first = collection.run_job(collection.job("blocks.0", source=f"{source}2025/"), dream).report
    assert (first.done, first.source) == (1, f"{source}2025/")
    entries = [f"{source}2026/cat.png", f"{source}2025/", f"{source}2026", f"{source}2025/cat.png"]
    job = collection.job("blocks.0", source=None, sources=entries)
    (tmp_path / "job.yaml").write_text(
        f"source: s3://other/\ndestination: {destination}\ngrid: {{layers: blocks.0, octaves: 1, steps: 1}}\n"
    )
    flags = [text for entry in entries for text in ("--source", entry)]
    planned = dreamgrid_inprocess("plan", "job.yaml", *flags, "--json")
    assert planned.returncode == 0, planned.stderr
    estimate = json.loads(planned.stdout)
    assert (estimate["photographs"], estimate["planned"], estimate["done"]) == (3, 2, 1)
    assert estimate["source"] == f"a list of 4 sources that begins with {source}2025/"
    assert collection.run_job(job, dream).report.done == 2
    names = {
        row["source_uri"].removeprefix(source): row["result_uri"]
        .removeprefix(layout.images_folder(destination))
        .rpartition("/")[0]
        for row in manifest.read(storage, destination).to_pylist()
    }
    bucket = source.removeprefix("s3://")
    assert names == {
        "2025/cat.png": "cat.png",
        "2026/cat.png": f"{bucket}2026/cat.png",
        "2026/dog.png": f"{bucket}2026/dog.png",
    }
    assert collection.run_job(job, dream).report.why_nothing == "every photograph has its dreams"
