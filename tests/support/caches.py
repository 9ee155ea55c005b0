"""Clear the caches of a process."""

from flows.jobs import assets
from flows.s3.storage import storage as default_storage


def clear_caches() -> None:
    """Forget the files and networks that this process has read, as a new process would."""
    for cached in (assets._sha256, assets.load_image, assets._load_network_with, default_storage):
        cached.cache_clear()
