"""The scan of a source: photographs, what is counted instead, and names that differ only in their Unicode form."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import pytest

from dreamcore.errors import InvalidInput
from flows.destination import history
from flows.destination.history import FinishedDreams
from flows.destination.run_report import Report, nothing_to_do
from flows.jobs.job import DreamJob
from flows.jobs.plan import Sources
from flows.jobs.work import Source
from flows.planning import normal_forms
from flows.planning.scan import Scan, check_access, scan
from flows.s3.storage import ObjectInfo, Page, Storage

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "s3://photos/in/caf\xe9.jpg") for form in ("NFC", "NFD"))


class Listing:
    """A store that lists objects in a given order and records every request."""

    def __init__(self, objects: Mapping[str, int]) -> None:
        self.objects = {f"s3://photos/{key}": ObjectInfo(f"s3://photos/{key}", "e", objects[key]) for key in objects}
        self.requests: list[str] = []

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self.list_page(prefix).objects

    def list_page(self, prefix: str) -> Page:
        self.requests.append(prefix)
        return Page([info for uri, info in self.objects.items() if uri.startswith(prefix)])

    def find(self, uri: str) -> ObjectInfo | None:
        self.requests.append(uri)
        return self.objects.get(uri)

    def check_bucket(self, uri: str) -> None:
        pass


def job(source: str, destination: str = "s3://dreams/", **fields: Any) -> DreamJob:
    return DreamJob.model_validate({"source": f"s3://photos/{source}", "destination": destination, **fields})


def scanned(store: Listing, the_job: DreamJob) -> Scan:
    return scan(the_job, cast("Storage", store))


def names(found: Scan) -> list[str]:
    return [source.name for source in found.sources]


def rows_of(*uris: str) -> FinishedDreams:
    """The history of a destination with rows of these photographs."""
    nothing = np.empty(0, np.uint64)
    return FinishedDreams(nothing, nothing, np.array(sorted(map(history.source_key, uris)), np.uint64))


def why_nothing(found: Scan, the_job: DreamJob) -> str:
    report = nothing_to_do(the_job, len(found.sources), history.Failures(0, 0))
    return report.model_copy(update=found.report()).why_nothing


# --- what is dreamt and what is counted


def test_other_objects_are_counted_by_kind_and_the_own_destination_is_not() -> None:
    store = Listing({
        **{"in/a.jpg": 9, "in/": 0, "in/._a.jpg": 9, "in/b.psd": 9, "in/old/c.jpg": 9, "in/out/images/d.png": 9},
        **{"in/night/_runs/active.json": 9, "in/night/images/e.png": 9, "in/x/_runs/active.json": 9},
    })  # fmt: skip
    found = scanned(store, job("in/", "s3://photos/in/out/", exclude="old/"))
    assert names(found) == ["a.jpg"]
    assert found.report() == {
        "ignored": 7,
        "ignored_kinds": {"results": 3, "folder marker": 1, "hidden": 1, "PSD": 1, "excluded": 1},
        "other_destinations": ("s3://photos/in/night/", "s3://photos/in/x/"),
        "warnings": (),
    }
    assert store.requests == ["s3://photos/in/"], "one listing is enough"


def test_results_that_are_listed_before_their_runs_folder_are_left_out() -> None:
    found = scanned(Listing({"in/n/images/e.png": 9, "in/a.jpg": 9, "in/n/_runs/active.json": 9}), job("in"))
    assert names(found) == ["a.jpg"]
    assert found.kinds == {"results": 2}


@pytest.mark.parametrize(
    "key", ["IMG_1.HEIC", "IMG_1", "._cat.jpg", "__MACOSX/cat.jpg", "x/images/cat.png", "scan.txt"]
)
def test_an_object_that_the_source_names_is_a_photograph_whatever_its_name(key: str) -> None:
    store = Listing({key: 9, f"{key}.jpg": 9})
    check_source(store, job(key))
    found = scanned(store, job(key))
    assert [(source.uri, source.name) for source in found.sources] == [(f"s3://photos/{key}", key.rpartition("/")[2])]
    assert found.ignored == 0


def test_if_an_object_and_a_folder_have_one_name_the_suffix_decides() -> None:
    both = {"cat.jpg": 9, "cat.jpg/a.jpg": 9, "cats": 0, "cats/b.jpg": 9}
    assert names(scanned(Listing(both), job("cat.jpg"))) == ["cat.jpg"]
    assert names(scanned(Listing(both), job("cat.jpg/"))) == ["a.jpg"]
    assert names(scanned(Listing(both), job("cats"))) == ["b.jpg"]


def test_a_pattern_also_leaves_out_the_object_that_the_source_names() -> None:
    the_job = job("cat.gif", exclude=["*.gif"])
    found = scanned(Listing({"cat.gif": 9}), the_job)
    assert why_nothing(found, the_job) == "there is no photograph in s3://photos/cat.gif: it holds 1 excluded"


@pytest.mark.parametrize(
    ("objects", "instead"),
    [
        ({}, "it is empty"),
        ({"in/a.psd": 9, "in/b.psd": 9, "in/n.txt": 9}, "it holds 2 PSD, 1 *.txt"),
        ({"in/out/_runs/active.json": 9}, "it holds nothing besides s3://photos/in/out/"),
        ({"in/_runs/x.json": 9, "in/images/a.png": 9}, "it holds 2 results of other runs in s3://photos/in/"),
    ],
)
def test_no_photograph_says_what_is_there_instead(objects: dict[str, int], instead: str) -> None:
    the_job = job("in/", "s3://photos/in/out/" if "in/out/_runs/active.json" in objects else "s3://dreams/")
    found = scanned(Listing(objects), the_job)
    assert why_nothing(found, the_job) == f"there is no photograph in s3://photos/in/: {instead}"


def test_a_report_of_an_earlier_version_is_still_read() -> None:
    text = (
        '{"run_id": "r", "state": "completed", "source": "s3://a/", "destination": "s3://b/", "manifest": "s3://b/m/"}'
    )
    assert Report.model_validate_json(text).ignored is None


# --- a list of sources


def list_job(*sources: str, **fields: Any) -> DreamJob:
    return DreamJob.model_validate({"sources": sources, "destination": "s3://dreams/", **fields})


def test_what_several_sources_cover_is_found_once_under_a_name_that_does_not_depend_on_them() -> None:
    store = Listing({
        **{"in/a.jpg": 9, "in/2025/cat.jpg": 9, "in/2026/cat.jpg": 9, "in/2026/notes": 9, "in/2026/x.txt": 9},
        **{"in/night/_runs/active.json": 9, "in/night/images/d.png": 9, "in/night/images/e.png": 9},
    })  # fmt: skip
    wide = ["in/a.jpg", "in/2025/cat.jpg", "in/2026/cat.jpg"]
    for keys, expected, ignored in (
        (["in/", "in/2026/", "in/2026/cat.jpg"], wide, {"results": 3, "no suffix": 1, "*.txt": 1}),
        (["in", "in/2026/notes"], [*wide, "in/2026/notes"], {"results": 3, "*.txt": 1}),
        (["in/2026/cat.jpg", "in/2025/cat.jpg"], wide[1:], {}),
        (
            ["in/", "in/night/images/d.png"],
            [*wide, "in/night/images/d.png"],
            {"results": 2, "no suffix": 1, "*.txt": 1},
        ),
    ):
        found = scanned(store, list_job(*(f"s3://photos/{key}" for key in keys)))
        assert sorted(names(found)) == sorted(f"photos/{key}" for key in expected)
        assert all(source.uri == f"s3://{source.name}" for source in found.sources)
        assert found.kinds == ignored


def test_patterns_are_compared_with_the_key_below_each_source() -> None:
    store = Listing({"a/drafts/x.jpg": 9, "a/b/drafts/y.jpg": 9, "a/z.gif": 9, "a/b/w.jpg": 9})
    sources = ("s3://photos/a/", "s3://photos/a/b/", "s3://photos/a/z.gif")
    found = scanned(store, list_job(*sources, exclude=["/drafts/", "*.gif"]))
    assert names(found) == ["photos/a/b/w.jpg"]
    assert found.kinds == {"excluded": 3}


def test_results_that_are_listed_late_are_left_out_of_their_own_source_alone() -> None:
    store = Listing({"a/images/e.png": 9, "a/_runs/active.json": 9, "b/images/e.png": 9})
    assert names(scanned(store, list_job("s3://photos/a/", "s3://photos/b/"))) == ["photos/b/images/e.png"]


def test_missing_sources_of_a_list_are_named() -> None:
    store = Listing({"a.jpg": 9})
    check_source(store, list_job("s3://photos/a.jpg", "s3://photos/empty/"))
    with pytest.raises(
        InvalidInput, match=r"^there is neither a photograph nor a folder s3://photos/b\.jpg: correct it"
    ):
        check_source(store, list_job("s3://photos/a.jpg", "s3://photos/b.jpg"))
    many = [f"s3://photos/{number}.jpg" for number in range(5)]
    expected = (
        "5 of 6 sources are neither a photograph nor a folder: s3://photos/0.jpg, s3://photos/1.jpg, "
        "s3://photos/2.jpg and 2 more: correct them, or leave them out"
    )
    with pytest.raises(InvalidInput, match=f"^{expected}$"):
        check_source(store, list_job("s3://photos/a.jpg", *many))


def test_an_empty_list_of_folders_says_so() -> None:
    the_job = list_job("s3://photos/b/", "s3://photos/a/")
    expected = "there is no photograph in a list of 2 sources that begins with s3://photos/a/: it is empty"
    assert why_nothing(scanned(Listing({}), the_job), the_job) == expected


# --- Unicode normal forms


def check_source(store: Listing, the_job: DreamJob) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.planning.scan.Storage", lambda _retry: store)
        check_access(the_job)


def test_a_source_in_another_normal_form_is_named() -> None:
    store = Listing({"cafe\u0301/a.jpg": 9})
    with pytest.raises(InvalidInput, match=r'nothing at s3://photos/caf\xe9, but .* write "s3://photos/cafe\\u0301"'):
        check_source(store, job("caf\xe9"))
    check_source(store, job("caf\xe9/"))
    (warning,) = scanned(store, job("caf\xe9/")).warnings
    assert 'write "s3://photos/cafe\\u0301/"' in warning
    assert scanned(store, job("cafe\u0301/")).warnings == ()


def sources_at(*uris: str) -> Sources:
    return Sources(Source(uri, uri.removeprefix("s3://photos/in/"), "e", 9) for uri in uris)


def test_new_keys_that_differ_only_in_their_normal_form_are_named() -> None:
    both = sources_at("s3://photos/in/a.jpg", COMPOSED, DECOMPOSED, "s3://photos/in/\u732b.jpg")
    expected = f"{DECOMPOSED} (NFD) and {COMPOSED} (NFC) differ only in the Unicode normal form"
    for finished in (rows_of(), rows_of(COMPOSED), rows_of(DECOMPOSED)):
        (warning,) = normal_forms.warnings(both, finished)
        assert expected in warning
    assert normal_forms.warnings(both, rows_of(COMPOSED, DECOMPOSED)) == [], "neither is new"


def test_a_new_key_that_looks_like_one_that_was_dreamt_earlier_is_named() -> None:
    for new, earlier in ((COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)):
        (warning,) = normal_forms.warnings(sources_at(new), rows_of(earlier))
        assert new in warning
        assert earlier in warning
        assert normal_forms.warnings(sources_at(new), rows_of(new, earlier)) == []
        assert normal_forms.warnings(sources_at(new), rows_of()) == []


def test_only_some_of_many_pairs_are_named() -> None:
    uris = [unicodedata.normalize(form, f"s3://photos/in/\xe9{n}.jpg") for n in range(2000) for form in ("NFC", "NFD")]
    warnings = normal_forms.warnings(sources_at(*uris), rows_of())
    assert len(warnings) == normal_forms.MAX_WARNINGS + 1
    assert warnings[-1].startswith("more pairs")


def test_ascii_keys_are_not_compared() -> None:
    assert normal_forms.warnings(sources_at("s3://photos/in/a.jpg"), rows_of()) == []
    assert list(sources_at("s3://photos/in/a.jpg", COMPOSED).not_ascii()) == list(sources_at(COMPOSED))
