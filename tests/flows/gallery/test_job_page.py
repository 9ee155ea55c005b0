"""The page that makes jobs, over a real store: which job an address describes, and what may be started."""

import html
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from dreamcore.errors import Unavailable
from flows.destination import manifest, run_record
from flows.destination.favourites import Mark, Marks
from flows.destination.manifest import Row
from flows.destination.run_record import Run
from flows.gallery.job_runs import last_run
from flows.gallery.jobs import ChosenDream, Variations, enlarge, job_yaml, more_like, whole_collection
from flows.gallery.security import Access
from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.local.stack import Stack
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.collections import Collection, executor
from tests.support.gallery_pages import fill, served
from tests.support.shards import put_photograph

SOURCE, DESTINATION = "s3://photos/gallery jobs/", "s3://dreams/gallery jobs/"


class Served(NamedTuple):
    """A gallery over the destination."""

    url: str
    access: Access

    def ask(self, path: str, **fields: Any) -> str:
        with urllib.request.urlopen(f"{self.url}/{path}?{urlencode(fields)}", timeout=60) as response:
            return str(response.read().decode())

    def post(self, path: str, token: str | None = None, **fields: Any) -> tuple[int, str]:
        headers = {"X-Dreamgrid-Token": self.access.csrf if token is None else token}
        request = urllib.request.Request(
            f"{self.url}/{path}?{urlencode(fields)}", method="POST", headers=headers, data=b""
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def rows(stack: Stack) -> list[Row]:
    storage = Storage(environment=stack.environment())
    storage.create_bucket("s3://photos")
    storage.create_bucket("s3://dreams")
    return fill(storage, SOURCE, DESTINATION, ("a.jpg", "b.jpg"), ("broken.jpg",))


@pytest.fixture(scope="module", params=[False], ids=[""])
def gallery(
    stack: Stack, rows: list[Row], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    access, storage = Access(read_only=request.param), Storage(environment=stack.environment())
    Marks(DESTINATION, storage).add([Mark(str(row.result_id), 5) for row in rows[:3]])
    app = create_app([DESTINATION], storage, access)
    with pytest.MonkeyPatch.context() as patch, served(app) as url:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Served(f"{url}/d/{slug_of(DESTINATION)}", access)


def yaml_of(page: str) -> str:
    (text,) = re.findall(r'<pre tabindex="0">(.*?)</pre>', page, re.S)
    return html.unescape(text)


def chosen(*rows: Row) -> list[ChosenDream]:
    return [ChosenDream.from_row(asdict(row)) for row in rows]


def test_variations_are_those_of_the_composer(gallery: Served, rows: list[Row]) -> None:
    some = rows[9], rows[0]
    ids = ",".join(str(row.result_id) for row in some)
    made = more_like(chosen(*some), Variations(seeds=4, mixes=2, half_steps={"octaves": (2, 4)}), DESTINATION)
    assert yaml_of(gallery.ask("job", kind="like", ids=ids)) == job_yaml(made)
    made = more_like(chosen(*some), Variations(channels=1), DESTINATION)
    page = gallery.ask("job", kind="like", ids=ids, seeds=0, channels=1, mixes=0, half=0)
    assert yaml_of(page) == job_yaml(made)


def test_the_whole_collection_is_by_default_what_the_run_of_the_dream_read(gallery: Served, rows: list[Row]) -> None:
    page = gallery.ask("job", kind="all", marks_min=4)
    assert "A job of 3 dreams" in page
    newest_first = chosen(*reversed(rows[:3]))  # as on the page of the favourites
    assert yaml_of(page) == job_yaml(whole_collection(newest_first, SOURCE, DESTINATION))
    page = gallery.ask("job", kind="all", ids=rows[0].result_id, source="s3://others/")
    assert yaml_of(page).startswith("source: s3://others/\n")


def test_enlarged_dreams_have_the_size_and_strength_of_the_form(gallery: Served, rows: list[Row]) -> None:
    dreams = {str(row.result_id): row.source_uri for row in (rows[0], rows[9])}
    made = enlarge(dreams, DESTINATION, {"max_pixels": 3_500_000, "strength": 0.7}, "webp")
    fields = {"megapixels": 3.5, "strength": 0.7, "format": "webp"}
    page = gallery.ask("job", kind="enlarge", ids=",".join(dreams), **fields)
    assert yaml_of(page) == job_yaml(made)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": "many"}, "seeds is a number from 0 to 10,000, not 'many'"),
        ({"mixes": "1.5"}, "mixes is a whole number, not '1.5'"),
        ({"seeds": "-1"}, "seeds is a number from 0"),
        ({"kind": "all", "source": "photos"}, "source: 'photos' is not an S3 address"),
        ({"kind": "enlarge", "strength": "3"}, "enlarge.strength"),
        ({"kind": "retry", "error": "no such kind"}, "has no finished run"),
    ],
)
def test_a_wrong_field_is_named_in_the_page(
    gallery: Served, rows: list[Row], fields: dict[str, str], message: str
) -> None:
    page = gallery.ask("job", ids=rows[0].result_id, **fields)
    assert message in html.unescape(page)
    assert "job.yaml" not in page


def test_dreams_that_do_not_exist_or_failed_are_counted(gallery: Served, rows: list[Row]) -> None:
    page = gallery.ask("job", ids=f"{rows[0].result_id},{rows[-1].result_id},0123456789abcdef,x")
    assert "A job of 1 dream<" in page
    assert "3 are not there any more" in page
    assert "No dream is chosen" in gallery.ask("job")


def test_only_the_shown_job_of_the_gallerys_own_page_starts(gallery: Served, rows: list[Row], storage: Storage) -> None:
    fields = {"kind": "like", "ids": rows[0].result_id}
    assert gallery.post("job/start", "another token", **fields)[0] == 403
    code, text = gallery.post("job/start", **fields, shown="0123456789abcdef")
    assert code == 409
    assert "the choice has changed since the job was shown" in text
    assert last_run(DESTINATION, storage) is None


@pytest.mark.parametrize("gallery", [True], indirect=True)
def test_a_read_only_gallery_shows_the_job_and_starts_nothing(gallery: Served, rows: list[Row]) -> None:
    page = gallery.ask("job", ids=rows[0].result_id)
    assert yaml_of(page).startswith("sources:\n")
    assert "job/cost" not in page
    assert gallery.post("job/start", ids=rows[0].result_id)[0] == 403
    assert "Try again" not in gallery.ask("failures")


def test_failures_are_tried_again_by_kind_unless_a_run_is_on(
    storage: Storage, stack: Stack, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_photograph(storage, f"{source}1.png")
    storage.write(f"{source}2.png", b"no photograph", "image/png")
    collection = Collection(storage, source, destination)
    collection.run_job(first := collection.job("blocks.0"), executor(storage))
    base = f"d/{slug_of(destination)}"
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        gallery = Served(f"{url}/{base}", Access())
        assert 'kind=retry&amp;error=not_an_image">Try again' in gallery.ask("failures")
        page = gallery.ask("job", kind="retry", error="not_an_image")
        assert yaml_of(page) == job_yaml(first.model_copy(update={"retry_failed": ("not_an_image",)}))
        claimed = Run(run_id="20260101T000000Z-000000", job=first, settings=())
        storage.write(layout.job_uri(destination, claimed.run_id), claimed.model_dump_json().encode(), run_record.JSON)
        storage.write(layout.active_uri(destination), run_record.make_mark(claimed), run_record.JSON)
        page = gallery.ask("failures")
        assert "A run has not ended: its photographs are being listed" in page
        assert "Try again" not in page
        storage.delete(layout.active_uri(destination))

    def stop(*_: object) -> Iterator[dict[str, int]]:
        raise Unavailable("stopped")
        yield {}

    with pytest.raises(Unavailable):
        collection.run_job(longer := collection.job("blocks.0", "blocks.1"), stop)  # type: ignore[arg-type]
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        gallery = Served(f"{url}/{base}", Access())
        page = gallery.ask("failures")
        assert "not_an_image" in page
        assert "Try again" not in page
        assert "A run has not ended: 0 of 2 dreams are finished" in page
        assert "no dream is chosen" in gallery.ask("job/cost", kind="all", marks_min=1)
        rows = manifest.read(storage, destination, ["status", "result_id"]).to_pylist()
        (done,) = [row["result_id"] for row in rows if row["status"] == "done"]
        other = gallery.ask("job/cost", kind="like", ids=done)
        assert "A run is at work: 0 of 2 dreams. This job can start when it has ended." in other
        assert "every 4s" in other, "the page asks again by itself"
        assert "resume" not in other
        monkeypatch.setattr("flows.gallery.at_work.QUIET_SECONDS", 0.0)
        other = gallery.ask("job/cost", kind="like", ids=done)
        assert "The run of another job has stopped before its end: 0 of 2 dreams are finished" in other
        assert f"dreamgrid run --resume {destination}" in other
        assert 'job?kind=resume">' in other
        assert yaml_of(gallery.ask("job", kind="resume")) == job_yaml(longer)
        assert ">Continue</button>" in gallery.ask("job/cost", kind="resume")
