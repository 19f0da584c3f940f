"""Temperature schedules of the tempered sigmoid: from `start` down to `end` as training progresses from 0 to 1."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TemperatureSchedule:
    """Temperatures are those of sigmoid(logit / temperature): the lower, the steeper. Both ends are positive."""

    start: float = 1.0
    end: float = 0.0005

    def __call__(self, progress: float) -> float:
        """Temperature at a progress between 0 and 1."""
        raise NotImplementedError


class Exponential(TemperatureSchedule):
    """The same factor at every step: the slope of the sigmoid grows steadily on a logarithmic scale."""

    def __call__(self, progress: float) -> float:
        return self.start * (self.end / self.start) ** progress


class Linear(TemperatureSchedule):
    """The same difference at every step: the slope grows slowly at first and very fast in the end."""

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


class Cosine(TemperatureSchedule):
    """Half a cosine wave: flat at both ends, so the sigmoid is steep for longer than under `Linear`."""

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
