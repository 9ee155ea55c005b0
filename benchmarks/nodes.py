"""Section `nodes`: the same collection on one Ray node and on two, with one CPU each."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from benchmarks.collection import SIZE, Times, photograph, run_flow, servers
from benchmarks.timing import Row
from dreamcore.errors import InvalidInput
from flows.local.ray_nodes import ray_nodes

__all__ = ["busy_share", "measure_nodes"]

COUNTS = (1, 2)


def measure_nodes(*, quick: bool) -> list[Row]:
    """Measure the section `nodes`. The nodes share the cores of this machine with S3, Prefect and the coordinator."""
    count = 4 if quick else 200
    photographs = [photograph(SIZE, seed) for seed in range(count)]
    rows: list[Row] = []
    for nodes in COUNTS:
        with TemporaryDirectory() as folder:
            try:
                times = run_on(nodes, Path(folder), photographs)
            except InvalidInput as error:  # no S3 server for this platform
                return [Row("", "", note=f"not measured: {error}")]
        case, name = f"{count} photographs {SIZE[1]}x{SIZE[0]}", f"{nodes} node{'s' * (nodes > 1)}"
        whole = 1000 * (times.ended - times.started)
        shards = 1000 * (times.last_shard - min(start for start, _ in times.shards))
        of_whole, of_shards = {}, {"busy": busy_share(times.shards, nodes)}
        if rows:
            of_whole["two_nodes"] = (rows[0].wall_ms or 0) / whole
            of_shards["two_nodes_shards"] = (rows[1].wall_ms or 0) / shards
        rows.append(Row(case, f"{name}, the whole command", whole, figures=of_whole))
        rows.append(Row(case, f"{name}, from the first shard to the last", shards, figures=of_shards))
    return rows


def run_on(nodes: int, folder: Path, photographs: Sequence[bytes]) -> Times:
    """Dream the photographs on new servers and new nodes, and return the times of the run.

    Raises:
        InvalidInput: there is no S3 server for this platform.
    """
    with (
        servers(folder, photographs) as environment,
        mock.patch.dict(os.environ, {**environment, "CUDA_VISIBLE_DEVICES": ""}),  # the nodes inherit it
        ray_nodes(nodes) as cluster,
    ):
        return run_flow(environment, len(photographs), "--ray", cluster.address)


def busy_share(shards: Sequence[tuple[float, float]], workers: int) -> float:
    """Return the share of the workers' time that is spent on shards, while shards wait.

    Args:
        shards: the start and the end of each shard. A shard waits until it starts.
        workers: how many shards can run at the same time.
    """
    first, last = min(start for start, _ in shards), max(start for start, _ in shards)
    if first == last:
        return 1.0
    return sum(min(end, last) - start for start, end in shards) / (workers * (last - first))
