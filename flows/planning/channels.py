"""Which channels each photograph of a run excites most or least, for sweeps such as `blocks.4:top16`.

The settings of such a run are those of every channel of the layer. Before the plan is made, the photographs are
measured one after the other, and each gets the dreams of its own channels. The frozen plan keeps the choice.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.fields import Reference
from dreamcore.images import Photograph
from dreamcore.sweeps import Ranking
from flows.decoding import decoder
from flows.destination.history import contains_each
from flows.jobs.assets import network_for
from flows.jobs.noise_source import noise_photograph, noise_size
from flows.jobs.plan import IsDone, Sources
from flows.jobs.work import Keys, PlannedSettings, Source, dream_keys
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3.storage import Storage

__all__ = ["MAX_PHOTOGRAPHS", "TooManyPhotographs", "unwanted_dreams", "without"]

MAX_PHOTOGRAPHS = 1000
"""Largest number of photographs that are measured for a run."""
PIXELS = 2**18
"""Largest number of pixels of the copies that are measured. Networks scale them to their training size."""
READERS = 4

_log = logging.getLogger(__name__)

_Network = tuple[str, Reference | None]
"""The model and the custom weights of settings."""
_Chosen = Mapping[tuple[_Network, Ranking], frozenset[int]]
"""The channels of one photograph by network and ranking."""


class TooManyPhotographs(InvalidInput):
    """A sweep such as `top16` has more than `MAX_PHOTOGRAPHS` photographs to measure."""


def unwanted_dreams(sources: Sources, settings: Sequence[PlannedSettings], store: Storage) -> Keys:
    """Return the `dream_key`s of all pairs of a photograph and settings whose channel is not in its ranking.

    A photograph that cannot be measured gets the first channels of the layer. Its dreams fail with the reason.

    Args:
        sources: the photographs. They are read and decoded if some settings have ranks.
        settings: the settings of the run.
        store: access to S3.

    Returns:
        Sorted keys; none if no settings have ranks.

    Raises:
        TooManyPhotographs: there are more than `MAX_PHOTOGRAPHS`.
        Unavailable: S3 failed.
    """
    swept = [planned for planned in settings if planned.ranks]
    if not swept:
        return np.empty(0, np.uint64)
    if len(sources) > MAX_PHOTOGRAPHS:
        raise TooManyPhotographs(
            f"top and weakest channels are chosen for at most {MAX_PHOTOGRAPHS:,} photographs, and the source has "
            f"{len(sources):,}: name the channels, or give a smaller source"
        )
    _log.info("measuring %d photographs to choose their channels", len(sources))
    keys = [
        dream_keys(repeat(source.uri), repeat(source.etag), _unwanted(own, chosen))
        for source, own, chosen in _measured(sources, swept, store)
    ]
    return np.sort(np.concatenate(keys)) if keys else np.empty(0, np.uint64)


def without(unwanted: Keys, is_done: IsDone) -> IsDone:
    """Return an `IsDone` for a plan that leaves out the `unwanted` dreams."""

    def is_left_out(keys: Keys) -> NDArray[np.bool_]:
        return np.logical_or(is_done(keys), contains_each(unwanted, keys))

    return is_left_out if len(unwanted) else is_done


def _unwanted(swept: Sequence[PlannedSettings], chosen: _Chosen) -> Iterator[str]:
    """Yield the `settings_id`s of the settings that are not for a photograph with the `chosen` channels."""
    for planned in swept:
        network = _network(planned)
        if not any(rank.channel in chosen[network, rank.ranking] for rank in planned.ranks):
            yield planned.settings_id


def _network(planned: PlannedSettings) -> _Network:
    return planned.settings.model, planned.settings.weights


def _pictures(sources: Sources, swept: Sequence[PlannedSettings]) -> Iterator[tuple[Source, Sequence[PlannedSettings]]]:
    """Yield each photograph with all settings, and noise with those of each seed, for which it is another picture."""
    for source in sources:
        if noise_size(source.uri):
            by_seed = defaultdict[int, list[PlannedSettings]](list)
            for planned in swept:
                by_seed[planned.settings.seed].append(planned)
            yield from ((source, own) for own in by_seed.values())
        else:
            yield source, swept


def _measured(
    sources: Sources, swept: Sequence[PlannedSettings], store: Storage
) -> Iterator[tuple[Source, Sequence[PlannedSettings], _Chosen]]:
    """Yield each photograph with its settings, and with its channels by network and ranking."""
    from dreamcore.ranking import ranked_channels  # imports torch, which a run without such sweeps does not need
    from dreamcore.results import to_tensor

    owners = {_network(planned): planned.settings for planned in swept}
    wanted = list(dict.fromkeys((_network(planned), rank.ranking) for planned in swept for rank in planned.ranks))
    # On the CPU, so that the choice depends on no GPU, and so that no worker has to share its GPU.
    networks = {network: network_for(settings, "cpu") for network, settings in owners.items()}
    first = {(network, ranking): frozenset(range(ranking.size)) for network, ranking in wanted}
    with thread_pool(READERS) as readers:
        pictures = _pictures(sources, swept)
        loaded = ordered_prefetch(readers, lambda each: (*each, _load(*each, store)), pictures, READERS)
        for source, own, photograph in loaded:
            if photograph is None:
                yield source, own, first
                continue
            image = to_tensor(photograph.pixels)[0]
            chosen = {
                (network, ranking): frozenset(ranked_channels(networks[network], image, ranking))
                for network, ranking in wanted
            }
            yield source, own, chosen


def _load(source: Source, settings: Sequence[PlannedSettings], store: Storage) -> Photograph | None:
    """Return a small copy of a photograph, or noise for the seed of the settings; None if it cannot be read."""
    if noise_size(source.uri):
        return noise_photograph(source.uri, settings[0].settings.seed)
    if source.size > decoder.MEMORY:
        return None
    try:
        return decoder.decode(store.read_version(source.uri, source.etag), max_pixels=PIXELS)
    except ImageError:
        return None
