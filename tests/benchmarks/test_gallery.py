"""The synthetic manifest of the benchmark of the gallery is one that Dreamgrid could have written."""

from benchmarks.gallery import DESTINATION, RUN, SETTINGS, part
from flows.destination.manifest import SCHEMA, from_parquet
from flows.s3 import layout


def test_synthetic_parts_are_like_real_ones() -> None:
    rows = from_parquet(part(0, 3 * len(SETTINGS), RUN, 0), SCHEMA.names).to_pylist()
    assert len({(row["source_uri"], row["source_etag"]) for row in rows}) == 3
    assert len({row["settings_id"] for row in rows}) == len(SETTINGS)
    for row in rows:
        if row["status"] == "done":
            name = row["source_uri"].removeprefix("s3://photos/")
            assert row["result_uri"].startswith(f"{layout.images_folder(DESTINATION)}{name}/")
            assert layout.result_id_of(row["result_uri"]) == row["result_id"]
            assert row["score_after"] > row["score_before"]
