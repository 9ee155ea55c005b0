"""The demo: dream the example photographs of this repository on the embedded servers."""

from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.images import has_image_suffix
from flows import layout
from flows.job import DreamJob, read_job
from flows.storage import storage

__all__ = ["fetch_sheets", "prepare"]

EXAMPLES = Path(__file__).parents[2] / "examples"


def prepare() -> DreamJob:
    """Upload the example photographs that S3 does not have yet, and return the job that dreams them.

    Raises:
        InvalidInput: the examples are missing, because this is an installed package and not a checkout.
    """
    photographs = sorted(path for path in (EXAMPLES / "photos").glob("*") if has_image_suffix(path.name))
    if not photographs:
        raise InvalidInput(f"{EXAMPLES / 'photos'} has no photographs: run the demo in a checkout of the repository")
    job = read_job(EXAMPLES / "demo.yaml", {})
    storage().create_bucket(job.source)
    storage().create_bucket(job.destination)
    for path in photographs:
        data = path.read_bytes()
        if storage().read(job.source + path.name) != data:
            storage().write(job.source + path.name, data, f"image/{path.suffix[1:].replace('jpg', 'jpeg')}")
    return job


def fetch_sheets(job: DreamJob, folder: Path) -> Path:
    """Copy the contact sheets of the job's destination into a local folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for found in storage().list(layout.sheets_folder(job.destination)):
        data = storage().read(found.uri) or b""
        (folder / Path(found.uri).name).write_bytes(data)
    return folder
