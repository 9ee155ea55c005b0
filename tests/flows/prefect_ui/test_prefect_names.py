"""Keys of artifacts in the Prefect UI: valid, readable, and different for different things."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from flows.jobs.job import DreamJob
from flows.prefect_ui.prefect_names import artifact_key

FIELDS = {"source": "s3://photos/x/", "destination": "s3://dreams/nightly/"}
JOB = DreamJob.model_validate(FIELDS)


def test_a_key_is_readable() -> None:
    assert re.fullmatch("sheet-trip-100-25-red-png-[0-9a-f]{16}", artifact_key("sheet", "trip/100%25 Red.png", JOB))
    assert artifact_key("sheet", "日本", JOB).startswith("sheet-"), "a name without Latin letters has only its digest"


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=2, max_size=6, unique=True))
@example(["a.png", "A.png", "a-png", "a png", "日本", "中国"])
def test_no_two_photographs_share_a_key(names: list[str]) -> None:
    keys = {artifact_key("sheet", name, JOB, f"s3://photos/{name}", "page 1") for name in names}
    assert len(keys) == len(names)
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", key) and len(key) < 80 for key in keys)


def test_no_two_pages_kinds_settings_or_destinations_share_a_key() -> None:
    others = ({"destination": "s3://dreams/other/nightly/"}, {"grid": {"octaves": [3]}}, {"source": "s3://photos/y/"})
    jobs = [JOB, *(DreamJob.model_validate(FIELDS | fields) for fields in others)]
    keys = [artifact_key(kind, "x", job, part) for kind in ("sheet", "report") for job in jobs for part in ("1", "2")]
    assert len(set(keys)) == len(keys)
    same_work = DreamJob.model_validate(FIELDS | {"sheets": 3})
    assert artifact_key("report", "x", JOB) == artifact_key("report", "x", same_work), "the next run of the same job"
