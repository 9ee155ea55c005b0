"""The demo: dream the example photographs of this repository on the embedded servers."""

import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.images import has_image_suffix
from flows.jobs.job import DreamJob, read_job
from flows.jobs.job_options import ExecutorOptions
from flows.local.ray_nodes import ray_nodes
from flows.s3 import layout
from flows.s3.storage import storage

__all__ = ["failing_cluster", "fetch_sheets", "next_steps", "prepare"]

EXAMPLES = Path(__file__).parents[2] / "examples"
NODES = 3
DREAMS_BEFORE_FAILURE = 6
"""A node is killed as soon as there are this many dreams."""


def prepare() -> DreamJob:
    """Upload the example photographs that S3 does not have yet, and return the job that dreams them.

    Raises:
        InvalidInput: the examples are missing, because this is an installed package and not a checkout.
    """
    photographs = sorted(path for path in (EXAMPLES / "photos").glob("*") if has_image_suffix(path.name))
    if not photographs:
        raise InvalidInput(f"{EXAMPLES / 'photos'} has no photographs: run the demo in a checkout of the repository")
    job = read_job(EXAMPLES / "demo.yaml", {})
    (source,) = job.addresses
    storage().create_bucket(source)
    storage().create_bucket(job.destination)
    for path in photographs:
        data = path.read_bytes()
        if storage().read(source + path.name) != data:
            storage().write(source + path.name, data, f"image/{path.suffix[1:].replace('jpg', 'jpeg')}")
    return job


def fetch_sheets(job: DreamJob, folder: Path) -> Path:
    """Copy the contact sheets of the job's destination into a local folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for found in storage().list(layout.sheets_folder(job.destination)):
        data = storage().read(found.uri) or b""
        (folder / Path(found.uri).name).write_bytes(data)
    return folder


def next_steps(destination: str) -> list[str]:
    """Return the commands that come after the demo, as lines to print. A reader can copy them in this order."""
    activate = Path(sys.prefix) / "bin" / "activate"
    if activate.is_relative_to(Path.cwd()):
        activate = activate.relative_to(Path.cwd())
    is_on_path = shutil.which("dreamgrid") is not None
    return [
        "",
        "To browse the dreams, give these commands in this folder. Ctrl-C ends the gallery:",
        *([] if is_on_path or not activate.exists() else [f"  source {shlex.quote(str(activate))}"]),
        '  eval "$(dreamgrid env)"',
        f"  dreamgrid gallery {destination}",
        "To make one dream large, give its id, which the gallery shows. 12 megapixels take some minutes:",
        f"  dreamgrid enlarge {destination} ID print.png",
        "To stop the servers, and keep all dreams:",
        "  dreamgrid down",
    ]


@contextmanager
def failing_cluster(job: DreamJob, on_failure: Callable[[str], None]) -> Iterator[DreamJob]:
    """Start three Ray nodes, and kill the last one after the first dreams of a run.

    Args:
        job: the job of the demo.
        on_failure: called with the address of the killed node.

    Returns:
        The job for this cluster, with a new destination. The cluster stops at the end of the block.
    """
    folder = f"{job.destination}cluster-{datetime.now(UTC):%Y%m%dT%H%M%SZ}/"
    ended = threading.Event()
    with ray_nodes(NODES) as cluster:
        executor = ExecutorOptions(name="ray", address=cluster.address)

        def kill_one() -> None:
            while not ended.wait(0.5):
                if sum(1 for _ in storage().list(layout.images_folder(folder))) >= DREAMS_BEFORE_FAILURE:
                    cluster.nodes[-1].kill()
                    on_failure(cluster.nodes[-1].host)
                    return

        threading.Thread(target=kill_one, daemon=True).start()
        try:
            yield job.model_copy(update={"destination": folder, "executor": executor})
        finally:
            ended.set()
