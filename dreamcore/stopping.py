"""The end of an octave before its last step: the setting `stop_at`."""

from collections.abc import Callable

from torch import Tensor

__all__ = ["Stopping"]

GPU_INTERVAL = 8
"""On a GPU, the number of steps from one check to the next: to know that all samples have stopped, the CPU has to wait.
The steps until then change nothing."""


class Stopping:
    """Which samples of a batch still take steps in an octave, and whether any of them does.

    A sample takes no step after its score has passed `stop_at`. Its image does not change any more.

    Args:
        stop_at: the limit (B, 1, 1, 1) of the score of each sample; None: all samples take all steps.
        active: ones (B, 1, 1, 1), on the device of the scores.

    Example:
        >>> import torch
        >>> stopping = Stopping(torch.tensor([2.0, torch.inf]), torch.ones(2))
        >>> stopping.update(lambda: torch.tensor([2.5, 2.5]))
        >>> stopping.active, stopping.is_over(1)
        (tensor([0., 1.]), False)
    """

    def __init__(self, stop_at: Tensor | None, active: Tensor) -> None:
        self._stop_at = stop_at
        self._interval = 1 if active.device.type == "cpu" else GPU_INTERVAL
        self.active = active
        """(B, 1, 1, 1): 1 for the samples that take steps, 0 for those that have stopped."""

    def update(self, scores: Callable[[], Tensor]) -> None:
        """Stop the samples whose scores (B,) have passed `stop_at`. `scores` is called only if a sample may stop."""
        if self._stop_at is not None:
            self.active = self.active * (scores().view_as(self.active) <= self._stop_at)

    def is_over(self, steps: int) -> bool:
        """Return whether all samples are known to have stopped after `steps` steps of the octave."""
        return self._stop_at is not None and steps % self._interval == 0 and not self.active.any()
