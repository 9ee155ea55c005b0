"""The units of work: one photograph, one point of the grid, and a shard of them."""

from dataclasses import dataclass

from dreamcore.settings import DreamSettings, digest
from dreamcore.targets import Frozen


@dataclass(frozen=True, slots=True)
class Source:
    """One photograph: one version of one object."""

    uri: str
    name: str
    """Its key below the source prefix: the end of its address."""
    etag: str
    size: int
    """Bytes."""


class PlannedSettings(Frozen):
    """One point of the grid, ready to be dreamt."""

    settings: DreamSettings
    settings_id: str
    weights: str
    cost: int
    """Multiply-adds of one forward pass for each pixel of the picture."""


@dataclass(frozen=True, slots=True)
class Work:
    """One photograph and the settings, by their index in the run, under which a shard dreams it."""

    source: Source
    settings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """The work of one task."""

    number: int
    works: tuple[Work, ...]

    @property
    def dreams(self) -> int:
        """How many rows the shard's part of the manifest will have."""
        return sum(len(work.settings) for work in self.works)


def dream_key(source_uri: str, etag: str, settings_id: str) -> int:
    """Identity of one dream in a destination, in 8 bytes; the manifest holds exactly one row for each."""
    return int(digest(source_uri, etag, settings_id), 16)
