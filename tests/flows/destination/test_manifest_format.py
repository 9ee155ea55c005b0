"""The manifest as a file format: rows, columns and types that other Parquet readers understand."""

import io
import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dreamcore.settings import DreamSettings
from flows.destination import manifest
from flows.destination.manifest import SCHEMA, SCHEMA_VERSION, Row, to_parquet
from flows.destination.summary import summarize
from flows.s3.layout import part_uri
from flows.s3.storage import Storage
from tests.support.command import Command
from tests.support.rows import DONE, FAILED

ROWS = [FAILED, DONE]
SINCE_VERSION_2 = {"octaves_left_out", "octave_scores", "stage_scores", "result_id"}


def test_the_columns_are_the_fields_of_a_row() -> None:
    assert SCHEMA.names == [field.name for field in fields(Row)]
    assert all(field.nullable for field in SCHEMA)


def test_every_column_is_filled_by_a_finished_dream() -> None:
    """Then the round trip below proves the type of every column."""
    assert {name for name, value in asdict(DONE).items() if value is None} == {"error_kind", "error"}


def test_rows_are_restored_from_parquet() -> None:
    table = pq.read_table(io.BytesIO(to_parquet(ROWS)))
    assert table.to_pylist() == [asdict(row) for row in ROWS]
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata[b"dreamgrid.schema_version"] == SCHEMA_VERSION.encode()


def test_a_part_without_rows_has_all_columns() -> None:
    assert pq.read_table(io.BytesIO(to_parquet([]))).schema.equals(SCHEMA)


def write_manifest(folder: Path) -> Path:
    """Write a manifest of two runs into a folder, with the layout of a destination."""
    for run, rows in (("r1", ROWS), ("r2", [replace(DONE, run_id="r2")])):
        part = Path(part_uri(f"{folder}/", run, 3))
        part.parent.mkdir(parents=True)
        part.write_bytes(to_parquet(rows))
    return folder / "manifest"


def test_pyarrow_reads_the_manifest(tmp_path: Path) -> None:
    table = ds.dataset(write_manifest(tmp_path), partitioning="hive").to_table(filter=ds.field("run") == "r1")
    assert table.num_rows == 2
    assert table["layers"][0].as_py() == FAILED.layers
    assert table.schema.field("created_at").type == pa.timestamp("us", tz="UTC")


def test_duckdb_reads_the_manifest(tmp_path: Path) -> None:
    parts = f"{write_manifest(tmp_path)}/run=*/*.parquet"
    rows = duckdb.execute(
        f"""SELECT run, status, layers[1].name, layers[1].channels, seed, score_after - score_before,
                   classes_after[1].label, settings->>'$.gradient', epoch_us(created_at)
            FROM read_parquet('{parts}', hive_partitioning = true) ORDER BY run, status"""
    ).fetchall()
    moment = round(DONE.created_at.timestamp() * 1_000_000)
    done = ("done", "deep", [3, 5], 2**63 - 1, 3.75, "red fox", "laplacian", moment)
    failed = ("failed", "deep", [3, 5], 2**63 - 1, None, None, "laplacian", moment)
    assert rows == [("r1", *done), ("r1", *failed), ("r2", *done)]


def test_the_summary_labels_the_points_of_a_grid(storage: Storage, destination: str, dreamgrid: Command) -> None:
    guide = {"uri": "s3://photos/flowers.jpg", "sha256": "ab" * 32}
    points = (
        {"seed": 1},
        {"seed": 2},
        {"guide": guide},
        {"preset": "tf2"},
        {"model": "googlenet", "layers": "inception4c"},
    )
    grid = [DreamSettings.model_validate(point) for point in points]
    rows = [replace(DONE, settings=each.canonical_json(), settings_id=f"{n:016d}") for n, each in enumerate(grid)]
    storage.write(part_uri(destination, "r", 0), to_parquet(rows), "application/vnd.apache.parquet")
    shown = dreamgrid("manifest", destination, COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    for besides in ("seed 1", "seed 2", "guide flowers.jpg", "model googlenet"):
        assert f"2.50   {besides}\n" in re.sub(" +\n", "\n", shown.stdout)
    assert "2.50   tf2" in shown.stdout
    found = json.loads(dreamgrid("manifest", destination, "--json").stdout)["settings"]
    assert [DreamSettings.model_validate(entry["settings"]) for entry in found] == grid


def test_a_piped_table_has_whole_addresses_on_one_line_each(
    storage: Storage, destination: str, dreamgrid: Command
) -> None:
    uri = "s3://photos/" + "日本 x/" * 100 + "end.jpg"
    rows = [replace(FAILED, source_uri=uri, error="e" * 400)]
    storage.write(part_uri(destination, "r", 0), to_parquet(rows), manifest.CONTENT_TYPE)
    lines = dreamgrid("manifest", "failures", destination, COLUMNS="40").stdout.splitlines()
    assert [len(lines), lines[1].split()[:2]] == [3, ["1", "damaged"]]
    assert uri in lines[1]
    assert "e" * 400 in lines[1]


def test_settings_of_another_version_are_summarised(storage: Storage, destination: str, dreamgrid: Command) -> None:
    later = {**json.loads(DONE.settings), "a_setting_of_tomorrow": 3}
    rows = [DONE, replace(DONE, settings=json.dumps(later), settings_id="1" * 16)]
    storage.write(part_uri(destination, "r", 0), to_parquet(rows), "application/vnd.apache.parquet")
    shown = dreamgrid("manifest", destination, COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if "settings of another version of Dreamgrid" in line]
    assert [line.split()[:4] for line in lines] == [["deep:3,5=-0.5+stem", "4", "10", "1"]]


def test_parts_are_listed_in_the_order_of_their_shards() -> None:
    parts = [part_uri("s3://dreams/x/", "r", shard) for shard in (9, 10, 123_456)]
    assert parts == sorted(parts)
    assert parts[0] == "s3://dreams/x/manifest/run=r/shard-000009.parquet"


def part_of_version_1(rows: list[Row]) -> bytes:
    """Return a part without the columns of versions 2 and 3, and with settings that have no guide."""
    columns = [name for name in SCHEMA.names if name not in SINCE_VERSION_2]
    schema = pa.schema([SCHEMA.field(name) for name in columns], {"dreamgrid.schema_version": "1"})
    settings = DreamSettings().model_dump_json(include={"model", "layers", "octaves", "steps", "max_pixels", "output"})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(replace(row, settings=settings)) for row in rows], schema), sink)
    return sink.getvalue()


def test_parts_of_version_1_are_read_together_with_newer_ones(storage: Storage, destination: str) -> None:
    older = [replace(row, run_id="r0") for row in ROWS]
    for run, data in (("r0", part_of_version_1(older)), ("r1", to_parquet(ROWS))):
        storage.write(part_uri(destination, run, 3), data, "application/vnd.apache.parquet")
    rows = manifest.read(storage, destination)
    assert rows.schema.names == SCHEMA.names
    found = rows.to_pylist()
    assert found[2:] == [asdict(row) for row in ROWS]
    for row, written in zip(found[:2], older, strict=True):
        assert {name for name in row if row[name] != asdict(written)[name]} <= SINCE_VERSION_2 | {"settings"}
        assert [row[name] for name in SINCE_VERSION_2 - {"result_id"}] == [None, None, None]
    (scored,) = manifest.read(
        storage, destination, ["run_id", "stage_scores"], where=pc.is_valid(pc.field("stage_scores"))
    ).to_pylist()
    assert scored == {"run_id": "r1", "stage_scores": DONE.stage_scores}


def test_the_result_id_of_an_old_row_is_taken_from_its_address(storage: Storage, destination: str) -> None:
    copy = replace(DONE, result_uri=str(DONE.result_uri).replace("/a.png/", "/copy.png/"))
    other = replace(DONE, result_uri="s3://dreams/images/a.png/stem-4x10-0011ffffffffffff.png")
    storage.write(part_uri(destination, "r0", 0), part_of_version_1([*ROWS, copy, other]), manifest.CONTENT_TYPE)
    for columns in (["result_id"], ["result_id", "result_uri"], ["result_uri", "result_id", "status"], None):
        table = manifest.read(storage, destination, columns)
        assert table.schema.names == (columns or SCHEMA.names)
        same, different = "00112233445566ff", "0011ffffffffffff"
        assert table["result_id"].to_pylist() == [None, same, same, different]
    assert manifest.find_results(storage, destination, same) == {same: DONE.result_uri}
    assert manifest.find_results(storage, destination, "0011").keys() == {same, different}
    assert manifest.find_results(storage, destination, "abc") == {}


def test_old_and_new_parts_are_read_together_by_other_readers(tmp_path: Path) -> None:
    """The queries of docs/manifest.md for a destination with parts of several versions."""
    folder = write_manifest(tmp_path)
    old = Path(part_uri(f"{tmp_path}/", "r0", 0))
    old.parent.mkdir()
    old.write_bytes(part_of_version_1([replace(DONE, run_id="r0")]))
    query = f"SELECT run_id, result_id FROM read_parquet('{folder}/**/*.parquet', union_by_name = true) ORDER BY ALL"
    expected = [("r0", None), ("r1", DONE.result_id), ("r1", None), ("r2", DONE.result_id)]
    assert duckdb.execute(query).fetchall() == expected
    table = ds.dataset(folder, schema=SCHEMA).to_table(columns=["run_id", "result_id"])
    assert sorted(map(str, table["result_id"].to_pylist())) == sorted(str(each) for _, each in expected)


def test_parts_of_version_1_alone_are_summarised(storage: Storage, destination: str) -> None:
    storage.write(part_uri(destination, "r0", 0), part_of_version_1(ROWS), "application/vnd.apache.parquet")
    found = summarize(storage, destination)
    assert (found["rows"], found["statuses"]) == (2, {"failed": 1, "done": 1})
    assert [(entry["layers"], entry["score_after"]) for entry in found["settings"]] == [("deep:3,5=-0.5+stem", 2.5)]
