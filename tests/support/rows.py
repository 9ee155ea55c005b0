"""Rows of a manifest: a failed dream, and a finished one with every column filled in."""

from dataclasses import replace
from datetime import UTC, datetime

from dreamcore.settings import ALGORITHM_VERSION, DreamSettings
from flows.destination.manifest import Row

FAILED = Row(
    run_id="r1",
    job_id="j1",
    shard=3,
    status="failed",
    error_kind="damaged",
    error="JPEG: image file is truncated",
    source_uri="s3://photos/käfer 'n' \"co\".jpg",
    source_etag='"e"',
    source_bytes=2**40,
    settings_id="0123456789abcdef",
    model="tiny",
    weights_sha256="w",
    layers=[{"name": "deep", "channels": [3, 5], "weight": -0.5}, {"name": "stem", "channels": [], "weight": 1.0}],
    octaves=4,
    octave_scale=1.4,
    steps=10,
    step_size=0.01,
    jitter=32,
    seed=2**63 - 1,
    settings=DreamSettings().canonical_json(),
    algorithm_version=ALGORITHM_VERSION,
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
)


DONE = replace(
    FAILED,
    status="done",
    error_kind=None,
    error=None,
    source_width=640,
    source_height=480,
    score_before=-1.25,
    score_after=2.5,
    layer_scores=[{"layer": "deep:3,5", "before": -1.25, "after": 2.5}],
    classes_before=[{"label": "tabby", "p": 0.5}],
    classes_after=[{"label": "red fox", "p": 0.25}],
    result_uri="s3://dreams/images/a.png/stem-4x10-00112233445566ff.png",
    result_id="00112233445566ff",
    result_bytes=123,
    result_sha256="ab" * 32,
    width=64,
    height=48,
    device="cpu",
    precision="float32",
    batch=1,
    tile=512,
    seconds=1.5,
    octaves_left_out=2,
    enlarged_from="ffeeddccbbaa9988",
    octave_scores=[0.5, 2.5],
    stage_scores=[{"layer": "stem", "before": 0.25, "after": 0.75}, {"layer": "deep", "before": -1.0, "after": 2.0}],
)
