"""The demonstration: the photographs of this repository through the main job, on the embedded stack."""

from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.images import has_image_suffix
from flows import layout
from flows.job import DreamJob, read_job
from flows.storage import storage

EXAMPLES = Path(__file__).parents[2] / "examples"


def prepare() -> DreamJob:
    """Put the example photographs into S3, unless they are there, and return the job that dreams them.

    Raises:
        InvalidInput: the examples are not there: this is an installed package and no checkout.
    """
    photographs = sorted(path for path in (EXAMPLES / "photos").glob("*") if has_image_suffix(path.name))
    if not photographs:
        raise InvalidInput(f"there are no photographs in {EXAMPLES / 'photos'}: run the demo in a checkout")
    job = read_job(EXAMPLES / "demo.yaml", {})
    storage().create_bucket(job.source)
    storage().create_bucket(job.destination)
    for path in photographs:
        data = path.read_bytes()
        if storage().read(job.source + path.name) != data:
            storage().write(job.source + path.name, data, f"image/{path.suffix[1:].replace('jpg', 'jpeg')}")
    return job


def fetch_sheets(job: DreamJob, folder: Path) -> Path:
    """Copy the contact sheets of the job's destination into a folder, to be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    for found in storage().list(layout.sheets_folder(job.destination)):
        data = storage().read(found.uri) or b""
        (folder / Path(found.uri).name).write_bytes(data)
    return folder
