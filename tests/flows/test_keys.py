"""Photographs with unusual keys: each gets its own dream, and no key is interpreted as a path."""

import pytest

from dreamcore.images import decode, read_metadata
from flows.contact_sheets.sheets import draw_sheets
from flows.destination import manifest
from flows.destination.history import finished_dreams
from flows.jobs.plan import make_plan
from flows.planning.scan import plan_settings, scan
from flows.results.verify import verify
from flows.running import protocol
from flows.running.shard import dream_shard
from flows.s3.layout import safe_name
from flows.s3.storage import Storage
from tests.support.shards import plan_run, put_photograph

KEYS = [
    "a b.png",
    " .png",
    "a+b.png",
    "a%2Fb.png",
    "a/b.png",
    "100%.png",
    "%2E%2E/up.png",
    "x...png",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png",
    "cafe\N{COMBINING ACUTE ACCENT}.png",
    "\N{CAT FACE}.png",
    "<script>alert('&amp;')</script>.png",
    "new\nline\r\t\x01\x7f.png",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.png",
    "a?b#c:*|\"'.png",
    "s3://photos/cat.png",
    "cat.png",
    "cat.png.png",
    "cat.png/cat.png",
    "d/" * 480 + "deep.png",
    "\N{CAT FACE}" * 60 + ".png",
]
"""Keys that SeaweedFS accepts. It refuses `.` and `..` and more than 255 bytes between slashes, and treats `\\` and
`//` as `/`. The property tests of `safe_name` cover such names."""


def test_every_key_is_dreamt_verified_and_found_finished(storage: Storage, source: str, destination: str) -> None:
    for number, key in enumerate(KEYS):
        put_photograph(storage, source + key, number)
    existing = {found.uri for found in storage.list(source)}
    assert existing == {source + key.replace("//", "/") for key in KEYS}

    job = plan_run(storage, source, destination, ["blocks.0"], sheets=len(KEYS))[0].job
    run, _ = protocol.claim(job, plan_settings(job), storage)
    before = finished_dreams(destination, storage)
    plan = protocol.freeze(run, make_plan(scan(job, storage).sources, run.settings, before), storage)
    assert {found.uri for found in plan.sources()} == existing
    for shard in plan:
        dream_shard(run, shard, storage)
    photographs = [(each.uri, each.etag) for each in plan.sources()]
    sheets = list(draw_sheets(destination, storage, photographs, pytest.fail))
    protocol.finish(run, plan, 1.0, storage)
    protocol.release(destination, run.run_id, storage)

    rows = manifest.read(storage, destination).to_pylist()
    assert {row["source_uri"] for row in rows} == existing
    assert {row["status"] for row in rows} == {"done"}
    assert len({row["result_uri"] for row in rows}) == len({sheet.uri for sheet in sheets}) == len(KEYS)
    for row in rows:
        assert (read_metadata(storage.read(row["result_uri"]) or b"") or {})["source_uri"] == row["source_uri"]
    results = {found.uri for folder in ("images", "sheets") for found in storage.list(f"{destination}{folder}/")}
    assert results == {row["result_uri"] for row in rows} | {sheet.uri for sheet in sheets}
    assert all(uri.isprintable() for uri in results)
    report = verify(storage, destination, lambda _done, _all: None)
    assert (report.rows, report.objects, report.problems) == (len(KEYS), len(KEYS), [])
    assert not list(make_plan(scan(job, storage).sources, run.settings, finished_dreams(job.destination, storage)))


@pytest.mark.parametrize(
    "name",
    ["../" * 3 + "up.png", "x//y.png", "/lead.png", "x\\y.png", "x" * 1000 + ".png"],
    ids=["up", "empty part", "lead", "backslash", "long"],
)
def test_names_that_this_store_refuses_become_keys_that_it_accepts(
    storage: Storage, destination: str, name: str
) -> None:
    """Such a photograph may be in another store. The key of its dream must be stored unchanged."""
    uri = f"{destination}images/{safe_name(name)}/dream.png"
    put_photograph(storage, uri)
    assert [found.uri for found in storage.list(destination)] == [uri]
    assert decode(storage.read(uri) or b"").width == 56
