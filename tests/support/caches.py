"""Reset what a process caches between reads."""

from flows import assets
from flows.storage import storage as patient_storage


def another_process() -> None:
    """What a process has read is forgotten."""
    for remembered in (assets._digest, assets.load_picture, assets._load_network_with, patient_storage):
        remembered.cache_clear()
