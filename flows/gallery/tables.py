"""The tables of the cache, and how rows of the manifest get into them.

`dreams` has the columns that filters and orders need, in numbers; `details` has the rest. Texts that many rows share
are in tables of their own: `sources`, `settings`, `labels`, `runs`.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dreamcore.settings import result_id
from flows.gallery.points import Point, read_point
from flows.s3 import layout

__all__ = [
    "COLUMNS",
    "FORMAT",
    "STATUSES",
    "check",
    "create",
    "forget",
    "insert",
    "rank",
    "rank_if_needed",
    "searchable",
]

FORMAT = "2"
"""Incremented when the tables change. A cache of another format is built again."""

STATUSES = ("done", "failed", "skipped")
"""`dreams.status` is an index into this tuple."""

COLUMNS = (
    "run_id", "shard", "status", "error_kind", "error", "source_uri", "source_etag", "settings_id", "settings",
    "score_before", "score_after", "layer_scores", "octave_scores", "stage_scores", "classes_before", "classes_after",
    "width", "height", "seconds", "device", "result_uri", "result_bytes", "created_at", "result_id",
    "enlarged_from",
)  # fmt: skip
"""The columns of the manifest that the cache has."""

_TABLES = """
CREATE TABLE meta (key VARCHAR, value VARCHAR);
CREATE TABLE parts (part_no INTEGER, uri VARCHAR, etag VARCHAR, is_damaged BOOLEAN);
CREATE TABLE runs (run_no INTEGER, run_id VARCHAR);
CREATE TABLE sources (source_no INTEGER, uri VARCHAR, name VARCHAR, search VARCHAR, is_guess BOOLEAN);
CREATE TABLE settings (settings_no INTEGER, objective_no INTEGER, settings_id VARCHAR, text VARCHAR);
CREATE TABLE labels (label_no INTEGER, label VARCHAR, search VARCHAR);
CREATE TABLE dreams (
    dream_no INTEGER, part_no INTEGER, source_no INTEGER, settings_no INTEGER, objective_no INTEGER, run_no INTEGER,
    status TINYINT, label_no INTEGER, result_no UBIGINT, gain DOUBLE, score DOUBLE, seconds DOUBLE,
    created_at TIMESTAMP, shard INTEGER, number INTEGER, gain_rank DOUBLE, score_rank DOUBLE
);
CREATE TABLE details (
    dream_no INTEGER, part_no INTEGER, source_etag VARCHAR, error_kind VARCHAR, error VARCHAR, score_before DOUBLE,
    layer_scores STRUCT(layer VARCHAR, "before" DOUBLE, "after" DOUBLE)[],
    octave_scores DOUBLE[],
    stage_scores STRUCT(layer VARCHAR, "before" DOUBLE, "after" DOUBLE)[],
    classes_before STRUCT(label VARCHAR, p DOUBLE)[],
    classes_after STRUCT(label VARCHAR, p DOUBLE)[],
    width INTEGER, height INTEGER, device VARCHAR, result_uri VARCHAR, result_bytes BIGINT,
    enlarged_from UBIGINT
);
"""


def create(db: Any, key: str) -> None:
    """Create the tables in an empty database. `key` identifies the destination."""
    db.execute(_TABLES)
    db.execute("INSERT INTO meta VALUES ('format', ?), ('key', ?)", [FORMAT, key])


def check(db: Any, key: str) -> None:
    """Raise `ValueError` if another version made the tables, or for another destination."""
    found = dict(db.execute("SELECT key, value FROM meta WHERE key NOT IN ('prefix', 'sorted')").fetchall())
    if found != {"format": FORMAT, "key": key}:
        raise ValueError("it belongs to another version or destination")


def searchable(text: str) -> str:
    """Return text for a search that ignores upper and lower case."""
    return unicodedata.normalize("NFC", text).casefold()


def forget(db: Any, parts: Sequence[int]) -> None:
    """Delete the rows of these parts. Afterwards, call `rank` for the rows that stay."""
    db.execute(_STALE)
    rows = "SELECT DISTINCT objective_no, source_no FROM dreams WHERE part_no IN (SELECT unnest(?::INTEGER[]))"
    db.execute(f"INSERT INTO stale {rows}", [list(parts)])
    for table in ("dreams", "details", "parts"):
        db.execute(f"DELETE FROM {table} WHERE part_no IN (SELECT unnest(?::INTEGER[]))", [list(parts)])  # noqa: S608


def insert(db: Any, rows: pa.Table, points: Mapping[int, Point]) -> dict[int, Point]:
    """Add rows of the manifest. Return `points` with the new settings.

    Args:
        db: a connection within a transaction.
        rows: `COLUMNS` and `part_no`.
        points: the settings that the cache has, by `settings_no`.
    """
    db.register("batch", _with_ids(rows))
    _insert_sources(db)
    points = {**points, **_insert_settings(db, points)}
    db.execute(_NEW_TEXTS)
    (first,) = db.execute("SELECT coalesce(max(dream_no), 0) + 1 FROM details").fetchone()
    db.execute(
        "CREATE OR REPLACE TEMP TABLE numbered AS SELECT ? + row_number() OVER () AS dream_no, * FROM batch", [first]
    )
    db.execute(_INSERT_DREAMS)
    db.execute(_INSERT_DETAILS)
    db.execute("DROP TABLE numbered")
    db.unregister("batch")
    return points


def _with_ids(rows: pa.Table) -> pa.Table:
    """Give failed dreams the `result_id` that the dream would have, and drop the zone of the times, which is UTC."""
    ids = rows["result_id"].to_pylist()
    if None in ids:
        identities = zip(ids, rows["source_etag"].to_pylist(), rows["settings_id"].to_pylist(), strict=True)
        ids = [known or result_id(etag, settings) for known, etag, settings in identities]
    times = rows["created_at"].cast(pa.timestamp("us"))
    rows = rows.set_column(rows.schema.get_field_index("result_id"), "result_id", pa.array(ids, pa.string()))
    return rows.set_column(rows.schema.get_field_index("created_at"), "created_at", times)


_NEW_TEXTS = """
INSERT INTO runs SELECT (SELECT count(*) FROM runs) + row_number() OVER (ORDER BY run_id), run_id
FROM (SELECT DISTINCT run_id FROM batch) WHERE run_id NOT IN (SELECT run_id FROM runs);
INSERT INTO labels SELECT (SELECT count(*) FROM labels) + row_number() OVER (ORDER BY label), label, lower(label)
FROM (SELECT DISTINCT classes_after[1].label AS label FROM batch)
WHERE label IS NOT NULL AND label NOT IN (SELECT label FROM labels);
"""

_INSERT_DREAMS = """
INSERT INTO dreams
SELECT dream_no, part_no, source_no, settings_no, objective_no, run_no,
    CASE b.status WHEN 'done' THEN 0 WHEN 'failed' THEN 1 ELSE 2 END, label_no,
    ('0x' || b.result_id)::UBIGINT, score_after - score_before, score_after, seconds,
    created_at, shard, 0, NULL, NULL
FROM numbered b
JOIN sources s ON s.uri = b.source_uri
JOIN settings USING (settings_id)
JOIN runs USING (run_id)
LEFT JOIN labels l ON l.label = b.classes_after[1].label
ORDER BY dream_no
"""

_INSERT_DETAILS = """
INSERT INTO details
SELECT dream_no, part_no, source_etag, error_kind, error, score_before, layer_scores, octave_scores, stage_scores,
    classes_before, classes_after, width, height, device, result_uri, result_bytes,
    ('0x' || enlarged_from)::UBIGINT
FROM numbered
ORDER BY dream_no
"""


def _insert_settings(db: Any, points: Mapping[int, Point]) -> dict[int, Point]:
    """Add the settings that are new, and return them by `settings_no`."""
    new = db.execute(
        "SELECT settings_id, any_value(settings) FROM batch "
        "WHERE settings_id NOT IN (SELECT settings_id FROM settings) GROUP BY settings_id ORDER BY settings_id"
    ).fetchall()
    objectives = dict(db.execute("SELECT settings_no, objective_no FROM settings").fetchall()) if new else {}
    numbers = {points[settings_no].objective: number for settings_no, number in objectives.items()}
    rows, added = [], {}
    for settings_no, (settings_id, text) in enumerate(new, start=len(objectives) + 1):
        point = added[settings_no] = read_point(settings_id, text)
        rows.append((settings_no, numbers.setdefault(point.objective, len(numbers) + 1), settings_id, text))
    _append(db, "settings", rows)
    return added


def _insert_sources(db: Any) -> None:
    """Add the new photographs with their names below the source, which the addresses of their dreams tell."""
    new = db.execute(
        "SELECT source_uri, any_value(result_uri), any_value(source_no) "
        "FROM batch LEFT JOIN sources ON uri = source_uri WHERE is_guess IS NOT false GROUP BY source_uri "
        "ORDER BY source_uri"
    ).fetchall()
    (count,) = db.execute("SELECT count(*) FROM sources").fetchone()
    known = [row[0] for row in db.execute("SELECT value FROM meta WHERE key = 'prefix'").fetchall()]
    names = _Names(known)
    dreamt = [row for row in new if row[1] is not None]
    failed = [row for row in new if row[1] is None and row[2] is None]
    added = [(source_no, uri, names.of_dream(uri, result_uri), False) for uri, result_uri, source_no in dreamt]
    added += [(None, uri, names.guess(uri), True) for uri, *_ in failed]
    renamed = [(source_no,) for source_no, *_ in added if source_no is not None]
    if renamed:
        db.executemany("DELETE FROM sources WHERE source_no = ?", renamed)
    rows = []
    for source_no, uri, name, is_guess in added:
        if source_no is None:
            count += 1
        rows.append((source_no or count, uri, name, searchable(name), is_guess))
    _append(db, "sources", rows)
    for prefix in names.prefixes[len(known) :]:
        db.execute("INSERT INTO meta VALUES ('prefix', ?)", [prefix])


class _Names:
    """The names of photographs below their source.

    Args:
        prefixes: the sources that are known.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.prefixes = list(prefixes)

    def of_dream(self, uri: str, result_uri: str) -> str:
        """Return the name of a photograph that has a dream at this address."""
        folder = result_uri.rpartition("/")[0]
        for prefix in self.prefixes:
            name = uri.removeprefix(prefix)
            if name != uri and _is_folder_of(name, folder):
                return name
        steps = uri.split("/")
        for first in range(3, len(steps)):
            name = "/".join(steps[first:])
            if _is_folder_of(name, folder):
                self.prefixes.append(uri.removesuffix(name))
                return name
        return steps[-1] or uri

    def guess(self, uri: str) -> str:
        """Return the name of a photograph without dreams: below the longest known source, or else the file's name."""
        longest = max((prefix for prefix in self.prefixes if uri.startswith(prefix)), key=len, default="")
        return uri.removeprefix(longest or uri.rpartition("/")[0] + "/") or uri


def _is_folder_of(name: str, folder: str) -> bool:
    """Return whether the dreams of a photograph with this name are in a folder."""
    return folder.endswith((f"/images/{name}", f"/images/{layout.safe_name(name)}"))


def _append(db: Any, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        return
    columns = zip(*rows, strict=True)
    db.register("rows_to_append", pa.table({f"c{n}": list(column) for n, column in enumerate(columns)}))
    db.execute(f"INSERT INTO {table} SELECT * FROM rows_to_append")  # noqa: S608 - the tables are constants
    db.unregister("rows_to_append")


# --- ranks


def rank(db: Any) -> None:
    """Give all rows the ranks of their gains and scores, and their numbers.

    After a few new rows, only the ranks of their objectives and the numbers of their photographs are computed again.
    After many new rows, `dreams` is built again, sorted by photograph.
    """
    (rows,) = db.execute("SELECT count(*) FROM dreams").fetchone()
    found = db.execute("SELECT value FROM meta WHERE key = 'sorted'").fetchone()
    if found is None or rows > _MAX_GROWTH * int(found[0]):
        db.execute(_RANKED)
        db.execute("DELETE FROM meta WHERE key = 'sorted'")
        db.execute("INSERT INTO meta VALUES ('sorted', ?)", [str(rows)])
    else:
        db.execute(_STALE)
        db.execute(
            "INSERT INTO stale SELECT DISTINCT objective_no, source_no FROM dreams WHERE status = 0 AND number = 0"
        )
        db.execute(_RANKED_AGAIN)
    db.execute("DROP TABLE IF EXISTS stale")


def rank_if_needed(db: Any) -> None:
    """Rank rows that were added without ranks."""
    if db.execute("SELECT 1 FROM dreams WHERE status = 0 AND number = 0 LIMIT 1").fetchone():
        rank(db)


_MAX_GROWTH = 1.05
"""If `dreams` has grown by more than this factor, it is sorted again: unsorted rows slow queries for a photograph."""

_STALE = "CREATE TEMP TABLE IF NOT EXISTS stale (objective_no INTEGER, source_no INTEGER)"
"""The objectives and the photographs whose rows have changed."""

_STARTED = "started AS (SELECT run_no, min(created_at) AS begun FROM dreams GROUP BY run_no)"

_NUMBER = """
CASE WHEN status = 0 THEN row_number() OVER (
    PARTITION BY source_no, status = 0 ORDER BY begun, run_no, shard, created_at, dream_no
)::INTEGER ELSE 0 END AS number
"""

_RANKS = """
CASE WHEN gain IS NOT NULL THEN (
    (rank() OVER by_gain - 1) / count(gain) OVER (PARTITION BY objective_no) + cume_dist() OVER by_gain
) / 2 END AS gain_rank,
CASE WHEN score IS NOT NULL THEN (
    (rank() OVER by_score - 1) / count(score) OVER (PARTITION BY objective_no) + cume_dist() OVER by_score
) / 2 END AS score_rank
"""

_WINDOWS = """
WINDOW by_gain AS (PARTITION BY objective_no, gain IS NULL ORDER BY gain),
    by_score AS (PARTITION BY objective_no, score IS NULL ORDER BY score)
"""

_RANKED = f"""
CREATE OR REPLACE TABLE dreams AS
WITH {_STARTED}, ranked AS (
    SELECT d.* REPLACE ({_NUMBER}, {_RANKS}) FROM dreams d JOIN started USING (run_no) {_WINDOWS}
)
SELECT * FROM ranked ORDER BY source_no, number, dream_no
"""  # noqa: S608 - constants

_RANKED_AGAIN = f"""
CREATE OR REPLACE TEMP TABLE changed AS
SELECT dream_no, {_RANKS} FROM dreams WHERE objective_no IN (SELECT objective_no FROM stale) {_WINDOWS};
UPDATE dreams SET gain_rank = c.gain_rank, score_rank = c.score_rank FROM changed c WHERE c.dream_no = dreams.dream_no;
CREATE OR REPLACE TEMP TABLE changed AS
WITH {_STARTED} SELECT dream_no, {_NUMBER} FROM dreams JOIN started USING (run_no)
WHERE source_no IN (SELECT source_no FROM stale);
UPDATE dreams SET number = c.number FROM changed c WHERE c.dream_no = dreams.dream_no;
DROP TABLE changed;
"""  # noqa: S608 - constants
