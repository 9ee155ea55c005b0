"""The cache has the rows of the manifest's parts, whatever happens to the parts and to the cache's files."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from dreamcore.settings import DreamSettings
from flows.gallery.cache import UNUSED_DAYS, Cache, delete_unused
from flows.gallery.queries import Queries
from flows.gallery.records import Counts, Filters
from flows.results.compact import compact
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.flows.test_old_destination import DESTINATION as OLD_DESTINATION
from tests.flows.test_old_destination import old
from tests.support.gallery import make_row, write_part

__all__ = ["old"]

EVERYTHING = Filters(status="")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the caches of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dreamgrid" / "gallery"


class Counting(Storage):
    """A storage that knows which parts were read."""

    def read(self, uri: str) -> bytes | None:
        self.parts = [*getattr(self, "parts", []), uri]
        return super().read(uri)


def names(cache: Cache) -> list[str]:
    photographs, _ = Queries(cache).photographs(EVERYTHING)
    return [each.name for each in photographs]


def count(cache: Cache) -> int:
    found = Queries(cache).counts(EVERYTHING)
    return found.dreams + found.failed


def databases(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.duckdb"))


def test_only_new_and_changed_parts_are_read(storage: Storage, destination: str, folder: Path) -> None:
    counting = Counting()
    for shard, name in enumerate("abc"):
        write_part(storage, destination, [make_row(destination, name)], [shard])
    with Cache.open(destination, counting) as cache:
        assert (cache.refresh(), cache.refresh()) == (3, 0)
    write_part(storage, destination, [make_row(destination, "B"), make_row(destination, "BB")], [1])
    write_part(storage, destination, [make_row(destination, "d")], [3])
    storage.delete(layout.part_uri(destination, "20260102T030405Z-abcdef", 0))
    counting.parts = []
    with Cache.open(destination, counting) as cache:
        assert names(cache) == ["a", "b", "c"], "kept from before"
        before = cache.generation
        assert cache.refresh() == 3
        assert cache.generation != before
        assert names(cache) == ["B", "BB", "c", "d"]
    assert [layout.shards_of_part(uri).start for uri in counting.parts] == [1, 3]


def test_a_merged_part_replaces_the_parts_that_it_covers(storage: Storage, destination: str, folder: Path) -> None:
    rows = [make_row(destination, name) for name in "abc"]
    for shard, row in enumerate(rows):
        write_part(storage, destination, [row], [shard])
    with Cache.open(destination, storage) as cache:
        assert cache.refresh() == 3
        write_part(storage, destination, rows, range(3))
        assert (cache.refresh(), count(cache)) == (3, 3), "the merged part and the covered ones exist"
        for shard in range(3):
            storage.delete(layout.part_uri(destination, rows[0].run_id, shard))
        assert (cache.refresh(), names(cache)) == (0, ["a", "b", "c"])


def test_readers_see_a_whole_state_while_parts_are_merged(storage: Storage, destination: str, folder: Path) -> None:
    rows = [make_row(destination, f"{number:03}") for number in range(40)]
    for shard, row in enumerate(rows):
        write_part(storage, destination, [row], [shard])
    with Cache.open(destination, storage) as cache, ThreadPoolExecutor(2) as pool:
        cache.refresh()
        stopped = Event()

        def watch() -> set[tuple[int, Counts]]:
            queries, seen = Queries(cache), set()
            while not stopped.is_set():
                photographs, _ = queries.photographs(Filters(), limit=500)
                seen.add((len(photographs), queries.counts(Filters())))
            return seen

        watching = [pool.submit(watch) for _ in range(2)]
        try:
            write_part(storage, destination, rows[:20], range(20))
            cache.refresh()
            write_part(storage, destination, rows[20:], range(20, 40))
            cache.refresh()
        finally:
            stopped.set()
        assert {each for future in watching for each in future.result()} == {(40, Counts(40, 40, 0))}


def test_a_damaged_part_is_left_out(
    storage: Storage, destination: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_part(storage, destination, [make_row(destination, "a")])
    broken = layout.part_uri(destination, "20260102T030405Z-abcdef", 1)
    storage.write(broken, b"PAR1 broken", "application/octet-stream")
    with Cache.open(destination, storage) as cache:
        assert (cache.refresh(), cache.refresh()) == (1, 0)
        assert names(cache) == ["a"]
        assert Queries(cache).damaged_parts() == [broken]
    assert f"{broken} is left out, because it is damaged" in caplog.text


def test_the_rows_of_version_0_1_are_read(old: dict[str, bytes], storage: Storage, folder: Path) -> None:
    with Cache.open(OLD_DESTINATION, storage) as cache:
        assert cache.refresh() == 7
        photographs, _ = Queries(cache).photographs(EVERYTHING)
        assert [(each.name, each.dreams, each.failed) for each in photographs] == [
            ("broken.png", 0, 2),
            ("trip/100% red.png", 3, 0),
            ("waves.png", 2, 0),
        ]
        dream = Queries(cache).dream("4ab0a64b1e884317")
        assert dream is not None
        assert (dream.source_name, dream.layers) == ("trip/100% red.png", "blocks.0+blocks.1=0.3")
        compact(storage, OLD_DESTINATION)
        assert (cache.refresh(), count(cache)) == (6, 7)


CHILD = """
import sys
from flows.gallery.cache import Cache
from flows.gallery.queries import Queries
from flows.gallery.records import Filters
from flows.s3.storage import Storage
with Cache.open(sys.argv[1], Storage()) as cache:
    cache.refresh()
    print(Queries(cache).counts(Filters()).dreams)
"""


def test_several_servers_share_a_destination(storage: Storage, destination: str, folder: Path) -> None:
    write_part(storage, destination, [make_row(destination, name) for name in "ab"])
    with Cache.open(destination, storage) as first, Cache.open(destination, storage) as second:
        assert (first.refresh(), second.refresh()) == (2, 2)
        child = subprocess.run([sys.executable, "-c", CHILD, destination], capture_output=True, text=True, check=True)
        assert child.stdout.split() == ["2"]
        assert (count(first), count(second)) == (2, 2)
    assert len(databases(folder)) == 3
    with Cache.open(destination, storage) as cache:
        assert (cache.refresh(), count(cache)) == (0, 2), "the first file is free again"


def test_ranks_after_few_changes_are_those_of_a_new_cache(storage: Storage, destination: str, folder: Path) -> None:
    settings = [DreamSettings(layers=layers) for layers in ("blocks.2", "blocks.3")]
    rows = [make_row(destination, f"{n % 60}", settings[n // 60], gain=float(n * 37 % 11)) for n in range(100)]
    sql = "SELECT result_no, number, gain_rank, score_rank FROM dreams ORDER BY result_no"
    write_part(storage, destination, rows[:95], [0])
    with Cache.open(destination, storage) as cache:
        cache.refresh()
        write_part(storage, destination, rows[95:98], [1])
        cache.refresh()
        between = cache.query(sql)
        storage.delete(layout.part_uri(destination, rows[0].run_id, 1))
        write_part(storage, destination, rows[98:], [2])
        cache.refresh()
        with Cache.open(destination, storage) as fresh:
            fresh.refresh()
            assert cache.query(sql) == fresh.query(sql)
        assert between != cache.query(sql)
        assert {number for _, number, *_ in cache.query(sql)} == {1, 2}


def test_only_caches_that_nobody_has_opened_for_long_are_deleted(
    storage: Storage, destination: str, folder: Path
) -> None:
    def age(key: str, days: float) -> None:
        for path in (folder / key).iterdir():
            os.utime(path, times=(time.time() - 86_400 * days,) * 2)

    keys: dict[str, str] = {}
    for name in ("old", "recent", "open", "shared"):
        with Cache.open(f"{destination}{name}/", storage):
            (keys[name],) = {path.name for path in folder.iterdir()} - set(keys.values())
    (folder / "runs" / keys["old"]).mkdir(parents=True)
    with Cache.open(f"{destination}open/", storage), Cache.open(f"{destination}shared/", storage):
        with Cache.open(f"{destination}shared/", storage):
            pass
        for name in keys:
            age(keys[name], UNUSED_DAYS + 1 if name != "recent" else UNUSED_DAYS - 1)
        assert delete_unused(folder) == [keys["old"]]
        assert sorted(path.name for path in (folder / keys["shared"]).glob("*.duckdb")) == ["0.duckdb"]
        assert {path.name for path in folder.iterdir()} == {*keys.values(), "runs"} - {keys["old"]}
    with Cache.open(f"{destination}open/", storage):
        pass
    assert delete_unused(folder) == [keys["shared"]], "the other one was opened a moment ago"


KILLED = f"""
import os, signal
from flows.gallery import tables
tables.rank = lambda db: os.kill(os.getpid(), signal.SIGKILL)
{CHILD}
"""


def test_a_fill_that_was_killed_is_finished(storage: Storage, destination: str, folder: Path) -> None:
    write_part(storage, destination, [make_row(destination, name, gain=len(name)) for name in ("a", "bb")])
    child = subprocess.run([sys.executable, "-c", KILLED, destination], capture_output=True, text=True, check=False)
    assert child.returncode == -9, child.stderr
    with Cache.open(destination, storage) as cache:
        cache.refresh()
        photographs, _ = Queries(cache).photographs(Filters())
        assert [each.best and each.best.gain_rank for each in photographs] == [0.25, 0.75]


def overwrite(file: Path) -> None:
    file.write_bytes(b"something else" * 1000)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_blocks(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for place in range(3 * 4096 + 500, len(data), 1000):  # behind the headers
        data[place] ^= 255
    file.write_bytes(data)


def move(file: Path) -> None:
    """Put the cache of another destination in this place."""
    with Cache.open("s3://dreams/another/", Storage()):
        pass
    (other,) = (each for each in file.parent.parent.glob("*/*.duckdb") if each != file)
    other.rename(file)


@pytest.mark.parametrize("damage", [overwrite, empty, truncate, flip_blocks, move])
def test_a_damaged_or_foreign_cache_is_built_again(
    damage: Callable[[Path], None], storage: Storage, destination: str, folder: Path
) -> None:
    rows = [make_row(destination, f"{number:05}", DreamSettings(seed=number % 7)) for number in range(500)]
    write_part(storage, destination, rows)
    marks = {rows[0].result_id or "": 3}
    with Cache.open(destination, storage) as cache:
        cache.refresh()
    (file,) = databases(folder)
    damage(file)
    with Cache.open(destination, storage) as cache:
        cache.refresh()
        queries = Queries(cache, lambda: marks)
        assert len(queries.photographs(Filters(), limit=1000)[0]) == 500
        assert [dream.source_name for dream in queries.favourites()[0]] == ["00000"]


def test_the_files_are_private_and_have_no_secrets(
    storage: Storage, destination: str, folder: Path, old_umask: None
) -> None:
    write_part(storage, destination, [make_row(destination)])
    with Cache.open(destination, storage) as cache:
        cache.refresh()
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files if path.suffix == ".duckdb"} == {0o600}
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o700}
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.fixture
def old_umask() -> Iterator[None]:
    """Let new files be readable by everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_without_a_cache_folder_the_rows_are_read_anew(
    storage: Storage, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write_part(storage, destination, [make_row(destination, "a")])
    for _ in range(2):
        with Cache.open(destination, storage) as cache:
            assert (cache.refresh(), names(cache)) == (1, ["a"])


def test_names_of_photographs_without_dreams_become_known(storage: Storage, destination: str, folder: Path) -> None:
    write_part(storage, destination, [make_row(destination, "trip/a.jpg", status="failed")], [0])
    with Cache.open(destination, storage) as cache:
        cache.refresh()
        assert names(cache) == ["a.jpg"], "nothing says where the source begins"
        write_part(storage, destination, [make_row(destination, "trip/a.jpg")], [0])
        write_part(storage, destination, [make_row(destination, "trip/b.jpg", status="failed")], [1])
        cache.refresh()
        assert names(cache) == ["trip/a.jpg", "trip/b.jpg"]
