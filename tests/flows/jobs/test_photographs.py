"""What is a photograph: by its key, by the patterns of the job, and next to the results of other runs."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamcore.image_formats import EXTRAS
from flows.jobs.photographs import MAX_SUFFIXES, Selection, describe_ignored, ignored_kind
from flows.s3.globs import compile_globs

NAMES = st.text("ab-.é/", max_size=12)


def selection(*patterns: str) -> Selection:
    return Selection(compile_globs(patterns))


def accepted(selected: Selection, keys: Sequence[str], size: int = 1) -> list[str]:
    return [key for key in keys if selected.accepts(key, size)]


# --- keys


@pytest.mark.parametrize(
    "key",
    [
        *("a.jpg", "x.JFIF", "a.jpe", "a.pjpeg", "a.avif", "a/b c/x.TIFF", "a.jpg.png", "@home/a.jpg", "#1/a.jpg"),
        *("$5/a.jpg", "a.b/c.jpg", "MACOSX/a.jpg", "eaDir/a.jpg", "Thumbs.db.jpg", "a..jpg", " .png", "_a.jpg"),
    ],
)
def test_a_key_with_the_suffix_of_an_image_is_a_photograph(key: str) -> None:
    assert ignored_kind(key, 1) is None
    assert ignored_kind(key, 0) is None, "an empty photograph is a failed upload, which must be reported"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("._ok.jpg", "hidden"),
        ("trip/.trashed-1764321-IMG.jpg", "hidden"),
        (".pending-1-IMG.jpg", "hidden"),
        ("...png", "hidden"),
        (".Trash-1000/files/a.jpg", "hidden"),
        (".hidden/", "hidden"),
        (".gitignore", "hidden"),
        ("__MACOSX/._ok.jpg", "__MACOSX/"),
        ("a/__MACOSX/b/ok.jpg", "__MACOSX/"),
        ("__MACOSX/", "__MACOSX/"),
        ("photo/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/"),
        (".thumbnails/1.jpg", ".thumbnails/"),
        ("DCIM/.thumbnails/1.jpg", ".thumbnails/"),
        ("#recycle/a.jpg", "#recycle/"),
        ("$Recycle.Bin/S-1/a.jpg", "$RECYCLE.BIN/"),
        ("System Volume Information/a.png", "System Volume Information/"),
        ("Thumbs.db", "Thumbs.db"),
        ("a/THUMBS.DB", "Thumbs.db"),
        ("desktop.ini", "desktop.ini"),
        ("a/.DS_Store", ".DS_Store"),
        ("2026/", "folder marker"),
        ("a.jpg/", "folder marker"),
        ("", "folder marker"),
        ("notes.TXT", "*.txt"),
        ("a.tar.gz", "*.gz"),
        ("README", "no suffix"),
        ("a.jpg~", "other suffixes"),
        ("a.", "other suffixes"),
        ("a.dream of a very long suffix", "other suffixes"),
        ("a.nef", "RAW (NEF)"),
        ("a.PSD", "PSD"),
    ],
)
def test_any_other_key_has_a_kind(key: str, kind: str) -> None:
    assert ignored_kind(key, 1) == kind


@pytest.mark.parametrize(("suffix", "name"), [("HEIC", "HEIC"), ("heif", "HEIC"), ("jxl", "JPEG XL")])
def test_formats_of_extras_are_photographs_only_if_the_extra_is_installed(suffix: str, name: str) -> None:
    assert ignored_kind(f"IMG_1.{suffix}", 1) == (None if EXTRAS[name].installed else name)


@pytest.mark.parametrize("key", ["2026_$folder$", "_SUCCESS", "photos"])
def test_an_object_of_zero_bytes_is_empty(key: str) -> None:
    assert ignored_kind(key, 0) == "empty"


# --- counts


def test_the_counts_and_the_photographs_add_up() -> None:
    selected = selection("drafts/", "*.gif")
    keys = ["a.jpg", "b.gif", "drafts/c.jpg", "drafts/c.txt", "._a.jpg", "x.psd", "2026/", "y.psd", "Thumbs.db"]
    assert accepted(selected, keys) == ["a.jpg"]
    assert selected.kinds == {
        **{"excluded": 2, "PSD": 2, "*.txt": 1, "hidden": 1, "folder marker": 1, "Thumbs.db": 1},
    }
    assert list(selected.kinds.values()) == [2, 2, 1, 1, 1, 1], "largest first"


def test_many_suffixes_are_counted_together() -> None:
    selected = selection()
    keys = ["b.txt"] * 9 + [f"a.{'abcdefghij'[number % 10]}{number}" for number in range(5000)] + ["c.psd"]
    assert accepted(selected, keys) == []
    kinds = selected.kinds
    assert sum(kinds.values()) == len(keys)
    assert (kinds["*.txt"], kinds["PSD"]) == (9, 1)
    assert len(kinds) == MAX_SUFFIXES + 2, "8 suffixes, the others, and the format"


def test_the_description_names_destinations_and_extras() -> None:
    kinds = {"results": 1200, "HEIC": 3, "*.txt": 1}
    assert describe_ignored(kinds, ["s3://b/1/", "s3://b/2/", "s3://b/3/", "s3://b/4/"]) == (
        "1,200 results of other runs in s3://b/1/, s3://b/2/, s3://b/3/ and 1 more, "
        "3 HEIC (readable with the extra dreamgrid[heic]), 1 *.txt"
    )


# --- results of other runs

RESULTS = [
    "night/_runs/20261128T010203Z-abcdef/job.json",
    "night/_runs/active.json",
    "night/images/cat.jpg/blocks.4-6x10-0123456789abcdef.png",
    "night/manifest/run=1/shard-000000.parquet",
    "night/sheets/cat.jpg",
    "night/thumbs/cat.jpg/blocks.4-6x10-0123456789abcdef.webp",
]
PHOTOGRAPHS = [
    "images/sheets.jpg",
    "night/in/cat.jpg",
    "night/cat.jpg",
    "nightly/images/cat.jpg",
    "x_runs/images/a.jpg",
]


def test_results_of_other_runs_are_left_out() -> None:
    selected = selection()
    assert accepted(selected, sorted(RESULTS + PHOTOGRAPHS)) == sorted(PHOTOGRAPHS)
    assert selected.kinds == {"results": len(RESULTS)}
    assert selected.destinations == ("night/",)
    assert not any(selected.drops_late(key) for key in PHOTOGRAPHS)


def test_the_source_may_itself_be_a_destination() -> None:
    selected = selection()
    keys = [key.removeprefix("night/") for key in RESULTS]
    assert accepted(selected, [*keys, "in/cat.jpg"]) == ["in/cat.jpg"]
    assert selected.destinations == ("",)


@given(st.permutations(RESULTS + PHOTOGRAPHS))
def test_results_are_left_out_in_every_order(keys: list[str]) -> None:
    """Some stores list objects in any order. Then `_runs/` may come after the dreams."""
    selected = selection()
    found = accepted(selected, keys)
    if selected.has_late_results:
        found = [key for key in found if not selected.drops_late(key)]
    assert sorted(found) == sorted(PHOTOGRAPHS)
    assert sum(selected.kinds.values()) == len(RESULTS)


@pytest.mark.parametrize("name", ["a.jpg", ".DS_Store"])
def test_a_folder_with_photographs_named_runs_is_no_destination(name: str) -> None:
    selected = selection()
    accepted(selected, [f"club/_runs/{name}"])
    assert accepted(selected, ["club/images/b.jpg"]) == ["club/images/b.jpg"]
    assert selected.destinations == ()


def test_results_of_a_destination_inside_the_results_of_another_are_left_out() -> None:
    selected = selection()
    assert accepted(selected, ["a/_runs/active.json", "a/images/b/_runs/active.json", "a/images/b/images/x.png"]) == []
    assert selected.kinds == {"results": 3}


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.gif", ["a.gif", "x/y/.gif", "b.gif/c.jpg"], ["a.GIF", "a.gif.jpg"]),
        ("drafts", ["drafts", "a/drafts/b.jpg"], ["drafts2/a.jpg"]),
        ("drafts/", ["drafts/a.jpg", "a/drafts/b/c.jpg"], ["drafts", "a/drafts"]),
        ("/drafts/", ["drafts/a.jpg"], ["a/drafts/b.jpg"]),
        ("2019/*.jpg", ["2019/a.jpg"], ["2019/x/a.jpg", "x/2019/a.jpg"]),
        ("2019/**", ["2019/a.jpg", "2019/x/a.jpg"], ["2019", "x/2019/a.jpg"]),
        ("2019/**/raw/*", ["2019/raw/a.jpg", "2019/x/y/raw/a.jpg"], ["2019/x/a.jpg"]),
        ("**/raw/*.jpg", ["raw/a.jpg", "x/y/raw/a.jpg"], ["raw/x/a.jpg"]),
        ("IMG_????.jpg", ["IMG_0001.jpg"], ["IMG_1.jpg", "IMG_00/1.jpg"]),
        ("[a-c][!0-9].jpg", ["ax.jpg", "x/c-.jpg"], ["a1.jpg", "dx.jpg", "a/.jpg"]),
        ("[*].jpg", ["*.jpg"], ["a.jpg"]),
        ("[]].jpg", ["].jpg"], ["a.jpg"]),
        ("[+--].jpg", ["+.jpg", ",.jpg", "-.jpg"], ["a.jpg"]),
        ("a[", ["a["], ["a"]),
        ("a.b+(c)|d", ["a.b+(c)|d"], ["aXb+(c)|d", "d"]),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}*", ["cafe\N{COMBINING ACUTE ACCENT}.jpg"], ["cafe.jpg"]),
        ("*", ["a", "a/b", "new\nline"], []),
    ],
)
def test_a_pattern_matches_names_or_paths(pattern: str, matching: list[str], others: list[str]) -> None:
    matches = compile_globs([pattern])
    assert [key for key in matching + others if matches(key)] == matching


@given(NAMES, st.text("ab*?[]!-./é", min_size=1, max_size=8).filter(lambda text: text.strip("/")))
def test_a_pattern_of_a_folder_matches_everything_in_it(key: str, pattern: str) -> None:
    try:
        matches = compile_globs([pattern])
    except ValueError:
        return
    if matches(key) and key and not key.endswith("/"):
        assert matches(f"{key}/cat.jpg")


@given(NAMES.filter(lambda name: name.strip("/")))
def test_a_pattern_without_wildcards_matches_itself(name: str) -> None:
    assert compile_globs([name.strip("/")])(name.strip("/"))


def test_without_patterns_nothing_matches() -> None:
    assert not compile_globs([])("a.jpg")


@pytest.mark.parametrize("pattern", ["", "/", "[z-a]", "[]"])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        compile_globs([pattern])


def test_a_key_with_many_repetitions_takes_no_exponential_time() -> None:
    assert not compile_globs(["*-*-*-*-*-*-*-*.jpg"])("-" * 1000)
